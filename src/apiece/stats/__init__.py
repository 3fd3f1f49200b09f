"""Statistics: ratios counted by image, the draws over them, and the intervals that every command reports."""
