"""How long reports of very many cases take: `python benchmarks/large_report.py [--cases 2000] [--chromium PATH]`.

Makes a run of synthetic samples, 20 cases a workload, and renders it in every format; with a Chromium it also opens the
HTML page and says when it was ready to be read. Prints one table.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import msgspec
import numpy as np
from tabulate import tabulate

from harness import registry
from harness.records import CONTROL, Launch, Run, Sitting, Window, Workload
from harness.summarize import summarize
from tests.example_runs import case, full, stages

CASES_A_WORKLOAD = 20
LAUNCHES, ROUNDS, SAMPLES = 5, 10, 20


def synthetic(cases: int) -> Run:
    """Return a run of that many cases with five launches of ten rounds each."""
    rng = np.random.default_rng(0)
    base = full().run
    workloads = [_workload(base.workloads[0], index, rng) for index in range(cases // CASES_A_WORKLOAD)]
    return msgspec.structs.replace(base, workloads=workloads)


def _workload(base: Workload, index: int, rng: np.random.Generator) -> Workload:
    names = ["eager", *(f"onnxruntime:threads={number}" for number in range(1, CASES_A_WORKLOAD))]
    cases = [
        case(name, version="1.0", provider="CPU", stages=stages(number + 0.5, 0.1, 0.02))
        for number, name in enumerate(names)
    ]
    launches = []
    for launch in range(LAUNCHES):
        sittings = []
        for number, name in enumerate([*names, "eager" + CONTROL]):
            level = 1e7 * (1 + 0.1 * (number % CASES_A_WORKLOAD))
            windows = [
                Window(
                    round=round_,
                    position=0,
                    start_ns=0,
                    samples_ns=[int(level * math.exp(noise)) for noise in rng.normal(0, 0.01, SAMPLES)],
                )
                for round_ in range(ROUNDS)
            ]
            sittings.append(
                Sitting(
                    case=name,
                    import_s=1.0,
                    load_s=0.1,
                    first_run_s=0.1,
                    warm_up_ns=[],
                    windows=windows,
                    peak_bytes=10**8,
                )
            )
        launches.append(Launch(index=launch, wall_s=1.0, sittings=sittings))
    return msgspec.structs.replace(
        base, key=f"resnet50 batch={index + 1}", batch=index + 1, cases=cases, launches=launches
    )


def opened(chromium: str, page: Path) -> float:
    """Return the seconds from opening a page until its load event, by the browser's own clock."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(page.as_uri())
        seconds = float(tab.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")) / 1000
        browser.close()
    return seconds


def main() -> None:
    """Print how long everything took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    run = synthetic(options.cases)
    rows: list[tuple[str, float, float | None]] = []
    started = time.perf_counter()
    summary = summarize(run)
    rows.append(("summarize", time.perf_counter() - started, None))
    with tempfile.TemporaryDirectory() as folder:
        for name in registry.report_names():
            started = time.perf_counter()
            text = registry.report(name).render(summary)
            rows.append((f"render {name}", time.perf_counter() - started, len(text) / 1e6))
            (Path(folder) / f"report.{name}").write_text(text)
        if options.chromium:
            rows.append(("open html", opened(options.chromium, Path(folder) / "report.html"), None))
    print(f"{options.cases} cases, {os.cpu_count()} logical cores")
    print(tabulate(rows, headers=["step", "seconds", "MB"], floatfmt=".2f"))


if __name__ == "__main__":
    main()
