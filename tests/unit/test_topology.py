"""Where CPUs sit, read from the trees of made-up machines, and from this one's."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.topology import Topology, affinity, as_list, cpu_quota, parse_list
from tests.fake_machine import hybrid, server, write


@pytest.mark.parametrize("older", [False, True])
def test_two_packages_with_two_threads_a_core(older: bool, tmp_path: Path) -> None:
    layout = Topology.read(server(tmp_path, older=older), range(16))
    assert layout.shows_cores
    assert layout.smt
    assert [cpu.number for cpu in layout.cpus] == list(range(16))
    assert [cpu.core for cpu in layout.cpus] == [*range(8), *range(8)], "unique in the machine, not in the package"
    assert [cpu.package for cpu in layout.cpus] == ([0] * 4 + [1] * 4) * 2
    assert layout.nodes(range(16)) == {0: {0, 1, 2, 3, 8, 9, 10, 11}, 1: {4, 5, 6, 7, 12, 13, 14, 15}}
    assert layout.cores({0, 8, 1}) == 2
    assert layout.sharing({0, 5}) == {0, 8, 5, 13}
    assert not any(cpu.slow for cpu in layout.cpus)


def test_cores_by_number_where_siblings_are_not_listed(tmp_path: Path) -> None:
    files: dict[str, object] = {"sys/devices/system/cpu/online": "0-3", "sys/devices/system/cpu/present": "0-3"}
    for number, (package, core) in enumerate([(0, 0), (0, 1), (1, 0), (0, 0)]):
        folder = f"sys/devices/system/cpu/cpu{number}/topology"
        files |= {f"{folder}/physical_package_id": package, f"{folder}/core_id": core}
    layout = Topology.read(write(tmp_path, files), range(4))
    assert [cpu.core for cpu in layout.cpus] == [0, 1, 2, 0]


def test_one_a_core_is_node_by_node_and_fast_cores_first(tmp_path: Path) -> None:
    layout = Topology.read(server(tmp_path / "server"), range(16))
    assert [cpu.number for cpu in layout.one_a_core()] == list(range(8))
    siblings_only = Topology.read(server(tmp_path / "server"), {8, 9, 1, 12})
    assert [cpu.number for cpu in siblings_only.one_a_core()] == [1, 8, 12]
    for named in (True, False):
        layout = Topology.read(hybrid(tmp_path / str(named), named=named), range(8))
        assert [(cpu.number, cpu.slow) for cpu in layout.one_a_core()] == [
            (0, False), (2, False), (4, True), (5, True), (6, True), (7, True),
        ]  # fmt: skip


def test_cpus_that_are_off(tmp_path: Path) -> None:
    layout = Topology.read(server(tmp_path, offline={3, 8, 9, 10, 11, 12, 13, 14, 15}), range(8))
    assert layout.offline == {3, *range(8, 16)}
    assert [cpu.number for cpu in layout.cpus] == [0, 1, 2, 4, 5, 6, 7]
    assert not layout.smt, "what is off shares nothing"
    assert layout.allowed == {0, 1, 2, 4, 5, 6, 7}


def test_a_core_whose_first_thread_is_off(tmp_path: Path) -> None:
    layout = Topology.read(server(tmp_path, offline={0}), range(1, 16))
    assert {cpu.number: cpu.core for cpu in layout.cpus}[8] == 8
    assert layout.cores(range(16)) == 8


def test_a_system_that_shows_nothing(tmp_path: Path) -> None:
    layout = Topology.read(tmp_path, {2, 5})
    assert [cpu.number for cpu in layout.cpus] == [2, 5]
    assert not layout.shows_cores
    assert not layout.smt
    assert layout.nodes({2, 5}) == {0: {2, 5}}


def test_this_machine() -> None:
    layout = Topology.read()
    assert layout.allowed == os.sched_getaffinity(0) == affinity()
    assert layout.allowed <= {cpu.number for cpu in layout.cpus}
    assert len(layout.cpus) == psutil.cpu_count()
    if layout.shows_cores:
        assert layout.cores(cpu.number for cpu in layout.cpus) == psutil.cpu_count(logical=False)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", {0}), ("0-3,8", {0, 1, 2, 3, 8}), (" 1 , 2-2\n", {1, 2}), ("", set()), (None, set()), ("7,0-1", {0, 1, 7})],
)
def test_lists_of_the_kernel(text: str | None, numbers: set[int]) -> None:
    assert parse_list(text) == numbers


@given(st.frozensets(st.integers(0, 300)))
def test_a_list_is_read_as_it_was_written(numbers: frozenset[int]) -> None:
    assert parse_list(as_list(numbers)) == numbers


def test_lists_are_short() -> None:
    assert as_list([8, 0, 1, 2, 2, 10]) == "0-2,8,10"
    assert as_list([]) == ""


# ---- the time that a container may take


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"proc/self/cgroup": "0::/"}, None),
        ({}, None),
        # A limit of any ancestor holds, and the smallest of them.
        (
            {
                "proc/self/cgroup": "0::/a/b",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
            },
            2.0,
        ),
        # The path is the host's, and what is mounted here is the container's own group.
        ({"proc/self/cgroup": "0::/docker/1f", "sys/fs/cgroup/cpu.max": "50000 100000"}, 0.5),
        (
            {
                "proc/self/cgroup": "5:memory:/x\n4:cpu,cpuacct:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
    ],
)
def test_quota(files: dict[str, object], quota: float | None, tmp_path: Path) -> None:
    assert cpu_quota(write(tmp_path, files)) == quota
