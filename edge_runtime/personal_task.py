"""Making what a person's keyboard suggests from: which version, and their own copy of it. In the trainer, at night.

The rules:
- the newest release is judged against the one before on text that the device holds out (`personal_choice`); if it is
  significantly worse for this person, the keyboard stays with the one before, and the reason is kept for them;
- of the version that was chosen: a copy is made anew (`personalization.make_copy`), and what the copy of an older
  version had learned is carried over; the likelier of the two on the held-out text is kept, and neither if the version
  alone is at least as good;
- nothing is held out on this device: then every release is used, and nothing is carried over, for a copy has learned
  all the text that could judge it;
- it stops between two calls of the model (`watched_runner`) and keeps nothing then: another night begins anew;
- what cannot be done is remembered as made, with the reason: it is tried again when a release or more text has come;
- copy, choice and what it was made of are written after everything was computed, in a transaction that refuses a home
  which was told to forget since.
numpy is loaded by `run`; `due` is cheap, and the supervisor calls it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from edge_runtime.adapters import personal_copy, personal_records
from edge_runtime.adapters.personal_records import ChoiceRecord, MadeRecord
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.jobs import Personalized, Refused, Stopped
from edge_runtime.model_slots import Held, ModelSlots
from edge_runtime.ports import ModelRuntime
from edge_runtime.privacy_filter import id_stream

if TYPE_CHECKING:
    from edge_runtime.evaluation import Score
    from edge_runtime.personal_choice import Verdict
    from wire_contract.layout import Tensors

NEW_WORDS = 500
MINIMUM_WORDS = 60
MINIMUM_HELD_OUT = 20
MOST_HELD_OUT = 2000
# Tunes as well as the exact step (measured on dev persons), in a third of its time.
SIGNATURES = ("train_sampled", "train")


class Examples(Protocol):
    """What is read of the example store."""

    def sentences(self) -> list[str]:
        """Return the sentences that may be trained on, oldest first."""

    def held_out_sentences(self) -> list[str]:
        """Return the sentences that are for evaluation alone, oldest first."""

    def count_words(self) -> int:
        """Return how many tokens are stored."""

    def count_words_after(self, record: int) -> int:
        """Return how many tokens were stored after this record."""

    def last_record(self) -> int:
        """Return the number of the newest record."""


def newest(slots: ModelSlots) -> Held | None:
    """Return the newest version for keyboards, see `ModelSlots.for_keyboards`."""
    return slots.for_keyboards()


def for_keyboard(home: Path, slots: ModelSlots) -> tuple[Held | None, str]:
    """Return the version that the keyboard uses, and a reason where that is not the newest (else empty)."""
    held = newest(slots)
    choice = personal_records.read(home, ChoiceRecord)
    if held is None or choice is None or choice.instead_of != held.manifest.sha256:
        return held, ""
    kept = slots.held(choice.sha256)
    return (held, "") if kept is None else (kept, choice.reason)


def due(home: Path, slots: ModelSlots, examples: Examples) -> str:
    """Return why a copy is wanted now, as a sentence, or an empty one."""
    slot = slots.slot("refresh")
    release = slot.current or slots.slot("training").current
    if not release or examples.count_words() < MINIMUM_WORDS:
        return ""
    made = personal_records.read(home, MadeRecord)
    if made is None:
        return "no personal copy was made yet"
    if made.release != release:
        return "a newer version is here than the personal copy was made of"
    words = examples.count_words_after(made.last_record)
    return f"{words} words were typed since the personal copy was made" if words >= NEW_WORDS else ""


@dataclass(frozen=True)
class _Work:
    """What the steps below share."""

    slots: ModelSlots
    runtime: ModelRuntime
    examples: Examples
    may_go_on: Callable[[], bool]

    def stream(self, held: Held, sentences: Sequence[str]) -> list[int] | None:
        vocabulary = self.slots.vocabulary(held.manifest.vocabulary_sha256)
        return None if vocabulary is None else id_stream(sentences, vocabulary)

    def score(self, held: Held, tensors: "Tensors") -> "tuple[Score, list[bool]]":
        """Return the score of weights in the version's template on the held-out sentences, each from the zero state,
        and whether each scored word was hit, in a fixed order."""
        from edge_runtime.evaluation import hits_of
        from edge_runtime.watched_runner import WatchedRunner
        from wire_contract.layout import Layout

        runner = WatchedRunner(self.runtime.template(held.manifest, lambda: held.data), self.may_go_on)
        streams = [self.stream(held, [sentence]) or [] for sentence in self.held_out()]
        found, hits = hits_of(
            runner, held.manifest.signatures["evaluate"], Layout.of(held.manifest).pack(tensors), streams
        )
        return found, [hits[place] for place in sorted(hits)]

    def held_out(self) -> list[str]:
        """Return the newest held-out sentences, up to `MOST_HELD_OUT` words."""
        chosen: list[str] = []
        words = 0
        for sentence in reversed(self.examples.held_out_sentences()):
            words += sentence.count(" ") + 1
            if words > MOST_HELD_OUT:
                break
            chosen.append(sentence)
        return chosen[::-1]


def run(
    home: Path,
    slots: ModelSlots,
    runtime: ModelRuntime,
    examples: Examples,
    store: StateStore,
    *,
    times_forgotten: int,
    seed: int,
    may_go_on: Callable[[], bool],
) -> Personalized | Stopped | Refused:
    """Choose the version, make the copy, keep both. Raises `Forgotten`, `StorageFull`, `StorageFailed`."""
    from edge_runtime.ports import RuntimeFailed
    from edge_runtime.watched_runner import NotNow
    from wire_contract.errors import ContractError

    work = _Work(slots, runtime, examples, may_go_on)
    release, last_record = newest(slots), examples.last_record()
    if release is None:
        return Refused(reason="there is no version to make a personal copy of")
    made: Personalized | Refused
    try:
        made = _run(home, work, release, store, times_forgotten=times_forgotten, seed=seed)
    except NotNow:
        return Stopped()
    except (RuntimeFailed, ContractError) as e:
        made = Refused(reason=f"no personal copy can be made: {e}")
    accepted = isinstance(made, Personalized) and made.accepted
    record = MadeRecord(
        release=release.manifest.sha256, last_record=last_record, accepted=accepted, reason=made.reason[:400]
    )
    personal_records.write(home, store, times_forgotten, record)
    return made


def _run(
    home: Path, work: _Work, release: Held, store: StateStore, *, times_forgotten: int, seed: int
) -> Personalized | Refused:
    base, verdict = _choose(work, release)
    stream = work.stream(base, work.examples.sentences())
    if stream is None:
        return Refused(reason=f"the vocabulary of version {base.manifest.version} is not on the disk")
    if len(stream) < MINIMUM_WORDS:
        return Refused(reason=f"too little text for a personal copy: {len(stream)} tokens, it takes {MINIMUM_WORDS}")
    tensors, told = _make(home, work, base, stream, seed)
    reason = told if verdict is None else f"{told}; {verdict.told(release.manifest.version, _number(work, release))}"
    with store.transaction():
        store.refuse_forgotten(times_forgotten)
        if tensors is None:
            personal_copy.drop(home)
        else:
            slot = work.slots.slot("refresh")
            personal_copy.write(home, base, tensors, keep=(slot.current, slot.previous))
        personal_records.drop(home, ChoiceRecord)
    if base is not release and verdict is not None:
        choice = ChoiceRecord(
            version=base.manifest.version, sha256=base.manifest.sha256, instead_of=release.manifest.sha256,
            reason=verdict.told(release.manifest.version, base.manifest.version),
        )  # fmt: skip
        personal_records.write(home, store, times_forgotten, choice)
    return Personalized(accepted=tensors is not None, reason=reason, version=base.manifest.version)


def _previous(work: _Work, release: Held) -> Held | None:
    slot = work.slots.slot("refresh")
    if slot.current != release.manifest.sha256 or slot.previous in ("", slot.current):
        return None
    return work.slots.held(slot.previous)


def _number(work: _Work, release: Held) -> int:
    previous = _previous(work, release)
    return 0 if previous is None else previous.manifest.version


def _choose(work: _Work, release: Held) -> "tuple[Held, Verdict | None]":
    """Return the version for this person, and the verdict on the release if there was anything to judge it by."""
    from edge_runtime.personal_choice import choose
    from wire_contract.patch import read_tensors

    previous = _previous(work, release)
    if previous is None or work.stream(previous, []) is None:
        return release, None
    hits = [work.score(held, read_tensors(held.data, held.manifest))[1] for held in (release, previous)]
    if len(hits[0]) < MINIMUM_HELD_OUT:
        return release, None
    verdict = choose(hits[0], hits[1])
    return (previous if verdict.keeps_previous else release), verdict


def _make(home: Path, work: _Work, base: Held, stream: Sequence[int], seed: int) -> "tuple[Tensors | None, str]":
    """Return the weights of the copy (None: the version alone is best), and what was found, for the person."""
    from edge_runtime.personalization import make_copy
    from edge_runtime.watched_runner import WatchedRunner
    from wire_contract.patch import read_tensors

    manifest = base.manifest
    received = read_tensors(base.data, manifest)
    runner = WatchedRunner(work.runtime.template(manifest, lambda: base.data), work.may_go_on)
    signature = next(name for name in SIGNATURES if name in manifest.signatures)
    copy = make_copy(runner, manifest, received, stream, seed=seed, signature=signature)
    told = f"{copy.loss_received:.2f} to {copy.loss_copy:.2f} nats a word on your own last sentences"
    alone, _ = work.score(base, received)
    if alone.count < MINIMUM_HELD_OUT:
        return (copy.tensors, f"copy accepted: {told}") if copy.accepted else (None, f"copy not better: {told}")
    best, best_loss, what = None, alone.mean_loss, "no copy is better than the version alone"
    options = [("copy accepted", copy.tensors)] if copy.accepted else []
    older = _carried_over(home, work, base, received)
    if older is not None:
        options.append(("copy carried over from an older version", older))
    for name, tensors in options:
        loss = work.score(base, tensors)[0].mean_loss
        if loss < best_loss:
            best, best_loss, what = tensors, loss, name
    return best, f"{what}: {alone.mean_loss:.2f} to {best_loss:.2f} nats a word on your held-out sentences"


def _carried_over(home: Path, work: _Work, base: Held, received: "Tensors") -> "Tensors | None":
    """Return what the copy of an older version makes of this one; None if there is none that fits."""
    from edge_runtime.personalization import carried
    from wire_contract.patch import read_tensors

    made_of = personal_copy.base_of(home)
    if made_of in ("", base.manifest.sha256):
        return None
    older, data = work.slots.held(made_of), personal_copy.read(home, made_of)
    if older is None or data is None or older.manifest.template_sha256 != base.manifest.template_sha256:
        return None
    return carried(received, read_tensors(data, older.manifest), read_tensors(older.data, older.manifest))
