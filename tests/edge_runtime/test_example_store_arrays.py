import sqlite3

import numpy as np
import pytest

from edge_runtime.adapters import files
from edge_runtime.adapters.example_count import holds_text
from edge_runtime.adapters.example_store import KEPT_S, SqliteExampleStore
from edge_runtime.adapters.example_store_arrays import KEPT_BYTES, KEPT_EXAMPLES
from edge_runtime.array_examples import encode_records, of_records
from edge_runtime.day_keys import DAY_S, StorageKey
from edge_runtime.ports import StorageFailed
from tests.edge_runtime import array_model
from tests.edge_runtime.array_model import SPECS
from tests.edge_runtime.fakes import Entropy
from wire_contract.vocabulary import Vocabulary

NOW = 1_800_000_000.0
KEY = StorageKey.derive(bytes(range(32)), "d" * 32)
VOCABULARY = Vocabulary.from_words(["see", "you", "at", "the", "office", "call", "me", "tomorrow"])


def open_store(folder, share=0.0, key=KEY):
    return SqliteExampleStore(folder / "examples.db", VOCABULARY, Entropy(1), key, held_out_share=share)


@pytest.fixture
def store(tmp_path):
    made = open_store(tmp_path)
    yield made
    made.close()
    # The megabytes written here are not to count in the night's budget of another test's device.
    files.take_written_bytes()


def add(store, count, seed=1, now=NOW):
    return store.add_arrays(encode_records(array_model.draw(count, seed), SPECS), now)


def numbers(store):
    return [number for number, _ in store.arrays()]


def on_disk(folder):
    return b"".join(path.read_bytes() for path in folder.iterdir())


def needles(count, seed=1):
    return [row.tobytes() for row in array_model.draw(count, seed)["pixels"]]


def test_arrays_come_back_in_order_bit_for_bit_after_a_restart(store, tmp_path):
    assert add(store, 7) == 7 and add(store, 5, seed=2) == 5
    again = open_store(tmp_path)
    back = of_records(again.arrays(), SPECS)
    assert back.numbers.tolist() == list(range(1, 13)) and again.count_arrays() == 12
    for name, value in array_model.draw(7).items():
        assert np.array_equal(back.arrays[name][:7], value)
    again.close()


def test_nothing_of_an_array_can_be_read_in_the_files(store, tmp_path):
    add(store, 20)
    assert not [needle for needle in needles(20) if needle in on_disk(tmp_path)]


def test_arrays_lie_beside_sentences_and_neither_hides_the_other(store):
    store.add("see you at the office", NOW)
    add(store, 3)
    assert store.sentences() == ["see you at the office"] and len(numbers(store)) == 3
    assert store.count_words() == 5 + 3
    # Five words are one example of twenty tokens, begun.
    assert store.count_examples(20) == 1 + 3 and store.count_examples(2) == 3 + 3


def test_a_share_is_held_out_by_what_an_example_is_and_never_trained_on(tmp_path):
    store = open_store(tmp_path, share=0.3)
    add(store, 300)
    held, trained = dict(store.held_out_arrays()), dict(store.arrays())
    assert 60 < len(held) < 120 and len(held) + len(trained) == 300
    # The same example comes again, and is on the same side.
    add(store, 300)
    assert {record for _, record in store.held_out_arrays()} == set(held.values())
    store.close()
    twin = open_store(tmp_path, share=0.3)
    assert {record for _, record in twin.held_out_arrays()} == set(held.values())
    twin.close()


def test_arrays_older_than_thirty_days_are_gone_from_the_files(store, tmp_path):
    add(store, 4)
    add(store, 3, seed=2, now=NOW + 2 * DAY_S)
    store.expire(NOW + KEPT_S + 1)
    assert numbers(store) == [5, 6, 7]
    assert store.count_arrays() == 3


def test_a_number_is_never_given_again(store):
    add(store, 4)
    store.expire(NOW + KEPT_S + 1)
    add(store, 2, now=NOW + KEPT_S + 2)
    assert numbers(store) == [5, 6]
    store.forget_everything()
    add(store, 1, now=NOW + KEPT_S + 3)
    assert numbers(store) == [7]


def test_only_the_last_twenty_thousand_examples_stay(store):
    assert store.add_arrays((b"%d" % i for i in range(KEPT_EXAMPLES)), NOW) == store.count_arrays() == KEPT_EXAMPLES
    store.add_arrays([b"one", b"more"], NOW)
    assert numbers(store)[0] == 3 and store.count_arrays() == KEPT_EXAMPLES


def test_only_the_last_megabytes_stay(store):
    megabytes = KEPT_BYTES >> 20
    store.add_arrays((bytes([i]) * (1 << 20) for i in range(megabytes + 4)), NOW)
    # A seal is a few bytes longer than what it seals.
    assert numbers(store) == list(range(6, megabytes + 5))


def test_forgetting_everything_leaves_no_array_and_no_bytes_of_one(store, tmp_path):
    add(store, 30)
    store.add("see you", NOW)
    sealed = [row[0] for row in sqlite3.connect(tmp_path / "examples.db").execute("SELECT sealed FROM array_example")]
    assert all(body in on_disk(tmp_path) for body in sealed)
    store.forget_everything()
    assert store.count_words() == 0 and not any(body in on_disk(tmp_path) for body in sealed)


def test_forgetting_a_word_gives_the_days_arrays_a_new_key_and_keeps_them(store, tmp_path):
    add(store, 5)
    store.add("call me tomorrow", NOW)
    before = [record for _, record in store.arrays()]
    sealed = [row[0] for row in sqlite3.connect(tmp_path / "examples.db").execute("SELECT sealed FROM array_example")]
    assert store.forget_word("tomorrow") == 1
    assert [record for _, record in store.arrays()] == before and numbers(store) == [1, 2, 3, 4, 5]
    assert not any(body in on_disk(tmp_path) for body in sealed)


def test_a_record_that_has_rotted_or_was_moved_counts_as_none(store, tmp_path):
    add(store, 4)
    with sqlite3.connect(tmp_path / "examples.db") as connection:
        connection.execute("UPDATE array_example SET sealed = zeroblob(80) WHERE id = 2")
        connection.execute(
            "UPDATE array_example SET sealed = (SELECT sealed FROM array_example WHERE id = 4) WHERE id = 3"
        )
    assert numbers(store) == [1, 4]


def test_another_devices_arrays_say_so(store, tmp_path):
    add(store, 2)
    other = open_store(tmp_path, key=StorageKey.derive(bytes(32), "e" * 32))
    with pytest.raises(StorageFailed, match="another device key"):
        list(other.arrays())
    with pytest.raises(StorageFailed, match="another device key"):
        add(other, 1)
    other.close()


def test_a_resting_device_sees_that_there_are_arrays_without_the_key(store, tmp_path):
    assert not holds_text(tmp_path / "examples.db")
    add(store, 1)
    assert holds_text(tmp_path / "examples.db")


def test_a_store_of_the_schema_before_gets_its_table_and_keeps_its_sentences(tmp_path):
    store = open_store(tmp_path)
    store.add("see you at the office", NOW)
    store.close()
    with sqlite3.connect(tmp_path / "examples.db") as connection:
        connection.execute("DROP TABLE array_example")
        connection.execute("PRAGMA user_version=2")
    assert holds_text(tmp_path / "examples.db")
    again = open_store(tmp_path)
    assert again.sentences() == ["see you at the office"] and add(again, 2) == 2
    assert numbers(again) == [1, 2]
    again.close()
