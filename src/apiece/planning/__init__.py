"""What a run will need, worked out from shapes before anything is loaded. Needs no torch."""
