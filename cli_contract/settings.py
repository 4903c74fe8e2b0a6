"""Reading a TOML configuration file: every mistake at once, each with file, line, column and key.

A settings class is a frozen `msgspec.Struct`; nested structs are tables. The rules:
- an unknown key is refused with the key that was probably meant: of its own table, or that of another table;
- a value of another kind, or out of its range, is told with what it may be and what stands there;
- numbers are finite;
- where a settings class has a method `broken_rules`, it tells what its fields allow one by one but not together; a rule
  is judged only where none of the keys that it names has a mistake of its own;
- a file is at most `MAX_SETTINGS_BYTES` long and UTF-8; a text that is no TOML has one mistake, the first.
"""

import math
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, get_type_hints, runtime_checkable

import msgspec

from cli_contract.errors import CommandError
from cli_contract.exit_codes import ExitCode
from cli_contract.mistake import Mistake, dotted
from cli_contract.toml_places import Place, Places
from cli_contract.toml_syntax import read_toml
from cli_contract.value_terms import got, hint_for, near, table_of, tables_in, wanted

Settings = TypeVar("Settings", bound=msgspec.Struct)
KeyPath = tuple[str | int, ...]
MAX_SETTINGS_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule between fields, or beyond a field's type, that does not hold.

    `message` names the keys, dotted and in quotes, and the values. `keys` are names of fields of the struct that tells
    it; the mistake stands at the first of them that is in the file.
    """

    keys: tuple[str, ...]
    message: str


@runtime_checkable
class Ruled(Protocol):
    """Settings with rules of their own."""

    def broken_rules(self) -> Iterable[BrokenRule]:
        """Return what does not hold."""


@dataclass(frozen=True, slots=True)
class Reading(Generic[Settings]):
    """What a text says: the settings (None where it has mistakes), its mistakes, and the line of each key in it."""

    settings: Settings | None
    mistakes: tuple[Mistake, ...]
    lines: dict[str, int]


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """Return the settings in the file at `path`. Raises `CommandError` (exit 2) naming every mistake."""
    return settings_or_error(read_settings_file(path, kind), str(path))


def parse_settings(text: str, kind: type[Settings], name: str) -> Settings:
    """Return the settings in `text`; `name` stands before the line number in errors."""
    return settings_or_error(read_settings(text, kind), name)


def settings_or_error(reading: Reading[Settings], name: str) -> Settings:
    """Return the settings that were read. Raises `CommandError` (exit 2) naming every mistake, in one line."""
    if reading.settings is None:
        told = "; ".join(mistake.told(name) for mistake in reading.mistakes)
        raise CommandError(told, exit_code=ExitCode.USAGE, code="BAD_CONFIG")
    return reading.settings


def read_settings_file(path: Path, kind: type[Settings]) -> Reading[Settings]:
    """Return what the file at `path` says. Raises `CommandError` where it is not there or cannot be read."""
    try:
        # Without O_NONBLOCK a named pipe in the file's place would wait for a writer for ever.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise _unreadable(path, "it is no file")
            data = file.read(MAX_SETTINGS_BYTES + 1)
    except FileNotFoundError as e:
        raise CommandError(f"{path}: no such configuration file", exit_code=ExitCode.NOT_FOUND, code="NO_CONFIG") from e
    except OSError as e:
        raise _unreadable(path, e.strerror or str(e)) from e
    if len(data) > MAX_SETTINGS_BYTES:
        raise _unreadable(path, f"it is longer than {MAX_SETTINGS_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as e:
        return Reading(None, (_not_utf8(data, e.start),), {})
    return read_settings(text, kind)


def _unreadable(path: Path, why: str) -> CommandError:
    return CommandError(f"{path}: cannot be read: {why}", exit_code=ExitCode.USAGE, code="BAD_CONFIG")


def _not_utf8(data: bytes, at: int) -> Mistake:
    before = data[:at].decode("utf-8")
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return Mistake(1, 1, "", "the file is UTF-16; save it as UTF-8")
    place = Places(data.decode("utf-8", "replace")).last_before(line, column)
    key = dotted(place.path) if place and place.line == line else ""
    what = f"byte 0x{data[at]:02x} is no UTF-8; save the file as UTF-8"
    return Mistake(line, column, key, f'"{key}": {what}' if key else what)


def read_settings(text: str, kind: type[Settings]) -> Reading[Settings]:
    """Return what `text` says."""
    tree, syntax = read_toml(text)
    if syntax is not None:
        return Reading(None, (syntax,), {})
    places = Places(text)
    judge = _Judge(kind, places)
    mistakes = list(judge.table(tree, kind, ()))
    mistakes += judge.rules(tree)
    mistakes.sort(key=lambda mistake: (mistake.line, mistake.column))
    lines = {dotted(place.path): place.line for place in places.all if place.is_key}
    settings = None if mistakes else msgspec.convert(tree, type=kind)
    return Reading(settings, tuple(mistakes), lines)


class _Judge:
    """Judges one tree against its settings class."""

    def __init__(self, root: type[msgspec.Struct], places: Places) -> None:
        self._root = root
        self._places = places
        self._spoiled: set[KeyPath] = set()

    def table(self, tree: dict[str, Any], kind: Any, path: KeyPath) -> Iterator[Mistake]:
        """Yield what is wrong with the keys of a table, and of those in it."""
        hints = get_type_hints(kind, include_extras=True)
        for key, value in tree.items():
            here = (*path, key)
            if key in hints:
                yield from self._value(value, hints[key], here)
            else:
                meant = self._meant(key, value, hints, path)
                question = f'; did you mean "{meant}"?' if meant else ""
                yield self._told(here, f'unknown key "{dotted(here)}"{question}')
        for field in msgspec.structs.fields(kind):
            if field.required and field.name not in tree:
                place = self._places.of(path) if path else Place(path, 1, 1)
                key = dotted((*path, field.name))
                self._spoiled.add((*path, field.name))
                yield Mistake(place.line, place.column, key, f'key "{key}" is missing')

    def _value(self, value: Any, hint: Any, path: KeyPath) -> Iterator[Mistake]:
        table, each = table_of(hint), tables_in(hint)
        if table is not None and isinstance(value, dict):
            yield from self.table(value, table, path)
            return
        if each is not None and isinstance(value, list) and all(isinstance(element, dict) for element in value):
            for index, element in enumerate(value):
                yield from self.table(element, each, (*path, index))
        try:
            _refuse_what_is_no_number(value)
            msgspec.convert(value, type=hint)
        except msgspec.ValidationError:
            if each is not None and self._is_spoiled_below(path):
                return
            what = f'"{dotted(path)}" is {wanted(hint)}, got {got(value)}{hint_for(hint, value)}'
            yield self._told(path, what, value=True)

    def _is_spoiled_below(self, path: KeyPath) -> bool:
        return any(spoiled[: len(path)] == path for spoiled in self._spoiled)

    def _meant(self, key: str, value: Any, hints: dict[str, Any], path: KeyPath) -> str:
        """Return the key that was probably meant: this key of another table, one like it of this table, or of any."""
        elsewhere = {
            dotted(each): each[-1]
            for each, hint in _all_keys(self._root, ())
            if (table_of(hint) is not None) == isinstance(value, dict)
        }
        same = [name for name, last in elsewhere.items() if last == key]
        if same:
            return same[0]
        own = near(key, hints)
        if own:
            return dotted((*path, own))
        like = near(key, [str(last) for last in elsewhere.values()])
        return next((name for name, last in elsewhere.items() if last == like), "")

    def _told(self, path: KeyPath, message: str, *, value: bool = False) -> Mistake:
        self._spoiled.add(path)
        place = self._places.of(path)
        return Mistake(place.line, (value and place.value_column) or place.column, dotted(path), message)

    def rules(self, tree: dict[str, Any]) -> list[Mistake]:
        """Return the broken rules; keys with a mistake count as if they were left out."""
        try:
            settings = msgspec.convert(_without(tree, self._spoiled, ()), type=self._root)
        except msgspec.ValidationError:
            # A key that must be there is not, or is wrong: there is nothing to judge yet.
            return []
        return [mistake for path, rule in _broken_rules(settings, ()) for mistake in self._broken(path, rule, tree)]

    def _broken(self, path: KeyPath, rule: BrokenRule, tree: dict[str, Any]) -> Iterator[Mistake]:
        keys = [(*path, *key.split(".")) for key in rule.keys]
        if any(key in self._spoiled for key in keys):
            return
        here = next((key for key in keys if _is_in(tree, key)), keys[0])
        yield self._told(here, rule.message, value=True)


def _refuse_what_is_no_number(value: Any) -> None:
    # TOML has nan and inf, and Python integers beyond the 64 bits that TOML promises: no setting has a use for either.
    if (isinstance(value, float) and not math.isfinite(value)) or (
        isinstance(value, int) and not -(1 << 63) <= value < 1 << 63
    ):
        raise msgspec.ValidationError(f"{value!r:.40} is no number that a setting can be")


def _all_keys(kind: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    for name, hint in get_type_hints(kind, include_extras=True).items():
        yield (*path, name), hint
        inner = table_of(hint)
        if inner is not None:
            yield from _all_keys(inner, (*path, name))


def _without(tree: Any, spoiled: set[KeyPath], path: KeyPath) -> Any:
    if isinstance(tree, dict):
        return {k: _without(v, spoiled, (*path, k)) for k, v in tree.items() if (*path, k) not in spoiled}
    return tree


def _broken_rules(settings: Any, path: KeyPath) -> Iterator[tuple[KeyPath, BrokenRule]]:
    if isinstance(settings, Ruled):
        for rule in settings.broken_rules():
            yield path, rule
    for name in settings.__struct_fields__:
        inner = getattr(settings, name)
        if isinstance(inner, msgspec.Struct):
            yield from _broken_rules(inner, (*path, name))


def _is_in(tree: Any, path: KeyPath) -> bool:
    for key in path:
        if not isinstance(tree, dict) or key not in tree:
            return False
        tree = tree[key]
    return True
