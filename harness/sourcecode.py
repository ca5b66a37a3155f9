"""The source files that a class is made of: what a cache that depends on code looks at."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType


def source_files(kind: type) -> list[Path]:
    """Return the files of a class' module and of what that module imports at its top from its own package."""
    package = kind.__module__.partition(".")[0]
    modules = {kind.__module__}
    for value in vars(sys.modules[kind.__module__]).values():
        name = value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
        if name.startswith(f"{package}."):
            modules.add(name)
    found = [inspect.getsourcefile(sys.modules[name]) for name in sorted(modules) if name in sys.modules]
    return [Path(file) for file in found if file]
