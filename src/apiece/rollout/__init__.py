"""Answers written by the model itself."""
