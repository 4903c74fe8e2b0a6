"""Scoring held-out people in a device process: the first model, the last one, and a person's own copy of the last.

Everything that is scored is what a device would hold: versions as their int8 files, the copy patched into int8 again,
n-grams and latest words of the person's own head. As on a keyboard, each word of the tail that was scored then counts:
for the mixture's weights first, then for the caches. The words that count are those of `edge_runtime.evaluation`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_runtime.evaluation import NOT_SCORED, Slice, Window, score, windows
from edge_runtime.evaluation import Score as ScoreOf
from edge_runtime.mixture import Mixture, Parts, bucket_of
from edge_runtime.ngram_cache import NgramCache
from edge_runtime.personalization import make_copy
from edge_runtime.ports import ModelRuntime, SignatureRunner
from edge_runtime.recency import Recency
from edge_runtime.suggestions import probabilities_of
from fleet_simulator.control import HeldOutPerson, Hits, Score, Scored, Suggestions
from wire_contract.envelope import read_envelope
from wire_contract.layout import Layout, Tensors
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.patch import patch, read_tensors
from wire_contract.vocabulary import SPECIALS, START, Vocabulary

PLACES = 3
SENTENCE_WORDS = (5, 9)
CONTEXT = 20
# On dev persons the sampled step tunes as well as the exact one and takes a fifth of its time.
TUNING_SIGNATURE = "train_sampled"


@dataclass(frozen=True)
class Version:
    """A version out of a bundle folder (our own process wrote it): manifest, file, tensors, packed train inputs."""

    manifest: Manifest
    data: bytes
    tensors: Tensors
    packed: Tensors

    @classmethod
    def read(cls, folder: Path) -> "Version":
        """Open `folder`/model.tflite and manifest.bin."""
        manifest = decode_manifest(read_envelope((folder / "manifest.bin").read_bytes()).body)
        return cls.of((folder / "model.tflite").read_bytes(), manifest)

    @classmethod
    def of(cls, data: bytes, manifest: Manifest) -> "Version":
        """Open a version's bytes, of any weights of the manifest's template."""
        tensors = read_tensors(data, manifest)
        return cls(manifest, data, tensors, Layout.of(manifest).pack(tensors))


@dataclass
class _Watch:
    """What an observer keeps of the positions that count: the first three ids, and all probabilities if asked.

    `cut` says which window of which person's tail each stream is; places are (person, position in the tail).
    """

    cut: Sequence[tuple[int, Window]]
    probabilities: bool
    top: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)
    whole: dict[tuple[int, int], NDArray[np.float32]] = field(default_factory=dict)

    def score(self, runner: SignatureRunner, version: "Version") -> ScoreOf:
        """Score a version on the windows, watching."""
        return score(
            runner,
            version.manifest.signatures["evaluate"],
            version.packed,
            [window.ids for _, window in self.cut],
            first_scored=[window.first_scored for _, window in self.cut],
            observe=self,
        )

    def __call__(self, call: Slice, logits: NDArray[np.float32]) -> None:
        for row, t in zip(*np.nonzero(call.weights), strict=True):
            number, window = self.cut[int(call.streams[row])]
            place = (number, window.start + int(call.starts[row]) + int(t) + 1)
            values = logits[t, row]
            self.top[place] = best_three(values)
            if self.probabilities:
                self.whole[place] = probabilities_of(values).astype(np.float32)


def best_three(values: NDArray[np.floating]) -> tuple[int, ...]:
    """Return the ids of the three largest entries beyond the specials, largest first, ties to the lower id."""
    ordinary = values[len(SPECIALS) :]
    places = np.argpartition(-ordinary, PLACES)[:PLACES]
    order = np.lexsort((places, -ordinary[places]))
    return tuple(int(places[i]) + len(SPECIALS) for i in order)


def score_persons(runtime: ModelRuntime, command: Score) -> Scored:
    """Return the hits of the three on the persons' tails, at most `words_a_person` of each."""
    first, last = Version.read(Path(command.first)), Version.read(Path(command.last))
    vocabulary = Vocabulary.from_bytes((Path(command.last) / "vocabulary.txt").read_bytes())
    runner = runtime.template(last.manifest, lambda: last.data)
    spec = last.manifest.signatures["evaluate"]
    tails = [tail_ids(person, vocabulary, command.words_a_person) for person in command.persons]
    cut = [(number, window) for number, tail in enumerate(tails) for window in windows(tail, spec.batch, spec.length)]
    watch_first, watch_last = _Watch(cut, probabilities=False), _Watch(cut, probabilities=True)
    before = watch_first.score(runner, first)
    after = watch_last.score(runner, last)
    personal, accepted = Hits(), 0
    for number, person in enumerate(command.persons):
        hits, took = _score_personal(runner, last, person, vocabulary, number, tails[number], watch_last)
        personal, accepted = personal.plus(hits), accepted + took
    sentence, gain = most_gained(tails, watch_first.top, watch_last.top, vocabulary)
    return Scored(
        before=Hits(before.count, before.hits1, before.hits3),
        after=Hits(after.count, after.hits1, after.hits3),
        personal=personal,
        accepted=accepted,
        sentence=sentence,
        gain=gain,
    )


def tail_ids(person: HeldOutPerson, vocabulary: Vocabulary, most_words: int) -> list[int]:
    """Return the id stream of a person's tail, cut after `most_words` scored words."""
    ids: list[int] = []
    words = 0
    for text in person.tail:
        for token in vocabulary.encode_text(text):
            words += token not in NOT_SCORED
            if words > most_words:
                return ids
            ids.append(token)
    return ids


def _score_personal(
    runner: SignatureRunner,
    last: Version,
    person: HeldOutPerson,
    vocabulary: Vocabulary,
    number: int,
    tail: Sequence[int],
    shared: _Watch,
) -> tuple[Hits, bool]:
    head = [token for text in person.head for token in vocabulary.encode_text(text)]
    copy = make_copy(runner, last.manifest, last.tensors, head, seed=number, signature=TUNING_SIGNATURE)
    spec = last.manifest.signatures["evaluate"]
    own = _Watch([(number, window) for window in windows(tail, spec.batch, spec.length)], probabilities=True)
    if copy.accepted:
        own.score(runner, Version.of(patch(last.data, last.manifest, copy.tensors), last.manifest))
    hits = Hits()
    ngrams, recency, mixture = NgramCache([*head, *tail[:1]]), Recency(head), Mixture()
    for position in range(1, len(tail)):
        word, whole = tail[position], shared.whole.get((number, position))
        if whole is not None:
            tuned = own.whole.get((number, position))
            parts = Parts(
                whole.astype(np.float64),
                None if tuned is None else tuned.astype(np.float64),
                ngrams.predict(tail[max(0, position - CONTEXT) : position]),
                recency.predict(),
            )
            bucket = bucket_of(len(head) + position, parts.ngram.order)
            row = mixture.rows[bucket]
            ranked = best_three(parts.mix(row))
            hits = hits.plus(Hits(1, int(word == ranked[0]), int(word in ranked)))
            if word >= len(SPECIALS):
                mixture = mixture.learned(bucket, parts.of_word(word, row))
        ngrams.add(tail[position : position + 1])
        recency.add(tail[position : position + 1])
    return hits, copy.accepted


def most_gained(
    tails: Sequence[Sequence[int]],
    first: dict[tuple[int, int], tuple[int, ...]],
    last: dict[tuple[int, int], tuple[int, ...]],
    vocabulary: Vocabulary,
) -> tuple[tuple[Suggestions, ...], int]:
    """Return the sentence of 5 to 9 known words where the last model hits most words more than the first, and how many.

    Ties go to the sentence that comes first. Empty where no sentence gained.
    """
    best: tuple[int, int, int, int] | None = None
    for stream, ids in enumerate(tails):
        starts = [i for i, token in enumerate(ids) if token == START] + [len(ids)]
        for start, stop in pairwise(starts):
            places = range(start + 1, stop)
            if not SENTENCE_WORDS[0] <= len(places) <= SENTENCE_WORDS[1] or min(ids[start + 1 : stop]) < len(SPECIALS):
                continue
            gains = [(ids[i] in last[stream, i]) - (ids[i] in first[stream, i]) for i in places if (stream, i) in last]
            if sum(gains) > 0 and (best is None or sum(gains) > best[0]):
                best = (sum(gains), stream, start, stop)
    if best is None:
        return (), 0
    gain, stream, start, stop = best
    words = vocabulary.words
    rows = []
    for place in range(start + 1, stop):
        typed = " ".join(words[i] for i in tails[stream][start + 1 : place])
        ranked = [tuple(words[i] for i in top[stream, place]) for top in (first, last)]
        rows.append(Suggestions(typed, words[tails[stream][place]], ranked[0], ranked[1]))
    return tuple(rows), gain
