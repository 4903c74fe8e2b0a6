import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapters.example_store import KEPT_S, KEPT_WORDS, SqliteExampleStore
from edge_runtime.ports import StorageFull
from edge_runtime.privacy_filter import filter_text, id_stream
from tests.edge_runtime.fakes import Entropy
from wire_contract.vocabulary import SPECIALS, UNKNOWN, Vocabulary

WORDS = "see you at the office my number is call me tomorrow it's late"
VOCABULARY = Vocabulary.from_words(WORDS.split(" "))
NOW = 1_800_000_000.0


def open_store(folder, name="examples.db"):
    return SqliteExampleStore(folder / name, VOCABULARY, Entropy(1))


@pytest.fixture
def store(tmp_path):
    made = open_store(tmp_path)
    yield made
    made.close()


def bytes_on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def test_known_words_are_kept_in_order_and_survive_a_restart(store, tmp_path):
    assert store.add("See you at the office. Call me tomorrow!", NOW) == 2
    again = open_store(tmp_path)
    assert again.sentences() == ["see you at the office", "call me tomorrow"]
    assert id_stream(again.sentences(), VOCABULARY) == VOCABULARY.encode_text("see you at the office. call me tomorrow")
    again.close()


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("call me at jane.doe@example.org tomorrow", b"jane"),
        ("see you at www.secret-place.com/login?x=1 tomorrow", b"secret"),
        ("my number is 5551234567 call me", b"5551234567"),
        ("my number is 12.34 call me", b"12"),
        ("see you at hunter2 tomorrow", b"hunter"),
        ("see Zaphod at the office", b"zaphod"),
    ],
)
def test_identifiers_numbers_and_unknown_words_reach_neither_examples_nor_the_disk(store, tmp_path, text, secret):
    assert store.add(text, NOW) >= 1
    assert secret not in " ".join(store.sentences()).encode()
    store.close()
    assert secret not in bytes_on_disk(tmp_path).lower()


def test_a_new_word_is_named_when_seen_the_second_time_and_training_cannot_read_it(store):
    store.add("see zaphod tomorrow", NOW)
    assert store.new_words() == []
    store.add("call Zaphod. zaphod!", NOW)
    assert store.new_words() == ["zaphod"]
    assert "zaphod" not in " ".join(store.sentences())


def test_nothing_is_stored_from_a_field_that_must_not_be_learned_from(store, tmp_path):
    assert store.add("call me tomorrow", NOW, learn=False) == 0
    assert store.sentences() == [] and store.count_words() == 0


def test_examples_older_than_thirty_days_go(store):
    store.add("call me tomorrow. zaphod zaphod late", NOW)
    store.add("it's late", NOW + KEPT_S - 1)
    assert len(store.sentences()) == 3
    store.add("see you", NOW + KEPT_S + 1)
    assert store.sentences() == ["it's late", "see you"] and store.new_words() == []


def test_an_expired_sentence_is_gone_from_the_files_not_only_from_the_table(store, tmp_path):
    store.add_many(["see you at the office"] * 50, NOW)
    store.expire(NOW + KEPT_S + 1)
    store.close()
    assert b"office" not in bytes_on_disk(tmp_path)


def test_only_the_last_twenty_thousand_words_stay(store):
    store.add_many(["see you at the office"] * (KEPT_WORDS // 5), NOW)
    assert store.count_words() == KEPT_WORDS
    store.add("call me tomorrow", NOW)
    assert KEPT_WORDS - 5 < store.count_words() <= KEPT_WORDS
    assert store.sentences()[-1] == "call me tomorrow"


def test_forgetting_a_word_takes_its_sentences_and_leaves_no_trace_in_the_files(store, tmp_path):
    store.add_many(["see you at the office", "call me tomorrow", "zaphod is late", "zaphod"], NOW)
    assert store.forget_word("Office") == 1
    assert store.forget_word("zaphod") == 0
    assert store.sentences() == ["call me tomorrow", "<unk> is late"] and store.new_words() == []
    assert b"office" not in bytes_on_disk(tmp_path) and b"zaphod" not in bytes_on_disk(tmp_path)


def test_forgetting_everything_empties_the_files(store, tmp_path):
    store.add_many(["see you at the office", "zaphod zaphod call me tomorrow"], NOW)
    store.forget_everything()
    assert store.sentences() == [] and store.new_words() == []
    for word in (b"office", b"zaphod", b"tomorrow"):
        assert word not in bytes_on_disk(tmp_path)


def test_a_full_disk_is_said_by_name_and_half_a_message_is_never_there(store, tmp_path):
    store.add("call me tomorrow", NOW)
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="no room"):
        store.add_many(["see you at the office"] * 5000, NOW)
    assert store.sentences() == ["call me tomorrow"]


def test_the_database_is_for_its_owner_alone(store, tmp_path):
    assert (tmp_path / "examples.db").stat().st_mode & 0o077 == 0


PIECES = [*VOCABULARY.words, "a@b.de", "www.x.com", "9", ".", "Xy"]


@given(st.text(max_size=200) | st.lists(st.sampled_from(PIECES)).map(" ".join))
def test_nothing_outside_the_vocabulary_can_enter_an_example(text):
    filtered = filter_text(text, VOCABULARY)
    for tokens in filtered.sentences:
        assert all(token in VOCABULARY.index for token in tokens)
        assert any(token not in SPECIALS for token in tokens)
        assert not any(character.isdigit() or character in "@/:" for character in "".join(tokens))
        assert all(0 < i < len(VOCABULARY) for i in VOCABULARY.encode(tokens))
    assert all(word.replace("'", "").isalpha() and word not in VOCABULARY.index for word in filtered.new_words)


def test_a_word_that_a_newer_vocabulary_lacks_is_unknown_again(store):
    store.add("see you at the office", NOW)
    smaller = Vocabulary.from_words(["see", "you"])
    assert id_stream(store.sentences(), smaller) == [1, 4, 5, UNKNOWN, UNKNOWN, UNKNOWN]


def test_a_database_of_another_schema_is_refused(tmp_path):
    connection = sqlite3.connect(tmp_path / "examples.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Exception, match="schema version 99"):
        open_store(tmp_path)


def test_a_word_to_forget_is_read_as_typed_text_is(store, tmp_path):
    store.add_many(
        ["It\u2019s late", "see you tomorrow", "call me at hunter2", "Jo\u2019Burg Jo\u2019Burg is late"], NOW
    )
    assert store.forget_word("IT\u2019S") == 1
    assert store.new_words() == ["jo'burg"]
    store.forget_word(" Jo\u2019Burg! ")
    assert store.new_words() == [] and b"burg" not in bytes_on_disk(tmp_path).lower()
    assert store.forget_word("see  You") == 1
    assert store.forget_word("hunter2") == 0, "it was never stored; other numbers stay"
    assert store.sentences() == ["call me at <num>", "<unk> <unk> is late"]


def test_a_word_with_a_digit_is_a_number_whole_and_no_new_word(store):
    store.add_many(["my password is hunter2"] * 3, NOW)
    assert set(store.sentences()) == {"my <unk> is <num>"}
    assert store.new_words() == ["password"]
