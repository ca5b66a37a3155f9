"""Reference models: the facts that they state about themselves, torchvision's names, and the same again for a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from harness import registry
from harness.api import ReferenceModel

torch = pytest.importorskip("torch")

if TYPE_CHECKING:
    Module = Any

MODELS = [pytest.param(registry.model(name), id=name) for name in registry.MODELS]


def built(model: ReferenceModel, seed: int = 0) -> Module:
    torch.manual_seed(seed)
    return model.build()


def run(module: Module, inputs: dict[str, np.ndarray]) -> list[Any]:
    with torch.inference_mode():
        result = module(*[torch.from_numpy(array) for array in inputs.values()])
    return list(result) if isinstance(result, (tuple, list)) else [result]


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_those_of_the_module(model: ReferenceModel) -> None:
    assert sum(parameter.numel() for parameter in built(model).parameters()) == model.parameters


@pytest.mark.parametrize("model", MODELS)
def test_gflop_is_what_torch_counts(model: ReferenceModel) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    module = built(model)
    with FlopCounterMode(display=False) as counter:
        run(module, model.example_inputs(batch=1, seed=0))
    assert model.gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)


@pytest.mark.parametrize("model", MODELS)
def test_same_seed_same_weights(model: ReferenceModel) -> None:
    first, again, other = (built(model, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("model", MODELS)
def test_inputs_are_reproducible_and_follow_the_seed(model: ReferenceModel) -> None:
    first, again, other = (model.example_inputs(batch=2, seed=seed) for seed in (3, 3, 4))
    for name, array in first.items():
        assert array.shape[0] == 2
        assert array.dtype != np.float64, "reference models run in float32"
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(array, again[name])
        assert not np.array_equal(array, other[name])


@pytest.mark.parametrize("model", MODELS)
def test_outputs_are_named_finite_and_follow_the_batch(model: ReferenceModel) -> None:
    module = built(model)
    assert not module.training
    outputs = run(module, model.example_inputs(batch=2, seed=0))
    assert len(outputs) == len(model.output_names)
    for output in outputs:
        assert output.shape[0] == 2
        assert torch.isfinite(output).all()
        assert not torch.equal(output[0], output[1]), "items of a batch are told apart"


@pytest.mark.parametrize("model", MODELS)
def test_items_of_a_batch_do_not_see_each_other(model: ReferenceModel) -> None:
    module = built(model)
    inputs = model.example_inputs(batch=2, seed=0)
    together = run(module, inputs)
    alone = run(module, {name: array[1:] for name, array in inputs.items()})
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, rtol=1e-3, atol=1e-4)


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
    state = built(registry.model("resnet50")).state_dict()
    assert len(state) == 320
    assert next(iter(state)) == "conv1.weight"
    assert list(state)[-2:] == ["fc.weight", "fc.bias"]
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == resnet50_keys()
    assert sorted(key for key in state if "downsample" in key and key.endswith("0.weight")) == [
        f"layer{layer}.0.downsample.0.weight" for layer in range(1, 5)
    ]


def test_resnet50_is_version_1_5() -> None:
    # The stride sits in the 3x3 convolution, not in the first 1x1 as in the paper: torchvision's weights need it.
    module = built(registry.model("resnet50"))
    for layer, stride in ((module.layer1, 1), (module.layer2, 2), (module.layer3, 2), (module.layer4, 2)):
        block = layer[0]
        assert [convolution.stride for convolution in (block.conv1, block.conv2, block.conv3)] == [
            (1, 1),
            (stride, stride),
            (1, 1),
        ]
        assert block.downsample[0].stride == (stride, stride)


def test_resnet50_total() -> None:
    assert registry.model("resnet50").parameters == 25_557_032
