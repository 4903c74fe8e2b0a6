"""The peers' own environments: `.cache/bench/flower` and `.cache/bench/nvflare`, made from hashed locks on first use.

The rules:
- a peer never shares an environment with ours or with another peer: their locks disagree;
- what is installed is what `requirements/bench-NAME.txt` names, hash by hash; a changed lock makes the environment new;
- an environment that is there and fits its lock costs nothing, so every benchmark may ask for it.

Run: python -m benchmarks.peer_environments [flower] [nvflare]
"""

import hashlib
import shutil
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache" / "bench"
PEERS = ("flower", "nvflare")


def python_of(peer: str) -> Path:
    """Return the Python of a peer's environment; make the environment first if it is missing or of another lock.

    Raises `ValueError` for an unknown peer and `subprocess.CalledProcessError` if pip fails (nothing is left then).
    """
    if peer not in PEERS:
        raise ValueError(f"a peer is one of {PEERS}, got {peer!r}")
    lock = ROOT / "requirements" / f"bench-{peer}.txt"
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    home = CACHE / peer
    mark = home / ".lock-sha256"
    python = home / "bin" / "python"
    if python.exists() and mark.exists() and mark.read_text() == wanted:
        return python
    print(f"making .cache/bench/{peer} from {lock.name} (about a minute)", file=sys.stderr)
    shutil.rmtree(home, ignore_errors=True)
    venv.create(home, with_pip=True)
    pip = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q"]
    try:
        subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True, stdout=sys.stderr)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    mark.write_text(wanted)
    return python


def main(names: list[str]) -> int:
    for name in names or PEERS:
        print(python_of(name))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
