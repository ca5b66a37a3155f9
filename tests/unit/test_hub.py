"""Models of the hub: real small ones, saved into folders and into the layout of the hub client's cache. No network."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from harness import registry, weights
from harness.artifact import Artifact, sha256
from harness.errors import ExportError, UnsupportedError, UsageError
from harness.modelspec import ModelSpec, parse_models
from models.hub import Hub

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

Module = Any  # torch is Any to the type checker
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 99,
    "pad_token_id": 0,
}


def bert() -> Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SMALL, vocab_size=99))


def gpt2() -> Module:
    config = transformers.GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=99, n_positions=64)
    return transformers.GPT2LMHeadModel(config)


def llama() -> Module:
    return transformers.LlamaModel(transformers.LlamaConfig(**SMALL, vocab_size=99, dtype="float16"))


def vit() -> Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL, image_size=32, patch_size=8))


def resnet() -> Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])
    return transformers.ResNetForImageClassification(config)


def clip() -> Module:
    config = transformers.CLIPConfig(
        text_config={**SMALL, "vocab_size": 99}, vision_config={**SMALL, "image_size": 32, "patch_size": 8}
    )
    return transformers.CLIPModel(config)


def t5() -> Module:
    config = transformers.T5Config(d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2, vocab_size=99)
    return transformers.T5ForConditionalGeneration(config)


def whisper() -> Module:
    config = transformers.WhisperConfig(**SEQ2SEQ, max_source_positions=50, decoder_start_token_id=1)
    return transformers.WhisperModel(config)


def wav2vec2() -> Module:
    config = transformers.Wav2Vec2Config(
        **SMALL, conv_dim=(8,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=2
    )
    return transformers.Wav2Vec2Model(config)


Expected = tuple[Callable[[], Module], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]
KINDS: dict[str, Expected] = {
    # Inputs and outputs at batch 2 and the default sizes.
    "bert": (bert, {"input_ids": (2, 128), "attention_mask": (2, 128)}, {"logits": (2, 2)}),
    "gpt2": (gpt2, {"input_ids": (2, 64), "attention_mask": (2, 64)}, {"logits": (2, 64, 99)}),
    "llama": (llama, {"input_ids": (2, 128), "attention_mask": (2, 128)}, {"last_hidden_state": (2, 128, 32)}),
    "vit": (vit, {"pixel_values": (2, 3, 32, 32)}, {"logits": (2, 2)}),
    "clip": (
        clip,
        {"input_ids": (2, 77), "attention_mask": (2, 77), "pixel_values": (2, 3, 32, 32)},
        {"logits_per_image": (2, 2), "logits_per_text": (2, 2), "text_embeds": (2, 512), "image_embeds": (2, 512)},
    ),
    "t5": (
        t5,
        {"input_ids": (2, 128), "attention_mask": (2, 128), "decoder_input_ids": (2, 16)},
        {"logits": (2, 16, 99), "encoder_last_hidden_state": (2, 128, 32)},
    ),
    "whisper": (
        whisper,
        {"input_features": (2, 80, 100), "decoder_input_ids": (2, 16)},
        {"last_hidden_state": (2, 16, 32), "encoder_last_hidden_state": (2, 50, 32)},
    ),
    "wav2vec2": (
        wav2vec2,
        {"input_values": (2, 16000)},
        {"last_hidden_state": (2, 49, 32), "extract_features": (2, 49, 8)},
    ),
}


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give the hub's client a cache of its own and no network."""
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def save(module: Module, folder: Path) -> ModelSpec:
    module.eval().save_pretrained(folder)
    return ModelSpec(kind="hub", name=str(folder))


def publish(hub: Path, source: Path, repository: str) -> None:
    """Lay a folder into the client's cache as a download does."""
    root = hub / f"models--{repository.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (root / "blobs", root / "refs", snapshot):
        folder.mkdir(parents=True)
    (root / "refs" / "main").write_text(COMMIT)
    for file in source.iterdir():
        blob = root / "blobs" / sha256(file)
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(blob)


def run(module: Module, inputs: dict[str, np.ndarray]) -> tuple[Module, ...]:
    with torch.inference_mode():
        return tuple(module(*map(torch.from_numpy, inputs.values())))


@pytest.mark.parametrize("kind", KINDS)
def test_folder_gives_trained_module_inputs_and_named_outputs(tmp_path: Path, kind: str) -> None:
    make, inputs, outputs = KINDS[kind]
    torch.manual_seed(3)
    original = make()
    spec = save(original, tmp_path / kind)
    model = registry.model(spec)
    loaded = weights.load(model, "own", {}, 0, spec)
    sizes = {**cast(Any, model).dims, "batch": 2}
    drawn = model.example_inputs(sizes, seed=1)
    assert {name: array.shape for name, array in drawn.items()} == inputs
    results = run(loaded.module, drawn)
    assert not loaded.module.training
    assert dict(zip(model.output_names, [tuple(result.shape) for result in results], strict=True)) == outputs
    with torch.inference_mode():
        direct = original.float()(**{name: torch.from_numpy(array) for name, array in drawn.items()})
    for name, result in zip(model.output_names, results, strict=True):
        torch.testing.assert_close(result, direct[name], rtol=1e-3, atol=1e-4)
    assert {t.dtype for t in loaded.module.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert loaded.label == f"pretrained {kind} (model.safetensors)"
    assert loaded.sha256 == sha256(tmp_path / kind / "model.safetensors")
    assert [Path(source).name for source in loaded.sources] == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_seeded_needs_the_configuration_only(tmp_path: Path, kind: str) -> None:
    spec = save(KINDS[kind][0](), tmp_path / kind)
    (tmp_path / kind / "model.safetensors").unlink()
    first, again, other = (weights.load(registry.model(spec), "seeded", {}, seed, spec) for seed in (1, 1, 2))
    key = next(name for name in first.module.state_dict() if name.endswith("proj.weight") or "query.weight" in name)
    values = [loaded.module.state_dict()[key] for loaded in (first, again, other)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])
    assert values[0].dtype == torch.float32
    assert (first.label, first.sha256) == ("seeded", None)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_restored_in_another_worker(tmp_path: Path, kind: str) -> None:
    from safetensors.torch import save_file

    spec = save(KINDS[kind][0](), tmp_path / kind)
    model = registry.model(spec)
    original = weights.load(model, "own", {}, 0, spec).module
    save_file({name: t.clone() for name, t in original.state_dict().items()}, tmp_path / "weights.safetensors")
    (tmp_path / kind / "model.safetensors").unlink()  # the artifact holds all that is needed
    manifest = SimpleNamespace(model=spec, dims={"batch": 1, "sequence": 8}, module=True, seed=0, files={})
    restored = cast(Any, Artifact(tmp_path, cast(Any, manifest)).module())
    sizes = {**cast(Any, model).dims, "sequence": 8}
    inputs = model.example_inputs(sizes, seed=1)
    for mine, theirs in zip(run(restored, inputs), run(original, inputs), strict=True):
        assert torch.equal(mine, theirs)


def test_name_on_the_hub_comes_out_of_the_cache(tmp_path: Path, no_network: Path) -> None:
    original = bert()
    save(original, tmp_path / "bert")
    publish(no_network, tmp_path / "bert", "org/bert")
    (spec,) = parse_models(["hf:org/bert"], tmp_path)
    for kind in ("own", "pretrained"):
        loaded = weights.load(registry.model(spec), kind, {}, 0, spec)
        assert loaded.label == f"pretrained org/bert (model.safetensors) at {COMMIT[:12]}"
        assert loaded.sha256 == sha256(tmp_path / "bert" / "model.safetensors")
        assert loaded.sources == []
        assert torch.equal(loaded.module.state_dict()["model.classifier.weight"], original.classifier.weight)


def test_weights_in_parts(tmp_path: Path) -> None:
    bert().save_pretrained(tmp_path / "bert", max_shard_size="20KB")
    parts = sorted((tmp_path / "bert").glob("*.safetensors"))
    assert len(parts) > 1
    spec = ModelSpec(kind="hub", name=str(tmp_path / "bert"))
    loaded = weights.load(registry.model(spec), "own", {}, 0, spec)
    assert loaded.label == f"pretrained bert ({len(parts)} files)"
    assert loaded.sha256 == hashlib.sha256("\n".join(map(sha256, parts)).encode()).hexdigest()
    assert len(loaded.sources) == 1 + len(parts)


def test_users_file_for_a_hub_model(tmp_path: Path) -> None:
    spec = save(bert(), tmp_path / "bert")
    other = bert()
    torch.save(other.state_dict(), tmp_path / "tuned.pt")
    loaded = weights.load(registry.model(spec), str(tmp_path / "tuned.pt"), {}, 0, spec)
    assert torch.equal(loaded.module.state_dict()["model.classifier.weight"], other.classifier.weight)


def test_attention_masks_are_ones_and_tokens_in_the_vocabulary(tmp_path: Path) -> None:
    spec = save(bert(), tmp_path / "bert")
    model = registry.model(spec)
    model.build({})
    drawn = model.example_inputs({"batch": 2, "sequence": 50}, seed=0)
    assert (drawn["attention_mask"] == 1).all()
    assert 0 <= drawn["input_ids"].min() <= drawn["input_ids"].max() < 99


def test_image_of_free_size(tmp_path: Path) -> None:
    spec = save(resnet(), tmp_path / "resnet")
    model = registry.model(spec)
    module = model.build({"height": 64, "width": 48})
    assert model.inputs[0].shape == ("batch", 3, "height", "width")
    assert cast(Any, model).dims == {"batch": 1}, "no size is known, so the user must give one"
    assert model.output_names == ("logits",)
    assert run(module, model.example_inputs({"batch": 2, "height": 64, "width": 48}, 0))[0].shape == (2, 2)


def test_image_processor_tells_size_and_preprocessing(tmp_path: Path) -> None:
    spec = save(resnet(), tmp_path / "resnet")
    processor = {"size": {"shortest_edge": 73}, "crop_size": 64, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
    (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps(processor))
    model = registry.model(spec)
    model.build({})
    assert cast(Any, model).dims == {"batch": 1, "height": 64, "width": 64}
    assert model.preprocessing is not None
    assert (model.preprocessing.height, model.preprocessing.resize_to) == (64, 73)
    assert model.preprocessing.mean == (0.1, 0.2, 0.3)


def change(folder: Path, **entries: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))


@pytest.mark.parametrize("known_type", [True, False])
def test_code_of_the_repository_is_refused(tmp_path: Path, known_type: bool) -> None:
    spec = save(bert(), tmp_path / "bert")
    witness = tmp_path / "executed"
    (tmp_path / "bert" / "own_code.py").write_text(f"open({str(witness)!r}, 'w')\nclass Own: pass\n")
    changes: dict[str, object] = {
        "auto_map": {"AutoConfig": "own_code.Own", "AutoModel": "own_code.Own"},
        "architectures": ["OwnBert"],
    }
    change(tmp_path / "bert", **changes, **({} if known_type else {"model_type": "own-bert"}))
    for kind in ("own", "seeded"):
        with pytest.raises(UnsupportedError, match="code from the hub is never run"):
            weights.load(registry.model(spec), kind, {}, 0, spec)
    assert not witness.exists()


def test_no_network_is_said_clearly() -> None:
    spec = ModelSpec(kind="hub", name="org/absent")
    for kind in ("own", "seeded"):
        with pytest.raises(ExportError, match="cannot reach org/absent") as caught:
            weights.load(registry.model(spec), kind, {}, 0, spec)
        assert "--model hf:FOLDER" in (caught.value.hint or "")


def test_folder_without_a_model(tmp_path: Path) -> None:
    spec = ModelSpec(kind="hub", name=str(tmp_path))
    with pytest.raises(UsageError, match=r"does not hold a model: there is no config\.json"):
        weights.load(registry.model(spec), "own", {}, 0, spec)


def test_pickled_weights_are_not_loaded(tmp_path: Path) -> None:
    module = bert()
    spec = save(module, tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "bert" / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"model\.safetensors"):
        weights.load(registry.model(spec), "own", {}, 0, spec)


def test_incomplete_weights_are_not_filled_at_random(tmp_path: Path) -> None:
    spec = save(transformers.BertModel(transformers.BertConfig(**SMALL, vocab_size=99)), tmp_path / "bert")
    change(tmp_path / "bert", architectures=["BertForSequenceClassification"])
    with pytest.raises(ExportError, match=r"2 missing: classifier\.bias, classifier\.weight"):
        weights.load(registry.model(spec), "own", {}, 0, spec)


def test_weights_of_another_size(tmp_path: Path) -> None:
    spec = save(bert(), tmp_path / "bert")
    change(tmp_path / "bert", intermediate_size=96)
    with pytest.raises(ExportError, match=r"6 of another shape: .* \(expected \[96\], got \[64\]\), .*, \.\.\."):
        weights.load(registry.model(spec), "own", {}, 0, spec)


def test_class_that_transformers_lacks_and_unused_tensors_are_noted(tmp_path: Path) -> None:
    spec = save(bert(), tmp_path / "bert")
    change(tmp_path / "bert", architectures=["BertForOddities"])
    model = registry.model(spec)
    weights.load(model, "own", {}, 0, spec)
    assert cast(Any, model).notes == [
        "transformers has no class BertForOddities: BertModel is compared",
        "BertModel does not use 2 tensors of the published weights, first classifier.bias, classifier.weight",
    ]


def test_damaged_configuration_and_weights(tmp_path: Path) -> None:
    spec = save(bert(), tmp_path / "bert")
    (tmp_path / "bert" / "model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises((ExportError, UsageError), match="bert"):
        weights.load(registry.model(spec), "own", {}, 0, spec)
    (tmp_path / "bert" / "config.json").write_text("{")
    with pytest.raises((ExportError, UsageError), match="bert"):
        weights.load(registry.model(spec), "own", {}, 0, spec)


def test_inputs_that_a_configuration_does_not_tell() -> None:
    from models.hub_inputs import inputs_of

    sees = SimpleNamespace(__name__="LlavaForConditionalGeneration", main_input_name="input_ids")
    with pytest.raises(UnsupportedError, match="cannot be told") as caught:
        inputs_of(sees, SimpleNamespace(vision_config=object()), {}, "org/llava")
    assert "factory" in (caught.value.hint or "")
    with pytest.raises(UnsupportedError, match="the input 'point_clouds'"):
        inputs_of(SimpleNamespace(main_input_name="point_clouds"), SimpleNamespace(), {}, "org/points")


def test_exports_to_onnx(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    spec = save(bert(), tmp_path / "bert")
    model = Hub(spec)
    module = model.load_public({})
    inputs = model.example_inputs({"batch": 2, "sequence": 16}, seed=0)
    torch.onnx.export(
        module,
        tuple(map(torch.from_numpy, inputs.values())),
        tmp_path / "m.onnx",
        dynamo=True,
        input_names=list(inputs),
    )
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (result,) = session.run(None, inputs)
    np.testing.assert_allclose(result, run(module, inputs)[0].numpy(), rtol=1e-3, atol=1e-4)
