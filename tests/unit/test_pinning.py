"""`--cpus`: its grammar on made-up machines, and that real processes and threads keep to it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness import pinning
from harness.errors import FallbackError, UsageError
from harness.launcher import Worker
from harness.pinning import Pinned, aside, inherited, left_for_us, resolve, strayed
from harness.topology import Topology, parse_list
from tests.fake_machine import hybrid, server
from tests.support import Cli, rows_of


@pytest.fixture
def layout(tmp_path: Path) -> Topology:
    """Two packages of four cores with two threads each; CPU 11 is off, and CPUs 14 and 15 are not ours."""
    return Topology.read(server(tmp_path, offline={11}), range(14))


@pytest.mark.parametrize(
    ("spec", "cpus"),
    [
        ("0", "0"),
        ("0-3,8", "0-3,8"),
        (" 1 , 2-2 ", "1-2"),
        ("3,3,2-3", "2-3"),
        ("physical", "0-7"),
        ("physical:3", "0-2"),
        ("performance", "0-7"),
        ("node0", "0-3"),
        ("node1", "4-7"),
        ("node1:2", "4-5"),
        ("node1:1,0", "0,4"),
    ],
)
def test_grammar(spec: str, cpus: str, layout: Topology) -> None:
    assert resolve(spec, layout) == parse_list(cpus)


def test_slow_cores_come_last_or_not_at_all(tmp_path: Path) -> None:
    layout = Topology.read(hybrid(tmp_path), range(8))
    assert resolve("physical", layout) == {0, 2, 4, 5, 6, 7}
    assert resolve("physical:3", layout) == {0, 2, 4}
    assert resolve("performance", layout) == {0, 2}
    with pytest.raises(UsageError, match=r"performance has 2 physical core\(s\)"):
        resolve("performance:3", layout)


@pytest.mark.parametrize(
    ("spec", "says", "hint"),
    [
        ("", "--cpus '': neither the number of a CPU nor a group", "node0"),
        ("0,,1", "--cpus ''", "node0"),
        ("cpu0", "--cpus 'cpu0'", "node0"),
        ("-1", "--cpus '-1'", "node0"),
        ("1-", "--cpus '1-'", "node0"),
        ("0-3:2", "--cpus '0-3:2'", "node0"),
        ("physical:", "--cpus 'physical:'", "node0"),
        ("physical:x", "--cpus 'physical:x'", "node0"),
        ("3-1", "--cpus 3-1: the range is empty", "1-3?"),
        ("0-99", "there is no CPU 99; this machine has 0-15", None),
        ("9999999", "--cpus '9999999'", None),
        ("10-12", "CPU 11 is offline", "tee /sys/devices/system/cpu/cpu11/online"),
        ("13-15", "may not run on CPU 14-15, only on 0-10,12-13", "taskset"),
        ("node7", "there is no NUMA node 7 with CPUs; this machine has 0-1", None),
        ("node0:5", "node0 has 4 physical core(s) that this process may use, on CPUs 0-3", None),
        ("physical:0", "physical has 8 physical core(s)", None),
    ],
)
def test_what_cannot_be_is_refused(spec: str, says: str, hint: str | None, layout: Topology) -> None:
    with pytest.raises(UsageError) as refused:
        resolve(spec, layout)
    assert says in refused.value.message
    assert hint is None or hint in (refused.value.hint or "")


def test_a_node_that_this_process_may_not_use_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"node1 has 0 physical core\(s\) that this process may use"):
        resolve("node1", Topology.read(server(tmp_path), range(4)))


def test_groups_need_a_machine_that_shows_its_cores(tmp_path: Path) -> None:
    layout = Topology.read(tmp_path, {0, 1, 2})
    assert resolve("0-1", layout) == {0, 1}
    with pytest.raises(UsageError, match="does not show which CPUs share a core") as refused:
        resolve("physical", layout)
    assert refused.value.hint == "name them: --cpus 0-2"


def test_a_system_without_affinity(layout: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(UsageError, match="cannot tie processes to CPUs"):
        resolve("0", layout)


def test_more_threads_than_cpus_take_turns() -> None:
    pinned = Pinned(cpus=frozenset({0, 1, 8, 9}), cores=2)
    pinned.refuse_more({"eager": 4})
    with pytest.raises(UsageError, match=r"tvm:threads=5 has 5 threads, and --cpus 0-1,8-9 is 4 CPU") as refused:
        pinned.refuse_more({"eager": 2, "tvm:threads=5": 5})
    assert "at most 4 (one a physical core: 2)" in (refused.value.hint or "")
    Pinned().refuse_more({"eager": 4000})


@pytest.mark.parametrize(
    ("cpus", "left", "said"),
    [
        ("0-3", "4-7,12-13", None),
        ("0-3,8-10,12", "5-7,13", None),
        ("0-7", "8-10,12-13", "share their cores"),
        ("0-10,12-13", "", "may use no other"),
    ],
)
def test_what_is_left_for_the_parent(cpus: str, left: str, said: str | None, layout: Topology) -> None:
    free, note = left_for_us(parse_list(cpus), layout)
    assert free == parse_list(left)
    assert (note is None) == (said is None)
    assert said is None or said in (note or "")


# ---- for real

ONE = min(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
CHILD = "import os; print(sorted(os.sched_getaffinity(0)))"


@pytest.fixture
def before() -> Iterator[set[int]]:
    """This process' CPUs, of which this file needs two; whatever a test does, they are the same after it."""
    usual = os.sched_getaffinity(0)
    assert len(usual) > 1, "these tests need a second CPU to see whether anything runs on it"
    yield usual
    after = os.sched_getaffinity(0)
    os.sched_setaffinity(0, usual)
    assert after == usual


def test_a_child_is_born_on_its_cpus(before: set[int]) -> None:
    with inherited(frozenset({ONE})):
        inside = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    outside = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True)
    assert (inside.stdout.strip(), outside.stdout.strip()) == (f"[{ONE}]", str(sorted(before)))


def test_this_thread_goes_back_when_a_child_cannot_be_started(before: set[int]) -> None:
    with pytest.raises(FileNotFoundError), inherited(frozenset({ONE})):
        subprocess.run(["no-such-program"])


def test_every_thread_of_the_parent_steps_aside_and_comes_back(before: set[int]) -> None:
    leave, seen = threading.Event(), {}

    def idle() -> None:
        leave.wait(30)
        seen["after"] = os.sched_getaffinity(0)

    older = threading.Thread(target=idle)
    older.start()
    with aside(frozenset({ONE})):
        assert os.sched_getaffinity(0) == before - {ONE}
        assert os.sched_getaffinity(older.native_id or 0) == before - {ONE}
        newer = threading.Thread(target=lambda: seen.update(newer=os.sched_getaffinity(0)))
        newer.start()
        newer.join()
    leave.set()
    older.join()
    assert seen == {"newer": before - {ONE}, "after": before}


def test_the_parent_stays_where_nothing_is_left(before: set[int]) -> None:
    with aside(frozenset(before)):
        assert os.sched_getaffinity(0) == before


def test_nothing_happens_without_a_choice(before: set[int]) -> None:
    with aside(frozenset()), inherited(frozenset()):
        assert os.sched_getaffinity(0) == before


def test_a_thread_that_may_run_elsewhere_is_found(before: set[int]) -> None:
    code = f"import os, threading; os.sched_setaffinity(0, {{{ONE}}}); print(flush=True); input()"
    wander = f"""
import os, threading
os.sched_setaffinity(0, {{{ONE}}})
def thread():
    os.sched_setaffinity(0, {set(before)})
    print(flush=True)
    threading.Event().wait()
threading.Thread(target=thread, daemon=True).start()
input()
"""
    for script, expected in ((code, set()), (wander, before - {ONE})):
        with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert strayed([child.pid], frozenset({ONE})) == expected
            child.communicate(b"\n")
    assert strayed([child.pid], frozenset({ONE})) == frozenset(), "it has ended"


def test_a_worker_that_strays_is_a_fallback(tmp_path: Path, before: set[int]) -> None:
    # A variable of the user's by which a library places its threads would be one way to it.
    script = tmp_path / "worker"
    script.write_text(f"#!{sys.executable} -S\nimport os\nos.sched_setaffinity(0, {set(before)})\ninput()\n")
    script.chmod(0o755)
    cpus = frozenset({ONE})
    with Worker(
        python=str(script), log=tmp_path / "log", environment={}, threads=1, memory_limit_bytes=1 << 33, cpus=cpus
    ) as worker:
        for _ in range(200):
            if strayed([worker._process.pid], cpus) or worker._process.poll() is not None:
                break
            threading.Event().wait(0.05)
        with pytest.raises(FallbackError, match=f"outside --cpus {ONE}"):
            worker.check_cpus()
        worker.close(kindly=False)


def test_a_users_own_placement_does_not_reach_pinned_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in pinning.OWN_WILL:
        monkeypatch.setenv(name, "0")
    script = tmp_path / "worker"
    script.write_text(f"#!{sys.executable} -S\nimport os\nprint(*os.environ, flush=True)\n")
    script.chmod(0o755)
    told = {}
    for cpus in (frozenset({ONE}), frozenset[int]()):
        log = tmp_path / f"log-{len(cpus)}"
        with Worker(
            python=str(script), log=log, environment={}, threads=1, memory_limit_bytes=1 << 33, cpus=cpus
        ) as worker:
            worker._process.wait(30)
        told[bool(cpus)] = set(log.read_text().split())
    assert not told[True] & set(pinning.OWN_WILL)
    assert set(pinning.OWN_WILL) <= told[False], "without --cpus the environment is the user's"


def test_the_command_records_reports_and_repeats_it(cli: Cli) -> None:
    cpus = f"{ONE},{ONE}"
    done = cli("compare", "--model", "tiny", "--backends", "fake-ok", "--quick", "--json", "--cpus", cpus)
    assert done.returncode == 0, done.stderr
    run = json.loads(done.stdout)
    assert (run["settings"]["cpus"], run["settings"]["cpu_set"], run["settings"]["threads"]) == (cpus, [ONE], 1)
    assert f"--cpus {cpus} --threads 1" in rows_of(done)[0]["reproduce"]
    assert not [note for note in run["notes"] if "harness itself" in note], "it had the other CPU"
    shown = cli("show", "last")
    assert f"settings     threads 1, cpus {ONE} ({cpus}), batch 1" in shown.stdout
    again = cli("compare", "--resume", "last", "--cpus", str(ONE))
    assert again.returncode == 2
    assert "--resume takes everything from the run; leave out --cpus" in again.stderr
    more = cli("compare", "--resume", "last", "--launches", "2", "--json")
    assert more.returncode == 0, more.stderr
    assert json.loads(more.stdout)["settings"]["cpu_set"] == [ONE]
