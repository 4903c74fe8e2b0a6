"""A device's home with the reference model in it, ready to train: for benchmarks of the device itself, with no cloud.

Everything in it is real and signed: the bundle is exported once into `.cache/bench/footprint`, the enrolment and the
task offer are signed by keys that only the benchmark has. `arm` sets the session to a training that was offered.
"""

import hashlib
import random
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from benchmarks.peer_environments import CACHE
from edge_runtime import identity, session
from edge_runtime.adapters.sensors.files import write_fixture
from edge_runtime.adapters.state_store import StateStore
from edge_runtime.model_slots import ModelSlots
from edge_runtime.ports import Download, NotThere
from edge_runtime.session_row import SessionRow
from edge_runtime.trust import Keys
from wire_contract import envelope
from wire_contract.manifest import Manifest, decode_manifest
from wire_contract.messages import Enrolled, Plan, RetryWindow, TaskOffer, encode_message
from wire_contract.vocabulary import Vocabulary

BUNDLE: Final = CACHE / "footprint" / "bundle"
POPULATION: Final = "keyboard"
# Nothing waits and no budget ends here: `benchmarks.nights` is about that.
SETTINGS: Final = """\
population = "keyboard"
sensors_root = "{root}"
held_out_share = 0.0

[policy]
night_start = "00:00"
night_end = "00:00"
clock = "rtc"
settle_s = 0.0
grace_s = 0.0
cool_down_s = 0.0
minimum_window_s = 0.0
maximum_load = 10000.0
training_s = 604800.0
energy_wh = 100000.0
written_bytes = 1099511627776
starts = 1000000
"""


def bundle() -> Path:
    """Return the reference model's bundle; it is exported first if it is not there (half a minute)."""
    if (BUNDLE / "manifest.bin").exists():
        return BUNDLE
    BUNDLE.parent.mkdir(parents=True, exist_ok=True)
    key = BUNDLE.parent / "key.pem"
    export = Path(sys.executable).parent / "model-export"
    print("exporting the reference model (half a minute)", file=sys.stderr)
    if not key.exists():
        subprocess.run([str(export), "keygen", str(key)], check=True, capture_output=True)
    words = ["export", "--preset", "reference", "--checkpoint", "untrained", "--population", POPULATION]
    command = [str(export), *words, "--signing-key", str(key), "--output", str(BUNDLE)]
    subprocess.run(command, check=True, capture_output=True)
    return BUNDLE


class _BundleServer:
    """Serves the bundle's files as an aggregator would."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def fetch(self, url: str, start: int, limit_bytes: int) -> Download:
        for name, data in self._files.items():
            if url.endswith(name):
                return Download(start, iter([data[start:]]))
        raise NotThere(url)


class NightHome:
    """A home in `folder`/home, its sensors in `folder`/root."""

    def __init__(self, folder: Path, *, broker_url: str = "mqtt://127.0.0.1:9", seed: int = 1) -> None:
        self.home, self.root, self._seed = folder / "home", folder / "root", seed
        self.home.mkdir(parents=True)
        self.aggregator_key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"aggregator").digest())
        source = bundle()
        self.signed = (source / "manifest.bin").read_bytes()
        sealed = envelope.read_envelope(self.signed)
        self.manifest: Manifest = decode_manifest(sealed.body)
        self.identity = identity.load_or_make(self.home, identity.system_entropy)
        exporter = _exporter_key(source)
        answer = Enrolled(
            device=self.identity.device, population=POPULATION,
            aggregator_key=envelope.public_bytes(self.aggregator_key), manifest_key=exporter, broker_url=broker_url,
            model_url="http://127.0.0.1:9/", shard=0, issued_at=self.manifest.created_at,
        )  # fmt: skip
        signed = envelope.sign(self.aggregator_key, "enrolled", encode_message(answer))
        identity.save_enrolled(self.home, signed)
        self._install(source, exporter)
        self.good()
        (self.home / "settings.toml").write_text(SETTINGS.format(root=self.root))

    def _install(self, source: Path, exporter: bytes) -> None:
        vocabulary = (source / "vocabulary.txt").read_bytes()
        files = {
            self.manifest.sha256: (source / "model.tflite").read_bytes(),
            self.manifest.vocabulary_sha256: vocabulary,
            self.manifest.template_sha256: self.signed,
        }
        keys = Keys(exporter, envelope.public_bytes(self.aggregator_key))
        slots = ModelSlots(self.home, keys, POPULATION, "http://x/", _BundleServer(files), lambda data, manifest: None)
        now = float(self.manifest.created_at + 60)
        for track in ("refresh", "training"):
            slots.install(self.signed, track, now)  # type: ignore[arg-type]
        self._words = [word for word in Vocabulary.from_bytes(vocabulary).words if word.isalpha()]

    def good(self) -> None:
        """Set the sensors to what training wants."""
        write_fixture(self.root, charging=True, battery=90.0, idle_seconds=3600.0, metered=False, celsius=40.0)

    def unplug(self) -> None:
        """Pull the cable, as the kernel's files tell it."""
        self._power("Discharging", "0")

    def plug_in(self) -> None:
        """Put the cable back."""
        self._power("Charging", "1")

    def _power(self, battery: str, mains: str) -> None:
        folder = self.root / "sys/class/power_supply"
        (folder / "BAT0/status").write_text(battery + "\n")
        (folder / "AC/online").write_text(mains + "\n")

    def text(self, words: int) -> str:
        """Return lines of words of the vocabulary, the frequent ones often."""
        rng = random.Random(self._seed)
        drawn = [self._words[min(int(rng.paretovariate(0.5)) - 1, len(self._words) - 1)] for _ in range(words)]
        return "\n".join(" ".join(drawn[i : i + 12]) for i in range(0, words, 12))

    def arm(self, plan: Plan, *, now: int, lease_s: int = 6 * 3600, number: int = 0) -> TaskOffer:
        """Set the session to a lease on this plan whose base is here; return the offer."""
        lease = hashlib.sha256(b"lease %d" % number).hexdigest()[:32]
        sealing = X25519PrivateKey.from_private_bytes(hashlib.sha256(b"sealing").digest())
        offer = TaskOffer(
            device=self.identity.device, population=POPULATION, task="ab" * 8, lease=lease, nonce="cd" * 16,
            base_version=self.manifest.version, base_sha256=self.manifest.sha256,
            layout_fingerprint=self.manifest.layout_fingerprint, plan=plan, seed=self._seed,
            sealing_key=envelope.public_bytes(sealing), shard=0, issued_at=now, deadline=now + lease_s,
            retry=RetryWindow(earliest=now + 60, latest=now + 120),
        )  # fmt: skip
        store = StateStore(self.home / "state.db")
        row = SessionRow(store)
        row.load()
        row.put(session.State(phase=session.Phase.TRAINING, offer=offer))
        store.close()
        return offer

    def session(self) -> session.State:
        """Return what the session's row says."""
        store = StateStore(self.home / "state.db")
        state = SessionRow(store).load()
        store.close()
        return msgspec.structs.replace(state)


def _exporter_key(source: Path) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key((source.parent / "key.pem").read_bytes(), password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return envelope.public_bytes(key)
