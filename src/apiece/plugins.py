"""Parts that other packages add under an entry point: the generator of crowd scenes is one."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from apiece.errors import UserError

COMMANDS = "apiece.commands"  # functions that add a command to the app
LADDER_DATA = "apiece.ladder_data"  # functions that prepare the data of a ladder, by the name of its section


def plugins(group: str) -> list[EntryPoint]:
    """What installed packages offer in a group, by name."""
    return sorted(entry_points(group=group), key=lambda entry: entry.name)


def load_plugin(group: str, name: str) -> Any:
    """One of them, imported; a `UserError` if no installed package offers it."""
    for entry in plugins(group):
        if entry.name == name:
            return entry.load()
    fix = "install apiece again, so that its metadata is current: pip install apiece, or make setup in a checkout"
    raise UserError(f"no installed package offers '{name}' in the group {group}", fix=fix)
