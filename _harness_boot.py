"""Start harness, or one of its workers, with this project's own packages.

`harness`, `backends`, `models` and `reports` are everyday names: a folder of such a name in the working
directory or on PYTHONPATH would win the import. This module's name is not an everyday one; it answers for
the four names before any search path is asked. Workers run this file by its path, because they may belong to
another environment in which harness is not installed.
"""

from __future__ import annotations

import importlib.machinery
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent
OWN = frozenset({"harness", "backends", "models", "reports"})


class OwnPackages:
    """A meta path finder that knows four names and one folder."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find one of our packages in our own folder, and nothing else."""
        return importlib.machinery.PathFinder.find_spec(name, [str(ROOT)]) if name in OWN else None


def install() -> None:
    """Put our packages before all others. Calling it again changes nothing."""
    if OwnPackages not in sys.meta_path:
        sys.meta_path.insert(0, OwnPackages)


def main() -> None:
    """Run the command line interface: the `harness` console script."""
    install()
    from harness.cli import main as run

    run()


def worker() -> None:
    """Run a worker: this file as a script."""
    # Python put this file's folder first. Where that is the site-packages of another environment, its
    # libraries would shadow those of the interpreter that was chosen for this worker.
    if sys.path and Path(sys.path[0]).resolve() == ROOT:
        del sys.path[0]
    install()
    from harness.worker import main as run

    run(sys.argv[1:])


if __name__ == "__main__":
    worker()
