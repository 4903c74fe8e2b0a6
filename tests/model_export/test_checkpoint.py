"""Starter checkpoints: small, reproducible, and hostile until checked."""

import io
import zipfile

import numpy as np
import pytest

from model_export.checkpoint import BadCheckpoint, checkpoint_size, load_checkpoint, save_checkpoint
from model_export.network import PRESETS, initial_tensors, size_of

SIZE = PRESETS["tiny"]


@pytest.fixture
def tensors():
    return initial_tensors(SIZE, np.random.Generator(np.random.PCG64(4)))


def array_bytes(array, **options):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, **options)
    return out.getvalue()


def rewrite(path, **members):
    with zipfile.ZipFile(path) as archive:
        old = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**old, **{f"{key}.npy": value for key, value in members.items()}}.items():
            if data is not None:
                archive.writestr(name, data)


def test_a_checkpoint_comes_back_within_float16_rounding(tmp_path, tensors):
    save_checkpoint(tmp_path / "c.npz", tensors)
    back = load_checkpoint(tmp_path / "c.npz", SIZE)
    assert list(back) == list(SIZE.tensor_shapes)
    assert size_of(back) == SIZE
    for name, value in tensors.items():
        assert back[name].dtype == np.float32
        np.testing.assert_allclose(back[name], value, rtol=2**-10, atol=1e-6)


def test_equal_weights_make_equal_files(tmp_path, tensors):
    save_checkpoint(tmp_path / "a.npz", tensors)
    save_checkpoint(tmp_path / "b.npz", {name: value.copy() for name, value in tensors.items()})
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_numpy_reads_it_as_an_ordinary_npz(tmp_path, tensors):
    save_checkpoint(tmp_path / "c.npz", tensors)
    with np.load(tmp_path / "c.npz", allow_pickle=False) as archive:
        assert archive["kernel"].dtype == np.float16


@pytest.mark.parametrize(
    ("members", "rule"),
    [
        ({"kernel": None}, "a checkpoint holds embedding"),
        ({"extra": array_bytes(np.zeros(2, np.float16))}, "a checkpoint holds embedding"),
        ({"kernel_bias": array_bytes(np.zeros(3, np.float16))}, "float16 of shape"),
        ({"kernel_bias": array_bytes(np.zeros(SIZE.cells * 3, np.int16))}, "float16 of shape"),
        ({"kernel_bias": array_bytes(np.full(SIZE.cells * 3, np.inf, np.float16))}, "weights are finite"),
        ({"kernel_bias": array_bytes(np.zeros(200_000, np.float16))}, "takes at most"),
        ({"kernel_bias": b"not an array"}, "float16 arrays"),
        ({"kernel_bias": array_bytes(np.array([{}] * 3, object), allow_pickle=True)}, "float16 of shape"),
        ({"kernel_bias": array_bytes(np.zeros(SIZE.cells * 3, np.float16))[:-2]}, "bytes of values"),
    ],
)
def test_what_is_not_a_checkpoint_of_this_preset_is_refused_by_name(tmp_path, tensors, members, rule):
    path = tmp_path / "c.npz"
    save_checkpoint(path, tensors)
    rewrite(path, **members)
    with pytest.raises(BadCheckpoint, match=rule):
        load_checkpoint(path, SIZE)


def test_a_huge_array_behind_a_small_header_is_refused_before_it_is_made(tmp_path, tensors):
    path = tmp_path / "c.npz"
    save_checkpoint(path, tensors)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": (1 << 40,)})
    rewrite(path, kernel_bias=header.getvalue())
    with pytest.raises(BadCheckpoint):
        load_checkpoint(path, SIZE)


def test_a_checkpoint_of_another_preset_names_it(tmp_path):
    save_checkpoint(tmp_path / "s.npz", initial_tensors(PRESETS["small"], np.random.default_rng(0)))
    with pytest.raises(BadCheckpoint, match="which is the preset small"):
        load_checkpoint(tmp_path / "s.npz", SIZE)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04" + b"\x00" * 50, b"junk" * 100])
def test_bytes_that_are_no_archive_are_refused(tmp_path, data):
    (tmp_path / "c.npz").write_bytes(data)
    with pytest.raises(BadCheckpoint):
        load_checkpoint(tmp_path / "c.npz", SIZE)


@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_checkpoint_whose_packed_bytes_are_damaged_is_refused_by_name(tmp_path, compression):
    path = tmp_path / "damaged.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name in PRESETS["tiny"].tensor_shapes:
            archive.writestr(f"{name}.npy", bytes(range(256)) * 8)
    data = bytearray(path.read_bytes())
    for place in range(60, 90):
        data[place] ^= 0x55
    path.write_bytes(data)
    for read in (checkpoint_size, lambda each: load_checkpoint(each, PRESETS["tiny"])):
        with pytest.raises(BadCheckpoint):
            read(path)
