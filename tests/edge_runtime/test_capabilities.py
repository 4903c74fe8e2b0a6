import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest

from edge_runtime import capabilities
from edge_runtime.trust import Accepted, ManifestRefused, accept
from tests.edge_runtime.test_trust import CLOCK, KEYS, TEMPLATES, TOY, judge, patched, refusal
from wire_contract import envelope
from wire_contract.lineage import Lineage, Parent
from wire_contract.manifest import ArraySpec, GoldenVector


def test_the_release_is_the_distributions_version():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert project["project"]["version"] == capabilities.RELEASE


@pytest.mark.parametrize(
    ("minimum", "expected"),
    [("", False), (capabilities.RELEASE, False), ("0.0.9", False), ("0.1", False), ("0.1.1", True), ("0.10", True),
     ("1", True)],
)  # fmt: skip
def test_releases_are_compared_number_by_number(minimum, expected):
    assert capabilities.too_old(minimum) is expected


def templates(**changes):
    return {TOY.manifest.template_sha256: msgspec.structs.replace(TOY.manifest, **changes)}


def test_a_version_that_needs_what_is_not_here_is_refused_with_its_name():
    needs = ("family:next-word", "weights:int3")
    with pytest.raises(ManifestRefused, match="weights:int3") as caught:
        judge(patched(needs=needs), templates=templates(needs=needs))
    assert caught.value.reason == "lacks_capability"
    known = tuple(sorted(capabilities.CAPABILITIES))
    assert judge(patched(needs=known), templates=templates(needs=known)).needs == known


def test_a_version_for_a_later_release_is_refused_by_name():
    assert refusal(patched(minimum_runtime="99.1"), templates=templates(minimum_runtime="99.1")) == "runtime_too_old"
    assert judge(patched(minimum_runtime="0.1"), templates=templates(minimum_runtime="0.1")).version == 2


def test_a_family_that_is_not_known_is_refused_by_name():
    body = msgspec.msgpack.encode(msgspec.structs.replace(TOY.manifest, family="holograms"))
    with pytest.raises(ManifestRefused, match="holograms") as caught:
        accept(
            envelope.sign(TOY.key, "manifest", body), keys=KEYS, population="keyboard", track="training",
            before=Accepted(), templates=TEMPLATES, now=CLOCK.now(),
        )  # fmt: skip
    assert caught.value.reason == "unsupported"


ARRAYS = {
    "family": "arrays", "vocabulary_sha256": "", "vocabulary_words": 0,
    "examples": (ArraySpec(name="x", shape=(2,), dtype="float32"),
                 ArraySpec(name="target", shape=(), dtype="int32", role="target")),
}  # fmt: skip


@pytest.mark.parametrize(
    "change", [ARRAYS, {"loss": "mean_squared_error"}, {"needs": ("family:next-word",)}, {"minimum_runtime": "0.1"}],
    ids=lambda change: next(iter(change)),
)  # fmt: skip
def test_the_aggregators_key_changes_neither_family_nor_loss_nor_needs(change):
    assert refusal(patched(**change)) == "outside_template"


def test_the_aggregators_key_states_lineage_and_golden_vectors_of_its_own():
    lineage = Lineage(made_by="steps", parents=(Parent(version=1, sha256=TOY.manifest.sha256),), updates=3, examples=9)
    vectors = (GoldenVector(context=(1, 5, 6), ids=(7, 8, 9)),)
    assert judge(patched(lineage=lineage, golden_vectors=vectors)).golden_vectors == vectors


def test_an_agents_turn_without_a_refresh_loads_neither_tuf_nor_numpy(tmp_path):
    """In a process of its own, over a home whose root is pinned."""
    script = f"""
import sys
from pathlib import Path
from edge_runtime.adapters.tuf_client import TufRepository
from edge_runtime.repository_trust import pinned_root
from edge_runtime.version_keeper import VersionKeeper
from wire_contract.messages import Enrolled

class Clock:
    def now(self): return 1_800_000_000.0
    def elapsed(self): return 0.0

class Nobody:
    def fetch(self, url, start, limit_bytes):
        from edge_runtime.ports import Unreachable
        raise Unreachable("nobody is asked")

enrolled = Enrolled(
    device="0" * 32, population="keyboard", aggregator_key=bytes(32), manifest_key=bytes(32), broker_url="x",
    model_url="http://toy/", shard=0, issued_at=0, root=b"a root",
)
keeper = VersionKeeper(Path({str(tmp_path)!r}), enrolled, Nobody(), Clock(), None, None, seen_at=1_800_000_000.0)
assert keeper.slots.repository is not None
keeper.install_refresh(lambda: 0.5)
heavy = sorted(name for name in sys.modules if name.partition(".")[0] in ("tuf", "securesystemslib", "numpy"))
sys.exit(f"loaded: {{heavy[:5]}}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60, cwd=Path(__file__).parents[2])
