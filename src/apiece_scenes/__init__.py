"""Crowd scenes with complete truth: drawn images in which it is known what an annotator left out."""
