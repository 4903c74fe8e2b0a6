"""`export` beyond its presets: any size, variants, float16, and what the manifest says of them."""

import numpy as np
import pytest

from cli_contract.main import run_command
from model_export.checkpoint import BadCheckpoint, checkpoint_size, load_checkpoint, save_checkpoint
from model_export.cli import build_parser
from model_export.network import PRESETS, NetworkSize
from model_export.starter import load_sized_start, preset_of, wanted_size
from tests.model_export.conftest import lively_tensors
from wire_contract.vocabulary import Vocabulary

SIZE = NetworkSize(words=90, width=20, cells=56)


@pytest.fixture
def key(tmp_path, capfd):
    assert run(capfd, "keygen", tmp_path / "key.pem")[0] == 0
    return tmp_path / "key.pem"


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


def test_a_checkpoint_says_its_own_size_and_keeps_float32(tmp_path):
    tensors = lively_tensors(SIZE, seed=1)
    for dtype in ("float16", "float32"):
        save_checkpoint(tmp_path / f"{dtype}.npz", tensors, dtype)
        assert checkpoint_size(tmp_path / f"{dtype}.npz") == SIZE
    kept = load_checkpoint(tmp_path / "float32.npz", SIZE)
    assert all(np.array_equal(kept[name], value) for name, value in tensors.items())


@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x05\x06" + bytes(18)])
def test_a_file_that_is_no_checkpoint_says_no_size(tmp_path, data):
    (tmp_path / "c.npz").write_bytes(data)
    with pytest.raises(BadCheckpoint, match="a checkpoint is an"):
        checkpoint_size(tmp_path / "c.npz")


def test_a_size_is_a_preset_three_numbers_or_what_the_checkpoint_says(tmp_path):
    save_checkpoint(tmp_path / "c.npz", lively_tensors(SIZE, seed=1))
    assert wanted_size(None, str(tmp_path / "c.npz"), None, None, None) == SIZE
    assert wanted_size("tiny", "untrained", None, None, None) == PRESETS["tiny"]
    assert wanted_size(None, "starter", None, None, None) == PRESETS["small"]
    assert wanted_size(None, "untrained", 90, 20, 56) == SIZE
    assert preset_of(PRESETS["reference"]) == "reference"
    assert preset_of(SIZE) == "90 words x 20, 56 cells"
    with pytest.raises(ValueError, match="got both"):
        wanted_size("tiny", "untrained", 90, None, None)
    with pytest.raises(ValueError, match="come together"):
        wanted_size(None, "untrained", 90, 20, None)
    with pytest.raises(ValueError, match="at least 1024 values"):
        wanted_size(None, "untrained", 9, 2, 3)


def test_a_checkpoints_own_vocabulary_lies_beside_it_and_is_taken(tmp_path):
    save_checkpoint(tmp_path / "c.npz", lively_tensors(SIZE, seed=1))
    assert load_sized_start(SIZE, str(tmp_path / "c.npz"), None).vocabulary.words[4:6] == ("the", "i")
    letters = "abcdefghijklmnopqrstuvwxyz"
    own = Vocabulary.from_words([a + b for a in letters for b in letters][:86])
    (tmp_path / "vocabulary.txt").write_bytes(own.to_bytes())
    assert load_sized_start(SIZE, str(tmp_path / "c.npz"), None).vocabulary.words == own.words
    assert load_sized_start(SIZE, "untrained", None).vocabulary.words != own.words


def test_untrained_weights_of_any_size_take_the_head_of_the_vocabulary():
    start = load_sized_start(SIZE, "untrained", None)
    assert len(start.vocabulary) == 90 and start.tensors["projection"].shape == (20, 56)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--variant", "16x20"), "16x20, which is always there"),
        (("--variant", "4x8", "--variant", "4x8"), "--variant is given once"),
        (("--variant", "4"), "a variant is ROWSxTOKENS like 4x20"),
        (("--variant", "0x8"), "a variant is ROWSxTOKENS like 4x20"),
        (("--variant", "9999x8"), "a variant is ROWSxTOKENS like 4x20"),
        (("--weights", "int4"), "invalid choice: 'int4'"),
        (("--minimum-runtime", "new"), "--minimum-runtime is a release"),
        (("--words", "90"), "come together"),
        (("--preset", "tiny", "--words", "90"), "got both"),
        (tuple(w for n in range(2, 11) for w in ("--variant", f"{n}x9")), "at most 8 times"),
    ],
)
def test_options_that_make_no_sense_are_usage_errors_and_write_nothing(tmp_path, key, capfd, options, said):
    code, out, err = run(
        capfd, "export", "--checkpoint", "untrained", "--population", "p", "--signing-key", key,
        "--output", tmp_path / "bundle", *options,
    )  # fmt: skip
    assert code == 2 and out == "" and said in err and err.count("\n") == 1
    assert not (tmp_path / "bundle").exists()
