"""Running it day and night: a node that takes studies, has them segmented and delivers the results, and loses none."""
