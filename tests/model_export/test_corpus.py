"""Reading text: JSON lines and the Brown package."""

import io
import tarfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_export.corpus import Author, BadText, read_authors, read_brown, untag, write_authors
from model_export.word_counts import count_words, make_vocabulary
from wire_contract.vocabulary import Vocabulary

SAMPLE = """

\tThe/at Fulton/np-tl Jury/nn-tl said/vbd ``/`` Mr./np Pye/np didn't/dod* pay/vb $3,500/nns ''/'' ./.

\tIs/bez it/pps and\\/or/cc 1\\/2/cd ?/.
"""


def brown_package(path, **files):
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(text.encode())
            archive.addfile(info, io.BytesIO(text.encode()))


def test_brown_loses_its_tags_and_keeps_sentences_and_apostrophes(tmp_path):
    brown_package(tmp_path / "b.tgz", ca01=SAMPLE, README="a/b", cr09="Yes/rb ./.")
    authors = read_brown(tmp_path / "b.tgz")
    assert [author.user for author in authors] == ["brown-ca01", "brown-cr09"]
    sentences = list(authors[0].sentences())
    assert sentences[0] == ["the", "fulton", "jury", "said", "mr", "pye", "didn't", "pay", "<num>"]
    assert len(sentences) == 2
    assert authors[1].messages == ("Yes.",)


def test_an_abbreviation_does_not_end_a_sentence():
    assert untag(["Mr./np", "Smith/np", "of/in", "U.S./np", "./."]) == "Mr Smith of U S."


def test_a_sentence_without_a_word_is_nothing():
    assert untag(["--/--", "``/``", "./."]) == ""


@pytest.mark.parametrize("data", [b"", b"no tar", b"\x1f\x8b" + b"\x00" * 30])
def test_a_package_that_is_no_tar_is_refused(tmp_path, data):
    (tmp_path / "b.tgz").write_bytes(data)
    with pytest.raises(BadText):
        read_brown(tmp_path / "b.tgz")


def test_a_package_without_brown_in_it_is_refused(tmp_path):
    brown_package(tmp_path / "b.tgz", README="nothing here")
    with pytest.raises(BadText, match="ca01 to cr09"):
        read_brown(tmp_path / "b.tgz")


@given(st.lists(st.tuples(st.text(max_size=8), st.lists(st.text(max_size=30), max_size=4)), min_size=1, max_size=5))
def test_text_files_round_trip(tmp_path_factory, people):
    path = tmp_path_factory.mktemp("text") / "t.jsonl"
    authors = [Author(user, tuple(messages)) for user, messages in people]
    write_authors(authors, path)
    assert read_authors(path) == authors


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"user": 3, "messages": []}', '{"user": "a"}', '{"user": "a", "messages": [1]}', "[" * 100_000]
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text('{"user": "a", "messages": ["hello"]}\n' + line + "\n")
    with pytest.raises(BadText, match=r"t\.jsonl:2: "):
        read_authors(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_text("\n\n")
    with pytest.raises(BadText, match="at least one author"):
        read_authors(tmp_path / "t.jsonl")


def test_a_stream_begins_each_sentence_and_hides_unknown_words():
    vocabulary = Vocabulary.from_words(["hello", "you"])
    author = Author("a", ("Hello you! hello stranger", "you 42"))
    assert author.stream(vocabulary) == [1, 4, 5, 1, 4, 2, 1, 5, 3]


def test_words_rank_by_the_weighted_share_of_each_source_and_ties_by_alphabet():
    donors, brown = Counter({"yes": 8, "ok": 2}), Counter({"the": 90, "zebra": 5, "apple": 5})
    vocabulary = make_vocabulary([(0.7, donors), (0.3, brown)], entries=9)
    assert vocabulary.words[4:] == ("yes", "the", "ok", "apple", "zebra")


def test_a_vocabulary_larger_than_the_text_is_refused():
    with pytest.raises(ValueError, match="needs 6 different words, got 1"):
        make_vocabulary([(1.0, Counter({"one": 1}))], entries=10)


def test_numbers_and_overlong_words_are_not_counted():
    counts = count_words([Author("a", ("call 555 now", "x" * 41 + " now"))])
    assert counts == {"call": 1, "now": 2}
