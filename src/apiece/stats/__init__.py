"""Statistics: ratios counted by image, the draws over them, and the intervals that every command reports."""

DRAWS = 1000  # of every bootstrap; here, where a command can read it without loading numpy
