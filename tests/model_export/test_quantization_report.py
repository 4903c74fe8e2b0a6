"""What rounding costs: errors beside float64 by hand, the report's command, other formats, the picture."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cli_contract.main import run_command
from model_export.checkpoint import save_checkpoint
from model_export.cli import build_parser
from model_export.quantization_report import relative_error, report_tensors, row_scale_bytes, rows_rounded

MATRICES = arrays.arrays(np.float32, (3, 8), elements=st.floats(-4, 4, width=32))


@given(MATRICES, st.sampled_from([8, 4]))
def test_a_value_under_its_rows_scale_is_off_by_at_most_half_a_code(matrix, bits):
    largest = {8: 127, 4: 7}[bits]
    rounded = rows_rounded(matrix, bits)
    scales = np.abs(matrix.astype(np.float64)).max(axis=1, keepdims=True) / largest
    assert np.all(np.abs(rounded - matrix.astype(np.float64)) <= scales * 0.5 * (1 + 1e-5) + 2.0**-40)
    # Rounding what is rounded already changes nothing but the scale's last bits.
    assert np.allclose(rows_rounded(rounded, bits), rounded, rtol=1e-5, atol=1e-9)


@given(MATRICES, MATRICES)
def test_the_relative_error_is_the_norms_quotient(stored, floats):
    norm = np.sqrt(np.sum(floats.astype(np.float64) ** 2))
    error = relative_error(stored, floats)
    if norm > 1e-9:
        assert error == pytest.approx(np.sqrt(np.sum((stored.astype(np.float64) - floats) ** 2)) / norm)
    assert relative_error(floats, floats) == 0


def test_four_bits_a_value_and_a_scale_a_row_are_counted():
    assert row_scale_bytes((10_000, 64), 8) == 10_000 * 64 + 40_000
    assert row_scale_bytes((10, 7), 4) == 10 * 4 + 40


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
def test_each_tensor_is_reported_with_its_bytes_its_scale_and_its_error(bundle_parts, tensors):
    model, manifest = bundle_parts
    reports = {r.name: r for r in report_tensors(model, manifest, tensors)}
    kernel, bias = reports["kernel"], reports["kernel_bias"]
    scale = np.abs(tensors["kernel"]).max() / 127
    assert kernel.scale == pytest.approx(scale, rel=1e-6)
    by_hand = np.clip(np.rint(tensors["kernel"].astype(np.float64) / scale), -127, 127) * scale
    assert kernel.error == pytest.approx(
        np.linalg.norm(by_hand - tensors["kernel"]) / np.linalg.norm(tensors["kernel"]), rel=1e-3
    )
    assert 0 < kernel.row_scales_error < kernel.error
    assert kernel.saturated == np.mean(np.abs(np.rint(tensors["kernel"].astype(np.float64) / kernel.scale)) >= 127) > 0
    assert (bias.error, bias.scale, bias.saturated, bias.row_scales_error) == (0, None, None, None)
    assert sum(r.share for r in reports.values()) < 1
    assert kernel.size_bytes >= tensors["kernel"].size + 4


def run(capfd, *arguments):
    code = run_command(build_parser, [str(argument) for argument in arguments])
    out, err = capfd.readouterr()
    return code, out, err


@pytest.fixture
def options(tmp_path, tensors, vocabulary, bundle_folder):
    save_checkpoint(tmp_path / "float.npz", tensors, "float32")
    rng = np.random.default_rng(1)
    words = [vocabulary.words[int(i)] for i in 4 + 596 * rng.random(400) ** 2]
    people = [{"user": "a", "messages": [" ".join(words[i : i + 12]) for i in range(0, 400, 12)]}]
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps(person) for person in people))
    return (bundle_folder, "--text", tmp_path / "text.jsonl", "--checkpoint", tmp_path / "float.npz", "--questions", 60)


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
def test_the_report_holds_the_file_against_its_float_weights_and_draws_it(tmp_path, options, bundle_parts, capfd):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "report.svg"
    code, out, err = run(capfd, "report", *options, "--plot", picture, "--json")
    assert code == 0, err
    said = json.loads(out)
    assert said["questions"] == 60
    scores = said["scores"]
    assert scores["float weights"]["worst"] == 0
    assert 0 < scores["this file"]["worst_likely"] <= scores["this file"]["worst"] < 0.5
    four, eight = scores["embedding in 4 bits, a scale a row"], scores["int8, a scale a row (simulated)"]
    assert four["p99"] > eight["p99"]
    assert said["recall_points_lost"] == scores["float weights"]["top3"] - scores["this file"]["top3"]
    parts = said["weight_bytes"] + sum(said["graph_bytes"].values()) + said["other_bytes"]
    assert parts == said["size_bytes"] == len(bundle_parts[0])
    assert set(said["graph_bytes"]) == set(bundle_parts[1].signatures)
    assert all(size > 0 for size in said["graph_bytes"].values())
    assert said["graph_bytes"]["train"] > said["graph_bytes"]["suggest"]
    assert ElementTree.fromstring(picture.read_bytes()).tag.endswith("svg")


def test_the_same_report_is_the_same_picture_and_a_failed_one_leaves_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    from model_export.held_out import FormScore
    from model_export.quantization_plot import draw
    from model_export.quantization_report import TensorReport

    reports = [
        TensorReport("kernel", (216, 32), "int8", 6920, 0.1, 0.01, 0.001, 0.02, 0.01),
        TensorReport("bias", (216,), "float32", 864, 0.01, None, None, 0.0, None),
    ]
    scores = {"float": FormScore(10, 20, 100, 100, 0, 0, 0), "int8": FormScore(10, 19.5, 101, 98, 0.4, 0.2, 0.1)}
    for name in ("a.svg", "b.svg", "c.png"):
        draw(tmp_path / name, reports, scores)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError):
        draw(tmp_path / "none" / "d.svg", reports, scores)
    draw(tmp_path / "e.svg", [reports[1]], scores)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.svg", "b.svg", "c.png", "e.svg"]


@pytest.mark.needs_tensorflow
@pytest.mark.needs_litert
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"--checkpoint": "other.npz"}, 4, "other weights would be measured"),
        ({"--checkpoint": "none.npz"}, 3, "no such file"),
        ({"--questions": "0"}, 2, "--questions is from 1 to"),
        ({"--plot": "picture.gif"}, 2, "--plot ends in .svg or .png"),
        ({"--text": "empty.jsonl"}, 1, "words to predict, got none"),
        ({"--text": "none.jsonl"}, 3, "no such file"),
    ],
)
def test_what_is_wrong_with_a_report_is_said_in_one_line(tmp_path, options, tensors, capfd, change, code, said):
    save_checkpoint(tmp_path / "other.npz", {**tensors, "kernel": tensors["kernel"] * 1.5}, "float32")
    (tmp_path / "empty.jsonl").write_text('{"user": "a", "messages": ["7"]}\n')
    for option, value in change.items():
        options = (*options, option, tmp_path / value if "." in value else value)
    got, out, err = run(capfd, "report", *options)
    assert got == code, err
    assert out == "" and said in err and err.count("\n") == 1


def test_without_matplotlib_the_plot_is_refused_before_anything_is_measured(tmp_path):
    # None is what Python itself keeps for a module that cannot be imported.
    program = "import sys; sys.modules['matplotlib'] = None; from model_export.cli import main; main()"
    words = ["report", str(tmp_path), "--text", "x", "--plot", str(tmp_path / "p.svg")]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 4 and done.stdout == ""
    assert "--plot needs matplotlib" in done.stderr and "pip install" in done.stderr
    assert done.stderr.count("\n") == 1
