"""What a run leaves to be looked at: its folder, dumps and records as data. Needs no torch."""
