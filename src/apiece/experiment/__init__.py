"""Ladders: arms x seeds from one start, trained, probed and judged alike, and the tables that come of it."""
