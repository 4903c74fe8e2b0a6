"""What the exported file is made of, read from the file itself."""

import numpy as np
import pytest

from model_export.convert import template_tensors
from model_export.flatbuffer import UnexpectedFile, check_rules, operators, weight_places
from model_export.network import NetworkSize
from wire_contract.patch import quantize

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

SIGNATURES = {"train", "train_sampled", "evaluate", "suggest", "suggest_context"}


def test_the_file_has_five_signatures_of_built_in_ops(template):
    counts = operators(template.data)
    assert counts.keys() == SIGNATURES
    assert not [op for tally in counts.values() for op in tally if "CUSTOM" in op or "Flex" in op]
    check_rules(template.data)


def test_the_train_signatures_have_no_fully_connected_and_the_suggestions_only_have_it(template):
    counts = operators(template.data)
    for name in ("train", "train_sampled"):
        assert counts[name].get("FULLY_CONNECTED", 0) == 0
        assert counts[name]["BATCH_MATMUL"] > 60
    assert counts["suggest"]["FULLY_CONNECTED"] == 3
    assert "BATCH_MATMUL" not in counts["suggest"]


def test_a_fully_connected_in_a_train_signature_is_refused(template):
    # `suggest` passes for a train signature by name: same length, so that the file stays a flatbuffer.
    renamed = template.data.replace(b"suggest\x00", b"trainxx\x00")
    with pytest.raises(UnexpectedFile, match="trainxx has no FULLY_CONNECTED, got 3"):
        check_rules(renamed)


def test_each_tensor_stands_where_its_quantized_bytes_are(template, size):
    weights = template_tensors(size)
    for entry in template.tensors:
        for offset in entry.offsets:
            raw = template.data[offset : offset + entry.size_bytes]
            if entry.kind == "float32":
                assert raw == weights[entry.name].tobytes()
            else:
                stored = np.frombuffer(raw, np.int8).reshape(entry.shape)
                # The converter may round a tie otherwise than the contract does.
                assert np.abs(stored.astype(int) - quantize(weights[entry.name])[0]).max() <= 1
        for offset in entry.scale_offsets:
            scale = np.frombuffer(template.data, "<f4", count=1, offset=offset)[0]
            assert scale == pytest.approx(np.abs(weights[entry.name]).max() / 127, rel=1e-5)


def test_weights_are_stored_once_each(template, size):
    assert [len(entry.offsets) for entry in template.tensors] == [1] * 5
    ints = size.words * size.width + 6 * size.cells * size.width + size.width * size.cells
    assert sum(entry.size_bytes for entry in template.tensors if entry.kind == "int8") == ints


def test_no_copy_of_a_weight_stands_outside_the_places_that_are_reported(template):
    blank = bytearray(template.data)
    for entry in template.tensors:
        for offset in entry.offsets:
            blank[offset : offset + entry.size_bytes] = bytes(entry.size_bytes)
    for entry in template.tensors:
        middle = entry.offsets[0] + entry.size_bytes // 2
        assert bytes(template.data[middle : middle + 24]) not in bytes(blank)


def test_another_size_than_the_files_is_refused(template, size):
    with pytest.raises(UnexpectedFile, match="a constant matrix is one of the fleet's tensors"):
        weight_places(template.data, NetworkSize(size.words, size.width, size.cells + 1))


def test_conversion_gives_the_same_bytes_again(template, size):
    from model_export.convert import convert

    assert convert(size, candidates=size.words).data == template.data


def test_a_size_too_small_for_int8_is_refused_before_it_is_converted():
    with pytest.raises(ValueError, match="at least 1024 values, got 640"):
        NetworkSize(words=600, width=16, cells=40)
