"""Weights of other frameworks: taken over exactly, or refused by the rule that they break."""

import contextlib
import io
import json
import pickle
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli_contract.main import run_command
from model_export import reference
from model_export.checkpoint import checkpoint_size, load_checkpoint
from model_export.cli import build_parser
from model_export.importing.array_files import read_arrays, read_npz, read_safetensors
from model_export.importing.imported import import_weights
from model_export.importing.logit_check import answers_of, compare
from model_export.importing.name_map import OUR_NAMES, assemble, parse_name_map
from model_export.importing.refusal import BadImport
from model_export.importing.torch_file import read_torch
from model_export.importing.vocabulary_file import in_our_order, read_rows
from model_export.network import NetworkSize, initial_tensors
from wire_contract.vocabulary import SPECIALS

FIXTURE = Path(__file__).parents[1] / "fixtures" / "torch"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = [f"{a}{b}" for a in LETTERS for b in LETTERS]
MAP = """
embedding = "emb.weight"
output_bias = "out.bias"
[kernel]
columns = ["cell.weight_ih", "cell.weight_hh"]
order = ["input", "candidate", "output"]
[kernel_bias]
sum = ["cell.bias_ih", "cell.bias_hh"]
order = ["input", "candidate", "output"]
[projection]
from = "cell.proj.weight"
"""


def lines(words):
    return ("\n".join(words) + "\n").encode()


@pytest.fixture(scope="module")
def state_dict():
    return read_torch(FIXTURE / "cifg.pt")


@pytest.fixture(scope="module")
def answers():
    return answers_of(read_npz(FIXTURE / "cifg-logits.npz"), 70)


# ---- PyTorch


def test_a_state_dict_of_torch_answers_here_as_it_did_there(state_dict, answers):
    imported = import_weights(state_dict, parse_name_map(MAP.encode()), lines(WORDS[:70]), {})
    assert imported.size == NetworkSize(words=74, width=16, cells=64)
    assert imported.unused == [], "the output layer is the embedding once more"
    agreement = compare(imported.tensors, imported.rows, answers)
    assert agreement.worst < 2e-6
    assert agreement.logits == 2 * 9 * 70


@pytest.mark.parametrize(
    "wrong",
    [
        MAP.replace('["input", "candidate", "output"]', '["forget", "candidate", "output"]', 1),
        MAP.replace('["input", "candidate", "output"]', '["input", "output", "candidate"]'),
        MAP.replace('"cell.weight_ih", "cell.weight_hh"', '"cell.weight_hh", "cell.weight_ih"'),
        MAP.replace('sum = ["cell.bias_ih", "cell.bias_hh"]', 'from = "cell.bias_ih"'),
        MAP.replace('output_bias = "out.bias"', "output_bias.zeros = true"),
    ],
)
def test_a_map_that_is_wrong_though_its_shapes_fit_is_found_by_the_logits(state_dict, answers, wrong):
    imported = import_weights(state_dict, parse_name_map(wrong.encode()), lines(WORDS[:70]), {})
    with pytest.raises(BadImport, match=r"within 0\.0001, got .* at row \d, after token \d, for '[a-z]+' \(source id"):
        compare(imported.tensors, imported.rows, answers)


def test_views_number_types_and_nested_dictionaries_of_torch_are_read():
    arrays = read_torch(FIXTURE / "views.pt")
    assert sorted(arrays) == [f"model.{n}" for n in ("brain", "double", "part", "scalar", "transposed", "whole")]
    assert np.array_equal(arrays["model.transposed"], np.arange(12.0).reshape(3, 4).T)
    assert arrays["model.part"].dtype == np.float16 and arrays["model.part"].tolist() == [2, 3, 4, 5, 6]
    assert arrays["model.brain"].dtype == np.float32 and arrays["model.brain"].tolist() == [0, 0.25, 0.5]
    assert arrays["model.double"].dtype == np.float64
    assert arrays["model.scalar"].shape == () and float(arrays["model.scalar"]) == 1.5


class Attack:
    def __init__(self, function, *arguments):
        self.answer = (function, arguments)

    def __reduce__(self):
        return self.answer


def torch_archive(path, pickled, **members):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"a/data/{name.removeprefix('_')}", data)
    return path


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Attack(exec, "raise SystemExit('ran')"), "exec"),
        (Attack(eval, "1"), "eval"),
        (Attack(Path, "/"), "Path"),
        (Attack(io.open, "/tmp/x", "w"), "open"),
        ({"w": Attack(OrderedDict.fromkeys, "ab")}, "getattr"),
        (Path("x"), "Path"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused_by_that_name_and_nothing_runs(tmp_path, attack, named):
    path = torch_archive(tmp_path / "w.pt", pickle.dumps(attack, protocol=2))
    with pytest.raises(BadImport, match=rf"storages only, got '[\w.]*{named}'"):
        read_torch(path)


def tensor_pickle(kind=b"FloatStorage", key=b"0", length=4, offset=0, shape=(2, 2), strides=(2, 1)):
    """What torch writes of one tensor, by hand, so that each number in it can lie."""

    def number(n):
        return b"J" + int(n).to_bytes(4, "little", signed=True)

    def text(value):
        return b"X" + len(value).to_bytes(4, "little") + value

    def several(values):
        return b"(" + b"".join(number(v) for v in values) + b"t"

    storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + number(length) + b"tQ"
    arguments = (
        b"("
        + storage
        + number(offset)
        + several(shape)
        + several(strides)
        + b"\x89"
        + b"ccollections\nOrderedDict\n)R"
        + b"t"
    )
    return b"\x80\x02}(" + text(b"w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Ru."


def test_the_pickle_written_by_hand_is_one_that_is_read(tmp_path):
    path = torch_archive(tmp_path / "w.pt", tensor_pickle(), _0=np.arange(4, dtype="<f4").tobytes())
    assert read_torch(path)["w"].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("lie", "rule"),
    [
        ({"offset": 1}, "inside its storage"),
        ({"offset": -1}, "at most"),
        ({"strides": (1 << 30, 1)}, "inside its storage"),
        ({"strides": (-2, 1)}, "at most"),
        ({"shape": (1 << 30, 1 << 30), "strides": (0, 0)}, "at most 134217728 values"),
        ({"shape": (1 << 27, 1), "strides": (0, 0), "length": 5}, "16|20 bytes, got 16"),
        ({"length": 5}, "has 20 bytes, got 16"),
        ({"length": -1}, "a storage has at most"),
        ({"kind": b"QUInt8Storage"}, "torch.QUInt8Storage"),
        ({"kind": b"DoubleStorage"}, "has 32 bytes, got 16"),
        ({"key": b"../../x"}, "got none"),
        ({"strides": (1,)}, "as many strides"),
        ({"shape": (1,) * 9, "strides": (0,) * 9}, "at most 8 dimensions"),
        ({"shape": (0,), "strides": (1,), "offset": 1 << 30}, "inside its storage"),
    ],
)
def test_a_tensor_that_lies_about_its_storage_is_refused(tmp_path, lie, rule):
    path = torch_archive(tmp_path / "w.pt", tensor_pickle(**lie), _0=np.arange(4, dtype="<f4").tobytes())
    with pytest.raises(BadImport, match=rule):
        read_torch(path)


def test_dictionaries_that_hold_each_other_a_million_times_over_are_refused(tmp_path):
    # A dictionary of a hundred names for the same dictionary of a hundred names, and so on, four deep: 10^8 paths.
    pickled = b"\x80\x02"
    for level in range(4):
        held = b"}" if level == 0 else b"h" + bytes([level - 1])
        pickled += b"}(" + b"".join(b"X\x02\x00\x00\x00%02d" % n + held for n in range(100)) + b"uq" + bytes([level])
    with pytest.raises(BadImport, match="at most 65536 values"):
        read_torch(torch_archive(tmp_path / "w.pt", pickled + b"."))


NESTED = b")" + b"\x85" * 300_000


@pytest.mark.parametrize(
    ("pickled", "rule"),
    [
        # Python hashes, and so follows, all of a tuple that is a key.
        (b"}" + NESTED + b"K\x01s.", "a key is text or a number"),
        (b"ccollections\nOrderedDict\n](" + NESTED + b"K\x01\x86e\x85R.", "an OrderedDict is made empty"),
        (b"(" + NESTED + b"NNNNtQ.", "a storage that torch"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00" + NESTED + NESTED + b"tR.", "as many strides"),
        # Looked at once for each time that it is called: 10^5 values, as often as the pickle is long.
        (b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00(" + b"K\x00" * 100_000 + b"t)tR.", "at most 8 dimensions"),
    ],
    ids=["a key", "a pair", "a storage", "a shape", "a long shape"],
)
def test_what_is_nested_without_end_is_refused_and_does_not_end_the_process(tmp_path, pickled, rule):
    path = torch_archive(tmp_path / "w.pt", b"\x80\x02" + pickled)
    code = "import sys; from pathlib import Path; from model_export.importing.torch_file import read_torch\n"
    code += "from model_export.importing.refusal import BadImport\n"
    code += "try: read_torch(Path(sys.argv[1]))\nexcept BadImport as e: print(e)"
    asked = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=60)
    assert (asked.returncode, asked.stderr) == (0, "") and rule in asked.stdout


def test_a_torch_file_whose_deflated_bytes_are_damaged_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}." * 100)
    whole = bytearray(path.read_bytes())
    begins = whole.index(b"data.pkl") + len(b"data.pkl")
    whole[begins : begins + 6] = bytes(byte ^ 0xFF for byte in whole[begins : begins + 6])
    path.write_bytes(whole)
    with pytest.raises(BadImport, match="the archive cannot be read"):
        read_torch(path)


def test_steps_that_are_never_taken_may_be_any_number_and_empty_tensors_are_empty(tmp_path):
    for shape, strides, expected in [((1, 2), (1 << 30, 1), [[0, 1]]), ((0, 5), (5, 1), []), ((0,), (1,), [])]:
        pickled = tensor_pickle(shape=shape, strides=strides)
        path = torch_archive(tmp_path / "w.pt", pickled, _0=np.arange(4, dtype="<f4").tobytes())
        assert read_torch(path)["w"].tolist() == expected


@given(st.data())
def test_a_damaged_torch_file_is_refused_or_read_but_never_crashes(data):
    whole = bytearray(tensor_pickle())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(1, len(whole)))])
    with tempfile.TemporaryDirectory() as folder:
        path = torch_archive(Path(folder) / "w.pt", cut, _0=np.arange(4, dtype="<f4").tobytes())
        # It may still be an honest one; what it may not do is raise anything else.
        with contextlib.suppress(BadImport):
            assert all(isinstance(value, np.ndarray) for value in read_torch(path).values())


@pytest.mark.parametrize("data", [b"", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"PK\x03\x04junk" * 9])
def test_an_old_or_broken_torch_file_says_which_form_is_read(tmp_path, data):
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(BadImport, match=r"zip form of torch\.save .* or \.safetensors"):
        read_arrays(tmp_path / "w.pth")


# ---- other files of arrays


def test_safetensors_of_the_reference_writer_are_read(tmp_path, state_dict):
    from safetensors.numpy import save_file

    save_file({**state_dict, "halves": np.arange(4, dtype=np.float16)}, tmp_path / "w.safetensors")
    back = read_arrays(tmp_path / "w.safetensors")
    assert set(back) == {*state_dict, "halves"}
    assert all(np.array_equal(back[name], value) for name, value in state_dict.items())


def safetensors(header, body=bytes(16)):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + body


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"", "lies in the file"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "lies in the file"),
        (safetensors(b"{"), "header is JSON"),
        (safetensors(b"[" * 5000), "header is JSON"),
        (safetensors([1]), "an object"),
        (safetensors({"w": {"dtype": "F32", "shape": [4]}}), "data_offsets"),
        (safetensors({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 1 << 40]}}), "lies inside the file"),
        (safetensors({"w": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}), "lies inside the file"),
        (safetensors({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 16]}}), "values of F32"),
        (safetensors({"w": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}}), "can have"),
        (safetensors({"w": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 16]}}), "values of BF16"),
    ],
)
def test_a_safetensors_file_that_lies_is_refused(tmp_path, data, rule):
    (tmp_path / "w.safetensors").write_bytes(data)
    with pytest.raises(BadImport, match=rule):
        read_safetensors(tmp_path / "w.safetensors")


def test_brain_floats_of_safetensors_are_the_upper_halves_of_float32(tmp_path):
    bits = (np.array([1.5, -2.0], np.float32).view(np.uint32) >> 16).astype("<u2")
    header = {"w": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    (tmp_path / "w.safetensors").write_bytes(safetensors(header, bits.tobytes()))
    assert read_safetensors(tmp_path / "w.safetensors")["w"].tolist() == [1.5, -2.0]


HEADERS = [
    b"'" * 3,
    b"(" * 3000,
    b"-" * 9000,
    b"  a\n b",
    b"{1: {[]: 2}}",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (1,2",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,-2), }",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2), }",
    b"{'descr': ('<f4', (2,)), 'fortran_order': False, 'shape': (1,), }",
]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_numpy_stumbles_over_is_refused(tmp_path, header):
    npy = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + bytes(8)
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", npy)
    with pytest.raises(BadImport):
        read_npz(tmp_path / "w.npz")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_archive_with_any_bytes_changed_is_read_or_refused(tmp_path, compression):
    path, stream, rng = tmp_path / "w.npz", io.BytesIO(), np.random.default_rng(7)
    np.save(stream, np.arange(64, dtype=np.float32))
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("w.npy", stream.getvalue())
    whole = path.read_bytes()
    for _ in range(500):
        broken = bytearray(whole)
        broken[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        # OSError: an offset that became negative; a command tells it as any file that cannot be read.
        with contextlib.suppress(BadImport, OSError):
            assert all(isinstance(array, np.ndarray) for array in read_npz(path).values())


def test_an_npz_with_objects_or_a_huge_header_is_refused_before_anything_is_made(tmp_path):
    path = tmp_path / "w.npz"
    np.savez(path, w=np.array([{}], object))
    with pytest.raises(BadImport, match="holds object"):
        read_npz(path)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", header.getvalue())
    with pytest.raises(BadImport, match="got 0 bytes"):
        read_npz(path)


def test_an_unknown_ending_names_those_that_are_read(tmp_path):
    (tmp_path / "w.onnx").write_bytes(b"x")
    with pytest.raises(
        BadImport, match=r"ends in \.npz, \.safetensors, \.weights\.h5, \.keras, \.pt, \.pth .*'w\.onnx'"
    ):
        read_arrays(tmp_path / "w.onnx")


# ---- the name map


def arrays_of(size=None, **change):
    size = size or NetworkSize(words=70, width=16, cells=64)
    tensors = initial_tensors(size, np.random.Generator(np.random.PCG64(2)))
    return {**tensors, **change}


OURS = "\n".join(f'{name} = "{name}"' for name in OUR_NAMES.recipes)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("embedding =", "is TOML"),
        (OURS + "\n[cell]\n", r"and specials, got \['cell'\]"),
        ('embedding = "e"', "says nothing of kernel, projection, kernel_bias, output_bias"),
        (OURS.replace('"kernel"', "7"), "kernel is a name or a table"),
        (OURS.replace('"kernel"', '{ from = "kernel", sum = ["a"] }'), r"takes one of .* got \['from', 'sum'\]"),
        (OURS.replace('"kernel"', '{ from = "kernel", scale = 2 }'), r"got \['scale'\]"),
        (OURS.replace('"kernel"', "{ zeros = true }"), "for a bias, got kernel"),
        (OURS.replace('"kernel"', '{ from = "kernel", transpose = 1 }'), "true or false"),
        (OURS.replace('"kernel"', '{ from = "kernel", slice = [5, 5] }'), "begins before it ends"),
        (OURS.replace('"kernel"', '{ from = "kernel", order = ["input", "forget", "candidate"] }'), "another cell"),
        (OURS.replace('"kernel"', '{ from = "kernel", order = ["a", "forget", "candidate"] }'), "once each"),
        (OURS.replace('"embedding"', '{ from = "embedding", order = ["forget", "output", "candidate"] }'), "in kernel"),
        (OURS + '\n[specials]\n"<eos>" = "x"\n', "source's words for"),
    ],
)
def test_a_name_map_that_breaks_a_rule_says_which(text, rule):
    with pytest.raises(BadImport, match=rule):
        parse_name_map(text.encode())


def test_a_fused_kernel_of_four_gates_is_refused_as_another_cell():
    four = arrays_of(kernel=np.zeros((256, 32), np.float32), kernel_bias=np.zeros(256, np.float32))
    with pytest.raises(BadImport, match=r"three gates of 64 rows .* got 256 rows: a fused kernel of four gates"):
        assemble(four, OUR_NAMES)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ({"kernel": np.zeros((192, 31), np.float32)}, r"kernel has shape \(192, 32\) beside this embedding"),
        ({"kernel": np.zeros((191, 32), np.float32)}, "three gates of 64 rows"),
        ({"projection": np.zeros((64, 16), np.float32)}, "transpose = true turns it round"),
        ({"embedding": np.zeros((70, 16), np.int64)}, "of floats, got int64"),
        ({"embedding": np.zeros((10, 16), np.float32)}, "at least 1024 values, got 160"),
        ({"output_bias": np.full(70, np.nan, np.float32)}, "finite, got NaN or Inf in 'output_bias'"),
        ({"output_bias": np.full(70, 1e300)}, "finite, got NaN or Inf in 'output_bias'"),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused_by_name(change, rule):
    with pytest.raises(BadImport, match=rule):
        assemble(arrays_of(**change), OUR_NAMES)


def test_a_missing_array_is_named_with_those_that_are_there():
    arrays = arrays_of()
    del arrays["projection"]
    with pytest.raises(BadImport, match=r"projection comes from 'projection', and the source has \['embedding'"):
        assemble(arrays, OUR_NAMES)


def test_slices_rows_transposes_and_orders_give_back_the_tensors_that_were_taken_apart():
    ours = arrays_of()
    forget, output, candidate = np.split(ours["kernel"], 3)
    taken = {
        "table": np.concatenate([ours["embedding"], np.ones((58, 16), np.float32)]),
        "c": candidate.T, "i": -forget.T, "o": output.T,
        "proj": ours["projection"].T.astype(np.float64),
        "b": np.concatenate([np.split(ours["kernel_bias"], 3)[k] for k in (2, 1, 0)]),
        "out": ours["output_bias"],
    }  # fmt: skip
    names = parse_name_map(b"""
        output_bias = "out"
        [embedding]
        from = "table"
        slice = [0, 70]
        [kernel]
        rows = ["c", "i", "o"]
        transpose = true
        order = ["candidate", "input", "output"]
        [projection]
        from = "proj"
        transpose = true
        [kernel_bias]
        from = "b"
        order = ["candidate", "output", "forget"]
    """)
    size, back = assemble(taken, names)
    assert size == NetworkSize(words=70, width=16, cells=64)
    assert all(np.array_equal(back[name], ours[name]) for name in ours)


def test_an_output_layer_of_its_own_is_refused_whatever_it_is_called():
    arrays = arrays_of(decoder=np.ones((16, 70), np.float32))
    with pytest.raises(BadImport, match=r"one matrix .tied., got another one of that shape, 'decoder'"):
        import_weights(arrays, OUR_NAMES, lines(WORDS[:70]), {})


def test_the_map_that_the_page_shows_is_one_that_is_read():
    page = (Path(__file__).parents[2] / "docs" / "import-a-model.md").read_text()
    block = page.split("## The name map")[1].split("`rows = [...]`")[0]
    names = parse_name_map("\n".join(line[4:] for line in block.splitlines()).encode())
    assert names.recipes["kernel"].sources == ("cell.weight_ih", "cell.weight_hh")
    assert names.recipes["output_bias"].join == "zeros" and names.recipes["projection"].transpose
    assert names.specials == {"<unk>": "[UNK]"}


# ---- the vocabulary


@pytest.mark.parametrize(
    ("data", "rows", "rule"),
    [
        (lines(["one", "two", "one"]), 3, r"line 3: a word stands once, got 'one' of line 1"),
        (lines(["one", "", "two"]), 3, r"line 2: a line holds a word, got an empty one"),
        (b"one\ntw\xff\n", 2, r"line 2: a file is UTF-8, got byte 0xff"),
        (b"\xef\xbb\xbfone\n", 1, r"line 1: .* byte order mark"),
        (lines(["one", "Two"]), 2, r"line 2: a word is letters .* got 'Two'"),
        (lines(["one", "two"]), 3, r"3 rows, .* got 2 lines: line 2 is the last"),
        (lines(["one", "two"]), 1, r"1 rows, .* got 2 lines: line 2 is one too many"),
        (b"a\n" * 65_537, 65_537, r"line 65537: a vocabulary has at most 65536 words"),
        (b"x" * 2_097_153, 1, r"at most 2097152 bytes"),
    ],
)
def test_a_vocabulary_that_breaks_a_rule_is_refused_by_its_line(data, rows, rule):
    with pytest.raises(BadImport, match=rule):
        read_rows(data, {}, rows)


def test_specials_are_found_wherever_they_stand_and_whatever_they_are_called():
    rows = read_rows(lines(["the", "[UNK]", "of", "<s>"]), {"<unk>": "[UNK]"}, 4)
    assert rows.vocabulary.words == (*SPECIALS, "the", "of")
    assert rows.source_rows == (-1, 3, 1, -1, 0, 2)
    assert rows.our_ids().tolist() == [4, 2, 5, 1]
    with pytest.raises(BadImport, match=r"<unk> is called '\[OOV\]', and no line says it"):
        read_rows(lines(["the"]), {"<unk>": "[OOV]"}, 1)


def test_a_special_that_is_added_takes_no_probability_from_the_words_and_moves_no_logit():
    source = arrays_of(
        NetworkSize(words=300, width=16, cells=64), output_bias=np.linspace(-9, 2, 300).astype(np.float32)
    )
    rows = read_rows(lines(WORDS[:300]), {}, 300)
    ours = in_our_order(source, rows)
    tokens = np.array([[5, 17, 200]])
    before = reference.logits_of(source, tokens.astype(np.int32))
    after = reference.logits_of(ours, rows.our_ids()[tokens].astype(np.int32))
    assert np.array_equal(before, after[..., rows.our_ids()])
    assert np.exp(reference.log_softmax(after))[..., :4].max() < 1e-3


# ---- the check and the command


@pytest.mark.parametrize(
    ("arrays", "rule"),
    [
        ({"tokens": np.zeros((1, 2), np.int32)}, "tokens and logits"),
        ({"tokens": np.zeros((1, 2), np.float32), "logits": np.zeros((1, 2, 9))}, "integers"),
        ({"tokens": np.zeros((1, 2), np.int32), "logits": np.zeros((1, 2, 8))}, "floats of one of the shapes"),
        ({"tokens": np.full((1, 2), 9, np.int32), "logits": np.zeros((1, 2, 9))}, "ids below 9"),
        ({"tokens": np.zeros((1, 2), np.int32), "logits": np.full((1, 2, 9), np.nan)}, "finite"),
        ({"tokens": np.zeros((1, 2), np.int32), "logits": np.zeros((1, 2, 9))}, "prove nothing"),
    ],
)
def test_a_check_that_proves_nothing_is_refused(arrays, rule):
    with pytest.raises(BadImport, match=rule):
        answers_of(arrays, 9)


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def options(tmp_path):
    (tmp_path / "map.toml").write_text(MAP)
    (tmp_path / "words.txt").write_bytes(lines(WORDS[:70]))
    return ("--map", tmp_path / "map.toml", "--vocabulary", tmp_path / "words.txt", "--output", tmp_path / "out")


def test_the_command_writes_a_checkpoint_of_its_own_size_with_its_provenance(tmp_path, options, capfd):
    check = FIXTURE / "cifg-logits.npz"
    code, out, err = run(capfd, "import", FIXTURE / "cifg.pt", *options, "--check", check, "--words", 74, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["worst_logit_difference"] < 2e-6
    assert said["added_specials"] == list(SPECIALS)
    folder = tmp_path / "out"
    assert sorted(path.name for path in folder.iterdir()) == ["imported.npz", "provenance.json", "vocabulary.txt"]
    size = checkpoint_size(folder / "imported.npz")
    assert size == NetworkSize(words=74, width=16, cells=64)
    kept = load_checkpoint(folder / "imported.npz", size)
    exact = import_weights(read_torch(FIXTURE / "cifg.pt"), parse_name_map(MAP.encode()), lines(WORDS[:70]), {})
    assert all(np.array_equal(kept[name], exact.tensors[name]) for name in kept), "float32 stays float32"
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["worst_logit_difference"]["cifg-logits.npz"] == said["worst_logit_difference"]
    assert set(provenance["inputs"]) == {"source", "map", "vocabulary", "check"}
    code, _, err = run(capfd, "import", FIXTURE / "cifg.pt", *options)
    assert code == 4 and "is there already" in err


def test_logits_that_differ_leave_nothing_on_disk(tmp_path, options, capfd):
    given = dict(read_npz(FIXTURE / "cifg-logits.npz"))
    given["logits"] = given["logits"].copy()
    given["logits"][1, 4, 33] += 2e-4
    np.savez(tmp_path / "check.npz", **given)
    code, out, err = run(capfd, "import", FIXTURE / "cifg.pt", *options, "--check", tmp_path / "check.npz")
    assert code == 4 and out == ""
    assert f"at row 1, after token 4, for {WORDS[33]!r} (source id 33)" in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check.npz", "map.toml", "words.txt"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (("--words", 70), 4, "--words is 74 by the source's shapes, got 70"),
        (("--cells", 1), 4, "--cells is 64"),
        (("--check", "none.npz"), 3, "no such file"),
        (("--map", "none.toml"), 3, "no such file"),
    ],
)
def test_what_is_wrong_with_an_import_is_said_in_one_line(tmp_path, options, capfd, more, code, said):
    got, _, err = run(capfd, "import", FIXTURE / "cifg.pt", *options, *more)
    assert got == code and said in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_source_is_listed_without_anything_else(capfd):
    code, out, _ = run(capfd, "import", FIXTURE / "cifg.pt", "--list", "--json")
    assert code == 0
    assert {"name": "emb.weight", "dtype": "float32", "shape": [70, 16]} in json.loads(out)["items"]
    code, _, err = run(capfd, "import", FIXTURE / "cifg.pt")
    assert code == 2 and "--vocabulary is needed" in err
