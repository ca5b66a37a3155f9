"""The grammar of `--model`."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.modelspec import ModelSpec, parse_models


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("net.onnx", "with,comma.onnx", "program.pt2"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "checkpoint").mkdir()
    return tmp_path


def labels(texts: list[str], root: Path) -> list[str]:
    return [spec.label for spec in parse_models(texts, root)]


def test_names_and_settings_are_told_apart(root: Path) -> None:
    first, second, third = parse_models(["bert-base:sequence=512,batch=4,gemm", "tiny"], root)
    assert (first.name, first.dims, first.options) == ("bert-base", {"sequence": 512, "batch": 4}, {})
    assert (second.name, second.dims) == ("gemm", {})
    assert third == ModelSpec(name="tiny", root="") or third.name == "tiny"


def test_settings_are_of_the_type_that_the_model_says(root: Path) -> None:
    (spec,) = parse_models(["llama-decode:size=tiny"], root)
    assert spec.options == {"size": "tiny"}
    assert spec.label == spec.text == "llama-decode:size=tiny"


@pytest.mark.parametrize(
    ("text", "kind", "label"),
    [
        ("net.onnx", "onnx", "net.onnx"),
        ("program.pt2", "exported", "program.pt2"),
        ("with,comma.onnx", "onnx", "with,comma.onnx"),
        ("hf:ORG/Name-1.5", "hub", "hf:Name-1.5"),
        ("hf:checkpoint", "hub", "hf:checkpoint"),
        ("package.module:factory", "factory", "package.module:factory"),
        ("module:Class.method", "factory", "module:Class.method"),
        ("tiny", "reference", "tiny"),
    ],
)
def test_kinds(text: str, kind: str, label: str, root: Path) -> None:
    (spec,) = parse_models([text], root)
    assert (spec.kind, spec.label) == (kind, label)


def test_own_models_take_sizes(root: Path) -> None:
    (onnx, hub, factory) = parse_models(["net.onnx:batch=2", "hf:ORG/NAME:sequence=64", "a.b:c:batch=3,size=5"], root)
    assert onnx.name == str(root / "net.onnx")
    assert (onnx.dims, hub.dims, factory.dims) == ({"batch": 2}, {"sequence": 64}, {"batch": 3, "size": 5})
    assert (hub.name, factory.name) == ("ORG/NAME", "a.b:c")


def test_a_path_is_found_from_where_the_user_stands(root: Path) -> None:
    (spec,) = parse_models(["net.onnx"], root)
    assert spec.name == str(root / "net.onnx")
    assert parse_models([str(root / "net.onnx")], Path("/")) == [ModelSpec(kind="onnx", name=spec.name, root="/")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no model was asked for"),
        ("batch=4", "belongs to no model"),
        ("resnet5", "did you mean 'resnet50'"),
        ("missing.onnx", "does not exist"),
        ("hf:no-slash", "neither ORG/NAME on the hub nor an existing folder"),
        ("tiny:batch=0", "a size from 1"),
        ("tiny:batch=x", "a size from 1"),
        ("tiny:depth=2", "unknown setting of tiny 'depth'"),
        ("tiny:batch=", "is not a setting"),
        ("tiny:batch=1,batch=2", "given twice"),
        ("llama-decode:size=900b", r"value of llama-decode:size '900b'.* Known: 1b, 3b, 8b, tiny"),
    ],
)
def test_what_is_wrong_is_said(text: str, says: str, root: Path) -> None:
    with pytest.raises(UsageError, match=says):
        parse_models([text], root)


def test_a_folder_is_no_file(root: Path) -> None:
    (root / "folder.onnx").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        parse_models(["folder.onnx"], root)
