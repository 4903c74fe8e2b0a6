"""The ballast: room for the state when the disk is full; and no training that a full disk would end."""

import errno
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import room
from edge_runtime.adapters import ballast, files
from edge_runtime.adapters.files import SystemFiles
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.ports import StorageFailed, StorageFull

SIZE = 256 * 1024


class SmallDisk(SystemFiles):
    """A layer with `size` bytes of room for all that is below `root`."""

    def __init__(self, root, size):
        self.root, self.size = root, size

    def need(self, more):
        used = sum(path.stat().st_blocks * 512 for path in self.root.rglob("*") if path.is_file())
        if used + more > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def allocate(self, path, size):
        self.need(size)
        super().allocate(path, size)

    def create(self, path, mode):
        self.need(4096)
        disk = self

        class File:
            def __init__(self, file):
                self.file = file

            def write(self, data):
                disk.need(len(data))
                self.file.write(data)

            def sync(self):
                self.file.sync()

            def close(self):
                self.file.close()

        return File(super().create(path, mode))


def test_the_ballast_takes_its_blocks_and_gives_them_back(tmp_path):
    assert ballast.held_bytes(tmp_path) == 0
    assert ballast.reserve(tmp_path, SIZE)
    assert ballast.held_bytes(tmp_path) >= SIZE
    assert (tmp_path / ballast.BALLAST_FILE).stat().st_mode & 0o077 == 0
    assert ballast.reserve(tmp_path, SIZE), "it lies there already"
    assert ballast.release(tmp_path)
    assert not ballast.release(tmp_path), "there is no more to give"
    assert list(tmp_path.iterdir()) == []


def test_none_is_laid_out_where_it_would_keep_a_training_from_starting(tmp_path):
    free = ballast.free_bytes(tmp_path)
    assert not ballast.reserve(tmp_path, SIZE, model_bytes=free)
    assert list(tmp_path.iterdir()) == []


def test_a_size_of_nothing_deletes_an_older_ballast(tmp_path):
    ballast.reserve(tmp_path, SIZE)
    assert not ballast.reserve(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_the_state_after_the_ballast_is_released(tmp_path):
    with files.use(SmallDisk(tmp_path, SIZE + 64 * 1024)):
        assert ballast.reserve(tmp_path, SIZE)
        files.write_atomically(tmp_path / "state", b"old")
        with pytest.raises(StorageFull):
            files.write_atomically(tmp_path / "state", bytes(128 * 1024))
        assert (tmp_path / "state").read_bytes() == b"old"
        assert ballast.release(tmp_path)
        files.write_atomically(tmp_path / "state", bytes(128 * 1024))
        assert not ballast.reserve(tmp_path, SIZE), "there is no room for it now"
        assert [path.name for path in tmp_path.iterdir()] == ["state"]
        files.remove(tmp_path / "state")
        assert ballast.reserve(tmp_path, SIZE)


def test_a_home_that_is_gone_has_a_name(tmp_path):
    with pytest.raises(StorageFailed):
        ballast.free_bytes(tmp_path / "none")


@given(free=st.integers(0, 1 << 40), model=st.integers(0, 1 << 32), size=st.integers(0, 1 << 30))
def test_room_for_the_ballast_is_room_for_a_training_beside_it(free, model, size):
    assert room.enough(free, model) == (free >= 3 * model)
    if room.enough_for_ballast(free, model, size):
        assert room.enough(free - size, model)


@pytest.mark.parametrize(("free", "model"), [(-1, 0), (0, -1)])
def test_a_negative_size_is_a_mistake_of_ours(free, model):
    with pytest.raises(ValueError, match="not negative"):
        room.enough(free, model)


OPENS = """
import resource, sys
from pathlib import Path
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.ports import StorageFull
resource.setrlimit(resource.RLIMIT_FSIZE, (16_384, resource.RLIM_INFINITY))
try:
    StateStore(Path(sys.argv[1]))
except StorageFull as e:
    print(e)
"""


def test_a_device_that_starts_on_a_full_disk_gives_its_ballast_back_before_it_gives_up(tmp_path):
    # A limit on lengths stands for the disk: SQLite's shared memory does not fit in it, with or without a ballast.
    path = tmp_path / "state.db"
    StateStore(path).close()
    before = path.read_bytes()
    assert ballast.reserve(tmp_path, 1 << 16)
    done = subprocess.run([sys.executable, "-c", OPENS, str(path)], capture_output=True, text=True, timeout=60)
    assert "no room on the disk" in done.stdout, done.stderr
    assert not (tmp_path / "ballast").exists() and path.read_bytes() == before
