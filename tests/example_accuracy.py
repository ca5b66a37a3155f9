"""An example run with figures of the task, written by hand. Numbers are invented but plausible."""

from __future__ import annotations

import msgspec

from harness.records import Accuracy, Agreement, Failure, Paired
from harness.summary import CaseSummary, RunSummary
from tests.example_runs import case, drift, launches, model_info, row, single, stages


def of_pairs(value: float, paired: Paired | None = None) -> Accuracy:
    """Return the accuracy on a thousand of 1379 pairs of sentences."""
    return Accuracy(dataset="sts-test", samples=1000, of=1379, metrics={"Spearman": value}, paired=paired)


def against_eager(difference: float, low: float, high: float) -> Paired:
    """Return a difference by the bootstrap."""
    return Paired(
        against="eager",
        metric="Spearman",
        difference=difference,
        low=low,
        high=high,
        method="paired bootstrap, 1000 resamples",
    )


LOST = of_pairs(0.8011, against_eager(-0.0192, -0.0251, -0.0133))
CLOSE = of_pairs(0.8202, against_eager(-0.0001, -0.0004, 0.0002))
CRASHED = Accuracy(
    dataset="sts-test",
    samples=1000,
    of=1379,
    failure=Failure(stage="accuracy", message="the worker died of SIGSEGV"),
)


def accuracy() -> RunSummary:
    """Return a run of three precisions on trained weights: one exact, one close, one that loses something."""
    rows = [
        judged("onnxruntime int8", 12.4, 0.9411, 0.9872, distance=9.1e-2, answered=LOST),
        judged("onnxruntime fp16", 30.9, 0.99999, 0.9999, distance=3.1e-4, answered=CLOSE),
        judged("torch-compile", 33.1, 0.99999, 0.9999, distance=3.1e-7, answered=CRASHED),
        judged("eager", 41.2, 1.0, 1.0, distance=0.0),
    ]
    return single(
        rows,
        model="minilm-l6",
        info=model_info(weights="pretrained sentence-transformers/all-MiniLM-L6-v2", reference="PyTorch 2.13.0"),
        weights="pretrained",
        launches=launches([one.case.id for one in rows], 5, 10),
        baseline="eager",
        noise_floor=0.011,
        closing="onnxruntime int8 ran 3.32x faster than eager (99 % interval 3.29 to 3.35).",
    )


def judged(
    name: str, p50: float, cosine: float, ranks: float, *, distance: float, answered: Accuracy | None = None
) -> CaseSummary:
    """Return a row with the agreement of embeddings and the drift of four input sets."""
    of = case(
        name,
        version="2.13.0",
        provider="a provider",
        stages=stages(0.4, 0.1, 0.02),
        drift=[drift(index, relative_l2=distance * (1 + index / 10)) for index in range(4)],
    )
    figures = {"cosine": cosine, "rank correlation": ranks}
    agreement = [
        Agreement(figure=figure, output="sentence_embedding", value=value, items=32)
        for figure, value in figures.items()
    ]
    backend, _, precision = name.partition(" ")
    of = msgspec.structs.replace(
        of,
        backend=backend,
        precision=precision or "fp32",
        agreement=agreement,
        accuracy=answered or of_pairs(0.8203),
    )
    return row(
        of, p50=p50, compared=None if backend == "eager" else (p50 / 41.2, p50 / 42, p50 / 40, "FASTER"), worst=3
    )
