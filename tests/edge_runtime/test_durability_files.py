"""Files on the device: whole or not there, in a directory that is there, and gone when they are forgotten."""

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters import files
from edge_runtime.ports import StorageFailed, StorageFull
from tests.edge_runtime.recorded_disk import contents, recording


def refuse(kind, code, *, after=0):
    """Return a `before` that answers the (after + 1)-th operation of a kind with an error."""
    seen = []

    def before(operation):
        if operation.kind == kind:
            seen.append(operation)
            return code if len(seen) == after + 1 else 0
        return 0

    return before


def test_a_file_is_written_synced_renamed_and_its_directory_synced_in_this_order(tmp_path):
    with recording(tmp_path) as disk:
        files.write_atomically(tmp_path / "folder" / "file", b"data")
    kinds = [(operation.kind, operation.path) for operation in disk.log]
    temporary = f"folder/.file.{os.getpid()}.tmp"
    assert (
        kinds
        == [
            ("sync_directory", "."),
            ("make_folder", "folder"),
            ("sync_directory", "."),
            ("create", temporary),
            ("write", temporary),
            ("sync", temporary),
            ("rename", temporary),
            ("sync_directory", "folder"),
        ][-len(kinds) :]
    )
    assert contents(tmp_path) == {"folder/file": b"data"}


@pytest.mark.parametrize("kind", ["make_folder", "create", "write", "sync", "rename"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, StorageFull), (errno.EIO, StorageFailed)])
def test_a_write_that_fails_leaves_the_old_bytes_and_no_litter(tmp_path, kind, code, error):
    path = tmp_path / "folder" / "file"
    if kind != "make_folder":
        files.write_atomically(path, b"old")
    before = contents(tmp_path)
    with recording(tmp_path, refuse(kind, code)), pytest.raises(error):
        files.write_atomically(path, b"new")
    assert contents(tmp_path) == before
    files.write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_name_that_cannot_be_synced_is_a_failure_although_the_bytes_are_there(tmp_path):
    files.write_atomically(tmp_path / "file", b"old")
    with recording(tmp_path, refuse("sync_directory", errno.EIO)) as disk, pytest.raises(StorageFailed):
        files.write_atomically(tmp_path / "file", b"new")
    assert disk.log[-1].kind == "rename"


def test_a_folder_that_a_killed_process_made_is_synced_by_the_next_that_writes_there(tmp_path):
    (tmp_path / "folder").mkdir()
    with recording(tmp_path) as disk:
        files.write_atomically(tmp_path / "folder" / "one", b"1")
        first = [operation.path for operation in disk.log if operation.kind == "sync_directory"]
        files.write_atomically(tmp_path / "folder" / "two", b"2")
    assert first == [".", "folder"]
    assert [operation.path for operation in disk.log if operation.kind == "sync_directory"] == [".", "folder", "folder"]


def test_a_download_that_grows_is_cut_off_where_it_goes_on_and_synced(tmp_path):
    path = tmp_path / "models" / "x.part"
    files.append_durably(path, 0, [b"abc", b"def"])
    with recording(tmp_path) as disk:
        files.append_durably(path, 4, [b"XY"])
    assert path.read_bytes() == b"abcdXY"
    assert [operation.kind for operation in disk.log if operation.path == "models/x.part"] == ["cut", "write", "sync"]


def test_what_breaks_a_download_passes_through_and_what_came_stays(tmp_path):
    def pieces():
        yield b"abc"
        raise ConnectionResetError("the link broke")

    with pytest.raises(StorageFailed):
        # An adapter turns it into a name of the port; one that does not is no full disk.
        files.append_durably(tmp_path / "x.part", 0, pieces())
    assert (tmp_path / "x.part").read_bytes() == b"abc"

    def broken():
        yield b"abc"
        raise LookupError("what another port raises")

    with pytest.raises(LookupError):
        files.append_durably(tmp_path / "x.part", 3, broken())
    assert (tmp_path / "x.part").read_bytes() == b"abcabc"


@pytest.mark.parametrize("kind", ["create", "write", "sync"])
def test_a_full_disk_in_a_download_has_its_name(tmp_path, kind):
    with recording(tmp_path, refuse(kind, errno.ENOSPC)), pytest.raises(StorageFull):
        files.append_durably(tmp_path / "x.part", 0, [b"abc"])


def test_what_is_removed_durably_is_synced_once_a_folder_even_if_it_was_gone(tmp_path):
    for name in ("a", "b"):
        files.write_atomically(tmp_path / name, b"")
    with recording(tmp_path) as disk:
        files.remove_durably(tmp_path / "a", tmp_path / "b", tmp_path / "none", tmp_path / "no folder" / "c")
    assert [operation.kind for operation in disk.log] == ["remove", "remove", "sync_directory"]
    assert contents(tmp_path) == {}


def test_a_deletion_that_may_come_back_is_told(tmp_path):
    files.write_atomically(tmp_path / "a", b"")
    with recording(tmp_path, refuse("sync_directory", errno.EIO)), pytest.raises(StorageFailed, match="may come back"):
        files.remove_durably(tmp_path / "a")


def test_the_litter_of_dead_processes_is_swept_and_nothing_else(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    lives = os.getppid()
    (tmp_path / "models").mkdir()
    for name in (f".state.{ended.pid}.tmp", f"models/.x.tflite.{ended.pid}.tmp", f".own.{os.getpid()}.tmp"):
        (tmp_path / name).write_bytes(b"half")
    kept = {f".other.{lives}.tmp": b"half", "models/x.tflite": b"whole", ".hidden": b"", ".no.number.tmp": b""}
    for name, data in kept.items():
        (tmp_path / name).write_bytes(data)
    assert files.sweep_litter(tmp_path) == 3
    assert contents(tmp_path) == kept


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(0, 10_000), min_size=1, max_size=5))
def test_bytes_are_counted_in_whole_pages_and_once(tmp_path_factory, sizes):
    folder = tmp_path_factory.mktemp("counted")
    files.take_written_bytes()
    for number, size in enumerate(sizes):
        files.write_atomically(folder / str(number), bytes(size))
    assert files.take_written_bytes() == sum(-(-size // 4096) * 4096 for size in sizes)
    assert files.take_written_bytes() == 0


def test_the_layer_that_was_there_is_back_after_a_block_that_raises(tmp_path):
    with pytest.raises(LookupError), recording(tmp_path) as disk:
        raise LookupError
    files.write_atomically(tmp_path / "file", b"data")
    assert disk.log == []
