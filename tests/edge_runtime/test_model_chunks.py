"""A version over the broker while the HTTP side is gone: the toy aggregator sends, delays and lies about its pieces."""

import hashlib

import msgspec
import numpy as np
import pytest

from tests.edge_runtime.fakes import TINY, World
from wire_contract import delta
from wire_contract.index_set import encode_index_set
from wire_contract.messages import CodecPlan, ModelChunk

PIECE = 49_152


@pytest.fixture
def world(tmp_path):
    """A device that has trained on version 2 and cannot fetch version 3, its next base."""
    made = World(tmp_path / "home")
    made.type_text()
    made.aggregator.move_on()
    made.night()
    made.first = made.aggregator.model
    made.aggregator.move_on()
    made.wanted = made.aggregator.manifest.sha256
    made.held = hashlib.sha256(made.first).hexdigest()
    made.downloads.up = False
    yield made
    made.agent.close()


def nights(world, count=12, until=None):
    """Let time pass a quarter of an hour a turn; return what was refused."""
    refused = []
    for _ in range(count):
        world.clock.time += 900
        refused += world.agent.turn().refused
        world.aggregator.work()
        if until is not None and until():
            break
    return refused


def offer_delta(world):
    found = delta.encode(world.first, world.aggregator.model, world.aggregator.manifest)
    world.aggregator.pieces[world.wanted, world.held] = found
    return found


def current(world):
    held = world.agent.slots.current("training")
    return held and held.data


def asked(world):
    return [(request.held, request.first, request.count) for request in world.aggregator.model_requests]


def parts(world):
    return sorted(path.name for path in (world.home / "models").glob("*.*") if path.suffix != ".tflite")


def test_after_three_failed_downloads_a_delta_comes_over_the_broker_and_the_device_trains_on_it(world):
    offer_delta(world)
    updates = len(world.aggregator.updates)
    nights(world, 20, lambda: len(world.aggregator.updates) > updates)
    assert current(world) == world.aggregator.model and parts(world) == []
    assert asked(world) == [(world.held, 0, 4)]
    attempts = [path for path, _ in world.downloads.requests if "/deltas/" in path]
    assert len(attempts) >= 3
    sent = list(world.aggregator.updates.values())[-1]
    assert sent.header.base_version == world.aggregator.manifest.version


def test_without_a_delta_the_whole_file_comes_in_windows_of_four_and_goes_on_after_a_restart(world):
    world.aggregator.pieces[world.wanted, ""] = world.aggregator.model
    nights(world, 30, lambda: (world.wanted + ".part") in parts(world))
    while (world.home / "models" / f"{world.wanted}.part").stat().st_size < 4 * PIECE:
        nights(world, 1)
    world.kill()
    nights(world, 30, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model and parts(world) == []
    firsts = [first for held, first, _ in asked(world) if held == ""]
    assert firsts[0] == 0 and firsts[-1] == 4 and len(world.aggregator.model) // PIECE == 4
    assert asked(world)[0][0] == world.held


def test_what_http_has_begun_goes_on_over_the_broker(world):
    world.downloads.up, world.downloads.cut_after = True, 170_000
    nights(world, 8, lambda: parts(world))
    world.downloads.up = False
    assert parts(world) == [f"{world.wanted}.part"]
    world.aggregator.pieces[world.wanted, ""] = world.aggregator.model
    nights(world, 40, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model
    assert next(first for held, first, _ in asked(world) if held == "") == 150_000 // PIECE


def test_as_soon_as_http_works_again_the_broker_is_spared(world):
    nights(world, 6)
    world.downloads.up = True
    nights(world, 6)
    before = len(world.aggregator.model_requests)
    world.aggregator.move_on()
    nights(world, 6)
    assert current(world) == world.aggregator.model and len(world.aggregator.model_requests) == before


@pytest.mark.parametrize("code", ["off", "deltas_only", "too_much", "later", "not_announced"])
def test_a_denial_is_heeded_and_asked_about_again_only_after_its_window(world, code):
    world.aggregator.pieces[world.wanted, world.held] = code
    nights(world, 10, lambda: asked(world))
    count = len(asked(world))
    assert count == 1
    world.agent.turn()
    world.aggregator.work()
    world.agent.turn()
    assert len(asked(world)) == 1 and current(world) != world.aggregator.model
    world.aggregator.pieces.clear()
    offer_delta(world)
    nights(world, 30, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model


def test_pieces_that_lie_are_dropped_by_name_and_the_honest_ones_still_end_right(world):
    world.aggregator.pieces[world.wanted, world.held] = "no_delta"
    whole = world.aggregator.pieces[world.wanted, ""] = world.aggregator.model
    honest = world.aggregator.send_piece

    def lie(device, chunk):
        replace = msgspec.structs.replace
        honest(device, replace(chunk, wanted="ab" * 32))
        honest(device, replace(chunk, held="ab" * 32))
        honest(device, replace(chunk, size_bytes=chunk.size_bytes - 1))
        honest(device, replace(chunk, data=chunk.data[:-1]))
        honest(device, replace(chunk, index=chunk.index + 1, data=whole[PIECE * (chunk.index + 1) :][:PIECE] or b"x"))
        honest(device, chunk)
        honest(device, chunk)

    world.aggregator.send_piece = lie
    refused = nights(world, 40, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model and parts(world) == []
    assert {"model_chunk_not_asked_for", "model_chunk_wrong_size", "model_chunk_out_of_turn"} <= set(refused)
    assert "model_chunks_lie" not in refused


def test_pieces_that_nobody_asked_for_leave_nothing_on_the_disk(world):
    chunk = ModelChunk(wanted=world.wanted, held="", size_bytes=len(world.aggregator.model), index=0, data=b"x" * PIECE)
    world.aggregator.send_piece(world.agent.identity.device, chunk)
    # At rest it is not connected: the piece waits with the broker until a check-in is due.
    world.clock.time = world.agent.state.not_before
    refused = world.agent.turn().refused
    assert "model_chunk_not_asked_for" in refused and parts(world) == []


@pytest.mark.parametrize("form", ["delta", "file"])
def test_three_wholes_that_hash_wrong_are_refused_by_name_and_nothing_more_is_asked_for(world, form):
    honest = offer_delta(world)
    if form == "delta":
        world.aggregator.pieces[world.wanted, world.held] = honest[:-1] + bytes([honest[-1] ^ 1])
    else:
        world.aggregator.pieces[world.wanted, world.held] = "no_delta"
        world.aggregator.pieces[world.wanted, ""] = world.aggregator.model[:-1] + b"?"
    refused = nights(world, 60, lambda: False)
    assert refused.count("model_chunks_lie") == 1
    assert current(world) == world.first and parts(world) == []
    count = len(asked(world))
    nights(world, 10)
    assert len(asked(world)) == count
    world.downloads.up = True
    nights(world, 10)
    assert current(world) == world.aggregator.model


def test_a_part_that_is_longer_than_anything_there_is_begins_anew(world):
    found = offer_delta(world)
    nights(world, 1)
    part = world.home / "models" / f"{world.wanted}.{world.held[:16]}.part"
    part.write_bytes(bytes(PIECE))
    world.aggregator.pieces[world.wanted, world.held] = "past_the_end"
    nights(world, 12, lambda: asked(world))
    assert asked(world) == [(world.held, 1, 4)]
    world.agent.turn()
    assert parts(world) == []
    world.aggregator.pieces[world.wanted, world.held] = found
    nights(world, 12, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model


def test_a_request_without_an_answer_is_repeated_later_and_later(world):
    world.aggregator.send_pieces = world.aggregator.model_requests.append
    nights(world, 24)
    times = [request.sent_at for request in world.aggregator.model_requests]
    assert 2 <= len(times) <= 24 and len({request.nonce for request in world.aggregator.model_requests}) == len(times)


def test_pieces_that_do_not_all_come_in_time_are_asked_for_in_smaller_numbers_and_then_in_larger_ones_again(world):
    world.aggregator.pieces[world.wanted, ""] = world.aggregator.model
    world.aggregator.pieces[world.wanted, world.held] = "no_delta"
    honest, let_through = world.aggregator.send_piece, [0, 0, 9, 9, 9, 9]

    def some_of_them(device, chunk):
        # A link so slow that of each request only the first pieces come before the next look.
        if chunk.index < world.asked_first + let_through[0]:
            honest(device, chunk)

    pieces = world.aggregator.send_pieces

    def answer(request):
        if request.held == "":
            world.asked_first = request.first
            pieces(request)
            let_through.pop(0)
        else:
            pieces(request)

    world.aggregator.send_piece, world.aggregator.send_pieces = some_of_them, answer
    nights(world, 60, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model
    whole = [(first, count) for held, first, count in asked(world) if held == ""]
    assert whole == [(0, 4), (0, 2), (0, 1), (1, 2), (3, 4)]


def test_a_refresh_comes_over_the_broker_too_and_both_tracks_end_right(world):
    offer_delta(world)
    signed, manifest, model = world.aggregator.next_version("refresh")
    world.aggregator.announce(signed, manifest, model, ("refresh",))
    world.aggregator.pieces[manifest.sha256, world.held] = delta.encode(world.first, model, manifest)

    def both():
        refresh = world.agent.slots.current("refresh")
        return current(world) == world.aggregator.model and refresh is not None and refresh.data == model

    nights(world, 40, both)
    assert both() and parts(world) == []
    assert {request.wanted for request in world.aggregator.model_requests} == {world.wanted, manifest.sha256}


def test_a_piece_that_lies_about_the_size_does_not_shut_the_honest_ones_out_for_ever(world):
    # Three pieces that are no delta: that they were all taken shows in what the whole is refused for.
    world.aggregator.pieces[world.wanted, world.held] = b"?" * (3 * PIECE - 1)
    honest = world.aggregator.send_piece

    def lie_once(device, chunk):
        world.aggregator.send_piece = honest
        honest(device, msgspec.structs.replace(chunk, size_bytes=4 * PIECE))

    world.aggregator.send_piece = lie_once
    refused = nights(world, 24)
    assert "delta_malformed" in refused


def test_pieces_that_lied_do_not_spoil_the_file_that_http_brings_afterwards(world):
    world.aggregator.pieces[world.wanted, ""] = b"?" * PIECE + world.aggregator.model[PIECE:]
    nights(world, 30, lambda: (world.wanted + ".part") in parts(world))
    assert (world.home / "models" / f"{world.wanted}.part").read_bytes()[:PIECE] == b"?" * PIECE
    world.downloads.up = True
    refused = nights(world, 8, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model and parts(world) == []
    assert "part_wrong_hash" in refused and "wrong_hash" not in refused


def test_a_base_from_the_broker_does_not_begin_a_training_whose_index_set_is_missing(world):
    size = world.aggregator.manifest.parameters
    file = encode_index_set(size, np.arange(0, size, 20))
    name = hashlib.sha256(file).hexdigest()
    shared = CodecPlan(mode="shared", bits=6, headroom_bits=10, index_set=name)
    world.aggregator.plan = msgspec.structs.replace(world.aggregator.plan, codec=shared)
    offer_delta(world)
    refused = nights(world, 12, lambda: current(world) == world.aggregator.model)
    assert current(world) == world.aggregator.model
    assert "plan_refused" not in refused and world.agent.state.phase.value == "fetching"
    world.downloads.up = True
    world.downloads.files[f"/v1/index-sets/{name}"] = file
    updates = len(world.aggregator.updates)
    nights(world, 8, lambda: len(world.aggregator.updates) > updates)
    assert len(world.aggregator.updates) > updates


def test_a_delta_that_is_here_already_comes_before_one_that_would_have_to_be_fetched(world):
    older = hashlib.sha256((TINY / "model.tflite").read_bytes()).hexdigest()
    slots, manifest = world.agent.slots, world.aggregator.manifest
    assert [sha256 for sha256, _ in slots.bases("training", manifest)] == [world.held, older]
    found = delta.encode((TINY / "model.tflite").read_bytes(), world.aggregator.model, manifest)
    slots.part(manifest, older).with_suffix(".delta").write_bytes(found)
    before = len(world.downloads.requests)
    slots.install(world.aggregator.signed, "training", world.clock.time)
    assert current(world) == world.aggregator.model and len(world.downloads.requests) == before
