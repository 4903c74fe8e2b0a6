"""Where each key of a TOML text stands, for messages that name line and column: `tomllib` says none of it.

The rules:
- of a text that `tomllib` accepts, every key is found that its tree has, and no other (TOML 1.0.0);
- of any other text, the keys up to the point where it stops being TOML are found: one of them holds the mistake;
- lines and columns count from 1, columns in characters; a line ends at LF or CR LF and nowhere else.
The scanner reads no value: it only has to know where one ends.
"""

import re
import tomllib
from bisect import bisect_right
from dataclasses import dataclass, replace

Path = tuple[str | int, ...]

_BLANK = re.compile(r"[ \t]*")
_BETWEEN = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_LINE_END = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_TEXT = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?!"")(?:\\.|[^"\\\n])*"' r"|'(?!'')[^'\n]*'", re.DOTALL
)
_OTHER = re.compile(r"[^,\]}#\n]+")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a key stands; `value_column` is 0 for a table's header, `value` is the value's first line as written.

    An element of an array has its index in `path`, and no key (`is_key`). `again` says that a key of this path stands
    further above.
    """

    path: Path
    line: int
    column: int
    value_column: int = 0
    value: str = ""
    again: bool = False
    is_key: bool = True


class Places:
    """The keys of one text, in their order."""

    def __init__(self, text: str) -> None:
        scanner = _Scanner(text.replace("\r\n", "\n"))
        scanner.scan()
        self.all: tuple[Place, ...] = tuple(scanner.found)

    def of(self, path: Path) -> Place:
        """Return where the key, table or element of `path` stands; of a table without a header, its first key."""
        same = (place for place in self.all if place.path == path)
        inside = (place for place in self.all if place.path[: len(path)] == path)
        return next(same, None) or next(inside, None) or Place(path, 1, 1)

    def last_before(self, line: int, column: int) -> Place | None:
        """Return the last key that begins at or before a position, or None."""
        before = [place for place in self.all if place.is_key and (place.line, place.column) <= (line, column)]
        return before[-1] if before else None


def keys_of(tree: object, path: Path = ()) -> set[Path]:
    """Return the path of every value in what `tomllib` read: each that is no table and no array, and each empty one."""
    if isinstance(tree, dict):
        inner = [keys_of(value, (*path, key)) for key, value in tree.items()]
    elif isinstance(tree, list):
        inner = [keys_of(value, (*path, index)) for index, value in enumerate(tree)]
    else:
        return {path}
    return set().union(*inner) if inner else {path}


class _Lost(Exception):  # noqa: N818
    """This is no TOML from here on."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.found: list[Place] = []
        self.section: Path = ()
        self._elements: dict[Path, int] = {}
        self._seen: set[Path] = set()
        self._starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def scan(self) -> None:
        try:
            while self._skip(_BETWEEN) < len(self.text):
                if self.text[self.at] == "[":
                    self._header()
                else:
                    self._key_value(self.section)
                self._take(_LINE_END)
        except (_Lost, RecursionError):
            return

    def _skip(self, pattern: re.Pattern[str]) -> int:
        match = pattern.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.at

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            raise _Lost
        self.at = match.end()
        return match.group()

    def _sign(self, sign: str) -> None:
        if not self.text.startswith(sign, self.at):
            raise _Lost
        self.at += len(sign)

    def _remember(self, path: Path, start: int, *, is_key: bool = True) -> int:
        line = bisect_right(self._starts, start)
        again = is_key and path in self._seen
        self.found.append(Place(path, line, start - self._starts[line - 1] + 1, again=again, is_key=is_key))
        self._seen.add(path)
        return len(self.found) - 1

    def _header(self) -> None:
        start = self.at
        sign = "[[" if self.text.startswith("[[", self.at) else "["
        self.at += len(sign)
        *above, last = self._key()
        path = (*self._resolved(tuple(above)), last)
        if sign == "[[":
            index = self._elements.get(path, -1) + 1
            self._elements[path] = index
            path += (index,)
        else:
            path = self._resolved((*above, last))
        self._remember(path, start)
        self.section = path
        self._sign(sign.replace("[", "]"))

    def _resolved(self, keys: Path) -> Path:
        # Below an array of tables, a header means the array's last element.
        path: Path = ()
        for key in keys:
            path += (key,)
            if path in self._elements:
                path += (self._elements[path],)
        return path

    def _key(self) -> Path:
        keys: list[str] = []
        while True:
            self._skip(_BLANK)
            if self.text[self.at : self.at + 1] in ("'", '"'):
                keys.append(_read_text(self._take(_TEXT)))
            else:
                keys.append(self._take(_BARE_KEY))
            self._skip(_BLANK)
            if not self.text.startswith(".", self.at):
                return tuple(keys)
            self.at += 1

    def _key_value(self, above: Path) -> None:
        start = self.at
        path = above + self._key()
        number = self._remember(path, start)
        self._sign("=")
        self._skip(_BLANK)
        place = self.found[number]
        column = self.at - self._starts[bisect_right(self._starts, self.at) - 1] + 1
        line_end = self.text.find("\n", self.at)
        value = self.text[self.at : line_end if line_end >= 0 else len(self.text)].strip()
        self.found[number] = replace(place, value_column=column, value=value)
        self._value(path)

    def _value(self, path: Path) -> None:
        sign = self.text[self.at : self.at + 1]
        if sign == "[":
            self._array(path)
        elif sign == "{":
            self._inline_table(path)
        elif sign in ("'", '"'):
            self._take(_TEXT)
        else:
            self._take(_OTHER)

    def _array(self, path: Path) -> None:
        self.at += 1
        index = 0
        while self._skip(_BETWEEN) < len(self.text) and self.text[self.at] != "]":
            self._remember((*path, index), self.at, is_key=False)
            self._value((*path, index))
            index += 1
            self._skip(_BETWEEN)
            if not self.text.startswith(",", self.at):
                break
            self.at += 1
        self._sign("]")

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        while self._skip(_BETWEEN) < len(self.text) and self.text[self.at] != "}":
            self._key_value(path)
            self._skip(_BETWEEN)
            if not self.text.startswith(",", self.at):
                break
            self.at += 1
        self._sign("}")


def _read_text(written: str) -> str:
    try:
        return str(tomllib.loads(f"k = {written}")["k"])
    except tomllib.TOMLDecodeError as e:
        raise _Lost from e
