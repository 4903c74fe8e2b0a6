from hypothesis import given
from hypothesis import strategies as st

from keyboard_demo.keyboard import Message, Typing, context_of, lay_out, press, rank_words, split_prefix, suggest
from wire_contract.vocabulary import Vocabulary

WORDS = Vocabulary.from_words(["you", "are", "the", "them", "then", "okay"])
START, YOU, ARE, THE, THEM, THEN, OKAY = 1, 4, 5, 6, 7, 8, 9
LIKELY = [0.9, 0.9, 0.9, 0.9, 0.05, 0.01, 0.3, 0.2, 0.1, 0.0]


def test_the_best_word_stands_in_the_middle_and_specials_are_never_suggested():
    shown = suggest(Typing(), WORDS, lambda context: LIKELY)
    assert shown.strip == ("them", "the", "then")


def test_letters_of_a_word_complete_it_in_the_same_three_places():
    assert rank_words(LIKELY, "y", WORDS) == ("you",)
    assert suggest(Typing(text="are y"), WORDS, lambda context: LIKELY).strip == ("", "you", "")


def test_the_strip_does_not_jump_while_the_same_three_are_suggested():
    assert lay_out(("them", "the", "then"), ("them", "the", "then")) == ("them", "the", "then")
    assert lay_out(("okay", "the", "then"), ("them", "the", "then")) == ("the", "okay", "then")


def test_accepting_completes_the_word_and_backspace_takes_the_acceptance_back():
    typing = Typing(text="are the", strip=("them", "the", "then"), keys=7)
    accepted = press(typing, "1")
    assert isinstance(accepted, Typing)
    assert (accepted.text, accepted.accepted, accepted.keys) == ("are them ", 1, 8)
    undone = press(accepted, "\b")
    assert isinstance(undone, Typing)
    assert (undone.text, undone.accepted) == ("are the", 0)
    again = press(undone, "\b")
    assert isinstance(again, Typing)
    assert again.text == "are th"


def test_a_digit_is_a_digit_where_no_word_is_shown():
    typed = press(Typing(text="call "), "2")
    assert isinstance(typed, Typing)
    assert typed.text == "call 2"


def test_a_line_break_ends_the_message_with_the_text_as_typed():
    assert press(Typing(text="are you okay"), "\n") == Message("are you okay")


def test_the_context_is_what_stands_before_the_word_being_typed():
    assert context_of("", WORDS)[-1] == START
    assert context_of("you are th", WORDS)[-3:] == (START, YOU, ARE)
    assert context_of("okay. ", WORDS)[-3:] == (START, OKAY, START)
    assert len(context_of("you " * 50, WORDS)) == 20


@given(st.text(max_size=60))
def test_any_text_gives_twenty_ids_of_the_vocabulary(text):
    context = context_of(text, WORDS)
    assert len(context) == 20
    assert all(0 <= i < len(WORDS) for i in context)
    finished, prefix = split_prefix(text)
    assert (finished + prefix).lower() == text.lower() or text.lower() != text


@given(st.lists(st.sampled_from(["a", "t", " ", "\b", "1", "2", "3", "."]), max_size=40))
def test_no_sequence_of_keys_breaks_the_field(keys):
    typing = Typing()
    for key in keys:
        after = press(suggest(typing, WORDS, lambda context: LIKELY), key)
        assert isinstance(after, Typing)
        typing = after
    assert typing.keys == len(keys)
    assert typing.accepted >= 0
