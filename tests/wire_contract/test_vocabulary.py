import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_contract.errors import ContractError, Malformed
from wire_contract.vocabulary import NUMBER, START, UNKNOWN, Vocabulary, remove_identifiers, split_sentences

SMALL = Vocabulary.from_words(["the", "cat", "don't", "sat"])


def test_text_becomes_sentences_of_words_and_numbers():
    assert split_sentences("The cat sat. DON’T! It's 3,000 o'clock?\nyes") == [
        ["the", "cat", "sat"], ["don't"], ["it's", "<num>", "o'clock"], ["yes"],
    ]  # fmt: skip


def test_addresses_are_gone_before_anything_is_counted():
    left = remove_identifiers("write to a.b+c@mail.example.org or see https://x.yz/q?a=1 or www.x.yz or foo.com/bar ok")
    assert split_sentences(left) == [["write", "to", "or", "see", "or", "or", "ok"]]


@pytest.mark.parametrize(
    "secret",
    ["bit.ly/summer-party", "secret.fr/home/party", "example.co.jp/secret/home", "ftp://home.lan/secret", "summer@home",
     "jane%summer@x.com", "(www.secret.shop)", "https://[::1]/home", "home.example.org:8080", "@janesummer",
     "secret.fr.", "mailto:jane@summer"],
)  # fmt: skip
def test_no_part_of_an_address_is_left(secret):
    assert split_sentences(f"see {secret} soon") == [["see", "soon"]]


def test_a_forgotten_space_after_a_full_stop_is_no_address():
    assert split_sentences("ok.then we go") == [["ok"], ["then", "we", "go"]]


def test_a_word_with_a_digit_in_it_is_a_number_whole():
    assert split_sentences("summer2019 and 3pm, hunter2's 1,200 or x2y") == [
        ["<num>", "and", "<num>", "<num>", "<num>", "or", "<num>"]
    ]


@pytest.mark.parametrize(
    "part", ["a", "a-", "a.", "a''", "'", "1", "1,,", "1.", "a1", "@", "www.", "a.b/", "(((", "a:"]
)
def test_a_pasted_blob_is_cut_in_linear_steps(part):
    # A quadratic pattern takes minutes at this length; the suite's own limit would end it.
    split_sentences(part * 200_000)


def test_a_word_outside_the_vocabulary_becomes_unknown():
    assert SMALL.encode_text("The dog sat 12") == [START, 4, UNKNOWN, 7, NUMBER]


@given(st.text())
def test_no_text_gives_an_id_outside_the_vocabulary(text):
    assert all(0 < i < len(SMALL) for i in SMALL.encode_text(text))


def test_the_file_comes_back_as_it_was_written():
    assert Vocabulary.from_bytes(SMALL.to_bytes()) == SMALL


@pytest.mark.parametrize(
    "data",
    [b"", b"<pad>\n<s>\n<unk>\n<num>\n", b"a\nb\nc\nd\ne\n", SMALL.to_bytes()[:-1], SMALL.to_bytes() + b"cat\n",
     SMALL.to_bytes() + b"Cat\n", SMALL.to_bytes() + b"\xff\n", SMALL.to_bytes() + b"x" * 41 + b"\n",
     SMALL.to_bytes() + b"\n"],
)  # fmt: skip
def test_a_broken_vocabulary_file_is_malformed(data):
    with pytest.raises(Malformed):
        Vocabulary.from_bytes(data)


@given(st.binary(max_size=200))
def test_any_bytes_raise_only_the_contracts_error(data):
    with contextlib.suppress(ContractError):
        Vocabulary.from_bytes(data)
