"""Files to slices: what a series is, where its slices lie, and what values they hold."""
