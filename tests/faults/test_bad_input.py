"""A user's mistakes and a machine's faults: each ends in a line or two that say what, where and how to fix it."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.artifact import Artifact
from harness.cli import main
from harness.engines import EngineStore
from harness.store import RUN_FILE
from tests.support import PLUGINS, RUN_CLI, Cli, rows_of

Done = subprocess.CompletedProcess[str]
Inside = Callable[..., Done]
QUICK = ["compare", "--model", "tiny", "--backends", "fake-ok", "--quick"]


def refused(done: Done, *parts: str, lines: int = 3) -> None:
    """Check that a command ended as wrong usage, in a few clear lines."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    told = done.stderr.splitlines()
    errors = [index for index, line in enumerate(told) if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert len(told) - errors[0] <= lines, done.stderr
    for part in parts:
        assert part in done.stderr
    for word in ("Traceback", "internal", "reproduce"):
        assert word not in done.stderr


def left_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Inside:
    """Run a command in this process, in an empty folder: for what ends before anything starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(PLUGINS)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # pytest keeps its own

    def run(*arguments: str) -> Done:
        with pytest.raises(SystemExit) as left:
            main(list(arguments))
        told = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return subprocess.CompletedProcess(arguments, left.value.code, told.out, told.err)

    return run


# ---- wrong usage: nothing starts, nothing is written


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("comparre", ["unknown command 'comparre'; did you mean 'compare'?"]),
        ("--quick", ["no such option '--quick'", "hint: harness --help"]),
        ("compare --modle tiny", ["no such option '--modle'", "'--model'", "hint: harness compare --help"]),
        ("compare extra", ["unexpected extra argument (extra)"]),
        ("compare --model", ["'--model' requires an argument"]),
        ("compare --model tyni", ["unknown model 'tyni'; did you mean 'tiny'? Known: attention", "hint: or your own"]),
        ("compare --backends tensort", ["unknown backend 'tensort'; did you mean 'tensorrt'?"]),
        ("compare --backends tvm:trails=64", ["unknown option of tvm 'trails'; did you mean 'trials'?"]),
        ("compare --backends tvm:trials=many", ["options of tvm: trials=many: Expected `int`", "harness backends tvm"]),
        ("compare --backends fake-ok:ms=-1", ["ms=-1: Expected `float` >= 0.0", "harness backends fake-ok"]),
        ("compare --backends fake-ok:ms=inf", ["ms=inf", "finite"]),
        ("compare --backends fake-ok:threads=0", ["threads=0"]),
        (
            "compare --backends torch-compile:mode=max-autotuned",
            ["value of torch-compile:mode 'max-autotuned'; did you mean 'max-autotune'?", "hint: harness backends"],
        ),
        ("compare --cpus fast", ["--cpus 'fast': neither the number of a CPU nor a group of CPUs", "hint: --cpus 0-3"]),
        ("compare --cpus 99999", ["there is no CPU 99999; this machine has 0"]),
        ("compare --cpus 0 --threads 2 --backends fake-ok", ["fake-ok has 2 threads, and --cpus 0 is 1 CPU"]),
        ("compare --backends torch-compile:aot=true,fullgraph=true", ["aot=true", "leave out fullgraph"]),
        ("compare --backends tvm:tuner=none,trials=64", ["tvm: trials", "leave out trials or tuner=none"]),
        ("compare --backends tensorrt-rtx:target=sm_89", ["unknown option of tensorrt-rtx 'target'"]),
        ("compare --backends all,trials=64", ["'trials=64' belongs to no backend"]),
        ("compare --backends ,", ["no backend was asked for", "--backends all"]),
        ("compare --backends fake-ok --baseline eager", ["baseline 'eager' is not among the cases", "fake-ok"]),
        ("compare --batch 0", ["'--batch'", "'0' is not a number from 1"]),
        ("compare --batch many", ["'--batch'", "'many' is not a number"]),
        ("compare --threads 0", ["'--threads'", "0 is not in the range"]),
        ("compare --threads 99999999999999999999999", ["'--threads'"]),
        ("compare --seed -1", ["'--seed'", "-1 is not in the range"]),
        ("compare --seed 99999999999999999999999", ["'--seed'"]),
        ("compare --opset 5", ["'--opset'", "5 is not in the range"]),
        ("compare --launches 0", ["'--launches'"]),
        ("compare --budget inf", ["'--budget'", "inf is not a finite number"]),
        ("compare --timeout nan", ["'--timeout'", "nan is not a finite number"]),
        ("compare --memory-limit inf", ["'--memory-limit'", "inf is not a finite number"]),
        ("compare --memory-limit 0", ["'--memory-limit'"]),
        ("compare --quick --launches 3", ["--quick and --launches contradict each other"]),
        ("compare --json --format csv", ["--json and --format contradict each other"]),
        ("compare --format pdf", ["unknown report format 'pdf'", "terminal"]),
        ("compare --format terminal,json", ["terminal and json cannot both go to standard output"]),
        ("compare --format html=no/such/folder.html", ["there is no folder", "no/such"]),
        ("recommend --max-latency 20", ["'20' is not a duration", "20ms"]),
        ("recommend --objective speed", ["'speed' is not one of"]),
        ("compare --resume last --model tiny --quick", ["--resume takes everything", "leave out --model, --quick"]),
        ("compare --resume last", ["no run 'last': there are no runs in results", "--out"]),
        ("show", ["no run 'last': there are no runs in results", "harness compare"]),
        ("show 2026 --out nowhere", ["no run '2026': there are no runs in nowhere"]),
        ("plot", ["there are no runs in results", "--runs names the folder"]),
        ("backends tensort", ["unknown backend 'tensort'; did you mean 'tensorrt'?"]),
        ("export --model tyni", ["unknown model 'tyni'; did you mean 'tiny'?"]),
        ("cache clean", ["'clean' is not one of 'show', 'clear'"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_wrong_usage(arguments: str, parts: list[str], inside: Inside, tmp_path: Path) -> None:
    done = inside(*arguments.split())
    refused(done, *parts)
    assert done.stdout == ""
    assert left_in(tmp_path) == []


def test_wrong_usage_of_the_real_command(cli: Cli, tmp_path: Path) -> None:
    for words, part in (("comparre", "unknown command"), ("compare --batch 0", "'--batch'"), ("show", "no run 'last'")):
        done = cli(*words.split())
        refused(done, part)
        assert done.stdout == ""
    assert left_in(tmp_path) == []


def test_quiet_and_verbose_contradict_each_other(inside: Inside) -> None:
    done = inside("compare", "-v", "-q")
    assert done.returncode == 2
    assert "error: --verbose and --quiet contradict each other; give one" in done.stderr


def test_traceback_is_shown_to_who_asks_for_it(inside: Inside) -> None:
    done = inside("compare", "--model", "tyni", "-v")
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "UsageError" in done.stderr


def test_no_arguments_is_a_question_for_help(inside: Inside) -> None:
    done = inside()
    assert done.returncode == 0
    assert "Examples:" in done.stdout


# ---- folders that cannot be written


def test_output_folder_that_cannot_be(inside: Inside, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(inside(*QUICK, "--out", "file"), "the output folder file is a file, not a folder", "--out")
    refused(inside(*QUICK, "--out", "file/below"), "the output folder file/below cannot be written: Not a directory")
    refused(inside(*QUICK, "--out", "/proc/none"), "the output folder /proc/none cannot be written")
    assert left_in(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [QUICK, ["export", "--model", "tiny"]], ids=["compare", "export"])
def test_cache_folder_that_cannot_be(command: list[str], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    done = cli(*command, environment={"HARNESS_CACHE": str(tmp_path / "file")})
    refused(done, "the cache folder", "cannot be written: Not a directory", "HARNESS_CACHE")
    assert done.stdout == "", "there is no table without a case"


@pytest.mark.usefixtures("tiny")
def test_copy_of_an_artifact_that_cannot_be(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(cli("export", "--model", "tiny", "--to", "file"), "file exists and is not an empty folder", "another --to")
    refused(cli("export", "--model", "tiny", "--to", "file/below"), "cannot be written", "another --to")
    refused(cli("export", "--model", "tiny", "--to", "/proc/none"), "cannot be written", "another --to")
    assert cli("export", "--model", "tiny", "--to", "copy").returncode == 0
    assert Artifact.open(tmp_path / "copy", verify=True)
    refused(cli("export", "--model", "tiny", "--to", "copy"), "copy exists and is not an empty folder")


# ---- a full disk


def small_files() -> None:
    """Let no file of this process and its children grow beyond 4 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


@pytest.mark.usefixtures("tiny")
def test_run_file_that_cannot_grow_keeps_its_last_state(cli: Cli, tmp_path: Path) -> None:
    done = cli(*QUICK, "--out", "out", preexec_fn=small_files)
    refused(done, f"{RUN_FILE} cannot be written: File too large", "--out")
    (folder,) = (tmp_path / "out").iterdir()
    run = json.loads((folder / RUN_FILE).read_text())
    assert run["id"] == folder.name
    assert not [name for name in left_in(tmp_path) if name.endswith(".part")]
    shown = cli("show", "last", "--out", "out")
    assert shown.returncode == 0, shown.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, timeout=60).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=60)


@pytest.mark.usefixtures("tiny")
def test_disk_that_is_full_from_the_beginning(small_disk: Path, cli: Cli) -> None:
    (small_disk / "filler").write_bytes(b"x" * (64 << 10))
    done = cli(*QUICK, "--out", str(small_disk / "out"))
    refused(done, "cannot be written: No space left on device", "free some disk space")
    assert done.stdout == ""
    assert left_in(small_disk) == ["filler", "out"], "no empty folder of a run is left"
    done = cli("export", "--model", "tiny", "--to", str(small_disk / "copy"))
    refused(done, "the artifact cannot be copied to", "No space left on device")
    assert left_in(small_disk) == ["copy", "filler", "out"]


@pytest.mark.usefixtures("tiny")
def test_disk_that_fills_up_while_measuring(small_disk: Path, cli: Cli) -> None:
    # A backend that prints megabytes fills the disk with its log.
    backends = "fake-ok,fake-chatty,fake-ok:ms=2"
    done = cli("compare", "--model", "tiny", "--backends", backends, "--quick", "--out", str(small_disk / "out"))
    refused(done, f"{RUN_FILE} cannot be written: No space left on device", "free some disk space")
    (folder,) = (small_disk / "out").iterdir()
    assert json.loads((folder / RUN_FILE).read_text())["workloads"][0]["cases"][0]["id"] == "fake-ok"
    assert not [name for name in left_in(small_disk) if ".part" in name]


def test_cache_on_a_full_disk(small_disk: Path, cli: Cli) -> None:
    done = cli("export", "--model", "tiny", environment={"HARNESS_CACHE": str(small_disk)})
    assert done.returncode in (2, 3)
    assert "error: " in done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in (small_disk / "exports").iterdir() if path.is_dir()], "no half export is left"


# ---- damaged files


@pytest.fixture
def own_cache(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a copy of the tiny artifact, to be damaged; returns the copy."""
    root = tmp_path_factory.mktemp("own-cache")
    shutil.copytree(tiny.folder, root / "exports" / tiny.folder.name)
    return root / "exports" / tiny.folder.name


def test_damaged_export_is_made_anew_and_the_user_is_told(own_cache: Path, cli: Cli) -> None:
    os.truncate(own_cache / "weights.safetensors", 100)
    done = cli(*QUICK, environment={"HARNESS_CACHE": str(own_cache.parent.parent)})
    assert done.returncode == 0, done.stderr
    assert Artifact.open(own_cache, verify=True)
    assert "exported tiny: from the cache" not in done.stderr
    assert "the cached export is damaged and is made again: " in done.stderr


@pytest.fixture(scope="module")
def finished(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """Make a run with a sound and a drifting case; returns its folder and what the command said."""
    out = tmp_path_factory.mktemp("finished")
    done = subprocess.run(
        [sys.executable, str(RUN_CLI), "compare", "--model", "tiny", "--backends", "fake-ok,fake-nan", "--quick",
         "--json", "--out", str(out)],
        cwd=out, env={**os.environ, "PYTHONPATH": str(PLUGINS)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    (folder,) = out.iterdir()
    return folder, done


@pytest.fixture
def run_folder(finished: tuple[Path, Done], tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged, in `out`."""
    folder = tmp_path / "out" / finished[0].name
    shutil.copytree(finished[0], folder)
    return folder


BOTH = pytest.mark.parametrize("command", [["show", "last"], ["compare", "--resume", "last"]], ids=["show", "resume"])


@BOTH
@pytest.mark.parametrize("content", ["", "{", "[]", '{"schema": 2}', "\x00\x01"], ids=repr)
def test_damaged_run_file(command: list[str], content: str, run_folder: Path, inside: Inside) -> None:
    (run_folder / RUN_FILE).write_text(content)
    refused(inside(*command, "--out", "out"), f"{RUN_FILE} is damaged: ", "hint: measure again")
    assert (run_folder / RUN_FILE).read_text() == content, "it is left for whoever wants to repair it"


@BOTH
def test_run_file_of_a_newer_harness(command: list[str], run_folder: Path, inside: Inside) -> None:
    run = json.loads((run_folder / RUN_FILE).read_text())
    (run_folder / RUN_FILE).write_text(json.dumps({**run, "schema": 99}))
    refused(inside(*command, "--out", "out"), "was written by a newer harness: it has schema 99", "update harness")


def unchanged_by(run_folder: Path, done: Done, *parts: str, before: bytes) -> None:
    refused(done, *parts)
    assert (run_folder / RUN_FILE).read_bytes() == before


def test_resume_of_a_finished_run(run_folder: Path, inside: Inside) -> None:
    before = (run_folder / RUN_FILE).read_bytes()
    done = inside("compare", "--resume", "last", "--out", "out")
    unchanged_by(run_folder, done, f"run {run_folder.name} is finished; nothing to resume", "--launches", before=before)


def test_resume_on_another_machine(run_folder: Path, inside: Inside) -> None:
    run = json.loads((run_folder / RUN_FILE).read_text())
    run["state"] = "interrupted"
    run["environment"]["cpu"] = "another"
    (run_folder / RUN_FILE).write_text(json.dumps(run))
    before = (run_folder / RUN_FILE).read_bytes()
    done = inside("compare", "--resume", "last", "--out", "out")
    unchanged_by(run_folder, done, "was made with other hardware or library versions", before=before)


def test_resume_of_a_run_that_is_being_measured(run_folder: Path, inside: Inside) -> None:
    run = json.loads((run_folder / RUN_FILE).read_text())
    (run_folder / RUN_FILE).write_text(json.dumps({**run, "state": "running"}))
    before = (run_folder / RUN_FILE).read_bytes()
    with EngineStore(run["id"]):
        done = inside("compare", "--resume", "last", "--out", "out")
    unchanged_by(run_folder, done, "is being measured by another process", before=before)


def test_name_that_several_runs_answer_to(run_folder: Path, inside: Inside) -> None:
    shutil.copytree(run_folder, run_folder.with_name(run_folder.name + "-2"))
    refused(inside("show", run_folder.name[:4], "--out", "out"), "several runs match", f"{run_folder.name}-2; or: last")
    assert inside("show", run_folder.name, "--out", "out").returncode == 0, "the whole name is not ambiguous"


# ---- exit codes


def status_of(done: Done) -> dict[str, str]:
    assert done.stdout, done.stderr
    return {row["id"]: row["status"] for row in rows_of(done)}


def test_drift_is_a_failed_gate(finished: tuple[Path, Done]) -> None:
    assert status_of(finished[1]) == {"fake-ok": "ok", "fake-nan": "drifted"}
    assert finished[1].returncode == 1
    assert "error" not in finished[1].stderr


@pytest.mark.usefixtures("tiny")
def test_crash_and_drift_is_a_missing_result(cli: Cli) -> None:
    backends = "fake-ok,fake-nan,fake-segfault-at-compile"
    done = cli("compare", "--model", "tiny", "--backends", backends, "--quick", "--json")
    assert status_of(done) == {"fake-ok": "ok", "fake-nan": "drifted", "fake-segfault-at-compile": "crashed"}
    assert done.returncode == 3


@pytest.fixture
def nothing_installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a user who has none of the frameworks, and one backend of a package of their own."""
    folder = tmp_path_factory.mktemp("nothing-installed")
    for name in ("torch", "onnxruntime", "tvm", "tvm_ffi", "tensorrt", "tensorrt_rtx"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise ImportError('no {name} here')\n")
    shutil.copy(PLUGINS / "fake_backends.py", folder)
    _register(folder, "fake-ok = fake_backends:FakeOk")
    return {"PYTHONPATH": str(folder)}


def _register(folder: Path, line: str) -> None:
    info = folder / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness.backends]\n{line}\n")


@pytest.mark.usefixtures("tiny")
def test_what_all_brings_in_may_be_unavailable(nothing_installed: dict[str, str], cli: Cli) -> None:
    done = cli("compare", "--model", "tiny", "--quick", "--json", environment=nothing_installed)
    statuses = status_of(done)
    assert len(statuses) > 1
    assert statuses.pop("fake-ok") == "ok"
    assert set(statuses.values()) == {"unavailable"}
    assert done.returncode == 0
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("tiny")
def test_what_is_asked_for_by_name_must_be_available(nothing_installed: dict[str, str], cli: Cli) -> None:
    done = cli(*QUICK[:-2], "fake-ok,onnxruntime", "--quick", "--json", environment=nothing_installed)
    assert status_of(done) == {"fake-ok": "ok", "onnxruntime": "unavailable"}
    assert done.returncode == 3
    failure = next(row for row in rows_of(done) if row["id"] == "onnxruntime")["failure"]
    assert "pip install" in failure["hint"]


def test_broken_package_of_others_is_named(
    inside: Inside, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("broken")
    _register(folder, "theirs = theirs:Backend")
    monkeypatch.syspath_prepend(folder)
    done = inside("compare", "--model", "tiny", "--quick")
    refused(done, "the backend 'theirs' cannot be imported from theirs:Backend: ModuleNotFoundError", "uninstall")


# ---- where the output goes


def test_standard_output_that_is_full(finished: tuple[Path, Done], cli: Cli) -> None:
    with open("/dev/full", "w") as full:
        done = cli("show", "last", "--out", str(finished[0].parent), capture_output=False, stdout=full, stderr=-1)
    refused(done, "standard output: No space left on device", "free some disk space")


def test_reader_that_leaves_is_no_failed_gate(finished: tuple[Path, Done], tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(RUN_CLI), "show", "last", "--out", str(finished[0].parent)]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, timeout=60)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_standard_output_that_is_closed(finished: tuple[Path, Done], cli: Cli) -> None:
    done = cli("show", "last", "--out", str(finished[0].parent), preexec_fn=lambda: os.close(1), capture_output=False)
    assert done.returncode == 0


@pytest.mark.parametrize("format_", ["terminal", "markdown"])
def test_terminal_that_lacks_characters(format_: str, finished: tuple[Path, Done], cli: Cli) -> None:
    done = cli(
        "show", "last", "--out", str(finished[0].parent), "--format", format_,
        environment={"PYTHONIOENCODING": "koi8-r"}, encoding="koi8-r",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "fake-nan" in done.stdout
    assert "?" in done.stdout, "what it lacks is replaced, and the rest is there"
