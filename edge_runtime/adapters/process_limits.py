"""What keeps a trainer's process out of the person's way, set by the process itself, each with whether it took effect.

    parent death     SIGKILL when the supervisor dies (prctl PR_SET_PDEATHSIG)
    no privileges    no program that it might start gains any (PR_SET_NO_NEW_PRIVS)
    core dumps       none: a core would hold the person's text (RLIMIT_CORE 0)
    memory           private memory at most so large (RLIMIT_DATA)
    open files       at most so many (RLIMIT_NOFILE)
    nice             19
    idle CPU         SCHED_IDLE: runs when nobody else wants to
    idle disk        the idle class of I/O, where the disk's scheduler knows classes
    own cgroup       the kernel's weight and memory limit for it, in v2 or v1, where the group was delegated to us

The rules:
- what a system does not allow or does not know is reported by name and is no error: each of them is one more net;
- a cgroup of its own is used only with its weight lowered: within a group of ordinary weight SCHED_IDLE means nothing,
  for it ranks a process among those of its own group;
- a cgroup is made only inside one that is ours: systemd marks it (`Delegate=yes` sets the attribute user.delegate), or
  an ordinary user owns it. Root may write anywhere, and keeps out of what others manage;
- `hurry` undoes what starves a process that has to write its checkpoint: the supervisor calls it, after stopping it.
Unprivileged processes may not leave SCHED_IDLE (Linux asks for a nice value that RLIMIT_NICE grants): then `hurry` says
so, and the process has its second of wall-clock time all the same.
"""

import os
import resource
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal

from edge_runtime.job_frames import Applied, Limit

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "armv7l": 314, "armv6l": 314, "i686": 289}
_IOPRIO_IDLE = 3 << 13
Priority = Literal["ordinary", "background", "idle"]
CGROUP_ROOT = Path("/sys/fs/cgroup")
CGROUP_PREFIX = "edge-runtime-trainer-"
OPEN_FILES = 256


def _tried(name: str, change: Callable[[], str]) -> Limit:
    try:
        return Limit(name, True, change())
    except (OSError, ValueError, AttributeError) as e:
        return Limit(name, False, str(e) or type(e).__name__)


def apply(*, parent: int, memory_bytes: int, priority: Priority, cgroup_root: Path = CGROUP_ROOT) -> Applied:
    """Limit this process. `background` is nice, for short jobs; `idle` is behind all others; `ordinary` is neither."""
    limits = [
        _tried("parent death", lambda: _die_with(parent)),
        _tried("no privileges", lambda: _prctl(_PR_SET_NO_NEW_PRIVS, 1, "for good")),
        _tried("core dumps", lambda: _limit(resource.RLIMIT_CORE, 0)),
        _tried("memory", lambda: _limit(resource.RLIMIT_DATA, memory_bytes)),
        _tried("open files", lambda: _limit(resource.RLIMIT_NOFILE, OPEN_FILES)),
    ]
    if priority != "ordinary":
        limits.append(_tried("nice", _be_nice))
    applied = Applied(tuple(limits))
    return be_idle(applied, memory_bytes, cgroup_root) if priority == "idle" else applied


def be_idle(before: Applied, memory_bytes: int, cgroup_root: Path = CGROUP_ROOT) -> Applied:
    """Take this process behind everybody else; return the limits, old and new."""
    groups = (
        _tried(f"own {name} cgroup", partial(_own_cgroup, cgroup_root, name, settings))
        for name, settings in (
            ("cpu", {"cpu.idle": "1", "cpu.weight": "1", "cpu.shares": "2"}),
            ("memory", {"memory.max": str(memory_bytes), "memory.limit_in_bytes": str(memory_bytes)}),
        )
    )
    return Applied((*before.limits, _tried("idle CPU", _idle_cpu), _tried("idle disk", _idle_disk), *groups))


def hurry(process: int, cgroup_root: Path = CGROUP_ROOT) -> bool:
    """Let a process that was behind everybody else run like any other; return whether the system allows it."""
    for group in _cgroups_of(process, cgroup_root):
        for name, value in (("cpu.idle", "0"), ("cpu.weight", "100"), ("cpu.shares", "1024")):
            with suppress(OSError):
                if (group / name).exists():
                    (group / name).write_text(value)
    try:
        os.sched_setscheduler(process, os.SCHED_OTHER, os.sched_param(0))
    except (OSError, AttributeError):
        return False
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, process, 0)
    return True


def remove_cgroups(process: int, cgroup_root: Path = CGROUP_ROOT) -> None:
    """Remove the directories of a trainer that is gone; the supervisor calls it, whose group they lie in."""
    for group in _cgroups_of(process, cgroup_root):
        with suppress(OSError):
            group.rmdir()


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


def _own_cgroup(root: Path, controller: str, settings: dict[str, str]) -> str:
    parent = _cgroup_of(root, controller, Path("/proc/self/cgroup").read_text())
    if not _is_ours(parent):
        raise PermissionError(f"{parent} was not delegated to this user")
    # What a trainer left whose supervisor was killed; one that is in use cannot be removed.
    for left in parent.glob(f"{CGROUP_PREFIX}*"):
        with suppress(OSError):
            left.rmdir()
    group = parent / f"{CGROUP_PREFIX}{os.getpid()}"
    group.mkdir(exist_ok=True)
    try:
        done = [name for name, value in settings.items() if _written(group / name, value)]
        if not done:
            raise OSError(f"the {controller} controller is not there for {parent}")
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        with suppress(OSError):
            group.rmdir()
        raise
    return ", ".join(f"{name} {settings[name]}" for name in done)


def _written(path: Path, value: str) -> bool:
    if not path.exists():
        return False
    try:
        path.write_text(value)
    except OSError:
        return False
    return True


def _is_ours(group: Path) -> bool:
    try:
        if os.getxattr(group, "user.delegate") == b"1":
            return True
    except OSError:
        pass
    return os.geteuid() != 0 and group.stat().st_uid == os.geteuid()


def _cgroups_of(process: int, root: Path) -> list[Path]:
    """Return the groups of a trainer that was started in this process's own."""
    groups: list[Path] = []
    with suppress(OSError):
        membership = Path("/proc/self/cgroup").read_text()
        for controller in ("cpu", "memory"):
            with suppress(OSError):
                group = _cgroup_of(root, controller, membership) / f"{CGROUP_PREFIX}{process}"
                if group.is_dir() and group not in groups:
                    groups.append(group)
    return groups


def _cgroup_of(root: Path, controller: str, membership: str) -> Path:
    """Return the directory of the group that /proc/self/cgroup names: v1's of the controller, or the one of v2."""
    for line in membership.splitlines():
        number, names, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controller in names.split(","):
            return root / (names if (root / names).is_dir() else controller) / inside
        if number == "0" and (root / "cgroup.controllers").exists():
            # Moved already, for the controller before: its files are in the same directory.
            whole = root / inside
            return whole.parent if whole.name.startswith(CGROUP_PREFIX) else whole
    raise OSError(f"this process is in no {controller} cgroup below {root}")
