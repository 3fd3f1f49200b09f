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
    export,
    ladder,
    model,
    plan,
    predict,
    replay,
    report,
    scenes,
    train,
    view,
)

__all__ = [
    "compare",
    "config",
    "data",
    "demo",
    "diagnose",
    "env",
    "evaluate",
    "export",
    "ladder",
    "model",
    "plan",
    "predict",
    "replay",
    "report",
    "scenes",
    "train",
    "view",
]
