"""Recall over people's streams: every target once, state carried within a person and no further."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export import reference
from model_export.network import BATCH, LENGTH, PRESETS, layout_without_file
from model_export.scoring import recall, slices
from tests.model_export.conftest import lively_tensors

SIZE = PRESETS["tiny"]


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(0, 599), max_size=90), max_size=40))
def test_every_next_word_of_every_person_is_asked_once_and_in_order(streams):
    lanes = [[] for _ in range(BATCH)]
    people = []
    for call in slices(streams):
        for row in range(BATCH):
            if call.begins[row]:
                lanes[row] = []
                people.append(lanes[row])
            for t in range(LENGTH):
                if call.tokens[row, t] or call.targets[row, t]:
                    lanes[row].append((int(call.tokens[row, t]), int(call.targets[row, t])))
    expected = [[pair for pair in itertools.pairwise(s) if pair != (0, 0)] for s in streams if len(s) > 1]
    assert sorted(people) == sorted(expected)


def numpy_evaluate(inputs):
    """The `evaluate` signature by the float64 judge: an implementation of the port without TensorFlow."""
    packed = {name: inputs[name] for name in ("output_rows", "kernel_rows", "projection")}
    tensors = {n: v.astype(np.float64) for n, v in layout_without_file(SIZE).unpack(packed).items()}
    forward = reference.run_cells(
        tensors, tensors["embedding"][inputs["tokens"].T], inputs["state_h"].T, inputs["state_c"].T
    )
    logits = forward.states @ tensors["embedding"].T + tensors["output_bias"]
    total = reference.score(logits, inputs["targets"], inputs["weights"])
    return {
        "loss": total.loss, "hits1": total.hits1, "hits3": total.hits3, "count": total.count,
        "next_state_h": forward.states[-1].T, "next_state_c": forward.cells[-1].T,
    }  # fmt: skip


def test_recall_is_what_each_person_alone_would_get():
    rng = np.random.Generator(np.random.PCG64(2))
    tensors = lively_tensors(SIZE, seed=5)
    streams = [rng.integers(1, SIZE.words, length).tolist() for length in (1, 2, 21, 22, 47, *[30] * 15)]
    hits = words = 0
    loss = 0.0
    for stream in streams:
        if len(stream) < 2:
            continue
        tokens, targets = np.array([stream[:-1]], np.int32), np.array([stream[1:]], np.int32)
        weights = (~np.isin(targets, (0, 1, 3))).astype(np.float64)
        total = reference.score(reference.logits_of(tensors, tokens), targets, weights)
        hits, words, loss = hits + total.hits3, words + total.count, loss + total.loss
    result = recall(numpy_evaluate, SIZE, layout_without_file(SIZE).pack(tensors), streams)
    assert result.words == words
    assert result.top3 == pytest.approx(100 * hits / words)
    assert result.loss == pytest.approx(loss / words, rel=1e-6)


def test_unknown_targets_count_as_misses_and_starts_and_numbers_do_not_count():
    tensors = lively_tensors(SIZE, seed=5)
    streams = [[1, 2, 1, 2, 3, 2, 1]]
    result = recall(numpy_evaluate, SIZE, layout_without_file(SIZE).pack(tensors), streams)
    assert result.words == 3
    assert result.top3 == 0.0
