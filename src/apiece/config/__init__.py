"""Settings: documented models, and the loader that finds every mistake at once."""

from apiece.config import rules as rules  # registers the rules, whichever module is imported first
