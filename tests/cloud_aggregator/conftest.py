"""Fixtures of the aggregator's tests; brokers are started for real."""

import os

import pytest

from benchmarks.postgres import Cluster, find_programs
from cloud_aggregator.adapters.broker import find_mosquitto, start_broker
from tests.cloud_aggregator.fleet import POPULATION, Aggregator, Phone


@pytest.fixture(scope="session")
def cluster():
    programs = find_programs()
    if programs is None:
        if os.environ.get("CI") == "true":
            pytest.fail("PostgreSQL is missing: apt-get install postgresql")
        pytest.skip("PostgreSQL is missing: apt-get install postgresql")
    running = Cluster(programs, durable=False)
    yield running
    running.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request):
    """The URL of an empty database of each kind; empty means SQLite in the data directory."""
    return request.getfixturevalue("cluster").new_database() if request.param == "postgresql" else ""


@pytest.fixture
def aggregator(tmp_path):
    return Aggregator(tmp_path / "data").found()


@pytest.fixture
def phone(aggregator):
    phone = Phone(1, aggregator)
    assert phone.enrol().population == POPULATION
    return phone


@pytest.fixture(params=[pytest.param("mosquitto", marks=pytest.mark.needs_mosquitto), "iotcore"])
def broker_kind(request):
    if request.param == "mosquitto" and find_mosquitto() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("mosquitto is missing: apt-get install mosquitto")
        pytest.skip("mosquitto is missing: apt-get install mosquitto")
    return request.param


@pytest.fixture
def broker(broker_kind, tmp_path):
    handle = start_broker("", tmp_path / "broker", say=lambda text: None, prefer=broker_kind)
    yield handle
    handle.stop()
