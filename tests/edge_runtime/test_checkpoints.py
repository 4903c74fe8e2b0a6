import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters import checkpoints
from edge_runtime.adapters.checkpoints import CHECKPOINT_FILES, Checkpoints, drop
from edge_runtime.local_training import Checkpoint
from edge_runtime.ports import StorageFailed

BASE = {"kernel_rows": np.linspace(-2, 2, 600, dtype=np.float32).reshape(20, 30)}


def made(steps=2, velocity=None):
    packed = {"kernel_rows": BASE["kernel_rows"].copy()}
    packed["kernel_rows"][3:9] += np.float32(1e-3) * steps
    return Checkpoint(packed, np.arange(63, dtype=np.int32).reshape(3, 21), steps, 6.5, 6.25, BASE, velocity)


def of(home, lease="1" * 32, base="2" * 64, forgotten=0):
    return Checkpoints(home, lease=lease, base_sha256=base, times_forgotten=forgotten)


def bits(tensors):
    return {name: value.view(np.int32).tolist() for name, value in tensors.items()}


@pytest.fixture
def path(tmp_path):
    of(tmp_path).save(made())
    return tmp_path / CHECKPOINT_FILES[0]


@pytest.mark.parametrize("velocity", [None, {"kernel_rows": np.full((20, 30), -0.25, np.float32)}])
def test_what_is_kept_is_what_is_read_again(tmp_path, velocity):
    size = of(tmp_path).save(made(velocity=velocity))
    found = of(tmp_path).load(BASE)
    assert bits(found.packed) == bits(made().packed) and found.base is BASE
    assert np.array_equal(found.rows, made().rows) and found.rows.dtype == np.int32
    assert (found.steps, found.loss_before, found.loss_after) == (2, 6.5, 6.25)
    assert found.velocity is None if velocity is None else bits(found.velocity) == bits(velocity)
    path = tmp_path / CHECKPOINT_FILES[0]
    assert path.stat().st_size == size and path.stat().st_mode & 0o077 == 0


PATTERNS = st.integers(0, 2**32 - 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(PATTERNS, PATTERNS), min_size=1, max_size=40), st.integers(1, 5))
def test_any_two_bit_patterns_come_back_also_those_that_are_no_numbers(pairs, columns):
    pairs = (pairs * columns)[: len(pairs) // columns * columns or columns]
    base, value = (
        np.array([pair[i] for pair in pairs], np.uint32).view(np.float32).reshape(-1, columns) for i in (0, 1)
    )
    back = checkpoints._apart(checkpoints._distance(value, base), base)
    assert back.view(np.uint32).tolist() == value.view(np.uint32).tolist()


def test_only_the_rows_that_moved_are_written(tmp_path):
    rng = np.random.default_rng(1)
    base = {"output_rows": rng.normal(size=(5000, 64)).astype(np.float32)}
    packed = {"output_rows": base["output_rows"].copy()}
    packed["output_rows"][:50] *= np.float32(1.001)
    size = of(tmp_path).save(Checkpoint(packed, np.zeros((1, 21), np.int32), 1, 0.0, 0.0, base))
    assert size < 50 * 64 * 4 + 2000 < packed["output_rows"].nbytes / 50


@pytest.mark.parametrize("other", [{"lease": "3" * 32}, {"base": "4" * 64}, {"forgotten": 1}])
def test_a_checkpoint_is_for_its_lease_its_base_and_its_time_alone(path, other):
    assert of(path.parent, **other).load(BASE) is None
    assert of(path.parent).load(BASE) is not None


def test_a_base_of_another_shape_has_no_checkpoint(path):
    assert of(path.parent).load({"kernel_rows": np.zeros((21, 30), np.float32)}) is None
    assert of(path.parent).load({"projection": np.zeros((20, 30), np.float32)}) is None


def test_the_newest_of_two_generations_counts_and_a_broken_one_gives_way_to_the_one_before(tmp_path):
    for steps in (1, 2, 3, 4, 5):
        of(tmp_path).save(made(steps))
        assert of(tmp_path).load(BASE).steps == steps
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(CHECKPOINT_FILES)
    newest = max(CHECKPOINT_FILES, key=lambda name: (tmp_path / name).stat().st_mtime_ns)
    data = (tmp_path / newest).read_bytes()
    (tmp_path / newest).write_bytes(data[:-40] + bytes(40))
    assert of(tmp_path).load(BASE).steps == 4
    # The next one takes the broken one's place: the one that counts stays until then.
    of(tmp_path).save(made(6))
    assert (tmp_path / newest).read_bytes() != data and of(tmp_path).load(BASE).steps == 6


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(path):
    other = path.with_name(CHECKPOINT_FILES[1])
    other.mkdir()
    with pytest.raises(StorageFailed):
        of(path.parent).save(made(3))
    other.rmdir()
    assert of(path.parent).load(BASE).steps == 2
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_checkpoint_that_is_cut_or_changed_anywhere_counts_as_none(path):
    whole, rng = path.read_bytes(), random.Random(1)
    for i in range(1500):
        data = bytearray(whole)
        if i % 3 == 0:
            del data[rng.randrange(len(data)) :]
        else:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data)
        assert of(path.parent).load(BASE) is None
    path.write_bytes(whole)
    assert of(path.parent).load(BASE) is not None


@pytest.mark.parametrize("content", [b"", b"PK", b"x" * 31, bytes(100)])
def test_a_file_that_never_was_a_checkpoint_counts_as_none(path, content):
    path.write_bytes(content)
    assert of(path.parent).load(BASE) is None


def test_dropping_deletes_all_generations_and_an_earlier_releases_file(tmp_path):
    of(tmp_path).save(made(1))
    of(tmp_path).save(made(2))
    (tmp_path / "checkpoint.npz").write_bytes(b"rows of a person")
    drop(tmp_path)
    drop(tmp_path)
    assert list(tmp_path.iterdir()) == []
