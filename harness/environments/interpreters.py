"""What an interpreter must have so that a worker can run in it, and what one has."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from harness.errors import UsageError

CORE = ("msgspec>=0.19", "numpy", "safetensors>=0.5")
"""All that the light core imports in a worker: the protocol, arrays, and the files in which tensors travel.

What names a version is harness' own need. What does not is the backend's business: it must fit the release.
"""
OLDEST = (3, 10)
USABLE = [(3, minor) for minor in range(10, 20)]
"""Versions of Python that a worker can run in, and some that are still to come."""
ANSWER_WITHIN_S = 60.0

_QUESTION = """
import importlib.metadata, json, platform, sys
packages = {}
for one in importlib.metadata.distributions():
    packages.setdefault((one.metadata["Name"] or "").lower().replace("_", "-"), one.version)
print(json.dumps({
    "version": platform.python_version(),
    "minor": list(sys.version_info[:2]),
    "platform": f"{platform.python_implementation()} {platform.machine()} {sys.platform}",
    "packages": packages,
}))
"""


@dataclass(frozen=True, kw_only=True)
class About:
    """An interpreter, as it tells of itself."""

    python: Path
    version: str
    minor: tuple[int, int]
    platform: str
    packages: dict[str, str]

    def lacks(self, needed: Sequence[str]) -> list[str]:
        """Return those of the requirements that it does not fulfil."""
        from packaging.requirements import Requirement

        lacking = []
        for text in needed:
            need = Requirement(text)
            there = self.packages.get(need.name.lower().replace("_", "-"))
            if there is None or not need.specifier.contains(there, prereleases=True):
                lacking.append(text)
        return lacking


class _Answer(msgspec.Struct):
    version: str
    minor: tuple[int, int]
    platform: str
    packages: dict[str, str]


@functools.cache
def ask(python: Path) -> About:
    """Ask an interpreter what it is and what it has.

    Raises:
        UsageError: It does not run, or is older than a worker can be.
    """
    try:
        # Isolated, as to variables that are for the running interpreter and to the working folder.
        done = subprocess.run(
            [str(python), "-I", "-c", _QUESTION], capture_output=True, text=True, timeout=ANSWER_WITHIN_S, check=True
        )
        answer = msgspec.json.decode(done.stdout, type=_Answer)
    except OSError as exc:
        raise UsageError(f"{python} cannot be run: {exc.strerror}", hint="--python BACKEND=/path/to/python") from exc
    except (subprocess.SubprocessError, msgspec.DecodeError) as exc:
        raise UsageError(f"{python} is not a Python interpreter", hint="--python BACKEND=/path/to/python") from exc
    if answer.minor < OLDEST:
        raise UsageError(f"{python} is Python {answer.version}; workers need {OLDEST[0]}.{OLDEST[1]} or newer")
    return About(python=python, **msgspec.structs.asdict(answer))
