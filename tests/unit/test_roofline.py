"""What a graph costs, what a device can do at most, and how near a case came to it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import ceilings, protocol, rates, registry
from harness.ceilings import datasheet, datasheets, of_machine, run_ceilings, stored
from harness.environment import describe as described
from harness.errors import UnavailableError, UsageError
from harness.export import Recipe, ensure_artifact
from harness.launcher import Launcher
from harness.modelspec import ModelSpec, Scalar
from harness.records import Ceiling
from harness.roofline import bound, with_limits
from harness.summarize import summarize
from harness.summary import CaseSummary, WorkloadSummary
from reports.page import draw
from tests.example_runs import case, environment, model_info, row, single
from tests.fake_nvml import FakeCard, FakeNvml
from tests.unit.test_summarize import measured, run_of

onnx = pytest.importorskip("onnx")

GIGA = 1e9


def ceiling(**changes: Any) -> Ceiling:
    """Return the ceilings of a CPU with two threads: 100 GFLOP/s, 10 GB/s from memory and 40 from caches."""
    ordinary: dict[str, Any] = {
        "device": "cpu",
        "name": "CPU",
        "threads": 2,
        "matrix": {"fp32": 100 * GIGA, "bf16": 400 * GIGA},
        "memory": [(10**6, 40 * GIGA), (10**8, 10 * GIGA)],
        "source": "measured",
    }
    return Ceiling(**(ordinary | changes))


def workload(one: CaseSummary, *, gflop: float | None = 1.0, least_bytes: int | None = None) -> WorkloadSummary:
    return single([one], info=model_info(gflop=gflop, least_bytes=least_bytes)).workloads[0]


class TestLimit:
    def test_compute_and_memory(self) -> None:
        one = row(case("eager"), p50=20.0)
        found = bound(one, workload(one, gflop=1.0, least_bytes=5 * 10**7), [ceiling()])
        assert found is not None
        assert (found.by, found.seconds) == ("compute", 0.01)  # memory at 40 GB/s takes 1.25 ms
        found = bound(one, workload(one, gflop=0.1, least_bytes=10**8), [ceiling()])
        assert found is not None
        assert (found.by, found.seconds) == ("memory", 0.01)

    def test_share_of_the_limit(self) -> None:
        one = row(case("eager"), p50=20.0)
        (limited,) = with_limits(workload(one), [ceiling()]).rows
        assert limited.bound_by == "compute"
        assert limited.limit_share == pytest.approx(0.5)
        assert limited.cautions == one.cautions

    def test_above_a_ceiling_something_is_wrong(self) -> None:
        one = row(case("eager"), p50=8.0)
        (limited,) = with_limits(workload(one), [ceiling()]).rows
        assert limited.limit_share == pytest.approx(1.25)
        (caution,) = limited.cautions
        assert caution.startswith(
            "it ran at 125 % of the fastest that cpu can multiply matrices, measured: something is wrong"
        )

    @pytest.mark.parametrize(
        "of",
        [
            [],
            [ceiling(device="cuda:0")],
            [ceiling(threads=4)],
            [ceiling(matrix={}, memory=[])],
        ],
    )
    def test_without_a_ceiling_that_fits_nothing_is_said(self, of: list[Ceiling]) -> None:
        one = row(case("eager"), p50=20.0)
        assert with_limits(workload(one, least_bytes=10**8), of).rows == [one]

    def test_half_precision_moves_half_the_bytes_and_multiplies_faster(self) -> None:
        one = row(case("eager", precision="bf16"), p50=20.0)
        found = bound(one, workload(one, gflop=1.0, least_bytes=10**9), [ceiling()])
        assert found is not None
        assert found.seconds == pytest.approx(0.05)
        found = bound(one, workload(one, gflop=1.0), [ceiling()])
        assert found is not None
        assert found.seconds == pytest.approx(0.0025)

    def test_what_lies_in_caches_has_no_memory_limit(self) -> None:
        one = row(case("eager"), p50=20.0)
        assert bound(one, workload(one, gflop=None, least_bytes=10**5), [ceiling()]) is None

    @given(st.lists(st.floats(1e8, 1e12), min_size=2, max_size=6), st.integers(10**6, 10**10))
    def test_a_larger_working_set_is_never_allowed_to_be_faster(self, rates: list[float], moved: int) -> None:
        one = row(case("eager"), p50=20.0)
        memory = [(10 ** (6 + index), rate) for index, rate in enumerate(rates)]
        of = [ceiling(memory=memory, matrix={})]
        small, large = (bound(one, workload(one, gflop=None, least_bytes=size), of) for size in (moved, 2 * moved))
        assert small is not None
        assert large is not None
        assert large.seconds >= small.seconds

    def test_reports_show_it_where_it_is_known_and_nowhere_else(self) -> None:
        one = row(case("eager"), p50=8.0)
        plain = single([one], info=model_info(gflop=1.0))
        run = msgspec.structs.replace(plain.run, ceilings=[ceiling()])
        limited = msgspec.structs.replace(plain, run=run, workloads=[with_limits(plain.workloads[0], run.ceilings)])
        (table,) = draw(limited).tables
        cells = {column.key: cell.text for column, cell in zip(table.columns, table.rows[0], strict=True)}
        assert (cells["limit_share"], cells["bound_by"]) == ("125 (wrong)", "compute")
        texts = [line.text for block in draw(limited).blocks for line in getattr(block, "lines", ())]
        assert any("fp32 100 GFLOP/s, bf16 400 GFLOP/s, 10.0 GB/s from memory; measured" in text for text in texts)
        (table,) = draw(plain).tables
        assert not {"limit_share", "bound_by"} & {column.key for column in table.columns}

    def test_a_planted_ceiling_that_a_case_exceeds_is_said_in_every_format(self) -> None:
        speeds = {"eager": 1.0, "fast": 0.5}  # 10 and 5 ms
        of = msgspec.structs.replace(measured(speeds), info=model_info(gflop=1.0))
        planted = ceiling(threads=1, matrix={"fp32": 150 * GIGA})
        summary = summarize(run_of(of, ceilings=[planted]))
        shares = {one.case.id: one.limit_share for one in summary.workloads[0].rows}
        assert shares == {"fast": pytest.approx(200 / 150, rel=0.01), "eager": pytest.approx(100 / 150, rel=0.01)}
        for format_ in ("terminal", "markdown", "html"):
            text = registry.report(format_).render(summary)
            assert "133 (wrong)" in text
            assert "of the fastest that cpu can multiply matrices, measured: something is wrong" in text


class TestDatasheets:
    @pytest.mark.parametrize(
        ("driver", "name"),
        [
            ("NVIDIA GeForce RTX 4090", "RTX 4090"),
            ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
            ("NVIDIA A100-SXM4-80GB", "A100 80GB SXM"),
            ("NVIDIA A100 80GB PCIe", "A100 80GB PCIe"),
            ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
            ("NVIDIA H100 80GB HBM3", "H100 SXM"),
            ("NVIDIA H100 PCIe", "H100 PCIe"),
            ("NVIDIA H100 NVL", "H100 NVL"),
            ("NVIDIA H200", "H200 SXM"),
            ("NVIDIA H200 NVL", None),
            ("NVIDIA GH200 480GB", None),
            ("NVIDIA A100X", None),
            ("NVIDIA GeForce RTX 4090 D", None),
            ("NVIDIA L4", "L4"),
            ("NVIDIA L40S", None),
            ("AMD EPYC 7543", None),
        ],
    )
    def test_are_found_by_the_drivers_name(self, driver: str, name: str | None) -> None:
        found = datasheet(driver)
        assert (found.name if found else None) == name

    def test_rates_rise_as_bits_fall(self) -> None:
        for sheet in datasheets():
            rates = [sheet.matrix[name] for name in ("fp32", "tf32", "fp16", "int8")]
            assert rates == sorted(rates), sheet.name
            assert sheet.memory > 100

    @pytest.mark.parametrize(
        ("name", "sms", "lanes", "operations", "plain_ghz", "tensor_ghz"),
        [
            ("RTX 4090", 128, 128, 1024, 2.52, 2.52),
            ("A100 80GB SXM", 108, 64, 2048, 1.41, 1.41),
            ("A100 80GB PCIe", 108, 64, 2048, 1.41, 1.41),
            ("A100 40GB", 108, 64, 2048, 1.41, 1.41),
            ("H100 PCIe", 114, 128, 4096, 1.755, 1.62),
            ("H100 NVL", 132, 128, 4096, 1.785, 1.545),
            ("H100 SXM", 132, 128, 4096, 1.98, 1.83),
            ("H200 SXM", 132, 128, 4096, 1.98, 1.83),
            ("L4", 58, 128, 1024, 2.04, 2.04),
        ],
    )
    def test_are_dense_rates_of_so_many_units_at_that_clock(
        self, name: str, sms: int, lanes: int, operations: int, plain_ghz: float, tensor_ghz: float
    ) -> None:
        # A multiprocessor has so many float32 lanes, and its tensor cores do so many dense float16 operations a clock.
        sheet = next(one for one in datasheets() if one.name == name)
        assert sheet.matrix["fp32"] == pytest.approx(sms * lanes * 2 * plain_ghz / 1000, rel=0.01)
        assert sheet.matrix["fp16"] == pytest.approx(sms * operations * tensor_ghz / 1000, rel=0.01)
        assert sheet.matrix["int8"] == pytest.approx(2 * sheet.matrix["fp16"], rel=0.01)
        if name == "RTX 4090":  # with sums in float32 it is half as fast, and there are no sums in bfloat16
            assert sheet.matrix["bf16"] == pytest.approx(sheet.matrix["fp16"] / 2, rel=0.01)
        else:
            assert sheet.matrix["bf16"] == sheet.matrix["fp16"]
            assert sheet.matrix["tf32"] == pytest.approx(sheet.matrix["fp16"] / 2, rel=0.01)

    def test_every_sheet_names_its_source(self) -> None:
        assert len({sheet.name for sheet in datasheets()}) == len(datasheets()) == 9
        assert all(sheet.source for sheet in datasheets())

    def test_stand_in_for_a_gpu_that_was_not_measured_and_never_for_a_cpu(self) -> None:
        machine = msgspec.structs.replace(environment(None), gpus=[{"name": "NVIDIA L4"}])
        found = of_machine(machine, ["cpu", "cuda:0"], [])
        assert [one.source for one in found] == ["the datasheet of the L4, dense rates"]
        own = ceiling(device="cuda:0", name="NVIDIA L4", threads=None)
        assert of_machine(machine, ["cuda:0"], [own, ceiling(name="another")]) == [own]


def rated_one_by_one(precisions: Sequence[str], rate: float = 1e11) -> Iterator[protocol.Rated]:
    for index, one in enumerate(precisions):
        memory = [(1 << 20, 1e10)] if index == 0 else []
        yield protocol.Rated(matrix={one: rate}, memory=memory, refused={}, version="2.13")


class TestCommand:
    def test_measures_once_for_a_precision(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[list[str]] = []

        def measured(device: str, threads: int, precisions: list[str]) -> Iterator[protocol.Rated]:
            asked.append(list(precisions))
            return rated_one_by_one(precisions)

        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
        monkeypatch.setattr(ceilings, "_measured", measured)
        for precision, refresh in (("fp32", False), ("fp32", False), ("fp32,bf16", False), ("fp32", True)):
            run_ceilings("cpu", 2, precision, refresh=refresh, as_json=True, quiet=True)
        assert asked == [["fp32"], ["bf16"], ["fp32"]]
        (kept,) = stored()
        assert kept.matrix == {"fp32": 1e11}
        shown = capsys.readouterr().out
        assert json.loads(shown[: shown.index("\n}") + 2])["matrix"] == {"fp32": 1e11}

    @pytest.mark.parametrize("refresh", [False, True])
    def test_ctrl_c_keeps_what_was_measured(
        self, refresh: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[list[str]] = []

        def measured(device: str, threads: int, precisions: list[str]) -> Iterator[protocol.Rated]:
            asked.append(list(precisions))
            yield from rated_one_by_one(precisions[:2], rate=2e11)
            if len(precisions) > 2:
                raise KeyboardInterrupt

        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
        if refresh:
            monkeypatch.setattr(ceilings, "_measured", lambda *asks: rated_one_by_one(asks[2]))
            run_ceilings("cpu", 2, "fp32,bf16,int8", refresh=False, as_json=False, quiet=True)
        capsys.readouterr()
        monkeypatch.setattr(ceilings, "_measured", measured)
        assert run_ceilings("cpu", 2, "fp32,bf16,int8", refresh=refresh, as_json=True, quiet=True) == 130
        shown = capsys.readouterr()
        assert json.loads(shown.out)["matrix"] == {"fp32": 2e11, "bf16": 2e11}
        assert "not measured: int8" in shown.err
        (kept,) = stored()
        assert kept.matrix == {"fp32": 2e11, "bf16": 2e11} | ({"int8": 1e11} if refresh else {})
        assert kept.memory, "comes with the first precision"
        assert run_ceilings("cpu", 2, "fp32,bf16,int8", refresh=False, as_json=True, quiet=True) == 0
        assert asked[1:] == ([] if refresh else [["int8"]])

    def test_a_damaged_file_counts_as_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
        (tmp_path / ceilings.FILE).write_text("{")
        assert stored() == []

    @pytest.mark.parametrize(
        ("device", "says"),
        [
            ("tpu", "unknown device 'tpu'"),
            ("cuda:x", "unknown device 'cuda:x'"),
            ("cuda:7", "there is no device cuda:7"),
            ("cpu,cuda:0", "takes one device, and there are 2"),
        ],
    )
    def test_devices_that_there_are_not(self, device: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            run_ceilings(device, None, None, refresh=False, as_json=False, quiet=True)

    @pytest.mark.parametrize(
        ("found", "best", "asked"),
        [
            ([5.0], 5.0, 6),  # the first, and five that are no better
            ([1.0, 2.0, 3.0, 3.02], 3.02, 8),  # what rises by less than 1 % does not start it anew
            ([float(2**n) for n in range(30)], 2.0**19, 20),
        ],
    )
    def test_repeats_until_nothing_faster_is_found(self, found: list[float], best: float, asked: int) -> None:
        calls: list[float] = []

        def measured() -> float:
            calls.append(found[min(len(calls), len(found) - 1)])
            return calls[-1]

        assert rates._settled(measured) == best
        assert len(calls) == asked

    def test_a_card_may_add_halves_in_half_precision_and_nothing_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        allowed: dict[str, bool] = {}

        def measured(work: Any) -> float:
            allowed[precision] = torch.backends.cuda.matmul.allow_fp16_accumulation
            return 1.0

        monkeypatch.setattr(rates, "_settled", measured)
        monkeypatch.setattr(rates, "MATRIX_SIZES", {"cpu": (64,)})
        for precision in ("fp16", "fp32"):
            rates._matrix(precision, torch.device("cpu"))
        assert allowed == {"fp16": True, "fp32": False}

    def test_a_cpu_multiplies_by_two_libraries_and_both_are_right(self) -> None:
        torch = pytest.importorskip("torch")
        with torch.inference_mode():
            first, second = (work() for work in rates._products(64, torch.float32, torch.device("cpu")))
        assert first.shape == (64, 64)
        assert second.numel() == first.numel()
        assert torch.all(first == 64)
        assert torch.all(second == 64)

    def test_a_gpus_integers_lie_as_its_tensor_cores_take_them(self) -> None:
        torch = pytest.importorskip("torch")
        (product,) = rates._products(64, torch.int8, torch.device("meta"))
        left, right = product.args  # type: ignore[attr-defined]  # a partial
        assert (left.stride(), right.stride()) == ((64, 1), (1, 64))
        (product,) = rates._products(64, torch.int8, torch.device("cpu"))
        assert torch.all(product() == 64)

    def test_a_gpu_that_torch_cannot_use_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch = pytest.importorskip("torch")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UnavailableError, match=r"torch .* cannot use cuda:0") as caught:
            rates.measure(protocol.Rates(device="cuda:0", precisions=["fp32"], threads=1))
        assert "harness backends eager" in (caught.value.hint or "")

    def test_a_gpu_is_kept_under_the_name_that_runs_have_for_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        FakeNvml([FakeCard(uuid="GPU-1", name="NVIDIA L4"), FakeCard(uuid="GPU-2")]).install(monkeypatch)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
        monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
        monkeypatch.setattr(ceilings, "_measured", lambda *_: rated_one_by_one(["fp32"], rate=5e13))
        run_ceilings("cuda", None, "fp32", refresh=False, as_json=True, quiet=True)
        (kept,) = of_machine(described([]), ["cuda:0"], stored())
        assert (kept.device, kept.name, kept.matrix) == ("cuda:0", "NVIDIA GeForce RTX 4090", {"fp32": 5e13})

    def test_a_worker_measures_for_real(self, launcher: Launcher) -> None:
        with launcher.start("rates") as worker:
            request = protocol.Rates(device="cpu", precisions=["fp32", "tf32"], threads=1)
            rated = worker.call(request, protocol.Rated, timeout_s=120)
            without = protocol.Rates(device="cpu", precisions=["tf32"], threads=1, memory=False)
            assert worker.call(without, protocol.Rated, timeout_s=120).memory == []
        assert rated.matrix["fp32"] > 1e8
        assert rated.refused == {"tf32": "RuntimeError: a CPU has no TensorFloat-32"}
        assert [size for size, _ in rated.memory] == sorted(size for size, _ in rated.memory)
        assert all(rate > 0 for _, rate in rated.memory)


def graph(
    nodes: list[Any], inputs: dict[str, tuple[int, ...]], weights: dict[str, tuple[int, ...]], tmp_path: Path
) -> Path:
    """Write a graph of float32 tensors whose last node gives the output."""
    helper, numpy_helper = onnx.helper, onnx.numpy_helper
    import numpy as np

    def value(name: str, shape: tuple[int, ...] | None) -> Any:
        kind = onnx.TensorProto.INT64 if name == "ids" else onnx.TensorProto.FLOAT
        return helper.make_tensor_value_info(name, kind, shape)

    made = helper.make_graph(
        nodes,
        "g",
        [value(name, shape) for name, shape in inputs.items()],
        [value(nodes[-1].output[0], None)],
        [numpy_helper.from_array(np.zeros(shape, np.float32), name) for name, shape in weights.items()],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


class TestCost:
    @pytest.mark.parametrize(
        ("kind", "inputs", "weights", "attributes", "operations"),
        [
            ("MatMul", {"x": (2, 3, 4)}, {"w": (4, 5)}, {}, 2 * 2 * 3 * 4 * 5),
            ("Gemm", {"x": (4, 3)}, {"w": (5, 4)}, {"transA": 1, "transB": 1}, 2 * 3 * 4 * 5),
            ("Conv", {"x": (1, 6, 10, 10)}, {"w": (8, 3, 3, 3)}, {"group": 2}, 2 * 8 * 8 * 8 * 3 * 9),
            ("ConvTranspose", {"x": (1, 6, 10, 10)}, {"w": (6, 4, 2, 2)}, {"strides": [2, 2]}, 2 * 600 * 4 * 4),
            ("Einsum", {"x": (2, 3, 4)}, {"w": (4, 5)}, {"equation": "bij, jk -> bik"}, 2 * 2 * 3 * 4 * 5),
        ],
    )
    def test_one_operator(
        self, kind: str, inputs: Any, weights: Any, attributes: Any, operations: int, tmp_path: Path
    ) -> None:
        from harness.graph_cost import cost

        node = onnx.helper.make_node(kind, [*inputs, *weights], ["y"], **attributes)
        assert cost(graph([node], inputs, weights, tmp_path)).gflop == pytest.approx(operations / 1e9)

    def test_a_recurrent_layer(self, tmp_path: Path) -> None:
        from harness.graph_cost import cost

        node = onnx.helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=5)
        path = graph([node], {"x": (7, 2, 3)}, {"w": (1, 20, 3), "r": (1, 20, 5)}, tmp_path)
        assert cost(path).gflop == pytest.approx(2 * 7 * 2 * 20 * (3 + 5) / 1e9)

    def test_the_least_bytes_read_of_a_table_only_what_is_looked_up(self, tmp_path: Path) -> None:
        from harness.graph_cost import cost

        nodes = [
            onnx.helper.make_node("Gather", ["table", "ids"], ["rows"]),
            onnx.helper.make_node("MatMul", ["rows", "w"], ["y"]),
        ]
        path = graph(nodes, {"ids": (3,)}, {"table": (1000, 8), "w": (8, 2)}, tmp_path)
        looked_up, weights, given, result = 3 * 8 * 4, 8 * 2 * 4, 3 * 8, 3 * 2 * 4
        assert cost(path).least_bytes == looked_up + weights + given + result

    def test_a_shape_that_is_not_known_is_no_figure(self, tmp_path: Path) -> None:
        from harness.graph_cost import cost

        node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
        found = cost(graph([node], {"x": ("batch", 4)}, {"w": (4, 5)}, tmp_path))  # type: ignore[dict-item]
        assert (found.gflop, found.least_bytes) == (None, None)
        assert cost(tmp_path / "nosuch.onnx").gflop is None

    @pytest.mark.parametrize(
        ("name", "options", "dims"),
        [
            ("gemm", {"n": 48, "k": 64}, {"m": 32}),
            ("attention", {}, {"sequence": 32}),
            ("conv-bn-silu", {}, {}),
            ("bert-base", {"size": "tiny"}, {"sequence": 12}),
            ("yolov8n", {}, {"height": 64, "width": 96}),
        ],
    )
    def test_agrees_with_torchs_own_counter(
        self, name: str, options: dict[str, Scalar], dims: dict[str, int], launcher: Launcher
    ) -> None:
        from harness.graph_cost import cost

        recipe = Recipe(model=ModelSpec(name=name, options=options), dims={"batch": 1, **dims}, input_sets=1)
        artifact, _ = ensure_artifact(recipe, launcher, on_progress=lambda _: None)
        counted = cost(artifact.onnx_path)
        assert artifact.manifest.gflop is not None
        assert counted.gflop == pytest.approx(artifact.manifest.gflop, rel=0.01)
        assert counted.least_bytes == artifact.manifest.least_bytes
        assert counted.least_bytes is not None
        moved = sum(4 * _elements(spec.shape) for spec in (*artifact.inputs, *artifact.outputs))
        assert counted.least_bytes <= artifact.manifest.weights_bytes * 1.05 + 2 * moved


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
