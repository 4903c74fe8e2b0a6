import io
import struct
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.array_examples import (
    MAX_EXAMPLES,
    MAX_FILE_BYTES,
    ExamplesRefused,
    encode_records,
    of_records,
    read_npz,
    specs_id,
)
from tests.edge_runtime import array_model
from tests.edge_runtime.array_model import SPECS
from wire_contract.manifest import ArraySpec

MANIFEST, _ = array_model.make()


def npz(compressed=True, **arrays):
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays)
    return stream.getvalue()


def zipped(*entries, compression=zipfile.ZIP_DEFLATED):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, body in entries:
            archive.writestr(name, body)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def good(count=5):
    return array_model.draw(count)


@pytest.mark.parametrize("compressed", [True, False])
def test_a_file_as_numpy_writes_it_is_read_bit_for_bit(compressed):
    arrays = good(9)
    read = read_npz(npz(compressed, **arrays), MANIFEST)
    assert set(read) == set(arrays)
    for name, value in arrays.items():
        assert read[name].dtype == value.dtype and read[name].tobytes() == value.tobytes()


def test_an_array_that_is_stored_by_columns_is_read_by_its_shape():
    arrays = {**good(4), "pixels": np.asfortranarray(good(4)["pixels"])}
    assert np.array_equal(read_npz(npz(**arrays), MANIFEST)["pixels"], good(4)["pixels"])


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_records_are_the_examples_again(count, seed):
    arrays = array_model.draw(count, seed)
    records = list(encode_records(arrays, SPECS))
    back = of_records(enumerate(records, start=7), SPECS)
    assert back.numbers.tolist() == list(range(7, 7 + count))
    for name, value in arrays.items():
        assert back.arrays[name].tobytes() == value.tobytes()


def test_a_record_of_another_model_counts_as_none():
    other = (*SPECS[:2], ArraySpec(name="target", shape=(), dtype="float32", role="target"))
    records = list(encode_records(good(3), SPECS))
    assert len(of_records(enumerate(records), other)) == 0 and specs_id(other) != specs_id(SPECS)
    cut = [(1, records[0]), (2, records[1][:-1]), (3, records[2] + b"\0")]
    assert of_records(cut, SPECS).numbers.tolist() == [1]


def test_examples_are_taken_by_number_and_one_that_is_gone_is_said():
    held = of_records(zip([3, 8, 9], encode_records(good(3), SPECS), strict=True), SPECS)
    assert np.array_equal(held.take(np.array([9, 3], np.int32))["pixels"], good(3)["pixels"][[2, 0]])
    assert held.holds(np.array([8], np.int32)) and not held.holds(np.array([8, 4], np.int32))
    with pytest.raises(KeyError, match="4"):
        held.take(np.array([8, 4], np.int32))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"pixels": None}, "got none called \\['pixels'\\]"),
        ({"more": np.zeros(5, np.float32)}, "got 'more.npy'"),
        ({"pixels": good()["pixels"].astype(np.float64)}, "pixels is float32, got float64"),
        ({"pixels": good()["pixels"].astype(">f4")}, "pixels is float32"),
        ({"target": good()["target"].astype(np.int64)}, "target is int32, got int64"),
        ({"target": good()["target"][:, None]}, "target has shape \\[N\\], got \\[5, 1\\]"),
        ({"pixels": good()["pixels"][:, :, :2]}, "pixels has shape \\[N, 2, 3\\], got \\[5, 2, 2\\]"),
        ({"site": good(4)["site"]}, "counts the same examples"),
        ({"pixels": np.full((5, 2, 3), np.nan, np.float32)}, "pixels is finite, got NaN or Inf in 5 examples"),
        ({"target": np.full(5, -1, np.int32)}, "target is a class, 0 or more, got -1"),
        ({"pixels": np.array([{}] * 5, dtype=object)}, "pixels is float32, got object"),
        ({"pixels": np.float32(3.0)}, "pixels has shape \\[N, 2, 3\\], got \\[\\]"),
    ],
)
def test_arrays_that_are_not_the_models_are_refused_by_rule_and_value(change, told):
    arrays = {name: value for name, value in {**good(), **change}.items() if value is not None}
    with pytest.raises(ExamplesRefused, match=told):
        read_npz(npz(**arrays), MANIFEST)


def test_a_yes_or_no_is_zero_or_one():
    manifest, _ = array_model.make("binary_crossentropy")
    with pytest.raises(ExamplesRefused, match="target is 0 or 1, got 0 to 2"):
        read_npz(npz(**{**good(3), "target": np.array([0, 2, 1], np.int32)}), manifest)


@pytest.mark.parametrize("count", [0, MAX_EXAMPLES + 1])
def test_no_examples_and_too_many_are_refused(count):
    arrays = {
        "pixels": np.zeros((count, 2, 3), np.float32), "site": np.zeros(count, np.int32),
        "target": np.zeros(count, np.int32),
    }  # fmt: skip
    with pytest.raises(ExamplesRefused, match=f"1 to {MAX_EXAMPLES} examples, got {count}"):
        read_npz(npz(**arrays), MANIFEST)


def test_a_pickle_is_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    array = np.empty(5, object)
    array[:] = [Bomb() for _ in range(5)]
    arrays = {**good(), "pixels": array}
    data = zipped(*((f"{name}.npy", npy(value)) for name, value in arrays.items()))
    with pytest.raises(ExamplesRefused, match="got object"):
        read_npz(data, MANIFEST)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_unpacks_to_more_than_it_may_is_refused_before_it_is_unpacked():
    bomb = zipped(("pixels.npy", bytes(MAX_FILE_BYTES + 1)), ("site.npy", b""), ("target.npy", b""))
    assert len(bomb) < MAX_FILE_BYTES // 500
    with pytest.raises(ExamplesRefused, match=f"at most {MAX_FILE_BYTES} bytes unpacked"):
        read_npz(bomb, MANIFEST)


def test_a_file_that_says_less_than_it_unpacks_to_is_refused():
    arrays = good()
    body = npy(arrays["pixels"])
    honest = zipped(*((f"{name}.npy", npy(value)) for name, value in arrays.items()))
    place = honest.index(b"PK\x01\x02")
    assert honest[place + 46 : place + 56] == b"pixels.npy"
    lying = honest[: place + 24] + struct.pack("<I", len(body) - 24) + honest[place + 28 :]
    with pytest.raises(ExamplesRefused):
        read_npz(lying, MANIFEST)


@pytest.mark.parametrize(
    "shape", ["(10**18, 2, 3)", "(5, 2, 3, 10**12)", "(-1, 2, 3)", "(True, 2, 3)", "('5', 2, 3)", "(" * 300 + ")" * 300]
)
def test_a_header_that_asks_for_more_than_there_is_makes_no_array(shape):
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(400) + b"\n"
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(120)
    arrays = good()
    data = zipped(("pixels.npy", body), ("site.npy", npy(arrays["site"])), ("target.npy", npy(arrays["target"])))
    with pytest.raises(ExamplesRefused, match="pixels"):
        read_npz(data, MANIFEST)


@pytest.mark.parametrize("shape", [b"(1, 2", b"(True, 2), }", b"(-1, -2), }", b"''", b"(1, 2,) + (3,)"])
def test_a_header_that_numpy_stumbles_over_is_refused(shape):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': " + shape
    body = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(8)
    with pytest.raises(ExamplesRefused):
        read_npz(zipped(*((spec.name + ".npy", body) for spec in MANIFEST.examples)), MANIFEST)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused_by_number(compression):
    entries = [(spec.name + ".npy", bytes(100)) for spec in MANIFEST.examples]
    with pytest.raises(ExamplesRefused, match=f"stored or deflated, got compression {compression}"):
        read_npz(zipped(*entries, compression=compression), MANIFEST)


def test_an_array_that_stands_twice_is_refused():
    body = npy(good()["site"])
    with pytest.warns(UserWarning, match="Duplicate"):
        data = zipped(("site.npy", body), ("site.npy", body))
    with pytest.raises(ExamplesRefused, match="'site' twice"):
        read_npz(data, MANIFEST)


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"not a zip", npy(np.zeros(3))])
def test_what_is_no_npz_is_refused(data):
    with pytest.raises(ExamplesRefused):
        read_npz(data, MANIFEST)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_broken_file_is_refused_or_holds_finite_examples(data):
    honest = bytearray(npz(**good(6)))
    for _ in range(data.draw(st.integers(1, 3))):
        honest[data.draw(st.integers(0, len(honest) - 1))] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del honest[data.draw(st.integers(0, len(honest) - 1)) :]
    try:
        read = read_npz(bytes(honest), MANIFEST)
    except ExamplesRefused:
        return
    for spec in SPECS:
        assert read[spec.name].shape[1:] == spec.shape and str(read[spec.name].dtype) == spec.dtype
        assert np.isfinite(read[spec.name]).all()
