import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import job_frames
from edge_runtime.adapters import process_limits
from edge_runtime.adapters.child_trainer import ChildTrainer, TrainerTerms
from edge_runtime.job_frames import Applied, FrameBroken, FrameReader, Limit, encode
from edge_runtime.jobs import Answer, Checked, CheckVersion, Died, Order, Queued, Settled, Stopped, UsedUp
from tests.edge_runtime.fakes import FakeClock
from tests.edge_runtime.test_trainers import PLAN, TrainingWorld, wait_for

# Some 1,500 steps: seconds of work.
LONG = msgspec.structs.replace(PLAN, rows=256, epochs=100)
SENTENCES = 500
ROOT = Path(__file__).parents[2]


def gone(process, seconds=10.0):
    """Whether a process ends within so long (a zombie has ended)."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def wait_until(condition, seconds=20.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come to it"
        time.sleep(0.005)


def trains(trainer):
    """Wait until the child has used CPU for its steps, well beyond its start."""
    cpu = 0.0

    def busy():
        nonlocal cpu
        cpu += trainer.take_used().cpu_s
        return cpu > 0.7

    wait_until(busy)


@pytest.fixture
def world(tmp_path):
    return TrainingWorld(tmp_path / "home", LONG, SENTENCES)


@pytest.fixture
def trainer(world):
    trainer = world.child()
    yield trainer
    trainer.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    world = TrainingWorld(tmp_path_factory.mktemp("whole") / "home", LONG, SENTENCES)
    trainer = world.trainer()
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    trainer.close()
    return world.made()


def test_a_child_that_is_told_to_stop_keeps_its_work_and_goes(world, trainer):
    trainer.begin(world.job(), lambda: True)
    process = trainer.process
    trains(trainer)
    trainer.stop()
    trainer.stop()
    result = wait_for(trainer)
    assert isinstance(result, Stopped) and result.steps > 0 and len(world.checkpoints()) == 1
    assert gone(process) and trainer.process is None
    wait_until(lambda: trainer.last_stop)
    assert not trainer.last_stop.killed and trainer.last_stop.cpu_s < 1.0


def test_a_trainer_killed_between_two_steps_is_replaced_and_the_update_is_the_same_bit_for_bit(world, trainer, whole):
    trainer.begin(world.job(), lambda: True)
    trains(trainer)
    trainer.stop()
    assert isinstance(wait_for(trainer), Stopped)
    trainer.begin(world.job(), lambda: True)
    trains(trainer)
    os.kill(trainer.process, signal.SIGKILL)
    died = wait_for(trainer)
    assert isinstance(died, Died) and "signal 9" in died.reason
    assert len(world.checkpoints()) == 1
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    assert world.made() == whole and world.checkpoints() == []


def test_a_trainer_killed_without_a_checkpoint_begins_again_and_the_update_is_the_same(world, trainer, whole):
    trainer.begin(world.job(), lambda: True)
    trains(trainer)
    os.kill(trainer.process, signal.SIGKILL)
    assert isinstance(wait_for(trainer), Died) and world.checkpoints() == []
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    assert world.made() == whole


def test_a_starved_trainer_is_let_run_to_write_its_checkpoint(world, trainer, whole):
    trainer.begin(world.job(), lambda: True)
    trains(trainer)
    # What starves it is the kernel's scheduler elsewhere; here it is stopped by somebody else.
    os.kill(trainer.process, signal.SIGSTOP)
    trainer.stop()
    result = wait_for(trainer)
    assert isinstance(result, Stopped) and result.steps > 0
    wait_until(lambda: trainer.last_stop)
    assert trainer.last_stop.starved and not trainer.last_stop.killed
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Queued)
    assert world.made() == whole


def program(tmp_path, text):
    """Return a program that plays a trainer badly."""
    path = tmp_path / "bad_trainer.py"
    path.write_text(f"import os, signal, sys, time\nsys.path[:0] = [{str(ROOT)!r}]\n{text}\n")
    return (sys.executable, str(path))


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.read(0, 1 << 16)\ntime.sleep(600)"


def bad_trainer(tmp_path, text, **terms):
    """Return a trainer whose child does what `text` says."""
    return ChildTrainer(tmp_path, FakeClock(), TrainerTerms(**terms), program=program(tmp_path, text))


def test_a_trainer_that_does_not_hear_is_killed_after_its_grace(tmp_path, world):
    trainer = bad_trainer(tmp_path, DEAF)
    trainer.begin(world.job(), lambda: True)
    process = trainer.process
    time.sleep(0.3)
    trainer.stop()
    assert wait_for(trainer) == Stopped()
    wait_until(lambda: trainer.last_stop)
    assert trainer.last_stop.killed and trainer.last_stop.starved and gone(process)
    trainer.close()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("os.write(1, b'hello, world: no frame')", "a frame begins with one of"),
        ("os.write(1, b'A' + (1 << 30).to_bytes(4, 'little'))", "at most 33554432 bytes"),
        ("os.write(1, b'A' + (3).to_bytes(4, 'little') + b'xyz')", "an Answer cannot be read"),
        ("os.write(1, b'O' + (1).to_bytes(4, 'little') + b'x')", "an Order cannot be read"),
        ("os._exit(3)", "exit status 3"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "signal 11"),
        ("os.close(1)", "the trainer was ended by signal 9"),
        (
            "from edge_runtime.job_frames import *\nfrom edge_runtime.jobs import *\n"
            "os.write(1, encode(Answer(number=99, result=Settled())))",
            "it answered order 99, and was asked 1",
        ),
    ],
)
def test_a_trainer_that_says_anything_else_is_a_death_by_name(tmp_path, world, text, says):
    trainer = bad_trainer(tmp_path, f"os.read(0, 1 << 16)\n{text}\ntime.sleep(600)")
    trainer.begin(world.job(), lambda: True)
    process = trainer.process
    result = wait_for(trainer)
    assert isinstance(result, Died) and says.replace("an A", "a A").replace("an O", "a O") in result.reason
    assert gone(process) and not trainer.busy
    trainer.close()


def test_a_job_that_takes_too_long_is_ended_by_name(tmp_path, world):
    trainer = bad_trainer(tmp_path, DEAF, long_job_s=0.2, short_job_s=0.2)
    job = CheckVersion(data=b"x", manifest=world.aggregator.manifest)
    short = trainer.do(job)
    assert isinstance(short, Died) and "0.2 s" in short.reason
    trainer.begin(world.job(), lambda: True)
    long = wait_for(trainer)
    assert isinstance(long, Died) and "0.2 s" in long.reason
    trainer.close()


def test_a_trainer_that_reads_nothing_does_not_block_whoever_asks_it(tmp_path, world):
    trainer = bad_trainer(tmp_path, "time.sleep(600)", short_job_s=0.3)
    result = trainer.do(CheckVersion(data=bytes(1 << 22), manifest=world.aggregator.manifest))
    assert isinstance(result, Died)
    trainer.close()


def test_a_short_job_waits_for_no_long_one(world, trainer):
    trainer.begin(world.job(), lambda: True)
    assert isinstance(trainer.do(CheckVersion(data=b"x", manifest=world.aggregator.manifest)), Died)
    trainer.stop()
    assert isinstance(wait_for(trainer), Stopped)


def test_short_jobs_in_a_row_share_a_child_that_goes_when_no_more_come(world, tmp_path):
    trainer = world.child(linger_s=0.5)
    job = CheckVersion(data=world.aggregator.model, manifest=world.aggregator.manifest)
    processes = set()
    for _ in range(3):
        assert trainer.do(job) == Checked()
        processes.add(trainer.process)
    assert len(processes) == 1 and gone(processes.pop())
    assert trainer.do(job) == Checked()
    trainer.close()


def test_an_order_that_meets_a_child_at_its_end_is_given_to_another_one(tmp_path, world):
    marker = tmp_path / "second"
    text = (
        "from edge_runtime.job_frames import *\nfrom edge_runtime.jobs import *\n"
        "def serve(n):\n"
        "    reader = FrameReader()\n"
        "    while n:\n"
        "        for order in reader.feed(os.read(0, 1 << 16)):\n"
        "            os.write(1, encode(Answer(number=order.number, result=Settled())))\n"
        "            n -= 1\n"
        f"if os.path.exists({str(marker)!r}):\n    serve(9)\n"
        "serve(1)\n"
        f"open({str(marker)!r}, 'w').close()\n"
        # It takes no order any more, and is not gone yet: the next one lands in its pipe.
        "time.sleep(0.4)\n"
    )
    trainer = bad_trainer(tmp_path, text)
    job = CheckVersion(data=b"x", manifest=world.aggregator.manifest)
    assert trainer.do(job) == Settled()
    first = trainer.process
    wait_until(marker.exists)
    assert trainer.do(job) == Settled()
    assert trainer.process != first
    trainer.close()


def test_a_trainer_dies_with_its_supervisor(world, tmp_path):
    (tmp_path / "job.bin").write_bytes(msgspec.msgpack.encode(world.job()))
    script = (
        "import sys, time, msgspec\nfrom pathlib import Path\n"
        "from edge_runtime.adapters.child_trainer import ChildTrainer\nfrom edge_runtime.jobs import Train\n"
        "class Clock:\n    def now(self): return float(sys.argv[3])\n"
        "trainer = ChildTrainer(Path(sys.argv[1]), Clock())\n"
        "trainer.begin(msgspec.msgpack.decode(Path(sys.argv[2]).read_bytes(), type=Train), lambda: True)\n"
        "while not trainer.take_used().cpu_s: time.sleep(0.01)\n"
        "print(trainer.process, flush=True)\ntime.sleep(600)\n"
    )
    command = [sys.executable, "-c", script, str(world.home), str(tmp_path / "job.bin"), str(world.clock.time)]
    supervisor = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT)
    process = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    supervisor.stdout.close()
    assert gone(process)


def test_a_trainer_whose_pipe_is_closed_stops_between_two_steps(world):
    # What ends it where the kernel tells no child of its parent's death.
    command = [
        sys.executable, "-m", "edge_runtime.trainer", "--home", str(world.home), "--runtime", "auto", "--parent",
        str(os.getpid()), "--ahead", repr(world.clock.time - time.clock_gettime(time.CLOCK_BOOTTIME)), "--memory",
        str(1 << 28), "--linger", "1", "--held-out", "0.0", "--priority", "ordinary",
    ]  # fmt: skip
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
    child.stdin.write(encode(Order(number=1, job=world.job())))
    child.stdin.flush()
    time.sleep(1.0)
    child.stdin.close()
    assert child.wait(20) == 0
    reader = FrameReader()
    frames = reader.feed(child.stdout.read())
    child.stdout.close()
    assert isinstance(frames[-1], Answer) and isinstance(frames[-1].result, Stopped)
    assert len(world.checkpoints()) == 1


def test_a_trainer_says_which_limits_took_effect_and_they_did(world):
    trainer = world.child(gives_way=True)
    found = {each.name: each for each in trainer.limits()}
    for name in ("parent death", "no privileges", "core dumps", "memory", "open files", "nice", "idle CPU"):
        assert found[name].took_effect, found[name]
    assert found["memory"].detail == str(256 << 20)
    trainer.begin(world.job(), lambda: True)
    wait_until(lambda: b"\nNoNewPrivs:\t1" in Path(f"/proc/{trainer.process}/status").read_bytes())
    wait_until(lambda: os.sched_getscheduler(trainer.process) == os.SCHED_IDLE)
    limits = Path(f"/proc/{trainer.process}/limits").read_text()
    assert any(line.split()[-3:-1] == ["0", "0"] for line in limits.splitlines() if "core file" in line)
    trainer.stop()
    assert isinstance(wait_for(trainer), Stopped)
    trainer.close()


def test_a_trainer_that_takes_too_much_memory_is_a_death_and_not_a_hang(world):
    trainer = world.child(memory_bytes=12 << 20)
    trainer.begin(world.job(), lambda: True)
    assert isinstance(wait_for(trainer), Died)
    trainer.close()


V2, V1 = "0::/system.slice/edge-runtime.service", "3:cpu,cpuacct:/edge\n2:memory:/edge\n0::/"


def test_a_cgroup_is_found_in_both_versions(tmp_path):
    with pytest.raises(OSError, match="in no cpu cgroup"):
        process_limits._cgroup_of(tmp_path, "cpu", V2)
    (tmp_path / "cgroup.controllers").write_text("cpu memory")
    group = tmp_path / "system.slice/edge-runtime.service"
    assert process_limits._cgroup_of(tmp_path, "cpu", V2) == process_limits._cgroup_of(tmp_path, "memory", V2) == group
    moved = f"{V2}/{process_limits.CGROUP_PREFIX}77"
    assert process_limits._cgroup_of(tmp_path, "memory", moved) == group
    (tmp_path / "cpu,cpuacct").mkdir()
    assert process_limits._cgroup_of(tmp_path, "cpu", V1) == tmp_path / "cpu,cpuacct/edge"
    assert process_limits._cgroup_of(tmp_path, "memory", V1) == tmp_path / "memory/edge"


def cgroup_of_this_process(root):
    """Return where a trainer of this process would have its group in a file system that plays the kernel's."""
    (root / "cgroup.controllers").write_text("cpu memory")
    parent = process_limits._cgroup_of(root, "cpu", Path("/proc/self/cgroup").read_text())
    parent.mkdir(parents=True, exist_ok=True)
    return parent


def test_a_group_of_its_own_gets_the_least_weight_and_is_undone_in_a_hurry(tmp_path):
    parent = cgroup_of_this_process(tmp_path)
    try:
        os.setxattr(parent, "user.delegate", b"1")
    except OSError as e:
        if os.environ.get("CI") == "true":
            pytest.fail(f"the test's folder needs a file system with user attributes: {e}")
        pytest.skip(f"this file system keeps no user attributes, say TMPDIR=/a/folder/on/ext4: {e}")
    group, old = (parent / f"{process_limits.CGROUP_PREFIX}{number}" for number in (os.getpid(), 1))
    old.mkdir()
    group.mkdir()
    for name in ("cpu.idle", "cpu.weight", "cgroup.procs"):
        (group / name).write_text("")
    said = process_limits._own_cgroup(tmp_path, "cpu", {"cpu.idle": "1", "cpu.weight": "1", "cpu.shares": "2"})
    assert said == "cpu.idle 1, cpu.weight 1" and not old.exists()
    assert [(group / name).read_text() for name in ("cpu.idle", "cpu.weight", "cgroup.procs")] == [
        "1", "1", str(os.getpid()),
    ]  # fmt: skip
    process_limits.hurry(os.getpid(), tmp_path)
    assert [(group / name).read_text() for name in ("cpu.idle", "cpu.weight")] == ["0", "100"]
    for path in group.iterdir():
        path.unlink()
    process_limits.remove_cgroups(os.getpid(), tmp_path)
    assert not group.exists() and parent.exists()


def test_root_makes_no_group_where_somebody_else_manages_them(tmp_path):
    parent = cgroup_of_this_process(tmp_path)
    limit = process_limits._tried("own cpu cgroup", lambda: process_limits._own_cgroup(tmp_path, "cpu", {}))
    assert (
        not limit.took_effect
        and limit.detail
        and list(parent.iterdir()) == [path for path in [parent / "cgroup.controllers"] if path.exists()]
    )


FRAMES = st.lists(
    st.one_of(
        st.builds(
            Answer, number=st.integers(0, 9), result=st.builds(Died, reason=st.text(max_size=40)),
            used=st.builds(UsedUp, cpu_s=st.floats(0, 9), written_bytes=st.integers(0, 9)),
        ),
        st.builds(Applied, st.lists(st.builds(Limit, st.text(), st.booleans(), st.text()), max_size=3).map(tuple)),
    ),
    max_size=5,
)  # fmt: skip


@given(FRAMES, st.integers(1, 50))
def test_frames_come_back_however_they_are_cut(frames, piece):
    data = b"".join(encode(frame) for frame in frames)
    reader, found = FrameReader(), []
    for start in range(0, len(data), piece):
        found += reader.feed(data[start : start + piece])
    assert found == frames


@given(st.binary(max_size=200))
def test_any_bytes_are_frames_or_refused_by_name(data):
    reader = FrameReader()
    try:
        assert all(isinstance(frame, Order | Applied | Answer) for frame in reader.feed(data))
    except FrameBroken as e:
        assert str(e)


def test_a_frame_that_is_too_large_is_not_made():
    with pytest.raises(FrameBroken, match="at most"):
        encode(Answer(number=1, result=Died(reason="x" * (job_frames.MAX_FRAME_BYTES + 1))))


def test_the_supervisors_side_needs_neither_numpy_nor_ctypes():
    code = (
        "import sys, edge_runtime.adapters.child_trainer\n"
        "sys.exit([m for m in ('numpy', 'ctypes', 'ai_edge_litert', 'tflite_runtime') if m in sys.modules] != [])"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
