"""From what each framework's profiler says to nodes of the graph: pure functions on small recorded traces."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from backends import onnxruntime_profile, tensorrt_profile, torch_inductor, tvm_profile
from backends.tensorrt_layers import Layer
from backends.torch_inductor import KERNEL, Traced, calls, plain, shared
from backends.torch_profile import ITERATION, MODULE, Event, operators_of
from backends.torch_provenance import CALL, SCOPES, Operator, canonical, match
from harness.graph_nodes import GraphNode, NodeGraph, adopt, cover
from harness.operators import FOLDED, REMOVED


def node(name: str, op: str, inputs: Sequence[str], output: str, **metadata: str) -> GraphNode:
    return GraphNode(name=name, op=op, inputs=tuple(inputs), outputs=(output,), metadata=metadata)


def graph_of(*nodes: GraphNode, inputs: Sequence[str] = ("x",)) -> NodeGraph:
    return NodeGraph(nodes=nodes, inputs=set(inputs), outputs=[nodes[-1].outputs[0]])


BLOCK = graph_of(
    node("conv", "Conv", ["x", "w"], "a"),
    node("relu", "Relu", ["a"], "b"),
    node("conv2", "Conv", ["b", "w2"], "c"),
    node("add", "Add", ["c", "b"], "d"),
    node("relu2", "Relu", ["d"], "e"),
    node("shape", "Shape", ["x"], "s"),
    node("view", "Reshape", ["e", "s"], "f"),
    node("dead", "Exp", ["b"], "unread"),
    node("product", "MatMul", ["f", "w3"], "g"),
    node("bias", "Add", ["g", "w4"], "y"),
)
"""Two convolutions with a sum, a view of a computed shape, a product with a bias, and a node that nobody reads."""


# ---- covering


def test_an_operator_covers_what_lies_between_its_result_and_those_of_others() -> None:
    covered, eliminated = cover(BLOCK, [{1}, {4}, {9}])
    assert covered == [("conv", "relu"), ("conv2", "add", "relu2"), ("view", "product", "bias")]
    assert eliminated == {"shape": FOLDED, "dead": REMOVED}


def test_an_operator_without_an_anchor_shares_the_nodes_of_its_reader() -> None:
    covered = [("a",), (), (), ("b",)]
    assert adopt(covered, [1, 2, 3, None], set()) == [("a",), ("b",), ("b",), ("b",)]
    assert adopt(covered, [1, 2, 3, None], {1}) == [("a",), (), ("b",), ("b",)]
    assert adopt(covered, [1, 2, 1, None], set()) == [("a",), (), (), ("b",)], "a loop ends"


# ---- ONNX Runtime


def event(name: str, op: str, index: int, start: int, took: int) -> dict[str, object]:
    args = {"op_name": op, "node_index": str(index), "provider": "CPUExecutionProvider"}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": start, "dur": took, "args": args}


def run(start: int, took: int) -> dict[str, object]:
    return {"cat": "Session", "name": "model_run", "ts": start, "dur": took, "args": {}}


OPTIMISED = NodeGraph(
    nodes=[
        GraphNode(name="b_nchwc", op="Conv", inputs=("x", "r0"), outputs=("t0",), attributes=frozenset({"activation"})),
        GraphNode(
            name="c_nchwc",
            op="Conv",
            inputs=("t0", "r1", "", "t0"),
            outputs=("t1",),
            attributes=frozenset({"activation"}),
        ),
        GraphNode(name="ReorderOutput", op="ReorderOutput", inputs=("t1",), outputs=("e",)),
        GraphNode(name="view", op="Reshape", inputs=("e", "const"), outputs=("f",)),
        GraphNode(name="product/MatMulAddFusion", op="Gemm", inputs=("f", "w3", "w4"), outputs=("g2",)),
        GraphNode(name="out", op="Reshape", inputs=("g2", "const2"), outputs=("y",)),
    ],
    inputs={"x"},
    outputs=["y"],
)


def test_a_trace_of_onnxruntime_is_mapped_and_its_first_runs_are_left_out() -> None:
    trace: list[dict[str, object]] = []
    for number in range(4):
        start = 10_000 * number
        trace.append(run(start, 9_000))
        for index, one in enumerate(OPTIMISED.nodes):
            trace.append(event(one.name, one.op, index, start + 100 * index, 90 if number >= 2 else 99))
    found = onnxruntime_profile.profile(trace, BLOCK, OPTIMISED)
    assert [(one.nodes, one.calls, one.total_ns) for one in found.operators] == [
        (("conv", "relu"), 2, 180_000),
        (("conv2", "add", "relu2"), 2, 180_000),
        ((), 2, 180_000),
        (("view",), 2, 180_000),
        (("product", "bias"), 2, 180_000),
        ((), 2, 180_000),
    ]
    assert found.eliminated == {"shape": FOLDED, "dead": REMOVED}
    assert [one.kind for one in found.operators][2] == "ReorderOutput"


def test_nodes_inside_of_a_loop_are_not_counted_twice() -> None:
    trace = [run(0, 1000), event("loop", "Loop", 0, 10, 500), event("inner", "Add", 0, 20, 100)]
    assert [(one.name, one.total_ns) for one in onnxruntime_profile.timed(trace, skip=0)] == [("loop", 500_000)]


# ---- torch


def from_torch(name: str, op: str, output: str, scope: str, call: str, target: str, reads: Sequence[str]) -> GraphNode:
    path = [*dict.fromkeys(["", *(".".join(scope.split(".")[: end + 1]) for end in range(scope.count(".") + 1))])]
    arguments = ", ".join(f"%{one}" for one in reads)
    text = (
        f"%{call} : [num_users=1] = call_function[target=torch.ops.aten.{target}](args = ({arguments}), kwargs = {{}})"
    )
    metadata = {SCOPES: repr([*path, call]), CALL: text}
    return GraphNode(name=name, op=op, inputs=(), outputs=(output,), metadata=metadata)


BN = "_native_batch_norm_legit_no_training"
EXPORTED = NodeGraph(
    nodes=[
        from_torch("n-conv", "Conv", "a", "bn", BN, f"{BN}.default", ["conv2d", "p_w"]),
        from_torch("n-relu", "Relu", "b", "act", "relu", "relu.default", [BN]),
        from_torch("n-conv-1", "Conv", "c", "bn2", f"{BN}_1", f"{BN}.default", ["conv2d_1", "p_v"]),
        from_torch("n-relu-1", "Relu", "d", "act", "relu_1", "relu.default", [f"{BN}_1"]),
        from_torch("n-div", "Div", "e", "gelu", "gelu", "gelu.default", ["relu_1"]),
        from_torch("n-erf", "Erf", "f", "gelu", "gelu", "gelu.default", ["relu_1"]),
        from_torch("n-product", "MatMul", "g", "fc", "linear", "linear.default", ["gelu"]),
        from_torch("n-bias", "Add", "h", "fc", "linear", "linear.default", ["gelu"]),
    ],
    inputs={"x"},
    outputs=["h"],
)
RAN = [
    ("conv", "aten::conv2d", ("n-conv",)),
    ("bn", "aten::batch_norm", ("n-conv",)),
    ("act", "aten::relu_", ("n-relu",)),
    ("conv2", "aten::conv2d", ("n-conv-1",)),
    ("bn2", "aten::batch_norm", ("n-conv-1",)),
    ("act", "aten::relu_", ("n-relu-1",)),
    ("gelu", "aten::gelu", ("n-div", "n-erf")),
    ("drop", "aten::dropout", ()),
    ("fc", "aten::linear", ("n-product", "n-bias")),
]


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_what_torch_ran_is_found_in_the_exported_graph(wrapper: str) -> None:
    ran = [Operator(scope=f"{wrapper}{scope}", name=canonical(name)) for scope, name, _ in RAN]
    assert match(ran, EXPORTED) == [nodes for _, _, nodes in RAN]


def test_what_places_do_not_settle_is_matched_by_module() -> None:
    ran = [Operator(scope="gelu", name="erf"), Operator(scope="gelu", name="div"), Operator(scope="fc", name="linear")]
    assert match(ran, EXPORTED)[:2] == [("n-div", "n-erf"), ("n-div", "n-erf")]


def test_the_outermost_operators_are_taken_with_their_module() -> None:
    events = [
        Event(name="aten::add", parent=None, ns=1),
        Event(name=ITERATION, parent=None, ns=100),
        Event(name=f"{MODULE}", parent=1, ns=90),
        Event(name=f"{MODULE}layer.0", parent=2, ns=80),
        Event(name="aten::linear", parent=3, ns=70),
        Event(name="aten::addmm", parent=4, ns=60),
        Event(name="aten::relu", parent=2, ns=5),
        Event(name=ITERATION, parent=None, ns=100),
        Event(name=f"{KERNEL}0::cpp_fused_add_0", parent=7, ns=50),
    ]
    found = operators_of(events)
    assert [[(one.name, one.scope, one.ns) for one in ran] for ran in found] == [
        [("aten::linear", "layer.0", 70), ("aten::relu", "", 5)],
        [(f"{KERNEL}0::cpp_fused_add_0", "", 50)],
    ]


GENERATED = '''
cpp_fused_convolution_0 = async_compile.cpp_pybinding(['const float*'], r"""...""")
async_compile.wait(globals())

class Runner:
    def call(self, args):
        cpp_fused_convolution_0(arg2_1, arg0_1, buf0, buf1)
        # Topologically Sorted Source Nodes: [input_1], Original ATen: [aten.convolution]
        buf2 = extern_kernels.convolution(buf0, buf1, arg1_1, stride=(2, 2), bias=None)
        assert_size_stride(buf2, (1, 16), (16, 1), 'torch.ops.aten.convolution.default')
        cpp_fused__native_batch_norm_legit_no_training_relu_1(buf3, arg3_1)
        # Topologically Sorted Source Nodes: [input_2, input_3, down], Original ATen: [aten.relu, aten.convolution]
        buf5 = extern_kernels.convolution(buf3, buf4, arg8_1, stride=(2, 2))
        cpp_fused_add_mean_relu_2(buf7, buf5)
        # Topologically Sorted Source Nodes: [sum, pooled, flat, out], Original ATen: [aten.mean, aten.addmm]
        extern_kernels.addmm(arg10_1, reinterpret_tensor(buf7, (1, 32), (0, 1), 0), out=buf8)
        cpp_fused_tanh_3(buf8)
        return (buf8, )

def get_args():
    cpp_fused_never_4(1)
'''
TRACE = [
    Traced(call="input_1", name="conv2d", scope="0"),
    Traced(call="input_2", name="batch_norm", scope="1"),
    Traced(call="input_3", name="relu", scope="2"),
    Traced(call="down", name="conv2d", scope="3"),
    Traced(call="sum", name="add", scope=""),
    Traced(call="pooled", name="adaptive_avg_pool2d", scope="4"),
    Traced(call="flat", name="flatten", scope="5"),
    Traced(call="out", name="linear", scope="6"),
    Traced(call="last", name="tanh", scope="7"),
]


def test_inductors_calls_do_what_their_comments_and_places_say() -> None:
    code = calls(GENERATED)
    assert [call.name for call in code] == [
        "cpp_fused_convolution_0",
        "convolution",
        "cpp_fused__native_batch_norm_legit_no_training_relu_1",
        "convolution",
        "cpp_fused_add_mean_relu_2",
        "addmm",
        "cpp_fused_tanh_3",
    ]
    assert shared(code, TRACE) == [[], [0], [1, 2], [3], [4, 5], [7], [8]]


def test_paths_of_traced_modules_are_those_of_the_module() -> None:
    assert plain("L['self'].layer1[0].conv1") == "layer1.0.conv1"
    assert plain("L['fn'].encoder.layer.11") == "encoder.layer.11"
    assert plain("L['fn']") == ""
    assert torch_inductor._bare(f"{KERNEL}12::cpp_fused_add_0") == "cpp_fused_add_0"


# ---- TVM


def figures_of(*values: float) -> tuple[float, ...]:
    import numpy as np

    return tvm_profile.figures(np.array(values, dtype=np.float32))


def test_kernels_are_found_by_their_results_in_any_layout() -> None:
    given, one, two = figures_of(1, 2, 3), figures_of(4, 5, 6), figures_of(7, -8, 0)
    candidates = [(0, one, (3, 1)), (1, one, (1, 3)), (2, two, (3,))]
    results = [figures_of(3, 1, 2), figures_of(6, 4, 5), figures_of(5.0001, 6, 4), figures_of(9, 9, 9), two]
    found = tvm_profile.matched(results, [(3,), (1, 3), (3, 1), (3,), (3,)], candidates, [given])
    assert found == [None, {1}, {0}, set(), {2}]


def test_of_equal_tensors_the_last_kernel_computes_the_last() -> None:
    one = figures_of(1, 2)
    candidates = [(0, one, (2,)), (1, one, (2,)), (5, one, (2,))]
    assert tvm_profile.matched([one], [(2,)], candidates, []) == [{5}], "a bias of zeros is in the one kernel"
    assert tvm_profile.matched([one, one], [(2,), (2,)], candidates, []) == [{1}, {5}]


def test_built_in_calls_of_tvm_are_one_operator_and_calls_within_calls_count_once() -> None:
    ticks = iter(range(0, 1000, 10))
    watch = tvm_profile.Watch(lambda: next(ticks), lambda: None)
    for _ in range(2):
        watch.begin()
        for name, before in [("vm.builtin.call", True), ("fused_add1", True), ("fused_add1", False)]:
            watch(None, name, before, None)
        watch(None, "vm.builtin.call", False, None)
    found = tvm_profile.totals(watch.iterations)
    assert [(one.name, one.kind, one.calls, one.total_ns) for one in found] == [
        ("fused_add1", "fused_add", 2, 20),
        ("vm.builtin.*", "vm.builtin", 2, 40),
    ]


# ---- TensorRT


@pytest.mark.parametrize(
    ("name", "origin", "expected"),
    [
        ("conv + relu", "", ("conv", "relu")),
        ("PWN(add, relu2)", "", ("add", "relu2")),
        ("conv\x1erelu\x1fadd", "", ("conv", "relu", "add")),
        ("{ForeignNode[conv2...relu2]}", "", ("conv2", "add", "relu2")),
        ("Reformatting CopyNode for Input Tensor 0 to conv", "[ONNX Layer: conv]", ()),
        ("__myl_Fc_myl0_1", "[ONNX Layer: product]\x1e[ONNX Layer: bias]", ("product", "bias")),
        ("unheard of", "", ()),
    ],
)
def test_layers_of_tensorrt_name_their_nodes(name: str, origin: str, expected: tuple[str, ...]) -> None:
    assert tensorrt_profile.nodes_of(name, origin, BLOCK) == expected


def test_times_of_tensorrt_are_kept_by_layer() -> None:
    layers = [Layer(name="conv + relu", kind="CaskConvolution")]
    times = {"conv + relu": [0.5, 0.25], "bias": [0.1, 0.1], "add\x1erelu2": [0.1]}
    found = tensorrt_profile.profile(times, layers, lambda: BLOCK)
    assert [(one.name, one.kind, one.nodes, one.calls, one.total_ns) for one in found.operators] == [
        ("conv + relu", "CaskConvolution", ("conv", "relu"), 2, 750_000),
        ("bias", "layer", ("bias",), 2, 200_000),
        ("add + relu2", "layer", ("add", "relu2"), 1, 100_000),
    ]
    assert found.eliminated == {"shape": FOLDED}
