"""Crowd scenes with complete truth: drawn images in which it is known what an annotator left out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apiece_scenes.layouts import Family
    from apiece_scenes.scene import ALL, Scene, SceneSettings, generate_scene, split_families
    from apiece_scenes.sprites import CLASSES
    from apiece_scenes.write import Written, write_scenes

__all__ = [
    "ALL",
    "CLASSES",
    "Family",
    "Scene",
    "SceneSettings",
    "Written",
    "generate_scene",
    "split_families",
    "write_scenes",
]
_HOMES = {"CLASSES": "sprites", "Family": "layouts", "Written": "write", "write_scenes": "write"}


def __getattr__(name: str) -> Any:
    # Every start of the command line imports this package, and no drawing code.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'scene')}"), name)
