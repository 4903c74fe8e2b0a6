"""What makes a text no TOML, as one mistake with line, column and key, in the words of who writes settings by hand.

`tomllib` finds it and says where; the words here say what a person does about it.
"""

import re
import tomllib

from cli_contract.mistake import Mistake, dotted
from cli_contract.toml_places import Place, Places

BYTE_ORDER_MARK = "\ufeff"
_WHERE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
_MANY_LINES = ("[", "{", '"""', "'''")
_TWICE = ("Cannot overwrite", "Cannot declare", "Cannot mutate")
_WORD = re.compile(r"[A-Za-z_/][\w ./:+-]*\Z")
_CLOCK = re.compile(r"\d{1,2}:\d{2}\Z")
_WITH_UNIT = re.compile(r"[+-]?[\d_.]+\s*[A-Za-z%°]+\Z")


def read_toml(text: str) -> tuple[dict[str, object], Mistake | None]:
    """Return the tree of `text`, or an empty one and what stops it from being TOML."""
    if text.startswith(BYTE_ORDER_MARK):
        first = next(iter(Places(text[1:]).all), None)
        what = "the file begins with a byte order mark; save it as UTF-8 without one"
        return {}, _mistake(1, 1, first, what)
    try:
        return tomllib.loads(text), None
    except tomllib.TOMLDecodeError as e:
        return {}, _of_error(text, str(e))
    except (ValueError, RecursionError) as e:
        # Python bounds how many digits a number and how many brackets a value may have.
        places = [place for place in Places(text).all if place.is_key]
        place = max(places, key=lambda place: len(place.value), default=None)
        line, column = (place.line, place.column) if place else (1, 1)
        what = "its brackets are nested too deep" if isinstance(e, RecursionError) else "a number has too many digits"
        return {}, _mistake(line, column, place, what)


def _of_error(text: str, message: str) -> Mistake:
    text = text.replace("\r\n", "\n")
    lines = text.split("\n")
    where = _WHERE.search(message)
    what = message[: where.start()] if where else message
    at_end = where is None or where.group(1) is None
    line, column = (len(lines), len(lines[-1]) + 1) if at_end or where is None else (int(where[1]), int(where[2]))
    places = Places(text)
    if what.startswith(_TWICE):
        return _twice(places, line, column)
    place = places.last_before(line, column)
    if lines[line - 1].lstrip().startswith("#") and what.startswith("Found invalid character"):
        return Mistake(line, column, "", "a control character stands in a comment")
    if what == "Invalid statement" or (place and place.line != line and not _goes_on(place, at_end)):
        place = None
    if place is None:
        shown = lines[line - 1].strip()
        return Mistake(line, column, "", f"{_remedy(what, None)}, got {shown[:40]!r}")
    if place.line != line:
        # What does not end is told where it begins.
        line, column = place.line, place.value_column or place.column
    return _mistake(line, column, place, _remedy(what, place))


def _goes_on(place: Place, at_end: bool) -> bool:
    return at_end or place.value.startswith(_MANY_LINES)


def _twice(places: Places, line: int, column: int) -> Mistake:
    place = next((place for place in places.all if place.again), None) or places.last_before(line, column)
    if place is None:
        return Mistake(line, column, "", "a key stands twice")
    first = places.of(place.path)
    if first is place or first.path != place.path:
        what = "it cannot stand here: its table was written elsewhere already"
    else:
        what = f"it stands in line {first.line} already; leave one of the two out"
    return _mistake(place.line, place.column, place, what)


def _mistake(line: int, column: int, place: Place | None, what: str) -> Mistake:
    key = dotted(place.path) if place else ""
    return Mistake(line, column, key, f'"{key}": {what}' if key else what)


def _remedy(what: str, place: Place | None) -> str:
    value = re.sub(r"\s+#.*", "", place.value) if place else ""
    if what.startswith("Illegal character '\\n'"):
        return "text in quotes ends in the line in which it begins; a quote is missing"
    if what == "Unterminated string":
        return "text that begins with a quote ends with one; it is missing"
    if what.startswith(("Unclosed array", "Unclosed inline table")):
        return f"a closing {']' if 'array' in what else '}'} is missing"
    if what.startswith("Expected '='"):
        return "a key, which holds no blank, and its value stand as key = value"
    if what.startswith("Expected ']'"):
        return "a table's name ends with ]"
    if what.startswith(("Unescaped '\\'", "Invalid hex value", "Escaped character")):
        return "a backslash in double quotes is written twice; in single quotes it stands for itself"
    if what == "Invalid statement":
        return "a line is key = value, [table] or # comment"
    if what.startswith(("Invalid value", "Expected newline")) and place is not None:
        return _value_remedy(value)
    return what[0].lower() + what[1:]


def _value_remedy(value: str) -> str:
    low = value.lower()
    if not value:
        return "a value is missing behind ="
    if low in ("true", "false"):
        return f"true and false are written small: {low}"
    if low in ("yes", "no", "on", "off"):
        return f"it is true or false, got {value[:40]}"
    if value[0] in "“”‘’„«`":
        return 'quotes are straight: "..."'
    if _CLOCK.match(value):
        return f'a time stands in quotes, like "22:30", got {value}'
    if _WITH_UNIT.match(value):
        return f"a number has no unit; its key says it, got {value[:40]}"
    if re.match(r"[+-]?0\d", value):
        return f"a number has no leading zero, got {value[:40]}"
    if _WORD.match(value):
        return f'text stands in quotes: "{value[:40]}"'
    if value.startswith(_MANY_LINES):
        return "a comma or a closing bracket is missing, or a value in it is none"
    return f"behind = stands one value and nothing else, got {value[:40]}"
