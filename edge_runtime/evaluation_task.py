"""One evaluation task: a version's weights on what the device holds out; counts in buckets, and nothing else.

The rules:
- scored are the newest held-out sentences, each from the zero state, up to the offer's `most_words`;
- with fewer words than the offer's `minimum_words` nothing is scored: the report says words 0, not how few there are;
- counts leave rounded down to tens (`evaluation_buckets`), so that no single word shows in them;
- of a model of arrays the newest held-out examples are scored, and an example counts as a word: a hit is a hit of the
  first and of the first three; one that predicts numbers has no hits, and refuses;
- it stops between two calls of the model, and keeps nothing then.
"""

from collections.abc import Callable, Sequence

from edge_runtime import array_evaluation
from edge_runtime.array_examples import ArrayExamples
from edge_runtime.evaluation import NOT_SCORED, score
from edge_runtime.jobs import Evaluated, Refused, Stopped
from edge_runtime.model_slots import Held
from edge_runtime.ports import ModelRuntime, RuntimeFailed
from edge_runtime.privacy_filter import id_stream
from edge_runtime.watched_runner import NotNow, WatchedRunner
from wire_contract.errors import ContractError
from wire_contract.layout import Layout
from wire_contract.messages import EvaluationOffer, evaluation_buckets
from wire_contract.patch import read_tensors
from wire_contract.vocabulary import Vocabulary


def run(
    offer: EvaluationOffer,
    held: Held,
    sentences: Sequence[str],
    vocabulary: Vocabulary,
    runtime: ModelRuntime,
    may_go_on: Callable[[], bool],
) -> Evaluated | Stopped | Refused:
    """Score the offer's version, which is `held`, on `sentences` (held out, oldest first)."""
    if not _fits(offer, held):
        return _other_file(offer, held)
    manifest = held.manifest
    streams = newest_streams(sentences, vocabulary, offer.most_words)
    words = sum(_scored(stream) for stream in streams)
    if words < offer.minimum_words:
        return Evaluated(words=0, hits1=0, hits3=0)
    try:
        runner = WatchedRunner(runtime.template(manifest, lambda: held.data), may_go_on)
        packed = Layout.of(manifest).pack(read_tensors(held.data, manifest))
        found = score(runner, manifest.signatures["evaluate"], packed, streams)
    except NotNow:
        return Stopped()
    except (RuntimeFailed, ContractError) as e:
        return Refused(reason=f"version {manifest.version} cannot be evaluated: {e}")
    words, hits1, hits3 = evaluation_buckets(found.count, found.hits1, found.hits3)
    return Evaluated(words=words, hits1=hits1, hits3=hits3)


def run_arrays(
    offer: EvaluationOffer,
    held: Held,
    examples: ArrayExamples,
    runtime: ModelRuntime,
    may_go_on: Callable[[], bool],
) -> Evaluated | Stopped | Refused:
    """Score the offer's version, which is `held`, on `examples` (held out, oldest first)."""
    if not _fits(offer, held):
        return _other_file(offer, held)
    manifest = held.manifest
    if manifest.loss == array_evaluation.SQUARED:
        return Refused(reason=f"version {manifest.version} predicts numbers: there are no hits to count")
    count = min(len(examples), offer.most_words)
    if count < max(1, offer.minimum_words):
        return Evaluated(words=0, hits1=0, hits3=0)
    try:
        runner = WatchedRunner(runtime.template(manifest, lambda: held.data), may_go_on)
        packed = Layout.of(manifest).pack(read_tensors(held.data, manifest))
        found = array_evaluation.score(runner, manifest, packed, examples.take(examples.numbers[-count:]))
    except NotNow:
        return Stopped()
    except (RuntimeFailed, ContractError) as e:
        return Refused(reason=f"version {manifest.version} cannot be evaluated: {e}")
    words, hits1, hits3 = evaluation_buckets(found.count, found.hits, found.hits)
    return Evaluated(words=words, hits1=hits1, hits3=hits3)


def _fits(offer: EvaluationOffer, held: Held) -> bool:
    return held.manifest.sha256 == offer.version_sha256


def _other_file(offer: EvaluationOffer, held: Held) -> Refused:
    got = held.manifest.sha256
    return Refused(reason=f"the offer is for the file {offer.version_sha256[:16]}, got {got[:16]}")


def newest_streams(sentences: Sequence[str], vocabulary: Vocabulary, most_words: int) -> list[list[int]]:
    """Return the newest sentences as id streams, oldest first, with at most `most_words` scored words together.

    The sentence that does not fit whole ends it.
    """
    chosen: list[list[int]] = []
    words = 0
    for sentence in reversed(sentences):
        stream = id_stream([sentence], vocabulary)
        words += _scored(stream)
        if words > most_words:
            break
        chosen.append(stream)
    return chosen[::-1]


def _scored(stream: Sequence[int]) -> int:
    return sum(token not in NOT_SCORED for token in stream[1:])
