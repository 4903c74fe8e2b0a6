"""The hash of a package's source: of names and contents in one order, so that two trees with one hash are one tree."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_contract.code_hash import code_hash
from wire_contract.errors import Malformed

NAMES = st.text("abcxyz/_.", min_size=1, max_size=12).filter(lambda name: not name.startswith("/"))
TREES = st.dictionaries(NAMES, st.binary(max_size=20), max_size=4)


def test_the_hash_is_what_its_definition_says():
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in (("a/b.py", b"1"), ("a/c.py", b""))
    )
    expected = hashlib.sha256(b"edge-federation code v1\n" + lines.encode()).hexdigest()
    assert code_hash({"a/c.py": b"", "a/b.py": b"1"}) == expected


@given(TREES, TREES)
def test_two_trees_have_one_hash_only_if_they_are_the_same(one, other):
    assert (code_hash(one) == code_hash(other)) == (one == other)


@pytest.mark.parametrize("name", ["a\nb", "/a", "a\\b"])
def test_a_name_that_could_be_two_is_refused(name):
    with pytest.raises(Malformed, match="relative"):
        code_hash({name: b""})
