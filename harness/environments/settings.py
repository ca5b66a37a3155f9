"""Where packages come from: as the user configured uv, or else as the user configured pip.

uv reads its own variables and files by itself, and none of pip's. A company's mirror is mostly known to pip.
"""

from __future__ import annotations

import configparser
import os
import sys
from collections.abc import Mapping
from pathlib import Path

INDEX, EXTRA, LINKS, CONSTRAINTS, HOSTS = "index-url", "extra-index-url", "find-links", "constraint", "trusted-host"
VARIABLES: Mapping[str, tuple[str, str]] = {
    INDEX: ("UV_DEFAULT_INDEX", " "),
    EXTRA: ("UV_INDEX", " "),
    LINKS: ("UV_FIND_LINKS", ","),
    CONSTRAINTS: ("UV_CONSTRAINT", " "),
    HOSTS: ("UV_INSECURE_HOST", " "),
}
"""pip's setting -> uv's variable of the same meaning, and what separates several values in it."""
UVS_OWN = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE")
FILE = "pip.conf"


def variables() -> dict[str, str]:
    """Return the environment variables that tell uv what it does not know of the user's settings by itself."""
    told = {"UV_PYTHON_DOWNLOADS": "never", "UV_NO_PROGRESS": "1"}
    if _knows_uv():
        return told
    found = pips()
    for setting, (variable, separator) in VARIABLES.items():
        if values := found.get(setting):
            told[variable] = separator.join(values)
    if EXTRA in found:  # pip takes the newest of all indexes, uv by itself what the first index has
        told["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    return told


def _knows_uv() -> bool:
    if any(os.environ.get(name) for name in UVS_OWN):
        return True
    from platformdirs import site_config_path, user_config_path

    folders = (user_config_path("uv"), site_config_path("uv"), Path("/etc/uv"))
    return any((folder / "uv.toml").is_file() for folder in folders)


def pips() -> dict[str, list[str]]:
    """Return what pip's files and variables say of where packages come from: setting -> its values."""
    found: dict[str, list[str]] = {}
    for path in _files():
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError):
            continue  # pip itself says so, loudly
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= {name.replace("_", "-"): text.split() for name, text in parser.items(section)}
    for setting in VARIABLES:
        if text := os.environ.get("PIP_" + setting.upper().replace("-", "_")):
            found[setting] = text.split()
    return {setting: found[setting] for setting in VARIABLES if found.get(setting)}


def _files() -> list[Path]:
    """Return pip's configuration files in the order in which they are read: a later one overrides."""
    from platformdirs import site_config_dir, user_config_path

    own = os.environ.get("PIP_CONFIG_FILE")
    if own == os.devnull:
        return []
    site = [Path(folder) / FILE for folder in site_config_dir("pip", multipath=True).split(os.pathsep)]
    user = [Path.home() / ".pip" / FILE, user_config_path("pip") / FILE]
    return [*site, Path("/etc") / FILE, *user, Path(sys.prefix) / FILE, *([Path(own)] if own else [])]
