"""Random damage to good bytes: flips, cuts, splices, extensions, and numbers that decoders stumble over."""

from collections.abc import Callable, Sequence
from random import Random

LONGEST_INPUT = 4_096
_EDGES = (
    *(
        number.to_bytes(width, "little")
        for width in (1, 2, 4, 8)
        for number in (0, 1, 127, 128, 255, (1 << 8 * width) - 1, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1)
    ),
    # float32 and float64 NaN and Inf, then MessagePack heads that ask for much.
    *map(bytes.fromhex, ("0000c07f", "0000807f", "000080ff", "7fc00000", "7ff8000000000000", "fff0000000000000")),
    b"\xc0", b"\xc1", b"\xdf", b"\xdd", b"\xc9",
)  # fmt: skip


def _flip_bit(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    data[int(rng.random() * len(data))] ^= 1 << int(rng.random() * 8)


def _set_byte(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    data[int(rng.random() * len(data))] = int(rng.random() * 256)


def _set_edge(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    edge = _EDGES[int(rng.random() * len(_EDGES))]
    at = int(rng.random() * len(data))
    data[at : at + len(edge)] = edge


def _cut_end(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    del data[int(rng.random() * len(data)) :]


def _cut_middle(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    at = int(rng.random() * len(data))
    del data[at : at + 1 + int(rng.random() * 8)]


def _extend(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    data += rng.randbytes(1 + int(rng.random() * 12))


def _insert(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    at = int(rng.random() * len(data))
    data[at:at] = rng.randbytes(1 + int(rng.random() * 4))


def _repeat(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    at = int(rng.random() * len(data))
    data[at:at] = data[at : at + 1 + int(rng.random() * 16)]


def _splice(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    other = seeds[int(rng.random() * len(seeds))]
    at = int(rng.random() * len(data))
    data[at:] = other[int(rng.random() * (len(other) + 1)) :]


def _swap(data: bytearray, rng: Random, seeds: Sequence[bytes]) -> None:
    a, b = int(rng.random() * len(data)), int(rng.random() * len(data))
    data[a], data[b] = data[b], data[a]


MUTATORS: tuple[Callable[[bytearray, Random, Sequence[bytes]], None], ...] = (
    _flip_bit, _flip_bit, _set_byte, _set_byte, _set_edge, _set_edge, _cut_end, _cut_middle, _extend, _insert, _repeat,
    _splice, _swap,
)  # fmt: skip


def mutate(seeds: Sequence[bytes], rng: Random) -> bytes:
    """Return one of the seeds, damaged once to three times; now and then bytes that were never good."""
    draw = rng.random()
    if draw < 0.01:
        return rng.randbytes(int(rng.random() * 64))
    data = bytearray(seeds[int(rng.random() * len(seeds))])
    for _ in range(1 if draw < 0.6 else 2 if draw < 0.9 else 3):
        if data:
            MUTATORS[int(rng.random() * len(MUTATORS))](data, rng, seeds)
    return bytes(data[:LONGEST_INPUT])
