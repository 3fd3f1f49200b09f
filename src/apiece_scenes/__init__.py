"""Crowd scenes with complete truth: drawn images in which it is known what an annotator left out."""

from __future__ import annotations

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
