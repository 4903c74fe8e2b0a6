import hashlib

import pytest

from keyboard_demo import typists
from keyboard_demo.typists import Message, Person, clean, persons_of, residue


def user_with(wanted: int) -> str:
    return next(f"u{i}" for i in range(10_000) if residue(f"u{i}") == wanted)


def conversation(user: str, *texts: str) -> dict[str, object]:
    return {"messages": [[{"sender": user, "timestamp": f"2018-05-0{1 + i % 9}T00:00:{i:02d}Z", "text": text}
                          for i, text in enumerate(texts)]]}  # fmt: skip


LONG = [f"this is what number word{'abcdefghij'[i]} person wrote about the weather yesterday ok" for i in range(10)]


def test_the_split_is_the_hash_of_the_design_page():
    digest = hashlib.sha256(b"edge-split-v1:u1").hexdigest()
    assert residue("u1") == int(digest, 16) % 10


def test_residue_9_is_read_by_no_split():
    reserved = user_with(9)
    assert 9 not in typists.SPLIT_OF_RESIDUE
    for split in set(typists.SPLIT_OF_RESIDUE.values()):
        persons = persons_of([conversation(reserved, *LONG), conversation(user_with(4), *LONG)], split)
        assert reserved not in {person.user for person in persons}


@pytest.mark.parametrize(("place", "split"), sorted(typists.SPLIT_OF_RESIDUE.items()))
def test_every_other_person_is_in_exactly_one_split(place, split):
    user = user_with(place)
    for name in ("test", "dev", "donors", "train"):
        found = [person.user for person in persons_of([conversation(user, *LONG)], name)]
        assert found == ([user] if name == split else [])


def test_a_person_of_fewer_than_100_words_is_left_out():
    assert persons_of([conversation(user_with(2), "just a few words")], "dev") == []


def test_contest_junk_is_left_out_and_ordinary_text_is_kept():
    texts = ["hello there friend. a a a a a a. f", "spam spam spam ok", "x z q"] + ["the same old sentence"] * 6
    messages, words = clean(Message(str(i), text) for i, text in enumerate(texts))
    kept = [message.text for message in messages]
    assert kept == ["hello there friend."] + ["the same old sentence"] * 3
    assert words == 3 + 12


def test_of_each_person_only_the_first_20000_words_are_read():
    messages, words = clean(Message(str(i), f"{'a' * (1 + i % 9)} {'b' * (1 + i // 9 % 30)} cc") for i in range(9000))
    assert words <= 20_000
    assert len(messages) == 6666


def test_head_and_tail_are_in_order_of_time_and_share_no_message():
    person = Person("u", tuple(Message(str(i), f"word{'abcdefghij'[i]} two") for i in range(10)), 20)
    head, tail = person.head_and_tail()
    assert head == [f"word{'abcdefghij'[i]} two" for i in range(8)]
    assert tail == [f"word{'abcdefghij'[i]} two" for i in range(8, 10)]
