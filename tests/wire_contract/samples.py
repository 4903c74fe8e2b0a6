"""One message of each kind, with fixed values: for round trips and for the golden vectors."""

from wire_contract import messages as m
from wire_contract.offline_bundle import OfflineBundle

DEVICE = "0123456789abcdef0123456789abcdef"
HASH = "ab" * 32
WINDOW = m.RetryWindow(earliest=1_800_000_000, latest=1_800_003_600)

MESSAGES: list[m.AnyMessage] = [
    m.CheckIn(device=DEVICE, population="en-chat", nonce="11" * 16, sent_at=1_800_000_000, held_version=3,
              capabilities=("codec:topk4", "entropy:zstd", "rule:sgd", "signature:train"), examples=420),
    m.StatusQuery(device=DEVICE, update_id="22" * 16, nonce="33" * 16, sent_at=1_800_000_001),
    m.TaskOffer(device=DEVICE, population="en-chat", task="44" * 8, lease="55" * 16, nonce="11" * 16, base_version=3,
                base_sha256=HASH, layout_fingerprint=HASH, plan=m.Plan(), seed=12345678901234567,
                sealing_key=bytes(range(32)), shard=0, issued_at=1_800_000_002, deadline=1_800_086_400, retry=WINDOW),
    m.TurnedAway(device=DEVICE, nonce="11" * 16, reason="40 leases in flight, goal count 20", issued_at=1_800_000_002,
                 retry=WINDOW),
    m.UpdateHeader(device=DEVICE, population="en-chat", task="44" * 8, lease="55" * 16, update_id="66" * 16,
                   base_version=3, layout_fingerprint=HASH, codec="topk4", examples=80, steps=5, loss_before=5.25,
                   loss_after=4.75, finished_at=1_800_000_100, ephemeral_key=bytes(range(32))),
    m.UpdateInit(header=b"header bytes", size_bytes=7123, sha256=HASH, chunk_bytes=32_768),
    m.Chunk(update_id="66" * 16, index=0, data=b"sealed bytes"),
    m.Receipt(device=DEVICE, update_id="66" * 16, verdict="stale", reason="staleness 4 is above 3", staleness=4,
              issued_at=1_800_000_200),
    m.DeviceReport(device=DEVICE, nonce="77" * 16, online=True, training_version=3, refresh_version=2,
                   runtime="litert 2.3.0", reason="not charging: plug it in", sent_at=1_800_000_300),
    m.ModelAnnouncement(signed_manifest=b"envelope"),
    m.Enrolment(token="one-use", public_key=bytes(range(32)), population="en-chat", label="kitchen pi",
                proof=bytes(64)),
    m.Enrolled(device=DEVICE, population="en-chat", aggregator_key=bytes(32), manifest_key=bytes(range(32)),
               broker_url="mqtt://127.0.0.1:1883", model_url="http://127.0.0.1:8080", shard=0,
               issued_at=1_800_000_000),
    m.ModelRequest(device=DEVICE, nonce="88" * 16, sent_at=1_800_000_400, wanted=HASH, held="cd" * 32, first=8,
                   count=4),
    m.ModelChunk(wanted=HASH, held="", size_bytes=98_310, index=2, data=b"a tail"),
    m.ModelDenied(device=DEVICE, nonce="88" * 16, code="no_delta", issued_at=1_800_000_401, retry=WINDOW),
    m.EvaluationOffer(device=DEVICE, population="en-chat", task="99" * 8, lease="aa" * 16, nonce="11" * 16, version=4,
                      version_sha256=HASH, minimum_words=60, most_words=3_000, issued_at=1_800_000_500,
                      deadline=1_800_086_900, retry=WINDOW),
    m.EvaluationReport(device=DEVICE, task="99" * 8, lease="aa" * 16, report_id="bb" * 16, version=4, words=420,
                       hits1=70, hits3=120, sent_at=1_800_000_600),
]  # fmt: skip

# Since a repository says which refresh is a population's.
TRUST_MESSAGES: list[m.AnyMessage] = [
    m.ModelAnnouncement(
        signed_manifest=b"envelope",
        trust=(m.TrustFile(name="timestamp.json", data=b"{}"), m.TrustFile(name="12.snapshot.json", data=b"{ }")),
    ),
    m.Enrolled(device=DEVICE, population="en-chat", aggregator_key=bytes(32), manifest_key=bytes(range(32)),
               broker_url="mqtt://127.0.0.1:1883", model_url="http://127.0.0.1:8080", shard=0,
               issued_at=1_800_000_000, root=b'{"signed": {}}'),
]  # fmt: skip
OFFLINE_BUNDLE = OfflineBundle(
    roots=(b"root 1", b"root 2"), targets=b"targets", offline=b"offline", signed_manifest=b"manifest",
    signed_template=b"template", vocabulary=b"words", model=b"TFL3",
)  # fmt: skip
