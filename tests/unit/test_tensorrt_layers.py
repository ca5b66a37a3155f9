"""The inspector's layer lists, in the forms that TensorRT 10 and 11 give them."""

from __future__ import annotations

import json

import pytest

from backends.tensorrt_layers import data_types, parse

TEN = {
    "Name": "/conv + /relu",
    "LayerType": "CaskConvolution",
    "Inputs": [{"Name": "x", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}],
    "Outputs": [{"Name": "y", "Format/Datatype": "Row major linear FP16 format"}],
}
TEN_LATER = {
    "Name": "/fc",
    "LayerType": "gemm",
    "Inputs": [{"Name": "y", "Format/Datatype": "Half"}, {"Name": "i", "Format/Datatype": "Int64"}],
    "Outputs": [{"Name": "z", "Format/Datatype": "Float"}],
}
ELEVEN = {
    "Name": "/fc",
    "LayerType": "gemm",
    "Inputs": [{"Name": "y", "Format": "Row major linear FP32 format (kLINEAR)", "DataType": "Half"}],
    "Outputs": [{"Name": "z", "Format": "Row major", "Datatype": "BFloat16"}],
}


def test_the_inspectors_lists_of_every_version_are_read() -> None:
    layers = parse(json.dumps({"Layers": [TEN, TEN_LATER], "Bindings": ["x", "z"]}))
    assert [(layer.name, layer.kind, layer.inputs, layer.outputs) for layer in layers] == [
        ("/conv + /relu", "CaskConvolution", ["int8"], ["float16"]),
        ("/fc", "gemm", ["float16", "int64"], ["float32"]),
    ]
    (layer,) = parse(json.dumps({"Layers": [ELEVEN], "I/O Tensors": [{"Name": "y", "DataType": "Float"}]}))
    assert (layer.inputs, layer.outputs) == (["float16"], ["bfloat16"])
    assert [layer.name for layer in parse('{"Layers": ["/conv + /relu", "/fc"]}')] == ["/conv + /relu", "/fc"]


@pytest.mark.parametrize("between", ["\x1e", "\\u001e"])
def test_separators_in_names_are_read_as_they_come(between: str) -> None:
    (layer,) = parse(f'{{"Layers": [{{"Name": "a", "Metadata": "[ONNX Layer: a]{between}[ONNX Layer: b]"}}]}}')
    assert layer.origin == "[ONNX Layer: a]\x1e[ONNX Layer: b]"


@pytest.mark.parametrize("told", ["", "{", "[]", "{}", '{"Layers": null}', '{"Layers": 3}', "null"])
def test_an_inspector_that_tells_nothing_gives_no_layers(told: str) -> None:
    assert parse(told) == []


def test_a_data_type_that_is_not_told_is_not_guessed() -> None:
    odd = [
        {"Name": "a", "LayerType": "NoOp", "Inputs": [], "Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]},
        {"Name": "b", "Inputs": ["x"], "Outputs": None},
        {"Name": "c", "Outputs": [{}]},
    ]
    layers = parse(json.dumps({"Layers": odd}))
    assert [layer.outputs for layer in layers] == [["?"], [], ["?"]] and layers[1].inputs == ["?"]
    assert data_types(layers) == ""
    assert data_types(parse(json.dumps({"Layers": [TEN, TEN_LATER, ELEVEN, TEN, *odd]}))) == (
        "float16 2, float32 1, bfloat16 1"
    )
