"""Settings: models with documentation, and the loader that finds every mistake at once.

The rules about pairs register themselves when they are imported; importing any module of this package imports them.
"""

from __future__ import annotations

from apiece.config import rules
from apiece.config.reference import config_schema, dump_config
from apiece.config.resolve import LoadedConfig, load_config
from apiece.config.schema import Config
from apiece.config.yaml_source import Source

__all__ = ["Config", "LoadedConfig", "Source", "config_schema", "dump_config", "load_config", "rules"]
