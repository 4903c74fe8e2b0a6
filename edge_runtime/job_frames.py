"""What goes over the pipes between the supervisor and its trainer: frames of kind, length and MessagePack. Pure.

    kind (1 byte)  length (4 bytes, little endian)  body

An `Order` goes to the trainer; its limits (`Applied`, at its start and when they change) and an `Answer` come back.
Both ends are this program, but the trainer may be dying: whatever is not such a frame is refused by name, and no more
memory is taken for it than a frame may have.
"""

from typing import Final

import msgspec

from edge_runtime.jobs import MAX_JOB_BYTES, Answer, Order


class Limit(msgspec.Struct, frozen=True, array_like=True):
    """What keeps a trainer out of the person's way: `took_effect`, and the value or the reason why not."""

    name: str
    took_effect: bool
    detail: str


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """All limits of a trainer."""

    limits: tuple[Limit, ...]


MAX_FRAME_BYTES: Final = 2 * MAX_JOB_BYTES
_HEADER_BYTES: Final = 5
_KINDS: Final[dict[bytes, type]] = {b"O": Order, b"R": Applied, b"A": Answer}
Frame = Order | Applied | Answer


class FrameBroken(Exception):  # noqa: N818 - named for what was read
    """The bytes are no frame; the message says why."""


def encode(frame: Frame) -> bytes:
    """Return a frame's bytes. Raises `FrameBroken` if it is larger than a frame may be."""
    body = msgspec.msgpack.encode(frame)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameBroken(f"a frame has at most {MAX_FRAME_BYTES} bytes, got {len(body)}")
    kind = next(kind for kind, each in _KINDS.items() if isinstance(frame, each))
    return kind + len(body).to_bytes(4, "little") + body


class FrameReader:
    """Takes bytes as they come, gives frames when they are whole; inverse of `encode`."""

    def __init__(self) -> None:
        self._data = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """Return the frames that are whole now. Raises `FrameBroken`; the reader is of no use after."""
        self._data += data
        frames: list[Frame] = []
        while len(self._data) >= _HEADER_BYTES:
            kind = _KINDS.get(bytes(self._data[:1]))
            size = int.from_bytes(self._data[1:_HEADER_BYTES], "little")
            if kind is None:
                raise FrameBroken(f"a frame begins with one of {sorted(_KINDS)}, got {bytes(self._data[:1])!r}")
            if size > MAX_FRAME_BYTES:
                raise FrameBroken(f"a frame has at most {MAX_FRAME_BYTES} bytes, got {size}")
            if len(self._data) < _HEADER_BYTES + size:
                break
            try:
                frames.append(
                    msgspec.msgpack.decode(memoryview(self._data)[_HEADER_BYTES : _HEADER_BYTES + size], type=kind)
                )
            except msgspec.DecodeError as e:
                raise FrameBroken(f"a {kind.__name__} cannot be read: {e}") from e
            del self._data[: _HEADER_BYTES + size]
        return frames
