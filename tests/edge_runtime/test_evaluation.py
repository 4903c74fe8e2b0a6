import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.evaluation import Score, hits_of, score, slices, windows
from tests.edge_runtime import numpy_model
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED, RUNNER
from wire_contract.patch import read_tensors

SPEC = MANIFEST.signatures["evaluate"]
TENSORS = read_tensors(MODEL, MANIFEST)


def make_streams(seed=1, people=20):
    """Half of the words are what the model would say, so that there is something to hit."""
    rng = np.random.default_rng(seed)
    streams = []
    for _ in range(people):
        stream = [1]
        for _ in range(int(rng.integers(0, 60))):
            likely = int(np.argmax(numpy_model.logits_of(TENSORS, stream[-1:])[-1]))
            stream.append(likely if rng.random() < 0.5 else int(rng.integers(0, 600)))
        streams.append(stream)
    return streams


STREAMS = make_streams()


def test_counts_hits_and_loss_are_those_of_the_formulas():
    found = score(RUNNER, SPEC, PACKED, STREAMS)
    count, hits1, hits3, loss = numpy_model.score_of(TENSORS, STREAMS)
    assert (found.count, found.hits1, found.hits3) == (count, hits1, hits3)
    assert 0 < hits1 < hits3 < count
    assert abs(found.loss - loss) < 1e-4 * count


def test_a_first_scored_position_leaves_out_what_stands_before_it_but_reads_it():
    first = [max(1, len(stream) // 2) for stream in STREAMS]
    found = score(RUNNER, SPEC, PACKED, STREAMS, first_scored=first)
    count, hits1, hits3, loss = numpy_model.score_of(TENSORS, STREAMS, first)
    assert (found.count, found.hits1, found.hits3) == (count, hits1, hits3)
    assert abs(found.loss - loss) < 1e-4 * count


def test_an_observer_sees_the_logits_of_every_position():
    seen = {}

    def observe(call, logits):
        for row, stream in enumerate(call.streams):
            if stream >= 0:
                for t in range(SPEC.length):
                    seen[int(stream), int(call.starts[row]) + t] = logits[t, row]

    score(RUNNER, SPEC, PACKED, STREAMS, observe=observe)
    for number in (0, 7):
        expected = numpy_model.logits_of(TENSORS, STREAMS[number][:-1])
        for place, row in enumerate(expected):
            np.testing.assert_allclose(seen[number, place], row, atol=1e-4)


def test_nothing_to_score_is_a_score_of_nothing():
    assert score(RUNNER, SPEC, PACKED, [[], [5], [1, 1, 3]]) == Score()


@settings(max_examples=50)
@given(st.lists(st.lists(st.integers(1, 9), max_size=90), max_size=40))
def test_every_target_is_in_exactly_one_slice(streams):
    targets = [[] for _ in streams]
    for call in slices(streams, SPEC):
        for row, stream in enumerate(call.streams):
            if stream >= 0:
                targets[stream] += [int(t) for t in call.targets[row] if t != 0]
    assert targets == [stream[1:] for stream in streams]


@given(st.lists(st.integers(1, 9), max_size=300), st.integers(1, 16), st.integers(1, 20), st.integers(1, 50))
def test_every_position_that_counts_counts_in_exactly_one_window(stream, pieces, context, first_scored):
    counted = []
    for window in windows(stream, pieces, context, first_scored):
        assert list(window.ids) == stream[window.start : window.start + len(window.ids)]
        assert window.first_scored == min(context, window.start + window.first_scored)
        counted += range(window.start + window.first_scored, window.start + len(window.ids))
    assert counted == list(range(first_scored, len(stream)))
    assert len(windows(stream, pieces, context, first_scored)) <= pieces


def test_each_words_hit_is_that_of_the_formulas_and_they_add_up_to_the_score():
    found, hits = hits_of(RUNNER, SPEC, PACKED, STREAMS)
    assert found == score(RUNNER, SPEC, PACKED, STREAMS)
    assert len(hits) == found.count and sum(hits.values()) == found.hits3
    for number, stream in enumerate(STREAMS[:6]):
        logits = numpy_model.logits_of(TENSORS, stream[:-1])
        for place, target in enumerate(stream[1:], start=1):
            if target in (0, 1, 3):
                assert (number, place) not in hits
                continue
            ranked = [int(i) for i in np.argsort(-logits[place - 1], kind="stable") if i >= 4][:3]
            assert hits[number, place] == (target in ranked)
