import hmac
import os
import sqlite3
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters.database import transaction
from edge_runtime.adapters.example_migration import to_sealed
from edge_runtime.adapters.example_store import KEPT_S, KEPT_WORDS, TEXT_SCHEMA, SqliteExampleStore
from edge_runtime.day_keys import DAY_S, DoesNotOpen, StorageKey
from edge_runtime.ports import StorageFailed, StorageFull
from edge_runtime.privacy_filter import filter_text, id_stream
from tests.edge_runtime.fakes import Entropy
from wire_contract.vocabulary import SPECIALS, UNKNOWN, Vocabulary

WORDS = "see you at the office my number is call me tomorrow it's late"
VOCABULARY = Vocabulary.from_words(WORDS.split(" "))
NOW = 1_800_000_000.0
KEY = StorageKey.derive(bytes(range(32)), "d" * 32)


def open_store(folder, name="examples.db"):
    return SqliteExampleStore(folder / name, VOCABULARY, Entropy(1), KEY, held_out_share=0.0)


@pytest.fixture
def store(tmp_path):
    made = open_store(tmp_path)
    yield made
    made.close()


def bytes_on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def plain(needle):
    """Return what to search for: two bytes alone are found in any ciphertext, so short needles get their spaces."""
    return needle if len(needle) > 5 else b" " + needle + b" "


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
    assert plain(secret) not in bytes_on_disk(tmp_path).lower()


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


SPOKEN = (
    "meet me at the harbour tomorrow evening",
    "grandmother brings the violin to the harbour",
    "zaphodius wrote again. zaphodius and mirabella wrote to grandmother",
    "mirabella is late at the harbour",
)
SPEECH_WORDS = "meet me at the harbour tomorrow evening grandmother brings violin to wrote again and is late"
SPEECH = Vocabulary.from_words(SPEECH_WORDS.split(" "))
OWN = ("zaphodius", "mirabella")


def traces(words, sentences, vocabulary):
    """Return the needles: each word raw, in capitals, in UTF-16, and each sentence's ids as u16, i32 and varint."""
    needles = {}
    for word in words:
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            for form in (word, word.upper(), word.capitalize()):
                wanted = form if len(form) > 5 else f" {form} "
                needles[f"{form} in {encoding}"] = wanted.encode(encoding)
    for sentence in sentences:
        ids = vocabulary.encode(sentence.split(" "))
        for name, code in (("<H", "<H"), (">H", ">H"), ("<i", "<i"), (">i", ">i"), ("byte", "B"), ("<q", "<q")):
            needles[f"{sentence} as {name}"] = b"".join(struct.pack(code, i) for i in ids)
    return needles


def old_twin(path, sentences, own_words):
    """Write the first schema, whose records can be read, with the same content."""
    connection = sqlite3.connect(path)
    connection.executescript(
        "PRAGMA journal_mode=WAL;"
        "CREATE TABLE sentence (id INTEGER PRIMARY KEY, added_at REAL NOT NULL, words INTEGER NOT NULL,"
        " tokens TEXT NOT NULL);"
        "CREATE TABLE sighting (hash BLOB PRIMARY KEY, count INTEGER NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE new_word (word TEXT PRIMARY KEY, count INTEGER NOT NULL, seen_at REAL NOT NULL) WITHOUT ROWID;"
        "CREATE TABLE salt (value BLOB NOT NULL); PRAGMA user_version=1;"
    )
    salt = bytes(range(32))
    connection.execute("INSERT INTO salt VALUES (?)", (salt,))
    for day, sentence in enumerate(sentences):
        connection.execute(
            "INSERT INTO sentence (added_at, words, tokens) VALUES (?, ?, ?)",
            (NOW + 40_000 * day, len(sentence.split(" ")), sentence),
        )
    for count, word in enumerate(own_words, 2):
        connection.execute("INSERT INTO new_word VALUES (?, ?, ?)", (word, count, NOW))
        connection.execute(
            "INSERT INTO sighting VALUES (?, ?, ?)", (hmac.digest(salt, word.encode(), "sha256"), count, NOW)
        )
    connection.execute("INSERT INTO sighting VALUES (?, 1, ?)", (hmac.digest(salt, b"seenonce", "sha256"), NOW))
    connection.commit()
    return connection


def test_nothing_that_was_stored_can_be_read_in_the_files_and_the_same_search_finds_it_in_a_readable_twin(tmp_path):
    folder, twin = tmp_path / "sealed", tmp_path / "twin"
    twin.mkdir()
    store = SqliteExampleStore(folder / "examples.db", SPEECH, Entropy(1), KEY)
    store.add_many(SPOKEN, NOW)
    sentences = store.all_sentences()
    assert len(sentences) == 5 and store.new_words() == ["mirabella", "zaphodius"]
    connection = old_twin(twin / "examples.db", sentences, OWN)
    connection.execute("CREATE TABLE ids (value BLOB)")
    needles = traces({*" ".join(sentences).split(" "), *OWN} - set(SPECIALS), sentences, SPEECH)
    for needle in needles.values():
        connection.execute("INSERT INTO ids VALUES (?)", (needle,))
    connection.commit()
    readable, sealed = bytes_on_disk(twin), bytes_on_disk(folder)
    assert any(path.name.endswith("-wal") for path in folder.iterdir()), "the log is searched, too"
    assert [name for name, needle in needles.items() if needle not in readable] == []
    for word in OWN:
        assert word.encode() in readable
    assert [name for name, needle in needles.items() if needle in sealed] == []
    store.close()
    connection.close()
    assert [name for name, needle in needles.items() if needle in bytes_on_disk(folder)] == []


def test_records_open_only_on_the_device_that_sealed_them_and_forgetting_everything_makes_the_file_its_own(tmp_path):
    store = open_store(tmp_path)
    store.add_many(["see you at the office", "zaphod zaphod"], NOW)
    store.close()
    other = SqliteExampleStore(
        tmp_path / "examples.db", VOCABULARY, Entropy(2), StorageKey.derive(bytes(32), "e" * 32), held_out_share=0.5
    )
    for refused in (
        other.sentences, other.new_words, lambda: other.add("call me", NOW), lambda: other.forget_word("office")
    ):  # fmt: skip
        with pytest.raises(StorageFailed, match="another device key"):
            refused()
    other.forget_everything()
    other.add("call me tomorrow", NOW)
    assert other.all_sentences() == ["call me tomorrow"] and other.count_words() == 3
    other.close()


def rows_of(folder, query):
    connection = sqlite3.connect(folder / "examples.db")
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_a_days_end_is_the_deletion_of_its_key_which_is_in_no_file_after_it(store, tmp_path):
    store.add("see you at the office. zaphod zaphod", NOW)
    store.add("call me tomorrow", NOW + DAY_S - 1)
    store.add("it's late", NOW + DAY_S)
    first, second = (row[0] for row in rows_of(tmp_path, "SELECT wrapped FROM day_key ORDER BY number"))
    assert first in bytes_on_disk(tmp_path)
    store.expire(NOW + KEPT_S + 1)
    assert store.sentences() == ["it's late"] and store.new_words() == []
    assert first not in bytes_on_disk(tmp_path) and second in bytes_on_disk(tmp_path)


def test_a_record_whose_key_is_gone_opens_nowhere_even_for_who_kept_the_whole_file(tmp_path):
    """What a disk keeps of its old blocks: the record's bytes, but not the key that was overwritten with the day."""
    store = open_store(tmp_path)
    store.add("see you at the office", NOW)
    kept = rows_of(tmp_path, "SELECT id, sealed FROM sentence")
    store.expire(NOW + KEPT_S + 1)
    store.add("call me tomorrow", NOW + KEPT_S + 2)
    keys = [KEY.unwrap_day(*row) for row in rows_of(tmp_path, "SELECT number, wrapped FROM day_key")]
    assert len(keys) == 1
    for number, sealed in kept:
        with pytest.raises(DoesNotOpen):
            keys[0].open(b"%d" % number, sealed)
    store.close()


def test_what_is_forgotten_has_no_key_and_what_stays_of_its_day_has_a_new_one(tmp_path):
    store = open_store(tmp_path)
    store.add_many(["see you at the office", "call me tomorrow", "zaphod zaphod is late"], NOW)
    store.add("my number is late", NOW + DAY_S)
    before = dict(rows_of(tmp_path, "SELECT number, wrapped FROM day_key"))
    sealed = dict(rows_of(tmp_path, "SELECT id, sealed FROM sentence"))
    assert store.forget_word("office") == 1
    after = dict(rows_of(tmp_path, "SELECT number, wrapped FROM day_key"))
    assert len(after) == 2 and len(set(after) & set(before)) == 1, "the other day was not touched"
    (old,) = set(before) - set(after)
    assert before[old] not in bytes_on_disk(tmp_path)
    assert not any(data in bytes_on_disk(tmp_path) for number, data in sealed.items() if number < 4)
    assert store.sentences() == ["call me tomorrow", "<unk> <unk> is late", "my number is late"]
    assert store.new_words() == ["zaphod"]
    store.close()
    again = open_store(tmp_path)
    assert again.sentences() == ["call me tomorrow", "<unk> <unk> is late", "my number is late"]
    assert again.new_words() == ["zaphod"]
    again.close()


def test_a_record_that_was_moved_or_has_rotted_counts_as_none(store, tmp_path):
    store.add_many(["see you at the office", "call me tomorrow", "it's late"], NOW)
    connection = sqlite3.connect(tmp_path / "examples.db")
    first, second = (row[0] for row in connection.execute("SELECT sealed FROM sentence ORDER BY id LIMIT 2"))
    connection.execute("UPDATE sentence SET sealed = ? WHERE id = 1", (second,))
    connection.execute("UPDATE sentence SET sealed = ? WHERE id = 2", (first,))
    connection.commit()
    assert store.sentences() == ["it's late"]
    connection.execute("UPDATE sentence SET sealed = x'00' WHERE id = 3")
    connection.commit()
    connection.close()
    assert store.sentences() == []


def test_what_another_process_forgets_is_not_in_the_memory_of_this_one(tmp_path):
    reader, other = open_store(tmp_path), open_store(tmp_path)
    reader.add_many(["see you at the office", "call me tomorrow"], NOW)
    assert len(reader.sentences()) == 2 and len(other.sentences()) == 2
    other.forget_word("office")
    assert reader.sentences() == ["call me tomorrow"]
    reader.add("it's late", NOW + 1)
    assert other.sentences() == reader.sentences() == ["call me tomorrow", "it's late"]
    other.forget_everything()
    assert reader.sentences() == []
    reader.close()
    other.close()


@given(
    st.lists(st.sampled_from(WORDS.split(" ")), min_size=1, max_size=30, unique=True),
    st.floats(0.0, 1.0),
    st.integers(0, 2**32),
)
@settings(max_examples=25, deadline=None)
def test_each_sentence_is_held_out_or_trained_on_and_the_same_one_always_on_the_same_side(words, share, seed):
    with tempfile.TemporaryDirectory() as folder:
        store = SqliteExampleStore(Path(folder) / "e.db", VOCABULARY, Entropy(seed), KEY, held_out_share=share)
        store.add_many([f"{word} late" for word in words] * 2, NOW)
        trained, held_out, together = store.sentences(), store.held_out_sentences(), store.all_sentences()
        assert sorted(trained + held_out) == sorted(together) and not set(trained) & set(held_out)
        again = SqliteExampleStore(Path(folder) / "e.db", VOCABULARY, Entropy(seed), KEY, held_out_share=share)
        assert (again.sentences(), again.held_out_sentences()) == (trained, held_out)
        again.close()
        store.close()
        if share in (0.0, 1.0):
            assert len(held_out) == share * len(together)


def test_about_the_asked_share_is_held_out(tmp_path):
    store = SqliteExampleStore(tmp_path / "e.db", VOCABULARY, Entropy(3), KEY, held_out_share=0.25)
    words = WORDS.split(" ")
    store.add_many([" ".join((a, b, c)) for a in words for b in words for c in words], NOW)
    total = len(store.all_sentences())
    # Five standard deviations of a fair draw.
    assert abs(len(store.held_out_sentences()) - total / 4) < 5 * (total * 3 / 16) ** 0.5
    store.close()


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match="between 0 and 1"):
        SqliteExampleStore(tmp_path / "e.db", VOCABULARY, Entropy(1), KEY, held_out_share=share)


def test_a_day_that_a_wrong_clock_put_into_the_future_counts_from_now(store):
    store.add("call me tomorrow", NOW + 100 * DAY_S)
    store.add("it's late", NOW)
    assert store.sentences() == ["call me tomorrow", "it's late"]
    store.expire(NOW + KEPT_S + 1)
    assert store.sentences() == []


def test_a_file_of_the_first_schema_is_sealed_and_nothing_readable_is_left_of_it(tmp_path):
    sentences = [" ".join(f.sentences[0]) for f in (filter_text(text, SPEECH) for text in SPOKEN)]
    connection = old_twin(tmp_path / "examples.db", sentences, OWN)
    needles = {
        f"{word} in {encoding}": (word if len(word) > 5 else f" {word} ").encode(encoding)
        for word in {*" ".join(sentences).split(" "), *OWN} - set(SPECIALS)
        for encoding in ("utf-8",)
    }
    # A first and a last word stand at an end of their sentence.
    found = {name for name, needle in needles.items() if needle in bytes_on_disk(tmp_path)}
    assert len(found) >= 12 and {f"{word} in utf-8" for word in OWN} < found
    connection.close()
    store = SqliteExampleStore(tmp_path / "examples.db", SPEECH, Entropy(1), KEY, held_out_share=0.0)
    assert {name for name, needle in needles.items() if needle in bytes_on_disk(tmp_path)} == set()
    assert store.sentences() == sentences
    assert store.new_words() == ["mirabella", "zaphodius"]
    assert store.count_words() == sum(len(sentence.split(" ")) for sentence in sentences)
    assert rows_of(tmp_path, "PRAGMA user_version") == [(3,)]
    store.add("seenonce", NOW + 130_000)
    assert "seenonce" in store.new_words(), "a hash of the first schema still counts"
    store.expire(NOW + KEPT_S + 40_000)
    assert store.sentences() == sentences[3:]
    store.close()


def test_a_migration_that_was_killed_before_it_had_scrubbed_is_finished_by_the_next_opening(tmp_path):
    sentences = ["meet me at the harbour tomorrow evening"] * 200
    path = tmp_path / "examples.db"
    old_twin(path, sentences, OWN).close()
    connection = sqlite3.connect(path, isolation_level=None)
    # As if the process had died right after the commit, and the pages not been overwritten at all.
    connection.execute("PRAGMA secure_delete=OFF")
    with transaction(connection, "the old file"):
        to_sealed(TEXT_SCHEMA, KEY, os.urandom).change(connection)
        connection.execute("PRAGMA user_version=-2")
    connection.close()
    assert b"harbour" in bytes_on_disk(tmp_path)
    store = SqliteExampleStore(path, SPEECH, Entropy(1), KEY, held_out_share=0.0)
    assert store.sentences() == sentences
    assert b"harbour" not in bytes_on_disk(tmp_path) and rows_of(tmp_path, "PRAGMA user_version") == [(3,)]
    store.close()


def test_a_full_disk_leaves_the_first_schema_as_it_was(tmp_path):
    path = tmp_path / "examples.db"
    old_twin(path, ["meet me at the harbour tomorrow evening"] * 500, OWN).close()
    connection = sqlite3.connect(path, isolation_level=None)
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull), transaction(connection, "the old file"):
        to_sealed(TEXT_SCHEMA, KEY, os.urandom).change(connection)
    connection.close()
    assert rows_of(tmp_path, "PRAGMA user_version") == [(1,)]
    assert rows_of(tmp_path, "SELECT COUNT(*) FROM sentence") == [(500,)]
    store = SqliteExampleStore(path, SPEECH, Entropy(1), KEY)
    assert len(store.all_sentences()) == 500
    store.close()
