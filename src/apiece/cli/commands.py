"""Imports every command module, which registers its commands on the app."""

from apiece.cli import (  # noqa: F401
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
