"""Run the user's own Python beside ours, though both may have packages of the same everyday names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

import harness

OURS = ("harness", "backends", "models", "reports")
OUR_ROOT = Path(harness.__file__).resolve().parent.parent

_kept: dict[Path, dict[str, ModuleType]] = {}
"""Root -> the user's modules that bear a name of ours: imported once a process, as any module is."""


class _Rivals:
    """A meta path finder that knows the user's packages which are called as ours are."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        self._root, self._names = root, names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [str(self._root)]) if name in self._names else None


@contextmanager
def user_code(root: Path) -> Iterator[None]:
    """Work in the user's folder, and let its packages win every import, while the block runs.

    Afterwards our packages answer for their names again. The user's modules stay loaded, those below a package of one
    of our names too, and the folder stays on the path, last: code that imports late finds what it did not import yet.
    Only a late import of a package called as one of ours, or of a part of it that was not loaded yet, finds ours.
    """
    rivals = [name for name in OURS if _is_there(root, name)]
    kept = _kept.setdefault(root, {})
    ours = {key: module for key, module in sys.modules.items() if key.partition(".")[0] in rivals}
    for key in {**ours, **kept}:
        sys.modules.pop(key, None)
    sys.modules.update(kept)
    finder = _Rivals(root, rivals)
    sys.meta_path.insert(0, finder)
    before = list(sys.path)
    sys.path.insert(0, str(root))
    folder = os.getcwd()
    os.chdir(root)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        with suppress(OSError):  # the folder may have been removed meanwhile
            os.chdir(folder)
        sys.meta_path.remove(finder)
        added = [entry for entry in sys.path if entry not in before and entry != str(root)]
        sys.path[:] = [*added, *before, *([] if str(root) in before else [str(root)])]
        kept.update({key: module for key, module in sys.modules.items() if key.partition(".")[0] in rivals})
        for name in rivals:
            sys.modules.pop(name, None)
        sys.modules.update(ours)


def files_below(root: Path) -> list[str]:
    """Return the source files below a folder of all modules that are loaded, installed packages and ours left out."""
    found = set()
    for module in [*sys.modules.values(), *_kept.get(root, {}).values()]:
        name = getattr(module, "__file__", None)
        if not isinstance(name, str):
            continue
        path = Path(name).resolve()
        if not path.is_relative_to(root.resolve()) or "site-packages" in path.parts or not path.is_file():
            continue
        if path.is_relative_to(OUR_ROOT) and path.relative_to(OUR_ROOT).parts[0] == "harness":
            continue
        found.add(str(path))
    return sorted(found)


def _is_there(root: Path, name: str) -> bool:
    spec = PathFinder.find_spec(name, [str(root)])
    if spec is None:
        return False
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()]
    return (OUR_ROOT / name) not in places
