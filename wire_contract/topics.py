"""The topic tree; building and parsing stand side by side.

Every topic begins with `fl/v1`, has at most 7 slashes (AWS IoT's limit) and no level that a device chooses freely:
device, population and update ids are checked by pattern, so no wildcard can be smuggled in. What goes where:

    fl/v1/pop/{population}/refresh        down, retained   signed manifest of the version for keyboards
    fl/v1/pop/{population}/training       down, retained   signed manifest of the version that training starts from
    fl/v1/dev/{device}/state              up, retained     device report; the last will says offline
    fl/v1/dev/{device}/req                up               check-in, status query, model request (signed)
    fl/v1/dev/{device}/down/task          down             task offer, turned away or model denied (signed)
    fl/v1/dev/{device}/down/rcpt          down             receipt (signed)
    fl/v1/dev/{device}/down/model         down             pieces of a delta or of a file, asked for by a model request
    fl/v1/up/{shard}/{device}/{update}/init   up           signed update init
    fl/v1/up/{shard}/{device}/{update}/{n}    up           chunk n
"""

import hashlib
import re
from dataclasses import dataclass
from typing import Literal

from wire_contract.errors import Malformed

ROOT = "fl/v1"
MAX_TOPIC_CHARACTERS = 200

_DEVICE = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")

Track = Literal["refresh", "training"]


@dataclass(frozen=True, slots=True)
class ModelTopic:
    """Where a population's signed manifest is retained."""

    population: str
    track: Track


@dataclass(frozen=True, slots=True)
class DeviceTopic:
    """A device's own topic; `leaf` is `state`, `req`, `down/task`, `down/rcpt` or `down/model`."""

    device: str
    leaf: Literal["state", "req", "down/task", "down/rcpt", "down/model"]


@dataclass(frozen=True, slots=True)
class UpdateTopic:
    """Where a piece of an update goes; `chunk` is None for the init."""

    shard: int
    device: str
    update_id: str
    chunk: int | None


Topic = ModelTopic | DeviceTopic | UpdateTopic


def build_topic(topic: Topic) -> str:
    """Return the topic string; inverse of `parse_topic`. Raises `Malformed` on an id that breaks its pattern."""
    match topic:
        case ModelTopic(population, track):
            text = f"{ROOT}/pop/{population}/{track}"
        case DeviceTopic(device, leaf):
            text = f"{ROOT}/dev/{device}/{leaf}"
        case UpdateTopic(shard, device, update_id, chunk):
            text = f"{ROOT}/up/{shard}/{device}/{update_id}/{'init' if chunk is None else chunk}"
    parse_topic(text)
    return text


def parse_topic(text: str) -> Topic:
    """Read a topic string. Raises `Malformed` for anything that is not exactly one of the tree's topics."""
    if len(text) > MAX_TOPIC_CHARACTERS:
        raise Malformed(f"a topic has at most {MAX_TOPIC_CHARACTERS} characters, got {len(text)}")
    match text.split("/"):
        case ["fl", "v1", "pop", population, ("refresh" | "training") as track] if _NAME.fullmatch(population):
            return ModelTopic(population, track)
        case ["fl", "v1", "dev", device, ("state" | "req") as leaf] if _DEVICE.fullmatch(device):
            return DeviceTopic(device, leaf)
        case ["fl", "v1", "dev", device, "down", "task"] if _DEVICE.fullmatch(device):
            return DeviceTopic(device, "down/task")
        case ["fl", "v1", "dev", device, "down", "rcpt"] if _DEVICE.fullmatch(device):
            return DeviceTopic(device, "down/rcpt")
        case ["fl", "v1", "dev", device, "down", "model"] if _DEVICE.fullmatch(device):
            return DeviceTopic(device, "down/model")
        case ["fl", "v1", "up", shard, device, update_id, piece] if (
            _NUMBER.fullmatch(shard) and _DEVICE.fullmatch(device) and _DEVICE.fullmatch(update_id)
        ):
            if piece == "init":
                return UpdateTopic(int(shard), device, update_id, None)
            if _NUMBER.fullmatch(piece):
                return UpdateTopic(int(shard), device, update_id, int(piece))
    raise Malformed(f"a topic of the tree, got {text[:120]!r}")


def shard_of(device: str, shards: int) -> int:
    """Return the aggregator shard that owns a device: the first 8 bytes of SHA-256 of its id, modulo the shards."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:8], "big") % shards
