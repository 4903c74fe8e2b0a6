"""What keeps a trainer's process out of the person's way, set by the process itself, each with whether it took effect.

    parent death     SIGKILL when the supervisor dies (prctl PR_SET_PDEATHSIG)
    no privileges    no program that it might start gains any (PR_SET_NO_NEW_PRIVS)
    core dumps       none: a core would hold the person's text (RLIMIT_CORE 0)
    memory           private memory at most so large (RLIMIT_DATA)
    open files       at most so many (RLIMIT_NOFILE)
    nice             19
    idle CPU         SCHED_IDLE: runs when nobody else wants to
    idle disk        the idle class of I/O, where the disk's scheduler knows classes
    own cgroup       the kernel's weight and memory limit for it, in v2 or v1, where the directory may be written

The rules:
- what a system does not allow or does not know is reported by name and is no error: each of them is one more net;
- a cgroup of its own is used only with its weight lowered: within a group of ordinary weight SCHED_IDLE means nothing,
  for it ranks a process among those of its own group;
- `hurry` undoes what starves a process that has to write its checkpoint: the supervisor calls it, after stopping it.
Unprivileged processes may not leave SCHED_IDLE (Linux asks for a nice value that RLIMIT_NICE grants): then `hurry` says
so, and the process has its second of wall-clock time all the same.
"""

import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from edge_runtime.job_frames import Applied, Limit

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "armv6l": 314, "i686": 289}
_IOPRIO_IDLE = 3 << 13
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "edge-runtime-trainer-"
OPEN_FILES = 256


def _tried(name: str, change: Callable[[], str]) -> Limit:
    try:
        return Limit(name, True, change())
    except (OSError, ValueError, AttributeError) as e:
        return Limit(name, False, str(e) or type(e).__name__)


def apply(*, parent: int, memory_bytes: int, idle: bool, cgroup_root: Path = CGROUP_ROOT) -> Applied:
    """Limit this process; `idle` also takes it behind everybody else, for a long job."""
    limits = [
        _tried("parent death", lambda: _die_with(parent)),
        _tried("no privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1, "for good")),
        _tried("core dumps", lambda: _limit(resource.RLIMIT_CORE, 0)),
        _tried("memory", lambda: _limit(resource.RLIMIT_DATA, memory_bytes)),
        _tried("open files", lambda: _limit(resource.RLIMIT_NOFILE, OPEN_FILES)),
        _tried("nice", _be_nice),
    ]
    if not idle:
        return Applied(tuple(limits))
    return be_idle(Applied(tuple(limits)), memory_bytes, cgroup_root)


def be_idle(before: Applied, memory_bytes: int, cgroup_root: Path = CGROUP_ROOT) -> Applied:
    """Take this process behind everybody else; return the limits, old and new."""
    cgroups, of_groups = _own_cgroups(cgroup_root, memory_bytes)
    limits = (*before.limits, _tried("idle CPU", _idle_cpu), _tried("idle disk", _idle_disk), *of_groups)
    return Applied(limits, (*before.cgroups, *cgroups))


def hurry(process: int, cgroups: tuple[str, ...]) -> bool:
    """Let a process that was behind everybody else run like any other; return whether the system allows it."""
    for group in cgroups:
        for name, value in (("cpu.idle", "0"), ("cpu.weight", "100"), ("cpu.shares", "1024")):
            with suppress(OSError):
                if (Path(group) / name).exists():
                    (Path(group) / name).write_text(value)
    try:
        os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))
    except (OSError, AttributeError):
        return False
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, 0)
    return True


def remove_cgroups(cgroups: tuple[str, ...]) -> None:
    """Remove the directories of a process that is gone."""
    for group in cgroups:
        with suppress(OSError):
            Path(group).rmdir()


def _libc_call(function: str, *arguments: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, function)(*(ctypes.c_long(each) for each in arguments)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _prctl(option: int, value: int, detail: str) -> str:
    _libc_call("prctl", option, value, 0, 0, 0)
    return detail


def _die_with(parent: int) -> str:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, "")
    if os.getppid() != parent:
        # It died before this could be asked for.
        os._exit(0)
    return f"with process {parent}"


def _limit(which: int, most: int) -> str:
    hard = resource.getrlimit(which)[1]
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (value, value))
    return str(value)


def _be_nice() -> str:
    os.setpriority(os.PRIO_PROCESS, 0, 19)
    return str(os.getpriority(os.PRIO_PROCESS, 0))


def _idle_cpu() -> str:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return "SCHED_IDLE"


def _idle_disk() -> str:
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is None:
        raise ValueError(f"the call's number on {os.uname().machine} is not known here")
    _libc_call("syscall", number, 1, 0, _IOPRIO_IDLE)
    return "class idle"


def _own_cgroups(root: Path, memory_bytes: int) -> tuple[tuple[str, ...], list[Limit]]:
    """Move this process into groups of its own; return their directories and what came of it."""
    made: list[str] = []
    limits = []
    for name, settings in (
        ("cpu", (("cpu.idle", "1"), ("cpu.weight", "1"), ("cpu.shares", "2"))),
        ("memory", (("memory.max", str(memory_bytes)), ("memory.limit_in_bytes", str(memory_bytes)))),
    ):
        limits.append(_tried(f"own {name} cgroup", lambda name=name, s=settings: _own_cgroup(root, name, s, made)))  # type: ignore[misc]
    return tuple(made), limits


def _own_cgroup(root: Path, controller: str, settings: tuple[tuple[str, str], ...], made: list[str]) -> str:
    parent = _cgroup_of(root, controller)
    _sweep_cgroups(parent)
    group = parent / f"{CGROUP_PREFIX}{os.getpid()}"
    group.mkdir(exist_ok=True)
    done = []
    for name, value in settings:
        with suppress(OSError):
            if (group / name).exists():
                (group / name).write_text(value)
                done.append(f"{name} {value}")
    if not done:
        with suppress(OSError):
            group.rmdir()
        raise OSError(f"the {controller} controller is not there for {parent}")
    try:
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        raise
    if str(group) not in made:
        made.append(str(group))
    return ", ".join(done)


def _cgroup_of(root: Path, controller: str) -> Path:
    """Return the directory of the group that this process is in: v1's of the controller, or the one of v2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, names, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controller in names.split(","):
            return root / names / inside if (root / names).is_dir() else root / controller / inside
        if number == "0" and (root / "cgroup.controllers").exists():
            # Moved already, by the controller before: its files are in the same directory.
            whole = root / inside
            return whole.parent if whole.name.startswith(CGROUP_PREFIX) else whole
    raise OSError(f"this process is in no {controller} cgroup below {root}")


def _sweep_cgroups(parent: Path) -> None:
    """Remove what trainers left whose supervisor was killed; a group that is in use cannot be removed."""
    for left in parent.glob(f"{CGROUP_PREFIX}*"):
        with suppress(OSError):
            left.rmdir()
