"""Real agents, a real aggregator and HTTP side, one population setting: `plan.codec.mode = "shared"`."""

import sqlite3

import msgspec

from fleet_simulator.fleet import Fleet
from fleet_simulator.nights import DAY_S, Tick, Visit
from tests.system.test_fleet import BUNDLE, SETTINGS, first_midnight, people, running_broker
from wire_contract.messages import CodecPlan, UpdateHeader, decode_message

DEVICES = 4
SHARED = CodecPlan(mode="shared", kept=0.05, bits=6, headroom_bits=10, unit=2.0**-8)


def test_a_fleet_under_a_shared_plan_trains_releases_and_trains_on_with_the_next_set(tmp_path):
    plan = msgspec.structs.replace(SETTINGS.plan, codec=SHARED)
    settings = msgspec.structs.replace(SETTINGS, plan=plan)
    start = first_midnight()
    with running_broker("iotcore", tmp_path / "broker") as url, Fleet(
        tmp_path / "home", BUNDLE, settings, seed=3, now=start - 3600, processes=2, broker_url=url
    ) as fleet:  # fmt: skip
        fleet.move_in(people()[:DEVICES])
        accepted = []
        for night in range(3):
            visits = tuple(Visit(device, "quiet") for device in range(DEVICES))
            accepted.append(fleet.play(Tick(night, start + night * DAY_S + 3600, visits, ())).accepted)
            if night == 1:
                fleet.release()
        fleet.leave()
    assert accepted == [DEVICES, DEVICES, DEVICES]
    devices = {path.parent.parent.name: path.name for path in (tmp_path / "home").rglob("index_sets/*.efi")}
    on_devices = {path.name for path in (tmp_path / "home").rglob("index_sets/*.efi")}
    assert len(devices) == DEVICES and len(on_devices) == 2, "the first set, and the release's"
    rows = sqlite3.connect(next((tmp_path / "home/cloud").glob("*.db"))).execute(
        "select header, size_bytes from updates"
    )
    headers, sizes = zip(*((decode_message(header, UpdateHeader), size) for header, size in rows), strict=True)
    assert {header.codec for header in headers} == {"shared"}
    assert len(set(sizes)) == 1, "no size depends on the text"
