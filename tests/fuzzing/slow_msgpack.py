"""MessagePack and the contract's types, read slowly and by another hand: the judge of what the fast decoder accepts.

`read` follows the MessagePack specification byte by byte. `disagreement` walks a decoded struct beside what `read`
saw and the type hints, and checks each pattern, length and range by itself.
"""

import math
import re
import struct
import types
import typing
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

_DEPTH = 64
_SCALARS = {
    0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i",
    0xD3: ">q",
}  # fmt: skip
_LENGTHS = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I", 0xDC: ">H", 0xDD: ">I", 0xDE: ">H",
            0xDF: ">I"}  # fmt: skip
# Extensions are none of the contract's, but an unknown field may hold one.
_EXTENSIONS = {0xC7: ">B", 0xC8: ">H", 0xC9: ">I", 0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise ValueError("cut")
        self.at += count
        return part

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def value(self, depth: int) -> Any:
        if depth > _DEPTH:
            raise ValueError("deep")
        head = self.take(1)[0]
        if head < 0x80:
            return head
        if head >= 0xE0:
            return head - 256
        if head < 0x90:
            return self.mapping(head & 15, depth)
        if head < 0xA0:
            return self.array(head & 15, depth)
        if head < 0xC0:
            return self.text(head & 31)
        if head in (0xC0, 0xC2, 0xC3):
            return {0xC0: None, 0xC2: False, 0xC3: True}[head]
        if head in _SCALARS:
            return self.number(_SCALARS[head])
        if head in _EXTENSIONS:
            form = _EXTENSIONS[head]
            return ("extension", self.take(1 + (self.number(form) if isinstance(form, str) else form)))
        if head not in _LENGTHS:
            raise ValueError(f"type {head:#x}")
        length = self.number(_LENGTHS[head])
        if head <= 0xC6:
            return self.take(length)
        if head <= 0xDB:
            return self.text(length)
        return self.array(length, depth) if head <= 0xDD else self.mapping(length, depth)

    def text(self, length: int) -> str:
        # An unknown field is ignored, whatever its name; in a field that is known a lone surrogate equals nothing.
        return self.take(length).decode("utf-8", "surrogateescape")

    def array(self, count: int, depth: int) -> list[Any]:
        return [self.value(depth + 1) for _ in range(count)]

    def mapping(self, count: int, depth: int) -> dict[Any, Any]:
        out = {}
        for _ in range(count):
            key = self.value(depth + 1)
            out[key if isinstance(key, (str, bytes, int, float)) else str(key)] = self.value(depth + 1)
        return out


def read(data: bytes) -> Any:
    """Return the one value that fills `data`. Raises `ValueError` if there is none, or more."""
    reader = _Reader(data)
    value = reader.value(0)
    if reader.at != len(data):
        raise ValueError("bytes behind")
    return value


def judge_struct(data: bytes, value: object) -> str:
    """Say why `value` is not what the bytes mean, or breaks a rule of its type; "" if all is well."""
    try:
        raw = read(data)
    except ValueError as e:
        return f"it is no MessagePack: {e}"
    return disagreement(type(value), value, raw)


_hints: dict[type, dict[str, Any]] = {}


def hints_of(struct_type: type) -> dict[str, Any]:
    """Return a struct's type hints with their constraints."""
    if struct_type not in _hints:
        _hints[struct_type] = typing.get_type_hints(struct_type, include_extras=True)
    return _hints[struct_type]


def disagreement(hint: Any, value: Any, raw: Any) -> str:
    """Say where a decoded `value` of type `hint` differs from `raw`, or breaks a constraint; "" if nowhere."""
    if get_origin(hint) is Annotated:
        base, *metas = get_args(hint)
        return disagreement(base, value, raw) or _broken_bound(value, metas)
    if isinstance(hint, types.UnionType) or get_origin(hint) is typing.Union:
        found = [disagreement(each, value, raw) for each in get_args(hint)]
        return "" if "" in found else found[0]
    if get_origin(hint) is Literal:
        return "" if value == raw and value in get_args(hint) and isinstance(raw, str) else f"{raw!r} is none of {hint}"
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _struct_disagreement(hint, value, raw)
    if get_origin(hint) is tuple:
        if not isinstance(raw, list) or not isinstance(value, tuple) or len(raw) != len(value):
            return f"{raw!r} is no array of that many"
        return next(filter(None, map(disagreement, [get_args(hint)[0]] * len(raw), value, raw)), "")
    if get_origin(hint) is dict:
        if not isinstance(raw, dict) or raw.keys() != value.keys():
            return "the keys differ"
        return next(filter(None, (disagreement(get_args(hint)[1], value[key], raw[key]) for key in raw)), "")
    return _scalar_disagreement(hint, value, raw)


def _struct_disagreement(hint: Any, value: Any, raw: Any) -> str:
    config = hint.__struct_config__
    names = hint.__struct_fields__
    if config.array_like:
        if not isinstance(raw, list) or len(raw) < len(names):
            return f"it is no array of {len(names)}"
        raw = dict(zip(names, raw, strict=False))
    elif not isinstance(raw, dict):
        return "it is no map"
    if config.tag is not None and not config.array_like and raw.get(config.tag_field) != config.tag:
        return f"the tag is {raw.get(config.tag_field)!r}"
    defaults = {f.name: f for f in msgspec.structs.fields(hint)}
    for name in names:
        if name in raw:
            found = disagreement(hints_of(hint)[name], getattr(value, name), raw[name])
            if found:
                return f"{name}: {found}"
        elif defaults[name].required:
            return f"{name} is missing"
        elif getattr(value, name) != defaults[name].default:
            return f"{name} is not its default"
    return ""


def _scalar_disagreement(hint: Any, value: Any, raw: Any) -> str:
    if hint is float:
        if isinstance(raw, bool) or not isinstance(raw, (int, float)):
            return f"{raw!r} is no number"
        return "" if value == float(raw) or (math.isnan(value) and math.isnan(raw)) else f"{raw!r} became {value!r}"
    if hint is types.NoneType or hint is None:
        return "" if raw is None and value is None else f"{raw!r} is not nil"
    if type(raw) is not hint:
        return f"{raw!r} is no {hint.__name__}"
    return "" if value == raw else f"{raw!r} became {value!r}"


def _broken_bound(value: Any, metas: list[Any]) -> str:
    for meta in metas:
        if meta.pattern is not None and not re.search(meta.pattern, value):
            return f"{value!r} is not like {meta.pattern}"
        for bound, holds in (
            (meta.ge, lambda b: value >= b), (meta.gt, lambda b: value > b), (meta.le, lambda b: value <= b),
            (meta.lt, lambda b: value < b), (meta.min_length, lambda b: len(value) >= b),
            (meta.max_length, lambda b: len(value) <= b),
        ):  # fmt: skip
            if bound is not None and not holds(bound):
                return f"{value!r} is beyond {bound}"
    return ""
