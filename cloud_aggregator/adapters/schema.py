"""The tables, for any database that SQLAlchemy speaks to. `SCHEMA` rises with every change to them."""

from typing import Final

import sqlalchemy as sa

SCHEMA: Final = b"5"
# Earlier schemas that lack nothing but tables, and the columns below: opening a database makes them.
ADDED_TO: Final = frozenset({b"3", b"4"})
ADDED_COLUMNS: Final = (("versions", "examples"), ("releases", "signed_manifest"))

metadata = sa.MetaData()

# SQLite numbers rows by INTEGER only; elsewhere 64 bits are wanted.
_RowId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _id() -> sa.Column[int]:
    return sa.Column("id", _RowId, primary_key=True, autoincrement=True)


def _partial(name: str, rows: str, *columns: str) -> sa.Index:
    """An index of the rows of which `rows` is true. A query must say it in the very words to be served by it."""
    return sa.Index(name, *columns, sqlite_where=sa.text(rows), postgresql_where=sa.text(rows))


meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.String(80), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("token_sha256", sa.String(64), primary_key=True),
    sa.Column("label", sa.String(80), nullable=False),
    sa.Column("population", sa.String(40), nullable=False),
    sa.Column("uses_left", sa.Integer, nullable=False),
    sa.Column("minted_at", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.BigInteger, nullable=False),
)

devices = sa.Table(
    "devices",
    metadata,
    sa.Column("device", sa.String(32), primary_key=True),
    sa.Column("population", sa.String(40), nullable=False),
    sa.Column("public_key", sa.LargeBinary, nullable=False),
    sa.Column("label", sa.String(80), nullable=False),
    sa.Column("enrolled_at", sa.BigInteger, nullable=False),
    sa.Column("revoked_at", sa.BigInteger),
    sa.Column("last_seen", sa.BigInteger),
    sa.Column("online", sa.Boolean, nullable=False),
    sa.Column("training_version", sa.BigInteger, nullable=False),
    sa.Column("refresh_version", sa.BigInteger, nullable=False),
    sa.Column("runtime", sa.String(400), nullable=False),
    sa.Column("reason", sa.String(400), nullable=False),
    sa.Column("report_nonce", sa.String(32), nullable=False),
    sa.Column("reported_at", sa.BigInteger, nullable=False),
    sa.Column("retry_earliest", sa.BigInteger, nullable=False),
    sa.Column("retry_latest", sa.BigInteger, nullable=False),
)

populations = sa.Table(
    "populations",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("settings", sa.LargeBinary, nullable=False),
    sa.Column("manifest_key", sa.LargeBinary, nullable=False),
    sa.Column("template_sha256", sa.String(64), nullable=False),
    sa.Column("signed_template", sa.LargeBinary, nullable=False),
    sa.Column("task", sa.String(16), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    _id(),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("key", sa.String(32), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("device", "kind", "key"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("lease", sa.String(32), primary_key=True),
    sa.Column("task", sa.String(16), nullable=False),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("base_sha256", sa.String(64), nullable=False),
    sa.Column("seed", sa.BigInteger, nullable=False),
    sa.Column("issued_at", sa.BigInteger, nullable=False),
    sa.Column("deadline", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Index("leases_by_device", "task", "device"),
    sa.Index("leases_by_state", "task", "state", "deadline"),
)

_EVALUATION_SUMS = ("reports", "silent", "words", "hits1", "hits3", "words_words", "words_hits3", "hits3_hits3")

evaluations = sa.Table(
    "evaluations",
    metadata,
    sa.Column("task", sa.String(16), primary_key=True),
    sa.Column("population", sa.String(40), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("devices", sa.BigInteger, nullable=False),
    sa.Column("minimum_words", sa.BigInteger, nullable=False),
    sa.Column("most_words", sa.BigInteger, nullable=False),
    sa.Column("asked_at", sa.BigInteger, nullable=False),
    sa.Column("deadline", sa.BigInteger, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in _EVALUATION_SUMS),
    sa.Index("evaluations_by_deadline", "population", "deadline"),
)

# That a lease's report was counted. Its counts are in the sums above and nowhere else.
evaluation_reports = sa.Table(
    "evaluation_reports",
    metadata,
    sa.Column("task", sa.String(16), primary_key=True),
    sa.Column("device", sa.String(32), primary_key=True),
    sa.Column("lease", sa.String(32), primary_key=True),
    sa.Column("body_sha256", sa.String(64), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

updates = sa.Table(
    "updates",
    metadata,
    _id(),
    sa.Column("update_id", sa.String(32), nullable=False),
    sa.Column("device", sa.String(32), nullable=False),
    # Empty where nothing of the init was verified: an unsigned claim must not take the key of a real update.
    sa.Column("task", sa.String(16)),
    sa.Column("lease", sa.String(32)),
    sa.Column("header", sa.LargeBinary, nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("chunk_bytes", sa.Integer, nullable=False),
    sa.Column("init_sha256", sa.String(64), nullable=False),
    sa.Column("finished_at", sa.BigInteger, nullable=False),
    sa.Column("arrived_at", sa.BigInteger, nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("verdict", sa.String(20)),
    sa.Column("reason", sa.String(400), nullable=False),
    sa.Column("staleness", sa.BigInteger),
    sa.Column("weight", sa.Double, nullable=False),
    sa.Column("norm", sa.Double, nullable=False),
    sa.Column("base_version", sa.BigInteger, nullable=False),
    sa.Column("judged_at", sa.BigInteger),
    sa.Column("receipt", sa.LargeBinary, nullable=False),
    sa.Column("receipt_published", sa.Boolean, nullable=False),
    sa.Column("used_by", sa.BigInteger),
    sa.Column("mismatches", sa.Integer, nullable=False),
    sa.UniqueConstraint("task", "device", "lease", name="one_update_a_lease"),
    sa.UniqueConstraint("update_id", "init_sha256", name="one_row_an_init"),
    # Each holds the few rows that its question is about, so that an arriving update touches one of them.
    _partial("updates_received", "state = 'received'", "finished_at", "device", "id"),
    _partial("updates_open", "state = 'open'", "arrived_at"),
    _partial("updates_refused_at_door", "lease IS NULL", "device"),
    _partial("updates_by_use", "verdict = 'accepted'", "task", "used_by", "id"),
    _partial("updates_by_receipt", "state = 'judged' AND NOT receipt_published", "id"),
)

# The sealed bytes of whole updates stand apart from their verdicts: they are written once, a verdict and its receipt
# change the other row three times, and SQLite writes a changed row whole.
sealed_updates = sa.Table(
    "sealed_updates",
    metadata,
    sa.Column("id", _RowId, primary_key=True, autoincrement=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
)

# Only what is unfinished: an update whose chunks are all there has one row in `sealed_updates`.
chunks = sa.Table(
    "chunks",
    metadata,
    sa.Column("update_id", sa.String(32), primary_key=True),
    sa.Column("index", sa.Integer, primary_key=True),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("size_bytes", sa.Integer, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("arrived_at", sa.BigInteger, nullable=False),
    sa.Index("chunks_by_device", "device"),
)

# Which updates a version was made of, and their exact sum. Version 0 is the buffer that is still open.
partial_sums = sa.Table(
    "partial_sums",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("high_water", sa.BigInteger, nullable=False),
    sa.Column("members", sa.LargeBinary, nullable=False),
    sa.Column("members_sha256", sa.String(64), nullable=False),
    sa.Column("sums", sa.LargeBinary, nullable=False),
    sa.Column("sums_sha256", sa.String(64), nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("ordinal", sa.BigInteger),
    sa.Column("made_at", sa.BigInteger, nullable=False),
    sa.Column("opened_at", sa.BigInteger, nullable=False),
    sa.Column("cause", sa.String(80), nullable=False),
    sa.Column("updates", sa.Integer, nullable=False),
    sa.Column("staleness", sa.JSON, nullable=False),
    sa.Column("delta_norm", sa.Double, nullable=False),
    sa.Column("weights_of", sa.BigInteger),
    sa.Column("examples", sa.BigInteger, nullable=False, server_default="0"),
)

announcements = sa.Table(
    "announcements",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("track", sa.String(10), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("signed_manifest", sa.LargeBinary, nullable=False),
    sa.Column("announced_at", sa.BigInteger, nullable=False),
)

optimizers = sa.Table(
    "optimizers",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("master", sa.LargeBinary, nullable=False),
    sa.Column("m", sa.LargeBinary, nullable=False),
    sa.Column("v", sa.LargeBinary, nullable=False),
)

# The optimizer's state after some of the versions, from which a replay sets out.
kept_states = sa.Table(
    "kept_states",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("step", sa.BigInteger, nullable=False),
    sa.Column("master", sa.LargeBinary, nullable=False),
    sa.Column("m", sa.LargeBinary, nullable=False),
    sa.Column("v", sa.LargeBinary, nullable=False),
)

releases = sa.Table(
    "releases",
    metadata,
    _id(),
    sa.Column("population", sa.String(40), nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("previous", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False),
    sa.Column("outcome", sa.String(10), nullable=False),
    sa.Column("cause", sa.String(80), nullable=False),
    sa.Column("reason", sa.String(400), nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
    # Empty for a release that was held, or is older than the column.
    sa.Column("signed_manifest", sa.LargeBinary),
)

# The signed repository (TUF). Metadata by role and version; `timestamp.json` is the newest of its role.
trust_metadata = sa.Table(
    "trust_metadata",
    metadata,
    sa.Column("role", sa.String(20), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

trust_targets = sa.Table(
    "trust_targets",
    metadata,
    sa.Column("path", sa.String(120), primary_key=True),
    sa.Column("sha256", sa.String(64), primary_key=True),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.BigInteger, nullable=False),
)

schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("population", sa.String(40), primary_key=True),
    sa.Column("cron", sa.String(80), nullable=False),
    sa.Column("time_zone", sa.String(60), nullable=False),
    sa.Column("next_due", sa.BigInteger),
    sa.Column("last_run", sa.BigInteger),
)

events = sa.Table(
    "events",
    metadata,
    _id(),
    sa.Column("at", sa.BigInteger, nullable=False),
    sa.Column("kind", sa.String(40), nullable=False),
    sa.Column("device", sa.String(32), nullable=False),
    sa.Column("text", sa.String(400), nullable=False),
)
