"""Watching a run: how steady its figures are."""
