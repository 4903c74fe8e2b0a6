"""The judge is `tomllib`: of every text that it accepts, the keys found are the keys parsed, where they stand."""

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli_contract.toml_places import Places, keys_of

WHOLE = """\
# a = 1 in a comment
population = "key # board" # b = 2
'server.x' = '''
c = 3
[d]
'''
"tab\\tkey" = "\\"e = 4"
list = [
  1, # f = 5
  [2, "g = 6"],
  {h = 7, i.j = "]"},
]
empty = []
when = 1979-05-27 07:32:00

[policy] # k = 8
 night . start = "23:00"
more = {l = {m = 9}, n = []}
[policy.deep."x y"]
o = \"\"\"p = 10
[q]\\
   \\\"\"\" r = 11\"\"\"\"\"
[[fleet]]
name = 'a'
[fleet.inner]
s = nan
[[fleet]]
name = 'b'
[[fleet.inner]]
[empty-table]
"""


def leaves(places):
    """The paths below which no further path was found: those of values and of empty tables and arrays."""
    paths = [place.path for place in places.all]
    above = {path[:length] for path in paths for length in range(len(path))}
    return {path for path in paths if path not in above}


def test_every_form_of_key_is_found_once_where_it_stands():
    places, lines = Places(WHOLE), WHOLE.split("\n")
    assert leaves(places) == keys_of(tomllib.loads(WHOLE))
    for path, line, text in [
        (("population",), 2, "population"), (("server.x",), 3, "'server.x'"), (("tab\tkey",), 7, '"tab'),
        (("list", 1, 1), 10, '"g = 6"'), (("list", 2, "i", "j"), 11, "i.j"), (("policy",), 16, "[policy]"),
        (("policy", "night", "start"), 17, "night . start"), (("policy", "more", "l", "m"), 18, "m = 9"),
        (("policy", "deep", "x y", "o"), 20, "o ="), (("fleet", 1, "name"), 28, "name = 'b'"),
        (("fleet", 1, "inner", 0), 29, "[[fleet.inner]]"), (("fleet", 0, "inner", "s"), 26, "s = nan"),
    ]:  # fmt: skip
        place = places.of(path)
        assert (place.path, place.line) == (path, line)
        assert lines[place.line - 1][place.column - 1 :].startswith(text)


def test_a_table_without_a_header_stands_where_its_first_key_does():
    places = Places("a = 1\npolicy.night.start = 2\n")
    assert (places.of(("policy",)).line, places.of(("policy", "night")).line) == (2, 2)


def test_carriage_returns_end_a_line_only_before_a_line_feed():
    places = Places('a = 1\r\nb = "x\u2028y\x0b"\r\n')
    assert places.of(("b",)).line == 2
    assert places.of(("b",)).value_column == 5


@pytest.mark.parametrize(
    ("text", "found"),
    [('a = 1\nb = "open\nc = 2', ["a", "b"]), ("a = [1,\nb = 2", ["a"]), ("a 1\nb = 2", ["a"]), ("[a\nb = 2", ["a"]),
     ("a = {b = 1\nc = 2", ["a"]), ("= 1", []), ("a = '''\nb = 1", ["a"]), ('"\\q" = 1', [])],
)  # fmt: skip
def test_of_broken_text_the_keys_up_to_the_mistake_are_found(text, found):
    with pytest.raises(tomllib.TOMLDecodeError):
        tomllib.loads(text)
    assert list(dict.fromkeys(place.path[0] for place in Places(text).all)) == found


def test_brackets_without_end_are_no_crash():
    assert Places("a = " + "[" * 100_000).all[0].path == ("a",)


@given(st.text(alphabet="ab=.[]{},\"'\\#\n \t1t", max_size=40))
@settings(max_examples=1500)
def test_whatever_tomllib_accepts_is_found_and_whatever_it_refuses_is_no_crash(text):
    places = Places(text)
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return
    assert leaves(places) == keys_of(tree) - {()}


bare = st.from_regex(r"[A-Za-z0-9_-]{1,6}", fullmatch=True)
anything = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5)
keys = st.one_of(bare, anything.map(lambda text: json.dumps(text, ensure_ascii=False)))
scalars = st.one_of(
    st.integers(-9, 9).map(str), st.sampled_from(["true", "1e3", "-inf", "1979-05-27 07:32:00", "''", "0x1F"]),
    st.text(st.characters(exclude_categories=["Cs", "Cc"])).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"""\n[a]\nb = 1\n"""', "'''x = '' 1\n#'''", '"""a"" ""\\""""""', "'''''x'''''"]),
)  # fmt: skip
between = st.sampled_from(["", " ", "\n", "# , ] }\n", "\t"])


def _values(inner):
    arrays = st.lists(inner, max_size=3).flatmap(
        lambda items: between.map(lambda gap: "[" + gap + ",".join(item + gap for item in items) + "]")
    )
    tables = st.dictionaries(keys, inner, max_size=3).map(
        lambda items: "{" + ", ".join(f"{key} = {value}" for key, value in items.items() if "\n" not in value) + "}"
    )
    return st.one_of(arrays, tables)


values = st.recursive(scalars, _values, max_leaves=5)
dotted = st.lists(keys, min_size=1, max_size=3).flatmap(
    lambda ks: st.sampled_from([".", " . "]).map(lambda d: d.join(ks))
)
pairs = st.tuples(dotted, values).map(lambda pair: f"{pair[0]} = {pair[1]}")
headers = st.tuples(dotted, st.sampled_from(["[", "[["])).map(
    lambda pair: pair[1] + pair[0] + pair[1].replace("[", "]")
)
blank = st.sampled_from(["", "# a = 1", "\t"])
texts = st.lists(st.one_of(pairs, pairs, headers, blank), max_size=8).map("\n".join)


@given(texts)
@settings(max_examples=800)
def test_of_documents_of_every_form_the_keys_found_are_the_keys_parsed(text):
    places = Places(text)
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    assert leaves(places) == keys_of(tree) - {()}
    lines = text.split("\n")
    for place in places.all:
        here = lines[place.line - 1][place.column - 1 :]
        assert here and not here[0].isspace()
        if place.value_column:
            assert lines[place.line - 1][place.value_column - 1 :].strip() == place.value
