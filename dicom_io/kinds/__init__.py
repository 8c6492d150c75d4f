"""The kinds of result objects."""
