"""Imports every command module, which registers its commands on the app."""

from __future__ import annotations

from apiece.cli import (
    compare,
    config,
    data,
    demo,
    diagnose,
    env,
    evaluate,
    ladder,
    model,
    plan,
    predict,
    report,
    scenes,
    train,
)

__all__ = [
    "compare",
    "config",
    "data",
    "demo",
    "diagnose",
    "env",
    "evaluate",
    "ladder",
    "model",
    "plan",
    "predict",
    "report",
    "scenes",
    "train",
]
