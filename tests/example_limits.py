"""An example run on a machine whose ceilings are known, one of whose figures cannot be."""

from __future__ import annotations

import msgspec

from harness.records import Ceiling
from harness.summary import RunSummary
from tests.example_runs import case, model_info, row, single, stages


def limits() -> RunSummary:
    """Return two sound cases and one that ran faster than the machine can."""
    near = row(case("onnxruntime", stages=stages(0.4, 0.1, 0.02)), p50=58.4, compared=(0.61, 0.6, 0.62, "FASTER"))
    far = row(case("eager", stages=stages(0.001, 0.9, 0.1)), p50=95.6)
    wrong = row(case("tvm", stages=stages(800, 0.2, 0.07)), p50=31.2, compared=(0.33, 0.32, 0.34, "FASTER"))
    rows = [
        msgspec.structs.replace(
            wrong,
            bound_by="compute",
            limit_share=1.47,
            cautions=("it ran at 147 % of the fastest that cpu can multiply matrices: something is wrong",),
        ),
        msgspec.structs.replace(near, bound_by="compute", limit_share=0.7848),
        msgspec.structs.replace(far, bound_by="compute", limit_share=0.4794),
    ]
    made = single(
        rows,
        info=model_info(least_bytes=102_800_000),
        baseline="eager",
        closing="onnxruntime ran 1.64x faster than eager.",
    )
    known = Ceiling(
        device="cpu",
        name="AMD EPYC 7543 32-Core Processor",
        threads=2,
        matrix={"fp32": 178.9e9, "bf16": 396.1e9},
        memory=[(1 << 20, 152.6e9), (1 << 28, 18.1e9)],
        source="measured with torch 2.13.0 at 2026-03-01T09:00:00+00:00",
    )
    return msgspec.structs.replace(made, run=msgspec.structs.replace(made.run, ceilings=[known]))
