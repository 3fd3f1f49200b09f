"""Mechanism probes: what a model believes at each coordinate, and what it does with a box that it did not begin."""
