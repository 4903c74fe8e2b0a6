"""A PostgreSQL cluster for benchmarks and tests: private, in a temporary folder, on a Unix socket only."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

FOLDERS = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")


def find_programs() -> Path | None:
    """Return the folder of `initdb` and `postgres`, the newest there is; None if PostgreSQL is not installed."""
    on_path = shutil.which("initdb")
    if on_path is not None:
        return Path(on_path).resolve().parent
    found = [path for pattern in FOLDERS for path in Path("/").glob(pattern[1:]) if (path / "initdb").is_file()]
    return max(found, key=lambda path: [int(n) for n in path.parts[-2].replace("-", ".").split(".") if n.isdigit()],
               default=None)  # fmt: skip


def _other_user() -> tuple[int, int] | None:
    """initdb refuses root: return the ids of somebody else, if root is who asks."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise RuntimeError("PostgreSQL does not run as root, and there is neither a user postgres nor nobody")


class Cluster:
    """A running server, stopped by its pid. `new_database()` returns the SQLAlchemy URL of an empty database.

    `durable` False trades safety for speed: it is for tests that do not end the server.
    """

    def __init__(self, programs: Path, *, durable: bool) -> None:
        self._programs = programs
        self._user = _other_user()
        self._folder = Path(tempfile.mkdtemp(prefix="pg-"))
        self._count = 0
        self._durable = durable
        self._server: subprocess.Popen | None = None
        if self._user is not None:
            os.chown(self._folder, *self._user)
        self._run("initdb", "-D", str(self._folder / "data"), "-A", "trust", "-U", "tester", "-E", "UTF8",
                  "--no-locale", "--no-sync")  # fmt: skip
        self.start()

    def _as_user(self) -> dict:
        if self._user is None:
            return {}
        return {"user": self._user[0], "group": self._user[1], "extra_groups": []}

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [self._programs / program, *arguments],
            capture_output=True,
            cwd=self._folder,
            timeout=120,
            **self._as_user(),
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stdout.decode()}{done.stderr.decode()}")

    def start(self) -> None:
        settings = ["listen_addresses=", f"unix_socket_directories={self._folder}", "max_connections=20"]
        if not self._durable:
            settings += ["fsync=off", "full_page_writes=off"]
        chosen = [part for setting in settings for part in ("-c", setting)]
        log = (self._folder / "log").open("ab")
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", str(self._folder / "data"), *chosen],
            stdout=log, stderr=log, cwd=self._folder, **self._as_user(),
        )  # fmt: skip
        log.close()
        end = time.monotonic() + 60
        while True:
            try:
                self._run("psql", "-h", str(self._folder), "-U", "tester", "-d", "postgres", "-c", "select 1")
            except RuntimeError:
                if self._server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)
            else:
                return

    def new_database(self) -> str:
        self._count += 1
        name = f"d{self._count}"
        self._run("createdb", "-h", str(self._folder), "-U", "tester", name)
        return f"postgresql+psycopg://tester@/{name}?host={self._folder}"

    def kill(self) -> None:
        """End the server without a shutdown, so that it recovers from its log, and start it again.

        The machine goes on: what the server had handed to the operating system stays.
        """
        assert self._server is not None
        self._server.send_signal(signal.SIGQUIT)
        self._server.wait(60)
        self.start()

    def stop(self) -> None:
        if self._server is not None:
            # SIGINT is a fast shutdown: sessions are ended, nothing is waited for.
            self._server.send_signal(signal.SIGINT)
            try:
                self._server.wait(30)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
