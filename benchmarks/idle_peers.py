"""What peers' device processes take at rest: Flower's SuperNode, NVFlare's client; each on loopback, unencrypted.

Only where their environments are there already (`python -m benchmarks.peer_environments` makes them). A peer that does
not start is reported by what it said.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.peer_environments import CACHE
from benchmarks.process_watch import memory_of, tree_of

SETTLES_S: Final = 20.0


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _sum(processes: list[int]) -> dict[str, Any]:
    found = [each for each in map(memory_of, processes) if each is not None]
    return {
        "rss_mb": round(sum(each.rss_mb for each in found), 1), "pss_mb": round(sum(each.pss_mb for each in found), 1),
        "processes": len(found),
    }  # fmt: skip


def _start(command: list[str], folder: Path, name: str, **environment: str) -> "subprocess.Popen[bytes]":
    with (folder / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, start_new_session=True,
            env={**os.environ, "HOME": str(folder), **environment},
        )  # fmt: skip


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process that was started here, and its session."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
    except (ProcessLookupError, subprocess.TimeoutExpired):
        pass
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def flower(folder: Path) -> dict[str, Any] | str:
    """Return the memory of a SuperNode that waits for work, with what it starts."""
    bin_ = CACHE / "flower" / "bin"
    if not (bin_ / "flower-supernode").exists():
        return "not installed: python -m benchmarks.peer_environments flower"
    link_port, node_port = _free_ports(2)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    here = ["--insecure", "--host", "127.0.0.1", "--port"]
    link = _start([str(bin_ / "flower-superlink"), *here, str(link_port)], folder, "superlink", PATH=path)
    time.sleep(8)
    command = [str(bin_ / "flower-supernode"), *here, str(node_port), "--superlink", f"127.0.0.1:{link_port}"]
    node = _start(command, folder, "supernode", PATH=path)
    try:
        time.sleep(SETTLES_S)
        if node.poll() is not None:
            return (folder / "supernode.log").read_text(errors="replace").strip()[-200:]
        return _sum(tree_of(node.pid))
    finally:
        _end(node)
        _end(link)


def nvflare(folder: Path) -> dict[str, Any] | str:
    """Return the memory of a client that waits for a job, with what it starts."""
    bin_ = CACHE / "nvflare" / "bin"
    if not (bin_ / "nvflare").exists():
        return "not installed: python -m benchmarks.peer_environments nvflare"
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    workspace = folder / "poc"
    environment = {"PATH": path, "NVFLARE_POC_WORKSPACE": str(workspace)}
    made = subprocess.run(
        [str(bin_ / "nvflare"), "poc", "prepare", "-n", "1"], capture_output=True, text=True, input="y\n", cwd=folder,
        env={**os.environ, "HOME": str(folder), **environment}, timeout=120, check=False,
    )  # fmt: skip
    startups = {path.parent.name: path for path in workspace.rglob("startup") if path.is_dir()}
    site = next((name for name in startups if name.startswith("site")), "")
    if "server" not in startups or not site:
        return f"poc prepare made no sites: {(made.stdout + made.stderr).strip()[-200:]}"
    server = _start(["bash", str(startups["server"] / "start.sh")], folder, "server", **environment)
    time.sleep(10)
    client = _start(["bash", str(startups[site] / "start.sh")], folder, "client", **environment)
    try:
        time.sleep(SETTLES_S)
        found = [each for each in _processes_of(startups[site].parent) if each != client.pid]
        if not found:
            return (folder / "client.log").read_text(errors="replace").strip()[-200:]
        return _sum(found)
    finally:
        for each in (*_processes_of(startups[site].parent), *_processes_of(startups["server"].parent)):
            try:
                os.kill(each, signal.SIGKILL)
            except ProcessLookupError:
                continue
        _end(client)
        _end(server)


def _processes_of(home: Path) -> list[int]:
    """Return the Python processes that were started on this folder of ours: a start script lets go of its own."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if any(str(home).encode() in word for word in words) and b"python" in words[0]:
                found.append(int(process.name))
    return found


def measure() -> dict[str, dict[str, Any] | str]:
    """Return each peer's memory, or why there is none."""
    found: dict[str, dict[str, Any] | str] = {}
    for name, ask in (("Flower's SuperNode", flower), ("NVFlare's client", nvflare)):
        folder = Path(tempfile.mkdtemp(prefix="peer-"))
        try:
            found[name] = ask(folder)
        except (OSError, subprocess.SubprocessError) as e:
            found[name] = f"it does not start: {e}"
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


if __name__ == "__main__":
    print(measure())
