import numpy as np

from edge_runtime import personalization
from edge_runtime.adapters import personal_copy
from edge_runtime.model_slots import Held
from edge_runtime.personalization import make_copy
from tests.edge_runtime import numpy_model
from tests.edge_runtime.test_local_training import MANIFEST, MODEL, PACKED, RUNNER, STREAM
from wire_contract.layout import Layout
from wire_contract.manifest import template_hash
from wire_contract.patch import read_tensors

TENSORS = read_tensors(MODEL, MANIFEST)


def test_an_accepted_copy_makes_unseen_text_of_the_same_person_likelier():
    copy = make_copy(RUNNER, MANIFEST, TENSORS, STREAM, seed=1)
    assert copy.accepted and copy.loss_copy < copy.loss_received
    unseen = [[int(i) for i in np.random.default_rng(30).zipf(1.3, 400).clip(1, 599)]]
    count, _, _, before = numpy_model.score_of(TENSORS, unseen)
    _, _, _, after = numpy_model.score_of(copy.tensors, unseen)
    assert after < before - 0.1 * count


def test_a_copy_that_makes_the_held_out_fifth_less_likely_is_refused_and_the_received_weights_stay():
    head, tail = [10, 11, 12, 13] * 60, [14, 15, 16, 17] * 15
    copy = make_copy(RUNNER, MANIFEST, TENSORS, head + tail, seed=1)
    assert not copy.accepted and copy.loss_copy > copy.loss_received
    assert all(np.array_equal(copy.tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_person_without_text_gets_no_copy():
    assert not make_copy(RUNNER, MANIFEST, TENSORS, [1, 5], seed=1).accepted


def test_no_step_of_fine_tuning_is_longer_than_the_clip_allows():
    lengths, before = [], {name: value.copy() for name, value in PACKED.items()}

    class Watched:
        def run(self, name, inputs):
            weights = {key: inputs[key] for key in before}
            lengths.append(np.sqrt(sum(float(np.sum((weights[k] - before[k]) ** 2)) for k in before)))
            before.update({key: value.copy() for key, value in weights.items()})
            return RUNNER.run(name, inputs)

    personalization.fine_tune(Watched(), MANIFEST, PACKED, STREAM[:400], seed=1, learning_rate=0.05)
    assert len(lengths) == 3 and max(lengths) <= 0.05 * 1.0001
    assert lengths[0] == 0.0 and min(lengths[1:]) > 0.0


def test_what_a_copy_had_learned_is_carried_over_to_a_newer_version():
    newer = {name: value * np.float32(1.1) for name, value in TENSORS.items()}
    copy = {name: value + np.float32(0.25) for name, value in TENSORS.items()}
    moved = personalization.carried(newer, copy, TENSORS)
    for name, value in newer.items():
        np.testing.assert_allclose(moved[name], value.astype(np.float64) + 0.25, rtol=1e-6, atol=1e-6)
    same = personalization.carried(newer, TENSORS, TENSORS)
    assert all(np.array_equal(same[name], newer[name]) for name in newer)


def test_the_personal_file_is_its_versions_template_with_the_copys_weights(tmp_path):
    held = Held(MANIFEST, MODEL)
    tensors = {name: value * np.float32(0.9) for name, value in TENSORS.items()}
    data = personal_copy.write(tmp_path, held, tensors)
    assert template_hash(data, MANIFEST) == MANIFEST.template_sha256
    assert personal_copy.read(tmp_path, MANIFEST.sha256) == data
    assert personal_copy.read(tmp_path, "0" * 64) is None, "made of another version"
    packed = Layout.of(MANIFEST).pack(read_tensors(data, MANIFEST))
    half_a_code = np.abs(tensors["projection"]).max() / 254
    np.testing.assert_allclose(packed["projection"], tensors["projection"], atol=half_a_code * 1.001)
    personal_copy.forget(tmp_path)
    assert list((tmp_path / "personal").iterdir()) == []
