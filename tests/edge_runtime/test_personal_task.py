"""Making the personal side in a home of its own: slots on the disk, a store that is told to forget, real weights."""

import hashlib
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime import personal_task
from edge_runtime.adapters import personal_copy, personal_records
from edge_runtime.adapters.personal_records import ChoiceRecord, MadeRecord, MixtureRecord
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.jobs import Personalized, Refused, Stopped
from edge_runtime.model_slots import Held, ModelSlots
from edge_runtime.personalization import make_copy
from edge_runtime.ports import Forgotten, NotThere, RuntimeFailed, StorageFailed
from edge_runtime.privacy_filter import id_stream
from edge_runtime.trust import Keys
from tests.edge_runtime.fakes import RUNTIME, TINY
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, RUNNER
from wire_contract.envelope import sign
from wire_contract.manifest import encode_manifest
from wire_contract.patch import patch, read_tensors
from wire_contract.vocabulary import Vocabulary

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
VOCABULARY = Vocabulary.from_bytes((TINY / "vocabulary.txt").read_bytes())
TENSORS = read_tensors(MODEL, MANIFEST)


class Examples:
    """A person with habits: sentences out of few words, some held out."""

    def __init__(self, trained=60, held_out=20, seed=1):
        rng = np.random.default_rng(seed)
        ordinary = VOCABULARY.words[4:]

        def sentence():
            return " ".join(ordinary[i] for i in rng.zipf(1.3, 10).clip(1, 300) - 1)

        self.trained = [sentence() for _ in range(trained)]
        self.held = [sentence() for _ in range(held_out)]
        self.record = trained + held_out

    def sentences(self):
        return self.trained

    def held_out_sentences(self):
        return self.held

    def count_words(self):
        return sum(sentence.count(" ") + 1 for sentence in self.trained + self.held)

    def count_words_after(self, record):
        return 10 * max(0, self.record - record)

    def last_record(self):
        return self.record


class NoDownloads:
    def fetch(self, url, start, limit_bytes):
        raise NotThere(url)


def no_check(data, manifest):
    raise AssertionError("nothing is installed here")


class Home:
    """Versions as the slots keep them; `release` puts one into the refresh slot and the one before into `previous`."""

    def __init__(self, path):
        self.path = path
        self.store = StateStore(path / "state.db")
        for folder in ("slots", "models", "manifests", "vocabularies"):
            (path / folder).mkdir()
        (path / "vocabularies" / f"{MANIFEST.vocabulary_sha256}.txt").write_bytes(VOCABULARY.to_bytes())
        self.before = ""

    def release(self, number, tensors=None):
        data = MODEL if tensors is None else patch(MODEL, MANIFEST, tensors)
        sha256 = hashlib.sha256(data).hexdigest()
        manifest = msgspec.structs.replace(MANIFEST, version=number, sha256=sha256)
        (self.path / "models" / f"{sha256}.tflite").write_bytes(data)
        (self.path / "manifests" / f"{sha256}.bin").write_bytes(sign(KEY, "manifest", encode_manifest(manifest)))
        slot = {"current": sha256, "previous": self.before, "version": number, "sha256": sha256}
        (self.path / "slots" / "refresh.json").write_text(json.dumps(slot))
        self.before = sha256
        return Held(manifest, data)

    @property
    def slots(self):
        keys = Keys(bytes(32), bytes(32))
        return ModelSlots(self.path, keys, "keyboard", "http://x.invalid", NoDownloads(), no_check)

    def run(self, examples, may_go_on=lambda: True, times_forgotten=0, seed=3):
        return personal_task.run(
            self.path, self.slots, RUNTIME, examples, self.store,
            times_forgotten=times_forgotten, seed=seed, may_go_on=may_go_on,
        )  # fmt: skip

    def personal_files(self):
        folder = self.path / "personal"
        return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


@pytest.fixture
def home(tmp_path):
    made = Home(tmp_path)
    yield made
    made.store.close()


def learned():
    """Weights that know how such people talk, so that there are hits to lose."""
    stream = id_stream(Examples(trained=300, seed=9).trained, VOCABULARY)
    return make_copy(RUNNER, MANIFEST, TENSORS, stream, seed=1, learning_rate=1.0).tensors


GOOD = learned()


def spoiled(seed=5):
    """Weights that suggest other words than the person uses."""
    rng = np.random.default_rng(seed)
    bias = GOOD["output_bias"].copy()
    bias[300:] += np.float32(6.0) + rng.normal(0, 1, len(bias) - 300).astype(np.float32)
    return {**GOOD, "output_bias": bias}


def test_a_copy_that_is_likelier_on_held_out_text_is_kept_for_the_keyboard(home):
    held = home.release(2)
    made = home.run(Examples())
    assert isinstance(made, Personalized) and made.accepted and made.version == 2
    assert "copy accepted" in made.reason
    copy = personal_copy.read(home.path, held.manifest.sha256)
    assert copy is not None and copy != MODEL and len(copy) == len(MODEL)
    assert personal_records.read(home.path, MadeRecord).accepted
    assert personal_task.for_keyboard(home.path, home.slots) == (held, "")
    assert {path.stat().st_mode & 0o077 for path in (home.path / "personal").iterdir()} == {0}


def test_the_same_seed_makes_the_same_copy(home):
    home.release(2)
    home.run(Examples())
    first = home.personal_files()
    home.run(Examples())
    assert home.personal_files() == first


def test_a_copy_that_is_no_better_on_held_out_text_is_not_kept_and_an_older_one_goes(home):
    held = home.release(2)
    home.run(Examples())
    assert personal_copy.read(home.path, held.manifest.sha256) is not None
    other = Examples(held_out=20)
    # The same sentences again and again, and held out is the opposite of them.
    other.trained = ["baba babe babi babo"] * 60
    other.held = [" ".join(VOCABULARY.words[400 + 5 * i : 410 + 5 * i]) for i in range(15)]
    made = home.run(other)
    assert isinstance(made, Personalized) and not made.accepted
    assert personal_copy.read(home.path, held.manifest.sha256) is None
    assert not personal_records.read(home.path, MadeRecord).accepted


def test_a_release_that_is_significantly_worse_for_this_person_is_not_used_and_they_are_told(home):
    good = home.release(2, GOOD)
    bad = home.release(3, spoiled())
    made = home.run(Examples())
    assert isinstance(made, Personalized) and made.version == 2
    kept, reason = personal_task.for_keyboard(home.path, home.slots)
    assert kept == good and "version 3 is worse for you than 2" in reason
    choice = personal_records.read(home.path, ChoiceRecord)
    assert choice.instead_of == bad.manifest.sha256 and choice.sha256 == good.manifest.sha256
    assert personal_copy.base_of(home.path) in ("", good.manifest.sha256)


def test_a_later_release_gets_another_chance(home):
    home.release(2, GOOD)
    home.release(3, spoiled())
    home.run(Examples())
    later = {name: value * np.float32(1.01) for name, value in GOOD.items()}
    newest = home.release(4, later)
    assert personal_task.for_keyboard(home.path, home.slots) == (newest, ""), "at once, before anything is judged"
    made = home.run(Examples())
    assert isinstance(made, Personalized) and made.version == 4
    assert personal_task.for_keyboard(home.path, home.slots) == (newest, "")
    assert personal_records.read(home.path, ChoiceRecord) is None


def test_without_held_out_text_every_release_is_used(home):
    home.release(2)
    bad = home.release(3, spoiled())
    made = home.run(Examples(held_out=0))
    assert isinstance(made, Personalized) and made.version == 3
    assert personal_task.for_keyboard(home.path, home.slots) == (bad, "")


def test_a_version_that_was_chosen_and_is_gone_is_not_used(home):
    good = home.release(2, GOOD)
    bad = home.release(3, spoiled())
    home.run(Examples())
    (home.path / "models" / f"{good.manifest.sha256}.tflite").unlink()
    assert personal_task.for_keyboard(home.path, home.slots) == (bad, "")


def test_what_a_copy_had_learned_is_carried_over_only_if_that_is_likelier(home):
    home.release(2)
    rich = Examples(trained=200, seed=1)
    assert home.run(rich).accepted
    home.release(3, {name: value * np.float32(1.001) for name, value in TENSORS.items()})
    poor = Examples(trained=200, seed=1)
    # Little text is left of the same person, too little to learn it again.
    poor.trained = poor.trained[:8]
    made = home.run(poor)
    assert made.accepted and "carried over" in made.reason and made.version == 3
    assert personal_copy.base_of(home.path) == home.before
    home.release(4, spoiled(6))
    stranger = Examples(seed=77)
    stranger.held = [" ".join(VOCABULARY.words[400 + 5 * i : 410 + 5 * i]) for i in range(15)]
    stranger.trained = ["baba babe babi babo"] * 20
    made = home.run(stranger)
    assert not made.accepted and personal_copy.base_of(home.path) == ""
    assert set(home.personal_files()) == {"made"}


def test_it_stops_between_two_calls_of_the_model_and_keeps_nothing_then(home):
    home.release(2)
    calls = []

    def count():
        calls.append(None)
        return True

    assert home.run(Examples(), may_go_on=count).accepted
    total = len(calls)
    assert total > 10
    made = home.personal_files()
    personal_records.forget(home.path)
    for stop in range(0, total, 3):
        left = iter([True] * stop)
        assert home.run(Examples(), may_go_on=lambda left=left: next(left, False)) == Stopped()
        assert home.personal_files() == {}
    home.run(Examples())
    assert home.personal_files() == made


def test_nothing_is_written_in_a_home_that_was_told_to_forget_meanwhile(home):
    home.release(2, GOOD)
    home.release(3, spoiled())

    def forget():
        if not forgotten:
            forgotten.append(True)
            other = StateStore(home.path / "state.db")
            with other.transaction() as connection:
                other.forget(connection)
            other.close()
            personal_copy.forget(home.path)
        return True

    forgotten = []
    with pytest.raises(Forgotten):
        home.run(Examples(), may_go_on=forget)
    assert home.personal_files() == {}
    with pytest.raises(Forgotten):
        personal_records.write(home.path, home.store, 0, MixtureRecord(components=("shared",), rows=((1.0,),)))
    assert home.personal_files() == {}


def test_a_copy_is_due_when_there_is_none_when_a_release_came_and_when_much_was_typed(home):
    examples = Examples()
    assert personal_task.due(home.path, home.slots, examples) == "", "no version yet"
    home.release(2)
    assert "no personal copy" in personal_task.due(home.path, home.slots, examples)
    home.run(examples)
    assert personal_task.due(home.path, home.slots, examples) == ""
    examples.record += personal_task.NEW_WORDS // 10 - 1
    assert personal_task.due(home.path, home.slots, examples) == ""
    examples.record += 1
    assert "500 words" in personal_task.due(home.path, home.slots, examples)
    home.run(examples)
    home.release(3, spoiled())
    assert "newer version" in personal_task.due(home.path, home.slots, examples)
    assert personal_task.due(home.path, home.slots, Examples(trained=2, held_out=0)) == ""


def test_too_little_text_and_no_version_are_refused_by_name(home):
    assert "no version" in home.run(Examples()).reason
    home.release(2)
    little = Examples(trained=5, held_out=20)
    assert personal_task.due(home.path, home.slots, little)
    refused = home.run(little)
    assert isinstance(refused, Refused) and "too little text" in refused.reason
    assert set(home.personal_files()) == {"made"}
    assert personal_task.due(home.path, home.slots, little) == "", "not tried again at every turn"


def test_a_runtime_that_fails_is_told_and_not_tried_again_at_once(home):
    home.release(2)

    class Broken:
        def template(self, manifest, read):
            raise RuntimeFailed("no interpreter is installed")

    refused = personal_task.run(
        home.path, home.slots, Broken(), Examples(), home.store, times_forgotten=0, seed=1, may_go_on=lambda: True
    )
    assert isinstance(refused, Refused) and "no interpreter" in refused.reason
    assert personal_task.due(home.path, home.slots, Examples()) == ""
    home.release(3, GOOD)
    assert personal_task.due(home.path, home.slots, Examples()) != ""


@pytest.mark.parametrize("kind", [MixtureRecord, ChoiceRecord, MadeRecord])
@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"type":"choice","version":"x"}', b"[" * 60_000, b" " * 100_000]
)
def test_a_broken_record_counts_as_none(tmp_path, kind, data):
    folder = tmp_path / "personal"
    folder.mkdir()
    for name in ("mixture", "choice", "made"):
        (folder / name).write_bytes(data)
    assert personal_records.read(tmp_path, kind) is None


def test_a_full_disk_leaves_the_records_that_were_there(home):
    record = MixtureRecord(components=("shared",), rows=((1.0,),))
    personal_records.write(home.path, home.store, 0, record)
    before = home.personal_files()
    folder = home.path / "personal"
    folder.rename(home.path / "elsewhere")
    folder.write_bytes(b"a file where the folder should be")
    with pytest.raises(StorageFailed):
        personal_records.write(home.path, home.store, 0, MixtureRecord(components=("copy",), rows=((1.0,),)))
    folder.unlink()
    (home.path / "elsewhere").rename(folder)
    assert home.personal_files() == before and personal_records.read(home.path, MixtureRecord) == record


def test_the_supervisor_can_ask_whether_a_copy_is_due_without_loading_numpy(home):
    home.release(2)
    code = (
        "import sys; from pathlib import Path; from edge_runtime import personal_task; "
        "from edge_runtime.adapters import personal_copy, personal_records, example_store; "
        "from edge_runtime.model_slots import ModelSlots; from edge_runtime.trust import Keys; "
        "home = Path(sys.argv[1]); "
        "slots = ModelSlots(home, Keys(bytes(32), bytes(32)), 'keyboard', 'http://x.invalid', None, None); "
        "words = type('W', (), {'count_words': lambda self: 1000, 'count_words_after': lambda self, n: 0})(); "
        "print(personal_task.due(home, slots, words)); personal_task.for_keyboard(home, slots); "
        "assert 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(home.path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "no personal copy" in done.stdout
