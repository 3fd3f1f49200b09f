"""apiece: train vision-language models to detect by writing coordinate tokens, and see why they fail in crowds."""

__version__ = "0.1.0"
