"""Power cuts: the model of a disk, the judge of what was left, and the device before both.

`python -m benchmarks.crash_device` judges thousands of states; here are a hundred of all stages, and the proofs that
the model leaves nothing out that its rules allow and that the judge sees what goes wrong.
"""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.adapters import files
from tests.edge_runtime.crash_states import Disk
from tests.edge_runtime.crash_story import STAGES, Outcome, Story, Verdict, compare
from tests.edge_runtime.power_cuts import PowerCuts, memory_folder
from tests.edge_runtime.recorded_disk import Operation, contents, recording


@pytest.fixture
def memory():
    with memory_folder() as folder:
        yield folder


def states_after(*operations):
    disk = Disk()
    for operation in operations:
        disk.apply(operation)
    return [tree for _, tree in disk.states()]


def done(kind, path="file", **more):
    return Operation(kind, path, "test", **more)


def test_an_unsynced_file_is_missing_empty_torn_zeros_or_whole():
    states = states_after(done("create"), done("write", data=b"abcd"))
    assert {} in states and {"file": b""} in states and {"file": b"abcd"} in states
    assert {"file": bytes(4)} in states and {"file": b"ab"} in states


def test_a_synced_file_whose_name_is_not_synced_is_whole_or_missing():
    states = states_after(done("create"), done("write", data=b"abcd"), done("sync"))
    assert sorted(states, key=len) == [{}, {"file": b"abcd"}]


def test_what_is_synced_with_its_name_has_one_state():
    assert states_after(
        done("create"), done("write", data=b"abcd"), done("sync"), done("sync_directory", ".")
    ) == [{"file": b"abcd"}]  # fmt: skip


def test_a_rename_that_is_not_synced_shows_the_old_file_or_the_new_one():
    states = states_after(
        done("create", "old"), done("write", "old", data=b"1"), done("sync", "old"), done("sync_directory", "."),
        done("create", "new"), done("write", "new", data=b"2"), done("sync", "new"), done("sync_directory", "."),
        done("rename", "new", target="old"),
    )  # fmt: skip
    assert sorted(states, key=len) == [{"old": b"2"}, {"old": b"1", "new": b"2"}]


def test_a_rename_before_the_sync_shows_a_torn_file_under_the_final_name():
    states = states_after(
        done("create", "new"), done("write", "new", data=b"22"), done("rename", "new", target="old"),
        done("sync_directory", "."),
    )  # fmt: skip
    assert {"old": b""} in states and {"old": b"2"} in states


def test_a_deletion_that_is_not_synced_may_not_have_happened():
    states = states_after(
        done("create"), done("write", data=b"1"), done("sync"), done("sync_directory", "."), done("remove")
    )
    assert sorted(states, key=len) == [{}, {"file": b"1"}]


def test_a_folder_that_is_not_synced_in_its_parent_takes_everything_in_it():
    steps = (
        done("make_folder", "folder"), done("create", "folder/file"), done("write", "folder/file", data=b"1"),
        done("sync", "folder/file"), done("sync_directory", "folder"),
    )  # fmt: skip
    assert {} in states_after(*steps)
    assert states_after(*steps, done("sync_directory", ".")) == [{"folder/file": b"1"}]


def test_two_writes_to_one_file_may_come_in_the_other_order():
    states = states_after(
        done("create"), done("write", data=b"aa"), done("sync"), done("sync_directory", "."),
        done("write", data=b"b"), done("write", offset=1, data=b"c"),
    )  # fmt: skip
    assert {state["file"] for state in states} >= {b"aa", b"ba", b"bc", b"ac"}


def test_a_file_that_nobody_logged_as_made_is_told():
    with pytest.raises(ValueError, match="made past the layer"):
        states_after(done("write", data=b"1"))


NAMES = st.sampled_from(["a", "b", "folder/a"])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), NAMES, st.binary(max_size=8)),
        st.tuples(st.just("append"), NAMES, st.binary(max_size=8)),
        st.tuples(st.just("remove"), NAMES, st.just(b"")),
    ),
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(steps=STEPS)
def test_the_log_explains_the_disk_and_what_was_acknowledged_is_in_every_state(tmp_path_factory, steps):
    root = tmp_path_factory.mktemp("law")
    with recording(root) as disk:
        acknowledged = {}
        model, applied = Disk(), 0
        for kind, name, data in steps:
            path = root / name
            if kind == "write":
                files.write_atomically(path, data)
                acknowledged[name] = data
            elif kind == "append" and path.exists():
                start = path.stat().st_size
                files.append_durably(path, start, [data])
                acknowledged[name] = acknowledged.get(name, b"") + data
            elif kind == "remove":
                files.remove_durably(path)
                acknowledged.pop(name, None)
            for operation in disk.log[applied:]:
                model.apply(operation)
            applied = len(disk.log)
            assert model.now() == contents(root)
            assert all(tree == acknowledged for _, tree in model.states())


@pytest.mark.system
def test_no_power_cut_loses_doubles_or_half_activates_anything(memory):
    report = PowerCuts(memory, seed=2, most=3, every=18).run()
    assert report.verdict == Verdict(), report.verdict.problems
    assert report.missed == (), "something writes past the layer"
    assert ("checkpoints.save", "rename", "files") in report.all_points, "a training is interrupted in between"
    assert report.points >= 100 and set(report.by_stage) == {stage.name for stage in STAGES}


@pytest.mark.parametrize("kind", ["sync", "sync_directory"])
def test_the_judge_sees_what_a_disk_that_lies_about_syncing_loses(memory, kind):
    def lies(operation):
        return operation.by == "files" and operation.kind == kind

    report = PowerCuts(memory, seed=2, most=3, every=40, stages=range(3, 5), lies=lies).run()
    assert report.verdict.lost and report.verdict.problems


CALM = Outcome(("a",), "r", 3, 60, "c")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Verdict()),
        ({"plains": ("a", "b")}, Verdict(doubled=1)),
        ({"plains": ()}, Verdict(lost=1)),
        ({"plains": ("b",)}, Verdict(identical=False)),
        ({"residual": ""}, Verdict(lost=1)),
        ({"residual": "s"}, Verdict(identical=False)),
        ({"version": 2}, Verdict(half_activated=1)),
        ({"sentences": 59}, Verdict(lost=1)),
        ({"copy": ""}, Verdict(half_activated=1)),
    ],
)
def test_each_difference_from_a_life_without_a_cut_has_its_name(changes, expected):
    verdict = Verdict()
    compare(verdict, "a stage", dataclasses.replace(CALM, **changes), CALM)
    verdict.problems = []
    assert verdict == expected


def test_two_lives_without_a_cut_are_the_same_to_the_bit(memory):
    outcomes = []
    for name in ("one", "two"):
        (memory / name).mkdir()
        story = Story(memory / name / "home")
        story.play()
        story.close()
        outcomes.append(story.outcomes)
    assert outcomes[0] == outcomes[1]
    trained = [outcome for number, outcome in outcomes[0].items() if "train" in STAGES[number].name]
    assert all(len(outcome.plains) == 1 and outcome.residual for outcome in trained)
