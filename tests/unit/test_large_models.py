"""The large reference models: facts at every size, caches against whole sequences, export, the published names."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from harness import registry
from harness.api import PublicWeights, ReferenceModel
from harness.checkpoints import read_state_dict
from harness.errors import ExportError
from harness.modelspec import ModelSpec
from harness.public import Fetched
from harness.weights import fill

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("diffusers")

if TYPE_CHECKING:
    Module = Any

SIZES = {
    "llama-prefill": ("tiny", "1b", "3b", "8b"),
    "llama-decode": ("tiny", "1b", "3b", "8b"),
    "whisper-large-encoder": ("tiny", "full"),
    "whisper-large-prefill": ("tiny", "full"),
    "whisper-large-decode": ("tiny", "full"),
    "sd15-text-encoder": ("tiny", "full"),
    "sd15-unet": ("tiny", "full"),
    "sd15-vae-decoder": ("tiny", "full"),
    "sd21-unet": ("tiny", "full"),
}
LARGER = {"batch": 2, "sequence": 7, "past": 11}
"""Sizes that are nobody's default."""


def of_size(name: str, size: str = "tiny") -> Any:
    return registry.model(ModelSpec(name=name, options={"size": size}))


ALL = [pytest.param(name, size, id=f"{name}-{size}") for name, sizes in SIZES.items() for size in sizes]
TOYS = [pytest.param(of_size(name), id=name) for name in SIZES]


def dims_of(model: ReferenceModel) -> dict[str, int]:
    return {name: LARGER[name] for name in model.dims}


def built(model: ReferenceModel, seed: int = 0) -> Module:
    torch.manual_seed(seed)
    return model.build(model.dims)


def run(module: Module, inputs: Mapping[str, np.ndarray]) -> list[Any]:
    with torch.inference_mode():
        result = module(*[torch.from_numpy(array) for array in inputs.values()])
    return list(result) if isinstance(result, tuple) else [result]


def distance(got: np.ndarray, expected: np.ndarray) -> float:
    """Return the relative L2 distance."""
    difference = got.astype(np.float64) - expected
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


@pytest.mark.parametrize(("name", "size"), ALL)
def test_facts_are_those_of_the_module(name: str, size: str) -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = of_size(name, size)
    with torch.device("meta"):  # the largest would need 30 GiB
        module = model.build(model.dims)
        inputs = [torch.empty(spec.at(model.dims), dtype=getattr(torch, spec.dtype)) for spec in model.inputs]
    assert sum(parameter.numel() for parameter in module.parameters()) == model.parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    assert model.gflop == pytest.approx(counter.get_total_flops() / 1e9, rel=0.01)
    # One copy of the weights at the least; what is larger than any machine at hand is estimated.
    assert model.memory_gib > model.parameters * 4 / 2**30


@pytest.mark.parametrize("model", TOYS)
def test_outputs_are_named_of_sane_scale_and_the_same_again(model: ReferenceModel) -> None:
    module, dims = built(model), dims_of(model)
    assert not module.training
    inputs = model.example_inputs(dims, seed=1)
    outputs = run(module, inputs)
    assert len(outputs) == len(model.output_names) == len(set(model.output_names))
    for name, output, again in zip(model.output_names, outputs, run(module, inputs), strict=True):
        assert output.dtype == torch.float32
        assert torch.isfinite(output).all()
        assert 1e-2 < output.std() < 10, f"{name}: initialisation leaves nothing to compare"
        assert torch.equal(output, again)
        assert not torch.equal(output[0], output[1]), "items of a batch are told apart"


@pytest.mark.parametrize("model", TOYS)
def test_weights_follow_the_seed(model: ReferenceModel) -> None:
    first, again, other = (built(model, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("model", TOYS)
def test_a_float64_copy_runs(model: ReferenceModel) -> None:
    module, inputs = built(model), model.example_inputs(dims_of(model), seed=1)
    wide = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}
    outputs = run(copy.deepcopy(module).double(), wide)
    for output, expected in zip(run(module, inputs), outputs, strict=True):
        assert expected.dtype == torch.float64
        assert distance(output.numpy(), expected.numpy()) < 1e-5


def onnx_outputs(path: Path, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == list(inputs)
    names = [node.name for node in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def export(model: ReferenceModel, module: Module, path: Path, *, dynamic: bool) -> None:
    inputs = model.example_inputs(dims_of(model), seed=1)
    free = {name: torch.export.Dim(name, min=1, max=64) for name in model.dims}
    shapes: list[Any] = [
        {axis: free[size] for axis, size in enumerate(spec.shape) if isinstance(size, str)} for spec in model.inputs
    ]
    # What `forward(self, ..., *past)` gathers is one argument to torch.export.
    named = sum(not name.startswith("past_key_values") for name in inputs)
    torch.onnx.export(
        module,
        tuple(torch.from_numpy(array) for array in inputs.values()),
        path,
        dynamo=True,
        opset_version=18,
        input_names=list(inputs),
        output_names=list(model.output_names),
        dynamic_shapes=(*shapes[:named], *([tuple(shapes[named:])] if shapes[named:] else [])) if dynamic else None,
        external_data=False,
        verbose=False,
    )


EXPORTS = [
    pytest.param(of_size(name), dynamic, id=f"{name}-{'dynamic' if dynamic else 'static'}")
    for name in SIZES
    for dynamic in (False, True)
    if (name, dynamic) not in {("sd15-unet", False), ("sd21-unet", True)}  # half a minute each, and nearly one graph
]


@pytest.mark.parametrize(("model", "dynamic"), EXPORTS)
def test_the_export_equals_eager(model: ReferenceModel, dynamic: bool, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    module, path = built(model), tmp_path / "model.onnx"
    export(model, module, path, dynamic=dynamic)
    for dims in [dims_of(model), {name: 1 + size // 2 for name, size in dims_of(model).items()}][: 1 + dynamic]:
        inputs = model.example_inputs(dims, seed=2)
        outputs = onnx_outputs(path, inputs)
        assert list(outputs) == list(model.output_names)
        for got, expected in zip(outputs.values(), run(module, inputs), strict=True):
            assert got.shape == tuple(expected.shape)
            assert distance(got, expected.numpy()) <= 1e-3


def after_prefill(prefill: str, decode: str, inputs: dict[str, np.ndarray]) -> tuple[list[Any], list[Any]]:
    """Return what reading a whole sequence gives, and what reading all but its last token and decoding that gives."""
    reader, stepper = of_size(prefill), of_size(decode)
    read, step = built(reader, seed=5), built(stepper, seed=6)
    step.load_state_dict(read.state_dict())
    ids, *others = inputs.values()
    start = dict(zip(inputs, (ids[:, :-1], *others), strict=True))
    cache = dict(zip(reader.output_names, run(read, start), strict=True))
    given: dict[str, np.ndarray] = {}
    for spec in stepper.inputs:
        if spec.name.startswith("past_key_values"):
            given[spec.name] = cache[spec.name.replace("past_key_values", "present")].numpy()
        else:
            past = np.full((len(ids), 1), ids.shape[1] - 1)
            given[spec.name] = past if spec.name == "position_ids" else np.ascontiguousarray(ids[:, -1:])
    stepped = dict(zip(stepper.output_names, run(step, given), strict=True))
    whole = dict(zip(reader.output_names, run(read, inputs), strict=True))
    return [whole[name] for name in stepped], list(stepped.values())


@pytest.mark.parametrize("family", ["llama", "whisper-large"])
def test_a_decode_step_equals_a_prefill_of_one_more_token(family: str) -> None:
    inputs = of_size(f"{family}-prefill").example_inputs({"batch": 2, "sequence": 12}, seed=1)
    whole, stepped = after_prefill(f"{family}-prefill", f"{family}-decode", inputs)
    for expected, got in zip(whole, stepped, strict=True):  # logits, then the grown cache
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama-decode", "whisper-large-decode"])
def test_every_input_of_a_decode_step_matters(name: str) -> None:
    model = of_size(name)
    module, dims = built(model), dims_of(model)
    inputs = model.example_inputs(dims, seed=1)
    assert (inputs["position_ids"] == dims["past"]).all()
    logits = run(module, inputs)[0]
    for key, array in inputs.items():
        changed = (array + 1) % 64 if array.dtype == np.int64 else array[:, :, ::-1] + np.float32(0.5)
        other = run(module, {**inputs, key: np.ascontiguousarray(changed)})[0]
        assert not torch.allclose(logits, other, atol=1e-6), f"{key} has no effect"


def test_a_prompt_is_read_causally() -> None:
    model = of_size("llama-prefill")
    module = built(model)
    inputs = model.example_inputs({"batch": 1, "sequence": 9}, seed=1)
    changed = inputs["input_ids"].copy()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    before, after = run(module, inputs), run(module, {"input_ids": changed})
    assert not torch.allclose(before[0], after[0])
    for cached, other in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(cached[:, :, :-1], other[:, :, :-1])


@pytest.mark.parametrize(("name", "dims"), [("prefill", {"sequence": 193}), ("decode", {"past": 192})])
def test_whisper_says_where_its_positions_end(name: str, dims: dict[str, int]) -> None:
    model = of_size(f"whisper-large-{name}")
    with pytest.raises(ExportError, match="positions for 192 tokens, not for 193"):
        model.build({"batch": 1, **dims})


# What the libraries themselves write and compute is what a published checkpoint holds and means.


def published(library: Module, folder: Path) -> dict[str, Any]:
    """Return the tensors that a library's own module writes to disk."""
    library.save_pretrained(folder)
    tensors: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= read_state_dict(path)
    return tensors


def filled(model: Any, tensors: Mapping[str, Any]) -> Module:
    module = built(model, seed=9)
    fill(module, model.own_names(tensors) if hasattr(model, "own_names") else tensors, model.name)
    return module


def only(outputs: list[Any]) -> Any:
    assert len(outputs) == 1
    return outputs[0]


@pytest.mark.parametrize("tied", [True, False])
def test_llama_takes_the_published_names(tied: bool, tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    from models.llama import _config

    model = of_size("llama-prefill")
    model._shape = msgspec.structs.replace(model._shape, tied=tied)  # of the sizes with a layer of their own: 8b
    library = LlamaForCausalLM(_config(model._shape)).eval()
    tensors = published(library, tmp_path)
    assert ("lm_head.weight" in tensors) is not tied
    assert set(filled(model, tensors).state_dict()) == set(tensors)
    inputs = model.example_inputs({"batch": 2, "sequence": 5}, seed=1)
    with torch.inference_mode():
        expected = library(torch.from_numpy(inputs["input_ids"])).logits[:, -1:]
    torch.testing.assert_close(run(filled(model, tensors), inputs)[0], expected)


def test_llama_in_parts_is_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    model = of_size("llama-prefill")
    state = built(model, seed=7).state_dict()
    names = list(state)
    for part, keys in enumerate((names[:5], names[5:])):
        save_file({key: state[key] for key in keys}, tmp_path / f"{part}.safetensors")
    parts = tuple(PublicWeights(repository="o/n", file=f"{part}.safetensors", licence="none") for part in range(2))
    model._shape = msgspec.structs.replace(model._shape, public=parts)
    monkeypatch.setattr(
        "harness.public.fetch", lambda part: Fetched(path=tmp_path / part.file, revision=None, sha256="")
    )
    loaded = model.load_public(model.dims).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())


def test_whisper_takes_its_halves_of_the_published_checkpoint(tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    from models.whisper import _config

    encoder, prefill = of_size("whisper-large-encoder"), of_size("whisper-large-prefill")
    library = WhisperForConditionalGeneration(_config(prefill._shape)).eval()
    tensors = published(library, tmp_path)
    sound = encoder.example_inputs({"batch": 2}, seed=1)
    states = only(run(filled(encoder, tensors), sound))
    prompt = prefill.example_inputs({"batch": 2, "sequence": 4}, seed=1)["decoder_input_ids"]
    logits = run(filled(prefill, tensors), {"decoder_input_ids": prompt, "encoder_hidden_states": states.numpy()})[0]
    with torch.inference_mode():
        expected = library(
            torch.from_numpy(sound["input_features"]), decoder_input_ids=torch.from_numpy(prompt)
        ).logits[:, -1:]
    torch.testing.assert_close(logits, expected)


def test_the_text_encoder_takes_the_published_names() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    model = of_size("sd15-text-encoder")
    library = CLIPTextModel(CLIPTextConfig(**model._config())).eval()
    # The published file is of the time when all lay in a `text_model`, and keeps the constant positions.
    tensors = {f"text_model.{name}": tensor for name, tensor in library.state_dict().items()}
    tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    inputs = model.example_inputs({"batch": 2}, seed=1)
    with torch.inference_mode():
        expected = library(torch.from_numpy(inputs["input_ids"])).last_hidden_state
    torch.testing.assert_close(only(run(filled(model, tensors), inputs)), expected)


@pytest.mark.parametrize("name", ["sd15-unet", "sd21-unet"])
def test_a_unet_takes_the_published_names(name: str, tmp_path: Path) -> None:
    from diffusers import UNet2DConditionModel

    model = of_size(name)
    library = UNet2DConditionModel.from_config(dict(built(model).config)).eval()
    inputs = model.example_inputs({"batch": 2}, seed=1)
    with torch.inference_mode():
        expected = library(*[torch.from_numpy(array) for array in inputs.values()]).sample
    torch.testing.assert_close(only(run(filled(model, published(library, tmp_path)), inputs)), expected)


@pytest.mark.parametrize("old", [False, True], ids=["new-names", "old-names"])
def test_the_vae_decoder_takes_its_half_of_the_published_checkpoint(old: bool, tmp_path: Path) -> None:
    from models.stable_diffusion import _autoencoder

    model = of_size("sd15-vae-decoder")
    library = _autoencoder(tiny=True).eval()
    tensors = published(library, tmp_path)
    assert any(name.startswith("encoder.") for name in tensors)
    if old:
        for new, former in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            tensors = {name.replace(f".{new}.", f".{former}."): tensor for name, tensor in tensors.items()}
        assert "decoder.mid_block.attentions.0.proj_attn.weight" in tensors
    inputs = model.example_inputs({"batch": 2}, seed=1)
    with torch.inference_mode():
        expected = library.decode(torch.from_numpy(inputs["latent_sample"])).sample
    torch.testing.assert_close(only(run(filled(model, tensors), inputs)), expected)


def test_a_part_is_loaded_out_of_the_published_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models.stable_diffusion import _autoencoder

    library = _autoencoder(tiny=True)
    tensors = published(library, tmp_path)
    (path,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr("harness.weights.fetch", lambda _: Fetched(path=path, revision=None, sha256=""))
    model = of_size("sd15-vae-decoder")
    model.public = of_size("sd15-vae-decoder", "full").public
    state = model.load_public(model.dims).state_dict()
    assert state
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in state.items())


@pytest.mark.parametrize("name", SIZES)
def test_without_a_network_the_file_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def nobody(*_: object, **__: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", nobody)
    model = of_size(name, "3b" if "llama" in name else "full")
    with pytest.raises(ExportError, match=f"cannot reach {model.public.repository}") as raised:
        model.load_public(model.dims)
    assert f"{model.public.repository}/resolve/main/{model.public.file}" in (raised.value.hint or "")
    assert of_size(name).public is None, "nobody trained the toy"
