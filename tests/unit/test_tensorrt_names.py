"""Every name of TensorRT that the backends use exists in 10, 11 and RTX: held against the real Python bindings.

Native TensorRT's libraries are not on the public package index, but its bindings are, in small wheels. They load
with nothing but nine symbols, which a stub library provides; nothing can be built with them.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests import fake_tensorrt
from tests.fake_tensorrt import FakeTensorRT
from tests.support import ROOT

NATIVE = ("10.16.1.11", "11.4.0.106")
SHARED = ("tensorrt_build.py", "tensorrt_family.py", "tensorrt_profile.py", "tensorrt_session.py")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")


def lacking(what: str) -> None:
    """Skip for want of something, unless this is a run that must not skip: CI cannot go green by skipping."""
    if os.environ.get("HARNESS_REQUIRE"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="module")
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that outlives this run where pytest keeps one, so that wheels are fetched once."""
    cache = getattr(request.config, "cache", None)
    return Path(cache.mkdir("tensorrt-bindings")) if cache is not None else tmp_path_factory.mktemp("bindings")


@pytest.fixture(scope="module", params=NATIVE)
def bindings(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds the real bindings of one version, ready to be imported."""
    version = request.param
    place = store / f"{version}-{sys.implementation.cache_tag}"
    if not place.is_dir():
        made = tmp_path_factory.mktemp("wheel")
        fetch(version, made)
        stub(made / "tensorrt_bindings", version.partition(".")[0])
        shutil.move(made, place)  # whole or not at all
    return place


def fetch(version: str, folder: Path) -> None:
    """Fetch the wheel for this interpreter and unpack it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"tensorrt-cu13-bindings=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        lacking(f"the bindings of TensorRT {version} cannot be fetched: {done.stderr.strip()[-500:]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(folder)
    wheel.unlink()


def stub(folder: Path, major: str) -> None:
    """Put libraries beside the bindings that have the symbols they ask for, and nothing else."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        lacking("there is no C compiler")
    source = folder / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    for library in LIBRARIES:
        command = [str(compiler), "-shared", "-fPIC", "-o", str(folder / f"{library}.so.{major}"), str(source)]
        subprocess.run(command, check=True, timeout=60)


def names_of(module: str, files: list[Path], path: Path | None = None) -> dict[str, Any]:
    """Import a module in a process of its own and say which of its names the files use."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "tensorrt_names.py"), module, *map(str, files)],
        env={**os.environ, "PYTHONPATH": str(path or "")},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def sources(own: str) -> list[Path]:
    return [ROOT / "backends" / name for name in (*SHARED, own)]


@pytest.fixture(scope="module")
def rtx_names() -> dict[str, Any]:
    if "tensorrt-rtx" not in os.environ.get("HARNESS_REQUIRE", "").split(","):
        pytest.importorskip("tensorrt_rtx")
    return names_of("tensorrt_rtx", sources("tensorrt_rtx.py"))


def test_native_has_every_name_that_the_backend_uses(bindings: Path) -> None:
    answer = names_of("tensorrt_bindings", sources("tensorrt.py"), bindings)
    assert bindings.name.startswith(answer["version"])
    assert not answer["missing"]
    assert used_by_fakes("ITimingCache") == set(answer["used"]["ITimingCache"])
    assert sum(map(len, answer["used"].values())) > 80


def test_rtx_has_every_name_that_the_backend_uses(rtx_names: dict[str, Any]) -> None:
    assert not rtx_names["missing"]
    assert sum(map(len, rtx_names["used"].values())) > 80


def stands_for() -> dict[str, type]:
    """Return class of TensorRT -> the fake that stands for it."""
    found = {}
    for fake in vars(fake_tensorrt).values():
        if inspect.isclass(fake) and (named := re.match(r"Stands for `(\w+)`", fake.__doc__ or "")):
            found[named[1]] = fake
    return found


def used_by_fakes(name: str) -> set[str]:
    return {attribute for attribute in vars(stands_for()[name]) if not attribute.startswith("_")}


def test_the_fakes_have_the_names_that_were_found_and_no_others(rtx_names: dict[str, Any]) -> None:
    # What a fake has was written by hand, what is used was derived: a gap in either shows here.
    used = {name: set(names) for name, names in rtx_names["used"].items()}
    used["IBuilderConfig"] |= {
        "builder_optimization_level",
        "create_timing_cache",
        "get_timing_cache",
        "set_timing_cache",
    }
    assert set(stands_for()) - {"ITimingCache"} <= set(used)
    for name in set(stands_for()) - {"ITimingCache"}:
        assert used_by_fakes(name) == used[name], name
    module = {name for name in vars(FakeTensorRT) if not name.startswith("_")} - {"config"}
    assert module == {name for name in used[""] if not name.startswith("_")}


WRONG = """
def use(trt, path):
    builder = trt.Builder(None)
    config = builder.create_builder_config()
    config.no_such_flag = 1
    network = builder.create_network()
    network.num_layers = 3
    builder.build_serialized_network(network, configuration=config)
    for tensor in [network.get_input(index) for index in range(2)]:
        inspect(tensor, trt.BuilderFlag.FP16)

def inspect(given, flag):
    return given.dynamic_range

class Watch(trt.IProgressMonitor):
    def phase_begin(self, phase): ...
"""


def test_names_that_do_not_exist_are_found(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    (tmp_path / "wrong.py").write_text(WRONG)
    assert names_of("tensorrt_rtx", [tmp_path / "wrong.py"])["missing"] == [
        "BuilderFlag.FP16",
        "IBuilderConfig.no_such_flag",
        "INetworkDefinition.num_layers",
        "IProgressMonitor.phase_begin",
        "ITensor.dynamic_range",
        "builder.build_serialized_network(configuration=)",
    ]
