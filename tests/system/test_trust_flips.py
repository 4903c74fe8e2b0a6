"""Three thousand single-bit flips of each metadata file of a repository: none changes what is believed."""

import pytest

from tests.cloud_aggregator.test_repository import flip, holders, keys

__all__ = ["holders", "keys"]


@pytest.mark.parametrize("role", ["root", "targets", "offline", "refreshes", "snapshot", "timestamp"])
def test_three_thousand_flips_of_each_file_are_refused_or_change_nothing(holders, keys, role):
    assert flip(holders, keys, role, 3000) > 1000
