"""Slimming: fewer bytes, the same answers bit for bit, and nothing shared that a version patches."""

import sys
from pathlib import Path

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from model_export.conformance import Case, run_on_device
from model_export.interpreter import Interpreter
from model_export.slimming import NotAModel, slim

pytestmark = [pytest.mark.needs_tensorflow, pytest.mark.needs_litert]

DEVICE_PROCESS = Path(__file__).parent / "device_process.py"


def any_inputs(data, seed):
    """Inputs of every signature by their own shapes; ids are small, so that they fit every table."""
    from ai_edge_litert.interpreter import Interpreter as LiteRt

    rng = np.random.Generator(np.random.PCG64(seed))
    interpreter = LiteRt(model_content=data)
    for name in interpreter.get_signature_list():
        inputs = {}
        for key, detail in interpreter.get_signature_runner(name).get_input_details().items():
            shape = tuple(detail["shape"])
            if detail["dtype"] == np.int32:
                inputs[key] = rng.integers(0, 50, shape).astype(np.int32)
            else:
                inputs[key] = np.asarray(rng.uniform(0.1, 0.5, shape), np.float32)
        yield Case(name, inputs)


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key], equal_nan=True) for key in one)


def test_every_signature_answers_the_same_bit_for_bit(converted, template):
    before, after = Interpreter(converted), Interpreter(template.data)
    cases = list(any_inputs(converted, seed=1))
    assert len(cases) == 6
    for case in cases:
        assert same(before.run(case.signature, case.inputs), after.run(case.signature, case.inputs)), case.signature


def test_every_device_interpreter_answers_the_same_bit_for_bit(converted, template, device_pythons, tmp_path):
    (tmp_path / "before.tflite").write_bytes(converted)
    (tmp_path / "after.tflite").write_bytes(template.data)
    cases = list(any_inputs(converted, seed=2))
    for python, runtime in device_pythons:
        if (str(python), runtime) == (sys.executable, "litert"):
            continue
        command = [str(python), str(DEVICE_PROCESS)]
        before = run_on_device(command, tmp_path / "before.tflite", cases, runtime)
        after = run_on_device(command, tmp_path / "after.tflite", cases, runtime)
        for case, one, other in zip(cases, before, after, strict=True):
            assert one, case.signature
            assert same(one, other), (runtime, case.signature)


def test_names_of_signatures_arguments_and_results_stay_and_other_names_go(converted, template):
    def signatures(data):
        model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data, 0))
        return {
            definition.signatureKey: (
                [(entry.name, entry.tensorIndex) for entry in definition.inputs],
                [(entry.name, entry.tensorIndex) for entry in definition.outputs],
            )
            for definition in model.signatureDefs
        }

    assert signatures(template.data) == signatures(converted)
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(template.data, 0))
    assert model.description is None
    assert model.metadata is None
    assert {tensor.name for graph in model.subgraphs for tensor in graph.tensors} == {None}


def test_the_graphs_take_a_third_less(converted, template):
    held = sum(len(entry.offsets) * entry.size_bytes for entry in template.tensors)
    assert len(template.data) - held < 0.67 * (len(converted) - held)


def test_slimming_twice_changes_nothing_more(template):
    assert slim(template.data) == template.data


def test_data_stand_on_multiples_of_sixteen_bytes(template):
    model = schema.Model.GetRootAs(template.data, 0)
    places = []
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        if buffer.DataLength():
            places.append(buffer._tab.Vector(buffer._tab.Offset(4)))
    assert len(places) > 5
    assert [place for place in places if place % 16] == []
    assert all(entry.offsets[0] % 16 == 0 for entry in template.tensors)


def a_model(tensors, buffers, scales=None):
    """A file of one graph without ops; `tensors` are (type, buffer)."""
    model = schema.ModelT(
        version=3,
        buffers=[schema.BufferT(data=None if data is None else np.frombuffer(data, np.uint8)) for data in buffers],
        subgraphs=[
            schema.SubGraphT(
                name=b"main",
                tensors=[
                    schema.TensorT(
                        shape=np.array([2], np.int32),
                        type=kind,
                        buffer=buffer,
                        name=f"t{i}".encode(),
                        quantization=None
                        if scales is None
                        else schema.QuantizationParametersT(scale=np.array([scales[i]], np.float32)),
                    )
                    for i, (kind, buffer) in enumerate(tensors)
                ],
                inputs=np.array([0], np.int32),
                outputs=np.array([0], np.int32),
                operators=[],
            )
        ],
        operatorCodes=[],
        signatureDefs=[],
    )
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def test_equal_weights_stay_two_and_equal_whole_numbers_become_one():
    whole, real = schema.TensorType.INT32, schema.TensorType.FLOAT32
    twice = bytes(8)
    data = a_model([(real, 1), (real, 2), (whole, 3), (whole, 4)], [None, twice, twice, twice, twice])
    graph = schema.ModelT.InitFromObj(schema.Model.GetRootAs(slim(data), 0)).subgraphs[0]
    first, second, third, fourth = (tensor.buffer for tensor in graph.tensors)
    assert len({first, second, third}) == 3
    assert third == fourth


def test_equal_scales_stay_two_because_a_version_changes_each():
    data = a_model([(schema.TensorType.INT8, 1), (schema.TensorType.INT8, 2)], [None, b"ab", b"ab"], [0.5, 0.5])
    graph = schema.Model.GetRootAs(slim(data), 0).Subgraphs(0)
    places = set()
    for i in range(2):
        table = graph.Tensors(i).Quantization()._tab
        places.add(table.Vector(table.Offset(8)))
    assert len(places) == 2


def test_a_tensor_without_data_refers_to_the_empty_buffer():
    data = a_model([(schema.TensorType.FLOAT32, 2), (schema.TensorType.FLOAT32, 1)], [None, b"12345678", None, b""])
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(slim(data), 0))
    assert [tensor.buffer for tensor in model.subgraphs[0].tensors] == [0, 1]
    assert [None if buffer.data is None else bytes(buffer.data) for buffer in model.buffers] == [None, b"12345678"]


@pytest.mark.parametrize("data", [b"", b"short", b"\x1c\x00\x00\x00TFL2" + bytes(64)])
def test_bytes_that_are_no_model_are_refused(data):
    with pytest.raises(NotAModel, match=r"a \.tflite has the identifier TFL3, got"):
        slim(data)


def test_a_model_that_keeps_data_outside_is_refused():
    model = schema.ModelT(version=3, buffers=[schema.BufferT(), schema.BufferT(offset=4096, size=8)], subgraphs=[])
    builder = flatbuffers.Builder(256)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    with pytest.raises(NotAModel, match="keeps its data inside the flatbuffer"):
        slim(bytes(builder.Output()))
