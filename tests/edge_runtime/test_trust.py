import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_runtime.trust import Accepted, Keys, ManifestRefused, TemplateUnknown, accept, accept_template
from tests.edge_runtime.fakes import FakeBroker, FakeClock, FakeDownloads, ToyAggregator
from wire_contract import envelope
from wire_contract.manifest import encode_manifest, fingerprint

CLOCK = FakeClock()
TOY = ToyAggregator(FakeBroker(), FakeDownloads(), CLOCK)
KEYS = Keys(TOY.manifest_key, envelope.public_bytes(TOY.key))
TEMPLATES = {TOY.manifest.template_sha256: TOY.manifest}


NONE_YET = Accepted()


def judge(signed, before=NONE_YET, track="training", templates=TEMPLATES, population="keyboard", now=None):
    return accept(
        signed, keys=KEYS, population=population, track=track, before=before, templates=templates,
        now=CLOCK.now() if now is None else now,
    )  # fmt: skip


def patched(kind="training", **changes):
    return TOY.next_version(kind, **changes)[0]


def refusal(*arguments, **named):
    with pytest.raises(ManifestRefused) as caught:
        judge(*arguments, **named)
    return caught.value.reason


def test_the_exporters_first_version_and_the_aggregators_patch_of_it_are_accepted():
    assert judge(TOY.signed).version == 1
    assert judge(patched(), Accepted(1, TOY.manifest.sha256)).version == 2


def test_the_same_manifest_may_come_again_and_other_bytes_under_its_number_may_not():
    again = Accepted(1, TOY.manifest.sha256)
    assert judge(TOY.signed, again).version == 1
    assert refusal(patched(version=1), again) == "other_bytes"


def test_a_lower_version_is_refused_by_name():
    assert refusal(TOY.signed, Accepted(2, "0" * 64)) == "lower_version"


def test_a_patch_of_an_unknown_template_asks_for_the_templates_manifest():
    with pytest.raises(TemplateUnknown) as caught:
        judge(patched(), templates={})
    assert caught.value.template_sha256 == TOY.manifest.template_sha256


WIDER = msgspec.structs.replace(TOY.manifest.tensors[0], offsets=(TOY.manifest.tensors[0].offsets[0] - 8,))


@pytest.mark.parametrize(
    "change",
    [
        {"tensors": (WIDER, *TOY.manifest.tensors[1:])},
        {"vocabulary_sha256": "0" * 64},
        {"signatures": {"train": TOY.manifest.signatures["train"]}},
        {"golden": msgspec.structs.replace(TOY.manifest.golden, logit_tolerance=1e9)},
        {"size_bytes": TOY.manifest.size_bytes + 1},
        {"train_inputs": TOY.manifest.train_inputs[:2]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_aggregators_key_may_change_nothing_but_weights(change):
    assert fingerprint((WIDER, *TOY.manifest.tensors[1:])) == TOY.manifest.layout_fingerprint
    assert refusal(patched(**change)) == "outside_template"


def test_a_strangers_signature_is_refused():
    stranger = Ed25519PrivateKey.generate()
    assert refusal(envelope.sign(stranger, "manifest", encode_manifest(TOY.manifest))) == "bad_signature"
    assert refusal(envelope.sign(TOY.key, "receipt", encode_manifest(TOY.manifest))) == "bad_signature"


def test_one_flipped_bit_anywhere_in_the_envelope_is_refused():
    signed = patched()
    for position in range(0, len(signed), 7):
        broken = bytearray(signed)
        broken[position] ^= 1
        assert refusal(bytes(broken)) in {"bad_signature", "malformed"}


def test_another_populations_an_expired_and_a_future_manifest_are_refused():
    assert refusal(TOY.signed, population="other") == "wrong_population"
    assert refusal(TOY.signed, now=TOY.manifest.expires_at) == "expired"
    assert refusal(TOY.signed, now=TOY.manifest.created_at - 86_401) == "from_the_future"


def test_a_training_version_never_reaches_the_keyboards_track():
    assert refusal(patched("training"), track="refresh") == "not_a_refresh"
    assert judge(patched("refresh"), track="refresh").version == 2


def test_a_templates_manifest_must_come_from_the_exporter_and_be_the_one_asked_for():
    wanted = TOY.manifest.template_sha256
    assert accept_template(TOY.signed, keys=KEYS, template_sha256=wanted).version == 1
    with pytest.raises(ManifestRefused, match="signed by the exporter"):
        accept_template(patched(), keys=KEYS, template_sha256=wanted)
    with pytest.raises(ManifestRefused, match="asked for"):
        accept_template(TOY.signed, keys=KEYS, template_sha256="0" * 64)
