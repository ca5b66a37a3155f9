"""Does a bisect find the version in which a slow-down was planted?

    python benchmarks/bisecting.py
    python benchmarks/bisecting.py --tries 3 --versions 32

Makes the wheels of a distribution with many releases, puts them on an index of their own, and lets `harness bisect`
search among them: ONNX Runtime runs beside each of them, and from a chosen release on every iteration is lengthened by
10 to 20 %. All is real but that: environments, workers, samples, noise. Exit code 1 unless every try finds exactly that
release in at most log2(n) + 3 measurements.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
PLUGINS = ROOT / "benchmarks" / "plugins"
DISTRIBUTION, MODULE, BACKEND = "harness-planted", "harness_planted", "onnxruntime-planted"
LEAST, MOST = 10.0, 20.0
"""Percent by which an iteration may be lengthened."""


def write_wheel(folder: Path, version: str, percent: float) -> Path:
    """Write a release of the distribution, which holds nothing but by how much it slows down."""
    info = f"{MODULE}-{version}.dist-info"
    files = {
        f"{MODULE}.py": f"PERCENT = {percent!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {DISTRIBUTION}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: harness\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [f"{name},sha256={_digest(text)},{len(text)}" for name, text in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    path = folder / f"{MODULE}-{version}-py3-none-any.whl"
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def _digest(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()


def write_index(folder: Path, releases: dict[str, float]) -> str:
    """Write an index with these releases, version -> percent; return its address."""
    page = folder / DISTRIBUTION
    page.mkdir(parents=True)
    wheels = [write_wheel(page, version, percent).name for version, percent in releases.items()]
    links = "\n".join(f'<a href="{name}">{name}</a><br>' for name in wheels)
    (page / "index.html").write_text(f"<!DOCTYPE html><html><body>\n{links}\n</body></html>\n")
    return folder.as_uri()


def bisect(good: str, bad: str, index: str, scratch: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run one bisect as a user does, and return its JSON."""
    command = [sys.executable, "-m", "harness", "bisect", "--model", options.model, "--backend", BACKEND, "--json"]
    command += ["--good", good, "--bad", bad, "--threads", "1", "--launches", str(options.launches)]
    command += ["--out", str(scratch / "results"), "--store", "none"]
    extra = " ".join(filter(None, [index, os.environ.get("PIP_EXTRA_INDEX_URL")]))
    variables = {"HARNESS_CACHE": str(scratch / "cache"), "PYTHONPATH": str(PLUGINS), "PIP_EXTRA_INDEX_URL": extra}
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True)
    if not done.stdout:
        raise SystemExit(f"harness bisect ended with exit code {done.returncode}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def plant(options: argparse.Namespace) -> tuple[list[tuple[int, float]], dict[str, float]]:
    """Choose for every try where the slow-down begins, and how large it is; return also all releases."""
    drawn = random.Random(options.seed)
    planted = [(drawn.randrange(1, options.versions), drawn.uniform(LEAST, MOST)) for _ in range(options.tries)]
    releases = {
        f"{number}.{version}": percent if version >= at else 0.0
        for number, (at, percent) in enumerate(planted, 1)
        for version in range(options.versions)
    }
    return planted, releases


def judged(number: int, at: int, percent: float, found: dict[str, Any], options: argparse.Namespace) -> tuple[Any, ...]:
    """Return the row of one try; the last cell is whether it is right."""
    wanted = [(f"{number}.{at - 1}", f"{number}.{at}")]
    steps = [(step["before"]["version"], step["after"]["version"]) for step in found["steps"]]
    most = math.log2(options.versions) + 3
    ratios = [math.exp(step["change"]) for step in found["steps"]]
    launches = sum(trial["change"]["values"] for trial in found["trials"])
    right = steps == wanted and found["measurements"] <= most
    return (
        f"{number}.{at}",
        f"{1 + percent / 100:.3f}x",
        ", ".join(after for _, after in steps) or found["outcome"],
        ", ".join(f"{ratio:.3f}x" for ratio in ratios),
        found["measurements"],
        launches,
        right,
    )


def main() -> int:
    """Run from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tries", type=int, default=10, help="bisects (default: %(default)s)")
    parser.add_argument("--versions", type=int, default=16, help="releases in each (default: %(default)s)")
    parser.add_argument("--model", default="gemm", help="what runs (default: %(default)s)")
    parser.add_argument("--launches", type=int, default=3, help="of a measurement at first (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of where and how much (default: %(default)s)")
    options = parser.parse_args()
    if options.tries < 1 or options.versions < 2:
        parser.error("at least one try among two versions is wanted")
    rows = []
    with tempfile.TemporaryDirectory(prefix="harness-bisect-") as folder:
        planted, releases = plant(options)
        index = write_index(Path(folder) / "index", releases)
        for number, (at, percent) in enumerate(planted, 1):
            started = time.perf_counter()
            found = bisect(f"{number}.0", f"{number}.{options.versions - 1}", index, Path(folder), options)
            row = judged(number, at, percent, found, options)
            rows.append((*row[:-1], f"{time.perf_counter() - started:.0f}", row[-1]))
            print(f"try {number}/{options.tries}: {row}", file=sys.stderr, flush=True)
    headers = ["planted in", "planted", "found", "measured", "measurements", "launches", "s", "right"]
    print(tabulate(rows, headers=headers, disable_numparse=True))
    right = sum(row[-1] for row in rows)
    print(
        f"\n{right} of {len(rows)} found exactly the planted release among {options.versions} in at most "
        f"log2({options.versions}) + 3 = {math.log2(options.versions) + 3:.1f} measurements."
    )
    return 0 if right == len(rows) else 1


if __name__ == "__main__":
    sys.exit(main())
