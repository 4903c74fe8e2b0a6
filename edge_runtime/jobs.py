"""What is asked of the trainer, and what comes back: the work that needs numpy or the interpreter, as values.

The rules:
- a job says everything that the trainer needs beside the home: it opens the same files with its own handles;
- `times_forgotten` is the store's count as of the session that wants the job; what a job writes, it writes only while
  the home was not told to forget since;
- every job has one result, and one that could not be done says so by name; a trainer that died is a result, too.
This module imports no numpy, so that the idle supervisor stays small.
"""

from typing import Annotated

import msgspec

from edge_runtime.session import State
from wire_contract.manifest import Manifest
from wire_contract.messages import EvaluationOffer, TaskOffer

MAX_JOB_BYTES = 16 * 1024 * 1024


class Train(msgspec.Struct, frozen=True, kw_only=True, tag="train"):
    """Train the offer's plan from its base, or go on from the checkpoint, and queue the update. Takes minutes."""

    offer: TaskOffer
    times_forgotten: int
    chunk_bytes: int


class Evaluate(msgspec.Struct, frozen=True, kw_only=True, tag="evaluate"):
    """Score the offer's version on the words that are held out. Takes seconds."""

    offer: EvaluationOffer
    times_forgotten: int


class Personalize(msgspec.Struct, frozen=True, kw_only=True, tag="personalize"):
    """Make the person's own copy of the keyboard's version, if it is better on their held-out text. Takes minutes."""

    times_forgotten: int
    seed: int


class CheckVersion(msgspec.Struct, frozen=True, kw_only=True, tag="check-version"):
    """Run a version's golden checks (`model_check`)."""

    data: bytes
    manifest: Manifest


class RebuildVersion(msgspec.Struct, frozen=True, kw_only=True, tag="rebuild-version"):
    """Make a version's bytes of a held base and a delta (`version_delta`)."""

    base: bytes
    base_sha256: str
    delta: bytes
    manifest: Manifest


class CheckHealth(msgspec.Struct, frozen=True, kw_only=True, tag="check-health"):
    """Open a version that is here, and judge it against the version `before` (`model_health`), if that is not ""."""

    sha256: str
    before: str = ""


class SettleUpdate(msgspec.Struct, frozen=True, kw_only=True, tag="settle-update"):
    """Return an update's vector to the residual, empty the outbox, set the session to `state`: one transaction."""

    update_id: str
    verdict: str
    state: State
    times_forgotten: int


LongJob = Train | Evaluate | Personalize
ShortJob = CheckVersion | RebuildVersion | CheckHealth | SettleUpdate
Job = LongJob | ShortJob


class Queued(msgspec.Struct, frozen=True, kw_only=True, tag="queued"):
    """The update is in the outbox, and the session's row says so."""

    update_id: str
    steps: int
    update_bytes: int
    finished_at: float


class Stopped(msgspec.Struct, frozen=True, kw_only=True, tag="stopped"):
    """A condition fell; what was done is kept as a checkpoint where the job has one."""

    steps: int = 0


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The job cannot be done on this device."""

    reason: str
    steps: int = 0


class NoRoom(msgspec.Struct, frozen=True, kw_only=True, tag="no-room"):
    """Done, but the disk could not take it."""

    reason: str
    steps: int = 0


class WasForgotten(msgspec.Struct, frozen=True, kw_only=True, tag="was-forgotten"):
    """The person had it forgotten meanwhile: nothing was written."""

    steps: int = 0


class Died(msgspec.Struct, frozen=True, kw_only=True, tag="died"):
    """The trainer ended without an answer; what it had on the disk is whole."""

    reason: str


class Evaluated(msgspec.Struct, frozen=True, kw_only=True, tag="evaluated"):
    """Counts in their buckets (`wire_contract.messages.evaluation_buckets`); words 0: too little text is held out."""

    words: int
    hits1: int
    hits3: int


class Personalized(msgspec.Struct, frozen=True, kw_only=True, tag="personalized"):
    """Whether a copy was accepted, and why or why not, in a sentence for the person."""

    accepted: bool
    reason: str
    version: int = 0


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag="checked"):
    """A version passes; or `refused` is the stable name of the rule that it breaks."""

    refused: str = ""
    message: str = ""


class Rebuilt(msgspec.Struct, frozen=True, kw_only=True, tag="rebuilt"):
    """The version's bytes; or `refused` is the stable name of what is wrong with the delta."""

    data: bytes = b""
    refused: str = ""
    message: str = ""


class HealthChecked(msgspec.Struct, frozen=True, kw_only=True, tag="health-checked"):
    """A version came up; `reason` is the stable name of the rule of `model_health` that it breaks, "" for none."""

    reason: str = ""
    said: str = ""


class Settled(msgspec.Struct, frozen=True, kw_only=True, tag="settled"):
    """The verdict was dealt with, durably."""


class UsedUp(msgspec.Struct, frozen=True, kw_only=True):
    """What a job took: CPU seconds of the trainer and bytes that it wrote."""

    cpu_s: float = 0.0
    written_bytes: int = 0


JobResult = (
    Queued
    | Stopped
    | Refused
    | NoRoom
    | WasForgotten
    | Died
    | Evaluated
    | Personalized
    | Checked
    | Rebuilt
    | HealthChecked
    | Settled
)


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """A job on its way to a trainer in another process; `number` comes back with the answer."""

    number: Annotated[int, msgspec.Meta(ge=0)]
    job: Job


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """The result on its way back."""

    number: Annotated[int, msgspec.Meta(ge=0)]
    result: JobResult
    used: UsedUp = UsedUp()
