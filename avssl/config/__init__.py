"""Configurations: YAML files checked against dataclasses and constructor signatures.

`load_config` reads a file; `build_section` makes what a section such as
``objective: {name: AVID, num_negatives: 1024}`` names, its arguments checked.
"""

from avssl.config.check import Section
from avssl.config.load import config_diff, config_from_dict, config_to_dict, dump_config, load_config
from avssl.config.named import blaming, build_section, check_arguments, resolve_name, resolve_section

__all__ = [
    "Section",
    "blaming",
    "build_section",
    "check_arguments",
    "config_diff",
    "config_from_dict",
    "config_to_dict",
    "dump_config",
    "load_config",
    "resolve_name",
    "resolve_section",
]
