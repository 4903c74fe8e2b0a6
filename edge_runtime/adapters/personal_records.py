"""Small things remembered about a person's suggestions, each a JSON file of its own in HOME/personal:

    mixture    the weights of their predictors (`edge_runtime.mixture`)
    choice     which version the keyboard uses where it is not the newest, and why (`edge_runtime.personal_choice`)
    made       what the personal copy was last made of, whether or not one was accepted

The rules:
- a file is written whole; one that is missing, broken or of another form counts as none: everything here can be made
  or learned again;
- writing happens in a transaction of state.db that refuses a home which was told to forget since: so `forget`, which
  counts in the same database before it deletes the files, never leaves one that was written later;
- `forget` deletes the whole folder, the personal copy and half-written files included.
numpy is not imported: the supervisor reads `made`.
"""

from pathlib import Path
from typing import Annotated, TypeVar

import msgspec

from edge_runtime.adapters.files import remove_durably, write_atomically
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.ports import StorageFailed
from wire_contract.messages import Count, Hex64, Text, Version

FOLDER = "personal"
MAX_BYTES = 64 * 1024
Weight = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Weights = Annotated[tuple[Weight, ...], msgspec.Meta(min_length=1, max_length=16)]


class MixtureRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="mixture"):
    """The rows of `mixture.Mixture`, and the names of their components."""

    components: Annotated[tuple[Text, ...], msgspec.Meta(max_length=16)]
    rows: Annotated[tuple[Weights, ...], msgspec.Meta(min_length=1, max_length=256)]


class ChoiceRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="choice"):
    """The keyboard uses `version` (`sha256`) instead of the release `instead_of`, and `reason` says why to the person.

    It holds only as long as `instead_of` is the newest release here.
    """

    version: Version
    sha256: Hex64
    instead_of: Hex64
    reason: Text


class MadeRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="made"):
    """The copy was last made while `release` was the newest, of text up to the store's record `last_record`."""

    release: Hex64
    last_record: Count
    accepted: bool
    reason: Text


Record = TypeVar("Record", MixtureRecord, ChoiceRecord, MadeRecord)
_NAMES: dict[type[msgspec.Struct], str] = {MixtureRecord: "mixture", ChoiceRecord: "choice", MadeRecord: "made"}


def read(home: Path, kind: type[Record]) -> Record | None:
    """Return what is remembered of this kind, or None."""
    try:
        with (home / FOLDER / _NAMES[kind]).open("rb") as file:
            return msgspec.json.decode(file.read(MAX_BYTES), type=kind)
    except (OSError, msgspec.DecodeError, ValueError, RecursionError):
        return None


def write(home: Path, store: StateStore, times_forgotten: int, record: Record) -> None:
    """Remember. Raises `Forgotten` if the home was told to forget since, `StorageFull`, `StorageFailed`."""
    with store.transaction():
        store.refuse_forgotten(times_forgotten)
        write_atomically(home / FOLDER / _NAMES[type(record)], msgspec.json.encode(record), mode=0o600)


def drop(home: Path, kind: type[Record]) -> None:
    """Forget what is remembered of this kind. Raises `StorageFailed`."""
    remove_durably(home / FOLDER / _NAMES[kind])


def forget(home: Path) -> None:
    """Delete everything in HOME/personal. Raises `StorageFailed`."""
    try:
        paths = list((home / FOLDER).iterdir())
    except FileNotFoundError:
        return
    except OSError as e:
        raise StorageFailed(f"{home / FOLDER} cannot be read: {e}") from e
    remove_durably(*paths)
