"""What a setting may be, and what stands there instead, in a person's words; both are made from the type's hints."""

import datetime
import math
import types
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

LONGEST_SHOWN = 60


def near(word: str, known: Iterable[str]) -> str:
    """Return the known word that was probably meant, or ""."""
    # An idle agent that reads good settings needs none of it.
    import difflib

    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return found[0] if found else ""


def wanted(hint: Any) -> str:
    """Return what a value of type `hint` is: `a number from 0 to 100`, `one of "auto", "litert"`, ..."""
    hint, metas = _unwrapped(hint)
    described = next((meta.description for meta in metas if meta.description), "")
    if described:
        return described
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(f'"{word}"' for word in get_args(hint))
    if isinstance(hint, types.UnionType) or get_origin(hint) is Union:
        return " or ".join(wanted(each) for each in get_args(hint))
    if is_table(hint):
        return "a table"
    if get_origin(hint) in (tuple, list):
        return f"a list, each of it {wanted(get_args(hint)[0])}"
    if hint is bool:
        return "true or false"
    if hint in (int, float):
        return ("a whole number" if hint is int else "a number") + _range(metas)
    if hint is str:
        return "text" + _length(metas)
    return "nothing" if hint in (None, types.NoneType) else str(getattr(hint, "__name__", hint))


def got(value: object) -> str:
    """Return what stands in the file, shortened."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime.date | datetime.time):
        return f"the time {value.isoformat()}" if isinstance(value, datetime.time) else f"the date {value.isoformat()}"
    # A number of thousands of digits has no decimal form in Python.
    if isinstance(value, int) and value.bit_length() > 200:
        return f"a number of {value.bit_length()} bits"
    text = f'"{value}"' if isinstance(value, str) else f"{value}"
    return text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 3] + "..."


def hint_for(hint: Any, value: object) -> str:
    """Return how the value probably gets right, as a clause behind the message, or ""."""
    hint, _ = _unwrapped(hint)
    if get_origin(hint) is Literal and isinstance(value, str):
        word = near(value.strip().lower(), map(str, get_args(hint)))
        return f'; did you mean "{word}"?' if word else ""
    if hint in (int, float) and isinstance(value, str) and _is_number(value):
        return f"; leave the quotes out: {value.strip()}"
    if hint is bool and isinstance(value, str) and value.strip().lower() in ("true", "false"):
        return f"; leave the quotes out: {value.strip().lower()}"
    if hint is bool and not isinstance(value, bool) and value in (0, 1):
        return f"; write {'true' if value else 'false'}"
    if hint is int and isinstance(value, float) and math.isfinite(value) and value == int(value):
        return f"; leave the fraction out: {int(value)}"
    if hint is str and isinstance(value, int | float | datetime.date | datetime.time):
        return "; put it into quotes"
    return ""


def is_table(hint: Any) -> bool:
    """Whether a value of this type is a table."""
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def table_of(hint: Any) -> Any:
    """Return the struct that `hint` is, or None."""
    hint, _ = _unwrapped(hint)
    return hint if is_table(hint) else None


def tables_in(hint: Any) -> Any:
    """Return the struct that each element of a list of tables is, or None."""
    hint, _ = _unwrapped(hint)
    return table_of(get_args(hint)[0]) if get_origin(hint) in (tuple, list) and get_args(hint) else None


def _unwrapped(hint: Any) -> tuple[Any, list[msgspec.Meta]]:
    metas: list[msgspec.Meta] = []
    while get_origin(hint) is Annotated:
        hint, *more = get_args(hint)
        metas += [meta for meta in more if isinstance(meta, msgspec.Meta)]
    return hint, metas


def _range(metas: list[msgspec.Meta]) -> str:
    low = next((m for m in metas if m.ge is not None or m.gt is not None), msgspec.Meta())
    high = next((m for m in metas if m.le is not None or m.lt is not None), msgspec.Meta())
    if low.ge is not None and high.le is not None:
        return f" from {low.ge:g} to {high.le:g}" if isinstance(low.ge, float) else f" from {low.ge} to {high.le}"
    parts = []
    if low.ge is not None:
        parts.append(f"of {low.ge:g} or more")
    if low.gt is not None:
        parts.append(f"above {low.gt:g}")
    if high.le is not None:
        parts.append(f"of {high.le:g} at most")
    if high.lt is not None:
        parts.append(f"below {high.lt:g}")
    return " " + " and ".join(parts) if parts else ""


def _length(metas: list[msgspec.Meta]) -> str:
    shortest = next((m.min_length for m in metas if m.min_length), 0)
    longest = next((m.max_length for m in metas if m.max_length is not None), None)
    pattern = next((m.pattern for m in metas if m.pattern is not None), "")
    parts = [f"of {shortest} or more characters"] if shortest else []
    parts += [f"of {longest} characters at most"] if longest is not None else []
    parts += [f"like {pattern}"] if pattern else []
    return " " + " and ".join(parts) if parts else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
