"""What the exported file is made of, read from the file itself."""

import numpy as np
import pytest

from model_export.convert import template_tensors
from model_export.flatbuffer import UnexpectedFile, check_rules, operators, weight_places
from model_export.network import NetworkSize, signature_specs
from tests.model_export.conftest import VARIANT, VARIANT_CANDIDATES
from wire_contract.manifest import SignatureSpec
from wire_contract.patch import quantize

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

SIGNATURES = {"train", "train_sampled", "train_private", "evaluate", "suggest", "suggest_context"}
_STEP_OPS = {
    "ADD", "BATCH_MATMUL", "CONCATENATION", "DIV", "EXP", "GATHER", "LOG", "LOGISTIC", "MAXIMUM", "MUL", "NEG",
    "REDUCE_MAX", "RESHAPE", "SCATTER_ND", "SPLIT", "SQRT", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE",
}  # fmt: skip
_CELL_OPS = {"CONCATENATION", "DEQUANTIZE", "FULLY_CONNECTED", "GATHER", "LOGISTIC", "MUL", "ADD", "SOFTMAX", "SPLIT",
             "STRIDED_SLICE", "SUB", "TANH", "TOPK_V2"}  # fmt: skip
# A new op is a conscious edit: every device's interpreter must have it, and XNNPACK should take it.
OPS = {
    "train": _STEP_OPS | {"PAD"},
    "train_sampled": _STEP_OPS,
    "train_private": _STEP_OPS | {"ABS", "PAD", "CAST", "EQUAL", "MINIMUM", "RELU", "TILE"},
    "evaluate": {
        "ADD", "BATCH_MATMUL", "CAST", "CONCATENATION", "EXP", "GATHER", "GREATER", "GREATER_EQUAL", "LESS", "LOG",
        "LOGISTIC", "MUL", "REDUCE_MAX", "RESHAPE", "SPLIT", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TRANSPOSE",
    },
    "suggest": _CELL_OPS,
    "suggest_context": _CELL_OPS | {"CAST", "LOG_SOFTMAX", "NOT_EQUAL"},
}  # fmt: skip


def test_the_file_has_six_signatures_of_built_in_ops(template):
    counts = operators(template.data)
    assert counts.keys() == SIGNATURES
    assert not [op for tally in counts.values() for op in tally if "CUSTOM" in op or "Flex" in op]
    check_rules(template.data)


@pytest.mark.parametrize("signature", sorted(SIGNATURES))
def test_a_signature_is_made_of_the_ops_that_are_listed_here(template, signature):
    assert operators(template.data)[signature].keys() == OPS[signature]


def test_the_train_signatures_have_no_fully_connected_and_the_suggestions_only_have_it(template):
    counts = operators(template.data)
    for name in ("train", "train_sampled", "train_private"):
        assert counts[name].get("FULLY_CONNECTED", 0) == 0
        assert counts[name]["BATCH_MATMUL"] > 60
    assert counts["suggest"]["FULLY_CONNECTED"] == 3
    assert "BATCH_MATMUL" not in counts["suggest"]


def test_no_op_reads_a_variable_so_that_none_can_be_left_unassigned(template):
    assert not [op for tally in operators(template.data).values() for op in tally if "VAR" in op or "CALL_ONCE" in op]


def test_variants_are_named_by_their_shapes_and_made_of_the_same_ops(half_template):
    counts = operators(half_template.data)
    batch, length = VARIANT
    for family in ("train", "train_sampled", "train_private"):
        assert set(counts[f"{family}_b{batch}_l{length}"]) == OPS[family]
    assert counts.keys() == set(signature_specs(VARIANT_CANDIDATES, [VARIANT])) - {"evaluate"}
    assert signature_specs(VARIANT_CANDIDATES, [VARIANT])["train_sampled_b3_l8"] == SignatureSpec(
        batch=3, length=8, candidates=VARIANT_CANDIDATES
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"families": ["train", "predict"]}, "the families are .*, got .'predict'"),
        ({"variants": [(0, 20)]}, "a variant is .batch, length., each from 1 to 4096"),
        ({"weights": "int4"}, "weights are int8 or float16, got 'int4'"),
    ],
)
def test_what_names_no_signature_or_form_is_refused_before_it_is_converted(size, arguments, said):
    from model_export.convert import convert

    with pytest.raises(ValueError, match=said):
        convert(size, **arguments)


def test_a_file_without_a_suggestion_has_no_place_for_the_weights(size, template):
    renamed = template.data.replace(b"suggest\x00", b"propose\x00").replace(
        b"suggest_context\x00", b"propose_context\x00"
    )
    with pytest.raises(UnexpectedFile, match="embedding stands in the suggest graphs, got no place for it"):
        weight_places(renamed, size)


def test_float16_weights_stand_at_their_places_rounded_once(half_template, size):
    weights = template_tensors(size)
    assert [entry.kind for entry in half_template.tensors] == ["float16"] * 3 + ["float32"] * 2
    for entry in half_template.tensors:
        value = weights[entry.name]
        stored = value.astype("<f2" if entry.kind == "float16" else "<f4")
        assert entry.scale_offsets == ()
        assert len(entry.offsets) == 1
        for offset in entry.offsets:
            raw = half_template.data[offset : offset + entry.size_bytes]
            assert raw == (stored.T if entry.transposed else stored).tobytes()


def test_float16_touches_the_suggestions_only(half_template, template):
    counts, before = operators(half_template.data), operators(template.data)
    assert counts["suggest"]["DEQUANTIZE"] == counts["suggest_context"]["DEQUANTIZE"] == 3
    for name in ("train", "train_private", "train_sampled"):
        assert "DEQUANTIZE" not in counts[name]
    assert counts["train"] == before["train"]


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
