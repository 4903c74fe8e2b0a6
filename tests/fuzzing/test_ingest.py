"""Messages that lie, by the hundred, into a real aggregator: nothing stops it, an honest update still counts once."""

from random import Random

import msgspec
import pytest

from cloud_aggregator.ports import Message
from tests.cloud_aggregator.fleet import SIZE, Aggregator, delta_of, phones, update_id_of
from tests.fuzzing.mutators import mutate
from wire_contract import codec
from wire_contract.messages import Chunk, encode_message
from wire_contract.topics import UpdateTopic, build_topic

LIES = 800
GROUP = 40


def lies(rng, phone, honest, strangers):
    """One message that breaks a rule, or is damaged at random, about the honest update or a stranger's."""
    init, *chunks = honest
    mine, foreign = update_id_of(honest), update_id_of(strangers)
    chunk = msgspec.msgpack.decode(rng.choice(chunks).payload)
    draw = rng.randrange(9)
    if draw == 0:
        return Message(init.topic, mutate((init.payload, strangers[0].payload), rng))
    if draw == 1:
        return Message(rng.choice(chunks).topic, mutate([c.payload for c in chunks], rng)[:-1])
    if draw == 2:
        index = rng.choice((len(chunks), len(chunks) + 1, 8_191, 8_192, 65_535))
        body = encode_message(Chunk(update_id=mine, index=index, data=rng.randbytes(rng.randint(1, 1_024))))
        return Message(build_topic(UpdateTopic(0, phone.id, mine, index)), body)
    if draw == 3:
        data = rng.randbytes(rng.choice((1, 1_023, 1_025, 48 * 1_024)))
        return Message(chunks[0].topic, encode_message(Chunk(update_id=mine, index=0, data=data)))
    if draw == 4:
        return Message(chunks[0].topic, msgspec.msgpack.encode({**chunk, "index": rng.choice((1, -1, 2**40))}))
    if draw == 5:
        return Message(chunks[0].topic, msgspec.msgpack.encode({**chunk, "update_id": foreign}))
    if draw == 6:
        # Another device's update under this device's topic, signed by the other.
        return Message(init.topic, strangers[0].payload)
    if draw == 7:
        topic = rng.choice((init.topic, *(c.topic for c in chunks)))
        return Message(mutate((topic.encode(),), rng).decode("latin-1"), rng.choice(honest).payload)
    return Message(init.topic, msgspec.msgpack.encode([1, "update", phone.id, init.payload, bytes(64)]))


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_lies_about_an_update_neither_stop_the_aggregator_nor_lose_or_double_the_update(tmp_path, when):
    aggregator = Aggregator(tmp_path / "data").found()
    phone, stranger = phones(aggregator, 2)
    offer = phone.lease()
    honest = phone.update(offer, plain=long_update())
    strangers = stranger.update(stranger.lease(), plain=long_update())
    assert len(honest) == 4
    rng = Random(when)
    truth = {"before": [honest], "between": [honest[:2], honest[2:]], "after": []}[when]
    for number in range(LIES // GROUP):
        drawn = [lies(rng, phone, honest, strangers) for _ in range(GROUP)]
        group = [lie for lie in drawn if not is_honest(lie, honest)]
        if number == 10 and when == "between":
            group[5:5] = truth.pop(0)
        aggregator.take(*group)
        if number % 10 == 0:
            aggregator.turn()
    for part in truth or [honest]:
        aggregator.take(*part)
    aggregator.turn()
    row = aggregator.update_row(update_id_of(honest))
    assert (row.state, row.verdict) == ("judged", "accepted")
    aggregator.take(*honest)
    aggregator.turn()
    aggregator.restart()
    with aggregator.database.reading() as records:
        task = records.populations()[0].task
        assert [each.update_id for each in records.accepted_unused(task)] == [update_id_of(honest)]


def long_update():
    """A good update of the toy model that takes three chunks: empty deflate blocks before its body."""
    data = codec.encode(delta_of(1), None, kept=SIZE // 4, clip_norm=1.0, entropy="deflate").data
    return data[:24] + b"\0\0\0\xff\xff" * 400 + data[24:]


def is_honest(message, honest):
    return any((message.topic, message.payload) == (h.topic, h.payload) for h in honest)
