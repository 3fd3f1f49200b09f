"""Imports every command module, which registers its commands on the app, and adds those of other packages."""

from __future__ import annotations

from apiece.cli import (
    app,
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
    train,
)
from apiece.plugins import COMMANDS, plugins

for _entry in plugins(COMMANDS):
    _entry.load()(app)

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
    "train",
]
