"""Damaged files and rows of our own: refused, or read as what their bytes say; never anything else."""

from tests.fuzzing.harness import check_seeds, fuzz
from tests.fuzzing.storage_targets import targets

INPUTS = 40_000


def test_damaged_residuals_kept_vectors_and_partial_sums_are_refused_or_read_as_they_are():
    readers = targets()
    assert [str(finding) for finding in check_seeds(readers)] == []
    tallies = fuzz(readers, INPUTS, 20_261_124)
    assert [str(finding) for tally in tallies for finding in tally.findings] == []
    for target, tally in zip(readers, tallies, strict=True):
        assert {(broken.field, broken.rule) for broken in target.broken} == set(tally.broken), target.name
        assert tally.refused > tally.inputs / 20, target.name
        assert tally.accepted > 0, target.name
