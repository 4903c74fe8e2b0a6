import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire_contract.errors import Malformed
from wire_contract.topics import DeviceTopic, ModelTopic, UpdateTopic, build_topic, parse_topic, shard_of

DEVICE = "0123456789abcdef0123456789abcdef"
TOPICS = [
    (ModelTopic("en-chat", "refresh"), "fl/v1/pop/en-chat/refresh"),
    (ModelTopic("en-chat", "training"), "fl/v1/pop/en-chat/training"),
    (DeviceTopic(DEVICE, "state"), f"fl/v1/dev/{DEVICE}/state"),
    (DeviceTopic(DEVICE, "req"), f"fl/v1/dev/{DEVICE}/req"),
    (DeviceTopic(DEVICE, "down/task"), f"fl/v1/dev/{DEVICE}/down/task"),
    (DeviceTopic(DEVICE, "down/rcpt"), f"fl/v1/dev/{DEVICE}/down/rcpt"),
    (DeviceTopic(DEVICE, "down/model"), f"fl/v1/dev/{DEVICE}/down/model"),
    (UpdateTopic(7, DEVICE, "f" * 32, None), f"fl/v1/up/7/{DEVICE}/{'f' * 32}/init"),
    (UpdateTopic(0, DEVICE, "f" * 32, 12), f"fl/v1/up/0/{DEVICE}/{'f' * 32}/12"),
]


@pytest.mark.parametrize(("topic", "text"), TOPICS, ids=lambda x: str(x)[:40])
def test_building_and_parsing_are_inverse_and_within_aws_limits(topic, text):
    assert build_topic(topic) == text
    assert parse_topic(text) == topic
    assert text.count("/") <= 7


@pytest.mark.parametrize(
    "text",
    ["", "fl/v1", "fl/v2/pop/a/refresh", "fl/v1/pop/+/refresh", "fl/v1/pop/A/refresh", "fl/v1/dev/#", "fl/v1/dev/x/req",
     f"fl/v1/up/-1/{DEVICE}/{'f' * 32}/init", f"fl/v1/up/01/{DEVICE}/{'f' * 32}/init",
     f"fl/v1/up/0/{DEVICE}/{'f' * 32}/999999", f"fl/v1/up/0/{DEVICE}/{'f' * 32}/init/x", "x" * 5000],
)  # fmt: skip
def test_a_topic_outside_the_tree_is_refused(text):
    with pytest.raises(Malformed):
        parse_topic(text)


def test_a_wildcard_cannot_be_smuggled_in():
    for bad in (ModelTopic("a/#", "refresh"), DeviceTopic("+", "req"), UpdateTopic(0, DEVICE, "#", None)):
        with pytest.raises(Malformed):
            build_topic(bad)


@given(st.text(max_size=80))
def test_any_text_parses_to_a_topic_that_builds_it_again_or_is_refused(text):
    try:
        topic = parse_topic(text)
    except Malformed:
        return
    assert build_topic(topic) == text


def test_shards_share_devices_evenly_and_for_ever():
    first = hashlib.sha256(DEVICE.encode()).hexdigest()[:16]
    assert shard_of(DEVICE, 16) == int(first[-1], 16)
    counts = [0] * 4
    for i in range(2000):
        counts[shard_of(f"{i:032x}", 4)] += 1
    assert min(counts) > 400
