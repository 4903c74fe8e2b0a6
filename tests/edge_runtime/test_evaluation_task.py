import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import evaluation_task
from edge_runtime.jobs import Evaluated, Refused, Stopped
from edge_runtime.model_slots import Held
from edge_runtime.privacy_filter import id_stream
from tests.edge_runtime import numpy_model
from tests.edge_runtime.fakes import RUNTIME, TINY
from tests.edge_runtime.test_local_training import MANIFEST, MODEL
from wire_contract.messages import EvaluationOffer, RetryWindow
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_bytes((TINY / "vocabulary.txt").read_bytes())
HELD = Held(MANIFEST, MODEL)
TENSORS = read_tensors(MODEL, MANIFEST)


def sentences(count=40, seed=2):
    """Half of the words are what the model would say next, so that there is something to hit."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        stream = [1]
        for _ in range(int(rng.integers(3, 12))):
            likely = int(np.argmax(numpy_model.logits_of(TENSORS, stream[-1:])[-1][4:])) + 4
            stream.append(likely if rng.random() < 0.5 else int(rng.integers(4, 600)))
        made.append(" ".join(VOCABULARY.words[i] for i in stream[1:]))
    return made


SENTENCES = sentences()


def offer(**changes):
    fields = {
        "device": "d" * 32, "population": "keyboard", "task": "0" * 16, "lease": "1" * 32, "nonce": "2" * 32,
        "version": 1, "version_sha256": MANIFEST.sha256, "minimum_words": 10, "most_words": 2000, "issued_at": 0,
        "deadline": 10, "retry": RetryWindow(earliest=0, latest=1),
    }  # fmt: skip
    return EvaluationOffer(**{**fields, **changes})


def run(the_offer, texts=SENTENCES, may_go_on=lambda: True):
    return evaluation_task.run(the_offer, HELD, texts, VOCABULARY, RUNTIME, may_go_on)


def test_the_counts_are_those_of_the_formulas_rounded_down_to_tens():
    count, hits1, hits3, _ = numpy_model.score_of(TENSORS, [id_stream([text], VOCABULARY) for text in SENTENCES])
    assert 10 < hits1 < hits3 < count
    assert run(offer()) == Evaluated(words=count - count % 10, hits1=hits1 - hits1 % 10, hits3=hits3 - hits3 % 10)


def test_with_too_little_text_nothing_is_scored_and_how_little_is_not_told():
    words = sum(text.count(" ") + 1 for text in SENTENCES)

    class Runtime:
        def template(self, manifest, read):
            raise AssertionError("nothing is to be scored")

    for the_offer, texts in ((offer(minimum_words=words + 1), SENTENCES), (offer(), [])):
        found = evaluation_task.run(the_offer, HELD, texts, VOCABULARY, Runtime(), lambda: True)
        assert found == Evaluated(words=0, hits1=0, hits3=0)


@given(st.integers(1, 400))
def test_scored_are_the_newest_whole_sentences_up_to_the_offers_most(most):
    streams = evaluation_task.newest_streams(SENTENCES, VOCABULARY, most)
    words = [len(stream) - 1 for stream in streams]
    assert sum(words) <= most
    assert streams == [id_stream([text], VOCABULARY) for text in SENTENCES[len(SENTENCES) - len(streams) :]]
    if len(streams) < len(SENTENCES):
        following = SENTENCES[len(SENTENCES) - len(streams) - 1]
        assert sum(words) + following.count(" ") + 1 > most


def test_numbers_are_not_scored_and_unknown_words_are_misses():
    (stream,) = evaluation_task.newest_streams(["<num> baba <unk>"], VOCABULARY, 2)
    assert stream == [1, 3, VOCABULARY.index["baba"], 2]
    assert evaluation_task.newest_streams(["<num> baba <unk>"], VOCABULARY, 1) == []


def test_it_stops_between_two_calls_of_the_model():
    calls = []

    def go_on():
        calls.append(None)
        return True

    run(offer(), may_go_on=go_on)
    assert len(calls) > 2
    for stop in range(len(calls)):
        left = iter([True] * stop)
        assert run(offer(), may_go_on=lambda left=left: next(left, False)) == Stopped()


def test_another_version_than_the_offers_is_refused_by_name():
    refused = run(offer(version_sha256="a" * 64))
    assert isinstance(refused, Refused) and "aaaaaaaaaaaaaaaa" in refused.reason


@pytest.mark.parametrize("most", [1, 5])
def test_an_offer_for_fewer_words_than_its_minimum_scores_nothing(most):
    assert run(offer(most_words=most, minimum_words=10)) == Evaluated(words=0, hits1=0, hits3=0)
