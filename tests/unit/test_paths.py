"""Writing files so that no reader ever sees half of one, and saying so when they cannot be written."""

from __future__ import annotations

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from harness.errors import StoreError
from harness.paths import cache_root, folder_bytes, make_folder, write_atomically


def no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file_and_no_part(step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, step, no_space)
    with pytest.raises(StoreError, match="file cannot be written: No space left on device") as caught:
        write_atomically(file, b"new")
    assert "free some disk space" in (caught.value.hint or "")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_interruption_leaves_the_old_file_and_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    file = tmp_path / "file"
    write_atomically(file, b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


def test_below_a_file_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written: Not a directory"):
        write_atomically(tmp_path / "file" / "below", b"new")
    with pytest.raises(StoreError, match=r"the output folder .* cannot be written: Not a directory"):
        make_folder(tmp_path / "file" / "below", "the output folder")


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    contents = [bytes([65 + index]) * 200_000 for index in range(2)]
    write_atomically(file, contents[0])
    over = threading.Event()
    seen: set[bytes] = set()

    def read() -> None:
        while not over.is_set():
            seen.add(file.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for index in range(40):
        write_atomically(file, contents[index % 2])
    over.set()
    reader.join()
    assert seen <= set(contents)


def test_folder_is_made_with_its_parents_and_left_empty(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "a" / "b", "the output folder")
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"the output folder .*file is a file, not a folder"):
        make_folder(tmp_path / "file", "the output folder")


def test_hint_of_the_caller_wins() -> None:
    with pytest.raises(StoreError) as caught:
        make_folder(Path("/proc/none"), "the folder", hint="choose another --to")
    assert caught.value.hint == "choose another --to"


def test_folder_that_takes_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        make_folder(tmp_path / "a", "the output folder")


def test_cache_root_follows_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HARNESS_CACHE", "relative")
    assert cache_root() == tmp_path / "relative", "workers run in another folder: the path must be absolute"
    monkeypatch.setenv("HARNESS_CACHE", "")
    assert cache_root().is_absolute()
    assert cache_root().name == "harness"


def test_folder_bytes_counts_files_once(tmp_path: Path) -> None:
    assert folder_bytes(tmp_path / "missing") == 0
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"12345")
    (tmp_path / "y").write_bytes(b"123")
    (tmp_path / "link").symlink_to(tmp_path / "y")
    assert folder_bytes(tmp_path) == 8


def test_part_files_of_two_processes_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    real: Any = os.replace

    def note(source: Path, target: Path) -> None:
        names.append(Path(source).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", note)
    write_atomically(tmp_path / "file", b"")
    monkeypatch.setattr(os, "getpid", lambda: 1)
    write_atomically(tmp_path / "file", b"")
    assert len(set(names)) == 2


def test_a_folder_is_made_by_several_threads_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        made = list(pool.map(lambda _: make_folder(tmp_path / "shared", "the cache folder"), range(2000)))
    assert set(made) == {tmp_path / "shared"}
    assert not any((tmp_path / "shared").iterdir())
