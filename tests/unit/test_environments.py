"""Environments of single releases: a real uv installs tiny real wheels from an index on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from filelock import FileLock
from packaging.requirements import Requirement

from harness import environments, registry
from harness.cases import blank_case
from harness.engines import EngineStore
from harness.environments import building, index, installer, managing, preparing, settings
from harness.environments.index import Release
from harness.environments.interpreters import CORE, ask
from harness.errors import EnvironmentFailed, UsageError
from harness.interpreter import Interpreter
from harness.modelspec import ModelSpec
from harness.paths import folder_bytes, write_atomically
from harness.plan import chosen_for, parse_variants
from harness.progress import Narrator
from harness.records import Settings, Workload
from harness.registry import Entry
from reports import sections
from tests.example_history import a_run
from tests.package_index import PackageIndex
from tests.support import PLUGINS, ROOT, RUN_CLI

BACKEND = "fake-released"
THEN, NOW = "2023-05-01", "2026-05-01"
SETTINGS = Settings(
    models=["tiny"], cases=[], seed=0, threads=2, launches=1, rounds=1, slice_s=0.1, budget_s=1.0,
    timeout_s=1.0, memory_limit_bytes=1 << 30, quick=True,
)  # fmt: skip


@pytest.fixture
def cache_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and no package configuration but the test's."""
    for name in [one for one in os.environ if one.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.setitem(registry.BACKENDS, BACKEND, Entry("fake_backends:Released"))
    monkeypatch.syspath_prepend(PLUGINS)
    index._offer.cache_clear()
    yield tmp_path / "cache" / "environments"
    index._offer.cache_clear()


def fill(here: PackageIndex, *, dated: bool = True) -> None:
    """Offer two releases three years apart, and for each a numpy and a companion of its time."""

    def date(text: str) -> str | None:
        return text if dated else None

    for need in CORE:
        if not need.startswith("numpy"):
            here.add(need.partition(">")[0], "5.0", date=date(NOW))
    for version, when in (("1.0", THEN), ("2.0", NOW)):
        here.add(BACKEND, version, requires=("numpy",), date=date(when))
        here.add("numpy", version, date=date(when))
        here.add("fake-beside", version, date=date(when))


@pytest.fixture
def offered(cache_here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PackageIndex]:
    with PackageIndex() as here:
        fill(here)
        monkeypatch.setenv("UV_DEFAULT_INDEX", here.url)
        yield here


@pytest.fixture
def fake_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put a script of the test's in the place of uv."""

    def put(script: str) -> None:
        path = tmp_path / "fake-uv"
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)
        monkeypatch.setenv(installer.VARIABLE, str(path))

    return put


def left(root: Path) -> list[str]:
    """Return what lies among the environments, but for locks and logs."""
    return sorted(path.name for path in root.glob("*") if path.suffix not in (".lock", ".log"))


def lives(pid: int) -> bool:
    """Say whether a process runs; one that is dead and was not waited for does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# ---- making them


def test_dependencies_are_of_the_releases_time_and_the_environment_is_made_once(
    offered: PackageIndex, cache_here: Path
) -> None:
    heard: list[str] = []
    old = environments.ensure(BACKEND, "1.0", say=heard.append)
    assert {name: old.packages[name] for name in (BACKEND, "numpy", "fake-beside", "msgspec")} == {
        BACKEND: "1.0", "numpy": "1.0", "fake-beside": "1.0", "msgspec": "5.0",
    }  # fmt: skip
    assert "5 packages" in heard[0] and len(heard) == 1
    said = subprocess.run([old.executable, "-c", "import numpy; print(numpy.version)"], capture_output=True, text=True)
    assert said.stdout == "1.0\n", "it runs from where it was moved to"
    assert environments.ensure(BACKEND, "1.0", say=heard.append) == old
    assert building.find(BACKEND, "1.0") == old
    assert len(heard) == 1
    new = environments.ensure(BACKEND, "2.0", say=heard.append)
    assert new.packages["numpy"] == new.packages["fake-beside"] == "2.0"
    assert new.executable != old.executable
    made = building.read(old.python.parent.parent)
    assert made is not None and made.until == "2023-05-08T12:00:00Z" and made.release == "1.0"
    assert len(left(cache_here)) == 2
    assert managing._own_bytes(old.python.parent.parent) < folder_bytes(old.python.parent.parent)


def test_an_environment_whose_interpreter_is_gone_is_made_again(offered: PackageIndex) -> None:
    first = environments.ensure(BACKEND, "1.0")
    first.python.unlink()
    assert building.find(BACKEND, "1.0") is None
    assert environments.ensure(BACKEND, "1.0").python.exists()


def test_an_index_without_dates_gives_todays_dependencies_and_that_is_said(
    cache_here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with PackageIndex(json_api=False) as here:
        fill(here, dated=False)
        monkeypatch.setenv("UV_DEFAULT_INDEX", here.url)
        assert environments.releases(BACKEND) == [Release("1.0", None), Release("2.0", None)]
        heard: list[str] = []
        assert environments.ensure(BACKEND, "1.0", say=heard.append).packages["numpy"] == "2.0"
        assert "does not say when" in heard[0]


def test_an_environment_that_is_there_needs_no_index(offered: PackageIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    environments.ensure(BACKEND, "1.0")
    index._offer.cache_clear()
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    (variant,) = parse_variants([f"{BACKEND}@1.0"])
    preparing.check_variant(variant, "cpu", None)
    assert environments.ensure(BACKEND, "1.0").packages["numpy"] == "1.0"


def create(version: str = "1.0") -> subprocess.Popen[str]:
    """Start `harness env create` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(RUN_CLI), "env", "create", f"{BACKEND}@{version}"],
        env={**os.environ, "PYTHONPATH": str(PLUGINS)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A job in the background ignores it, and so do those that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_two_processes_at_once_make_it_once(offered: PackageIndex, cache_here: Path) -> None:
    answers = [process.communicate(timeout=120) for process in [create(), create()]]
    assert sum(err.count("made the environment") for _, err in answers) == 1, answers
    assert answers[0][0] == answers[1][0] != ""
    assert len(left(cache_here)) == 1


SLEEPER = 'if [ "$1 $2" = "pip install" ]; then echo $$ > "$SLEEPER"; sleep 60 & echo $! >> "$SLEEPER"; wait; fi; '


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_process_that_is_killed_half_way_leaves_no_environment(
    how: signal.Signals,
    offered: PackageIndex,
    cache_here: Path,
    tmp_path: Path,
    fake_uv: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sleeper = tmp_path / "sleeper"
    monkeypatch.setenv("SLEEPER", str(sleeper))
    fake_uv(f'{SLEEPER}exec "{sys.executable}" -m uv "$@"')
    process = create()
    while not sleeper.exists() or len(sleeper.read_text().split()) < 2:
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(how)
    process.communicate(timeout=60)
    started = [int(pid) for pid in sleeper.read_text().split()]
    if how is signal.SIGINT:
        assert process.returncode == 130
        assert not any(map(lives, started)), "nothing that uv started goes on"
        assert left(cache_here) == []
    else:
        os.killpg(started[0], signal.SIGKILL)
        assert [name for name in left(cache_here) if ".part-" in name] != []
    assert building.find(BACKEND, "1.0") is None
    monkeypatch.delenv(installer.VARIABLE)
    environments.ensure(BACKEND, "1.0")
    assert [".part-" in name for name in left(cache_here)] == [False], "the next one cleans up"


def test_a_failure_says_why_in_the_installers_words(
    offered: PackageIndex, cache_here: Path, tmp_path: Path, fake_uv: Callable[[str], None]
) -> None:
    fake_uv(
        'if [ "$1" = "venv" ]; then mkdir -p "${@: -1}"; exit 0; fi\n'
        "printf 'error: No solution\\n  cause: Because numpy is gone.\\n\\nhint: look\\n  elsewhere\\n' >&2; exit 1"
    )
    log = tmp_path / "logs" / "it.log"
    with pytest.raises(EnvironmentFailed) as caught:
        environments.ensure(BACKEND, "1.0", log=log)
    error = caught.value
    assert (error.message, error.hint, error.log) == ("Because numpy is gone.", "look elsewhere", str(log))
    assert error.log_tail.startswith("$ uv venv") and "hint: look" in error.log_tail
    assert error.status == "unavailable"
    assert left(cache_here) == []


def test_an_installer_that_hangs_is_ended(
    offered: PackageIndex, cache_here: Path, tmp_path: Path, fake_uv: Callable[[str], None]
) -> None:
    pid = tmp_path / "pid"
    environments.releases(BACKEND)  # with the real one
    fake_uv(f"echo $$ > {pid}; sleep 60")
    with pytest.raises(EnvironmentFailed, match=r"did not end within 0\.5 s"):
        environments.ensure(BACKEND, "1.0", timeout_s=0.5)
    assert not lives(int(pid.read_text()))
    assert left(cache_here) == []


def test_an_installer_that_is_missing_says_what_to_install(
    offered: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(installer.VARIABLE, "/nowhere/uv")
    with pytest.raises(EnvironmentFailed, match="/nowhere/uv cannot be started") as caught:
        environments.ensure(BACKEND, "1.0")
    assert caught.value.hint == "pip install uv"


def test_a_release_without_a_wheel_for_this_python_says_for_which(offered: PackageIndex) -> None:
    offered.add(BACKEND, "0.5", date="2020-01-01", tag="cp36-cp36m-manylinux1_x86_64")
    offered.add(BACKEND, "0.7", date="2020-01-01", tag="cp312-abi3-manylinux_2_99_x86_64")
    assert [one.version for one in environments.releases(BACKEND)] == ["1.0", "2.0"]
    with pytest.raises(EnvironmentFailed, match="it has wheels for cp36") as caught:
        environments.ensure(BACKEND, "0.5")
    assert caught.value.hint == "releases that fit: 1.0 to 2.0"


# ---- releases


def test_releases_have_dates_and_leave_out_previews(offered: PackageIndex) -> None:
    offered.add(BACKEND, "3.0rc1", date=NOW)
    found = environments.releases(BACKEND)
    assert [(one.version, str(one.date)[:10]) for one in found] == [("1.0", THEN), ("2.0", NOW)]
    environments.check_release(BACKEND, "3.0rc1")  # it may be asked for by name
    asked = len(offered.asked)
    environments.releases(BACKEND)
    assert len(offered.asked) == asked, "the index is asked once"


def test_a_release_that_there_is_not_names_the_nearest(offered: PackageIndex) -> None:
    for number in range(3, 12):
        offered.add(BACKEND, f"{number}.0", date=NOW)
    for wanted, nearest in {"5.5": "4.0, 5.0, 6.0, 7.0, 8.0", "0.1": "1.0, 2.0", "99": "10.0, 11.0"}.items():
        with pytest.raises(UsageError, match=f"{BACKEND} {wanted} was never released") as caught:
            environments.check_release(BACKEND, wanted)
        assert nearest in (caught.value.hint or "")


def test_an_index_that_does_not_answer_refuses_nothing(cache_here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    environments.check_release(BACKEND, "9.9")
    with pytest.raises(EnvironmentFailed):
        environments.ensure(BACKEND, "9.9", say=lambda _: None)


def test_several_indexes_are_taken_together(
    offered: PackageIndex, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    page = tmp_path / "mirror" / BACKEND / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text('<a href="fake_released-0.9-py3-none-any.whl">fake_released-0.9-py3-none-any.whl</a>')
    monkeypatch.setenv("UV_INDEX", f"ours={page.parent.parent.as_uri()} {offered.url}/")
    assert [one.version for one in environments.releases(BACKEND)] == ["0.9", "1.0", "2.0"]
    assert index.knows_all(BACKEND)


# ---- the user's configuration


def test_pips_settings_are_those_of_uv_unless_uv_has_its_own(
    cache_here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(settings.variables()) == {"UV_PYTHON_DOWNLOADS", "UV_NO_PROGRESS"}
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://a/simple\nextra_index_url =\n  https://b\n  https://c\ntimeout=3\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    monkeypatch.setattr(settings, "_knows_uv", lambda: False)
    told = settings.variables()
    assert told["UV_DEFAULT_INDEX"] == "https://a/simple"
    assert told["UV_INDEX"] == "https://b https://c"
    assert told["UV_FIND_LINKS"] == "/one,/two"
    assert told["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    monkeypatch.setenv("PIP_INDEX_URL", "https://d/simple")
    assert settings.variables()["UV_DEFAULT_INDEX"] == "https://d/simple", "a variable comes before a file"
    monkeypatch.undo()
    monkeypatch.setenv("PIP_INDEX_URL", "https://d/simple")
    monkeypatch.setenv("UV_DEFAULT_INDEX", "https://e/simple")
    assert "UV_DEFAULT_INDEX" not in settings.variables(), "uv reads its own by itself"


# ---- interpreters


WHAT_IS_IMPORTED = """
import json, sys
sys.path.insert(0, sys.argv[1])
import _harness_boot
_harness_boot.install()

def names():
    return {name.partition(".")[0] for name, module in sys.modules.items()
            if "site-packages" in (getattr(module, "__file__", None) or "")}

before = names()  # what the interpreter itself starts with
import harness.worker, numpy
from pathlib import Path
from harness import registry
from harness.artifact import read_tensors, write_tensors
write_tensors(Path("tensors"), {"x": numpy.zeros(3)})
read_tensors(Path("tensors"))
seen = {"": sorted(names() - before)}
for name in registry.BACKENDS:
    before = names()
    registry.backend(name)
    seen[name] = sorted(names() - before)
print(json.dumps(seen))
"""


def test_a_worker_imports_the_light_core_and_what_its_backend_says(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-c", WHAT_IS_IMPORTED, str(ROOT)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    core = set(seen.pop("")) - {"typing_extensions"}  # msgspec takes it where it is there
    assert core == {Requirement(need).name for need in CORE}
    for name, imported in seen.items():
        kind = registry.backend(name)
        if kind.distribution(kind.Options(), "cpu") is None:
            continue  # no environment is made for it
        beside = {Requirement(one).name.replace("-", "_") for one in kind.companions("1.0", kind.Options(), "cpu")}
        assert set(imported) <= beside, name


def test_an_interpreter_tells_what_it_lacks(offered: PackageIndex) -> None:
    about = ask(environments.ensure(BACKEND, "1.0").python)
    assert about.minor == sys.version_info[:2]
    assert about.lacks([f"{BACKEND}>=2", "msgspec>=0.19", "absent", "Fake_Beside"]) == [f"{BACKEND}>=2", "absent"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("onnxruntime", "BACKEND=/path/to/python is wanted"),
        ("ort=/usr/bin/python3", "unknown backend 'ort'"),
        ("onnxruntime=/nowhere", "there is no interpreter"),
        (f"onnxruntime={__file__}", "there is no interpreter"),
        ("onnxruntime=/bin/true", "/bin/true is not a Python interpreter"),
    ],
)
def test_paths_that_are_no_interpreter_are_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        preparing.parse_pythons([text])
    assert message in caught.value.message


def asked(*backends: str, pythons: dict[str, str] | None = None) -> Settings:
    return msgspec.structs.replace(SETTINGS, asked=list(backends), pythons=pythons or {}, devices=("cpu",))


def test_a_users_interpreter_that_lacks_something_gets_the_command_that_installs_it(offered: PackageIndex) -> None:
    python = str(environments.ensure(BACKEND, "1.0").python)
    pythons = preparing.parse_pythons([f"{BACKEND}={python}"])
    variants = parse_variants([BACKEND])
    preparing.check(variants, asked(BACKEND, pythons=pythons))
    with pytest.raises(UsageError, match="lacks what a worker needs: onnxruntime") as caught:
        preparing.check(parse_variants(["onnxruntime"]), asked("onnxruntime", pythons={"onnxruntime": python}))
    assert caught.value.hint == f"{python} -m pip install onnxruntime"
    with pytest.raises(UsageError, match="tvm is not among the cases"):
        preparing.check(variants, asked(BACKEND, pythons={"tvm": python}))


# ---- a comparison's


def test_each_release_gets_its_interpreter_and_one_that_fails_only_its_reason(
    offered: PackageIndex, tmp_path: Path
) -> None:
    offered.add(BACKEND, "0.5", date="2020-01-01", tag="cp36-cp36m-manylinux1_x86_64")
    texts = [f"{BACKEND}@1.0", f"{BACKEND}@0.5", f"{BACKEND}@1.0:ms=2", BACKEND]
    variants = parse_variants(texts)
    with Narrator(quiet=True) as narrator:
        found = preparing.prepare(variants, asked(*texts), "run-1", tmp_path / "logs", narrator)
    assert isinstance(found[f"{BACKEND}@0.5"], EnvironmentFailed)
    first = found[f"{BACKEND}@1.0"]
    assert isinstance(first, Interpreter) and found[f"{BACKEND}@1.0:ms=2.0"] == first
    assert BACKEND not in found, "it runs in that of harness"
    assert preparing.runs_of(first.python.parent.parent) == ["run-1"]
    assert preparing.release_in(variants[0], first, "cpu") == "1.0"
    assert preparing.release_in(variants[3], None, "cpu") is None
    assert preparing.release_in(variants[3], first, "cpu") == "1.0", "a user's own interpreter has a release too"


def test_the_command_that_runs_a_case_again_has_its_version_and_interpreter() -> None:
    workload = Workload(key="tiny", model=ModelSpec(name="tiny"), dims={}, batch=1, baseline="onnxruntime@1.24.4")
    (variant,) = parse_variants(["onnxruntime@1.24.4:level=basic"])
    case = blank_case(asked(variant.id, pythons={"onnxruntime": "/usr/bin/python3.10"}), workload, variant)
    assert (case.id, case.backend, case.release) == (variant.id, "onnxruntime", "1.24.4")
    assert "--backends onnxruntime@1.24.4:level=basic" in case.reproduce
    assert "--python onnxruntime@1.24.4=/usr/bin/python3.10" in case.reproduce


def test_an_interpreter_is_for_a_backend_or_for_one_of_its_releases() -> None:
    pythons = preparing.parse_pythons([f"onnxruntime@v1.24.4={sys.executable}", f"tvm={sys.executable}"])
    chosen = [chosen_for(one, pythons) for one in parse_variants(["onnxruntime@1.24.4,onnxruntime,tvm@0.25.0,tvm"])]
    assert chosen == [sys.executable, None, sys.executable, sys.executable]
    with pytest.raises(UsageError, match=r"onnxruntime@1\.24\.4 is not among the cases"):
        preparing.check(parse_variants(["tvm"]), asked("tvm", pythons={"onnxruntime@1.24.4": sys.executable}))


def test_a_report_says_what_is_installed_where_a_case_runs() -> None:
    of_then = Interpreter(
        executable="/x/bin/python",
        version="3.11.7",
        packages={"numpy": "1.25.0", "onnxruntime": "1.15.1", "sympy": "1.12"},
        until="2023-06-23T22:19:48Z",
    )
    own = Interpreter(executable="/y/bin/python", version="3.10.4", packages={"numpy": "1.26.4"})
    fields: dict[str, dict[str, object]] = {
        "onnxruntime": {"release": "1.15.1", "interpreter": of_then},
        "eager": {"interpreter": own},
    }
    lines = {line.label: line.text for line in sections.environment(a_run(fields=fields))}
    then = "Python 3.11.7, dependencies until 2023-06-23: numpy 1.25.0, onnxruntime 1.15.1, 1 package more"
    assert lines["onnxruntime@1.15.1"] == then
    assert lines["eager"] == "Python 3.10.4: numpy 1.26.4"


# ---- harness env


def test_listing_showing_and_deleting(
    offered: PackageIndex, cache_here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    managing.run_list(as_json=False)
    assert "no environments" in capsys.readouterr().out
    for version in ("1.0", "2.0"):
        made = environments.ensure(BACKEND, version)
    managing.run_list(as_json=False)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:4]] == [
        f"{BACKEND}@1.0",
        f"{BACKEND}@2.0",
    ]
    managing.run_show([f"{BACKEND}@1.0"], as_json=True)
    (shown,) = msgspec.json.decode(capsys.readouterr().out, type=list[managing.Entry])
    assert shown.manifest.packages["numpy"] == "1.0" and shown.bytes > shown.own_bytes > 0
    managing.run_show([f"{BACKEND}@2.0"], as_json=False)
    assert "none newer than 2026-05-08" in capsys.readouterr().out
    with pytest.raises(UsageError, match=f"did you mean '{BACKEND}@1.0'"):
        managing.run_clear([f"{BACKEND}@1"], yes=False)
    managing.run_clear([f"{BACKEND}@1.0"], yes=False)
    assert [one.name for one in managing.entries()] == [f"{BACKEND}@2.0"]
    (cache_here / f"{BACKEND}-9-abc.part-7").mkdir()
    folder = made.python.parent.parent
    write_atomically(folder / preparing.RUNS, b"living")
    with EngineStore("living"):
        managing.run_clear([], yes=True)
        assert left(cache_here) == [folder.name], "a comparison runs in it"
    with FileLock(f"{folder}.lock"):
        assert not managing.delete(folder), "it is being made"
    managing.run_clear([], yes=True)
    assert left(cache_here) == []
    assert capsys.readouterr().out.endswith("deleted 1 environment(s)\n")
