"""Importing this module registers every command: those of this package's modules, and those of other packages."""

from apiece.cli import (  # noqa: F401  # noqa: F401
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
