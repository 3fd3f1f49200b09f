"""Importing this module registers every command: those of this package's modules, and those of other packages."""

from importlib import import_module
from pkgutil import iter_modules

import apiece.cli
from apiece.plugins import COMMANDS, plugins

for _module in iter_modules(apiece.cli.__path__, "apiece.cli."):
    import_module(_module.name)
for _entry in plugins(COMMANDS):
    _entry.load()(apiece.cli.app)
