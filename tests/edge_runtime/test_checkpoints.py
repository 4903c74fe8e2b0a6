import random

import numpy as np
import pytest

from edge_runtime.adapters import checkpoints
from edge_runtime.local_training import Checkpoint

MADE = Checkpoint(
    {"kernel_rows": np.arange(600, dtype=np.float32).reshape(20, 30)}, np.arange(63, dtype=np.int32).reshape(3, 21), 2,
    6.5, 6.25,
)  # fmt: skip


@pytest.fixture
def path(tmp_path):
    checkpoints.save(tmp_path, "1" * 32, MADE)
    return tmp_path / checkpoints.CHECKPOINT_FILE


def test_what_is_kept_is_what_is_read_again(path):
    found = checkpoints.load(path.parent, "1" * 32)
    assert np.array_equal(found.packed["kernel_rows"], MADE.packed["kernel_rows"])
    assert np.array_equal(found.rows, MADE.rows) and found.rows.dtype == np.int32
    assert (found.steps, found.loss_before, found.loss_after) == (2, 6.5, 6.25)
    assert path.stat().st_mode & 0o077 == 0


def test_a_checkpoint_that_is_cut_or_changed_anywhere_counts_as_none(path):
    whole, rng = path.read_bytes(), random.Random(1)
    for i in range(3000):
        data = bytearray(whole)
        if i % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            # The zip's headers, at both ends, are where a reader stumbles in the most ways.
            near = rng.randrange(len(data)) if i % 3 == 1 else rng.choice([rng.randrange(300), -1 - rng.randrange(900)])
            data[near] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert checkpoints.load(path.parent, "1" * 32) is None
    path.write_bytes(whole)
    assert checkpoints.load(path.parent, "1" * 32) is not None


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 31, b"\x93NUMPY" + bytes(100)])
def test_a_file_that_never_was_a_checkpoint_counts_as_none(path, content):
    path.write_bytes(content)
    assert checkpoints.load(path.parent, "1" * 32) is None
