"""What the demo found, as one frozen record, and how it is shown: a screen for people, an object for scripts. Pure."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """One place in a held-out sentence: what was typed, the word that came, and both models' three suggestions."""

    typed: str
    came: str
    first: tuple[str, ...]
    last: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The numbers of one story. Recalls are percent of held-out words; bytes are medians over updates; `seconds` is
    wall time from the first export to the last score. `updates_waiting` were accepted and wait in the buffer."""

    seed: int
    devices: int
    nights: int
    updates_applied: int
    updates_waiting: int
    updates_by_staleness: dict[str, int]
    refused: dict[str, int]
    stayed_away: dict[str, int]
    interrupted: int
    resumed: int
    killed: int
    versions: int
    refreshes: int
    persons: int
    words: int
    top3_before: float
    top3_after: float
    top3_personal: float
    top1_before: float
    top1_after: float
    top1_personal: float
    bytes_up_per_update: int
    bytes_float32: int
    parameters: int
    broker: str
    runtime: str
    seconds: float
    model_hash: str

    def as_json(self) -> dict[str, object]:
        """Return the record as a JSON object, recalls and seconds rounded to what they can bear."""
        data: dict[str, object] = asdict(self)
        for key, value in data.items():
            if isinstance(value, float):
                data[key] = round(value, 2)
        data["times_fewer_bytes"] = round(self.bytes_float32 / max(1, self.bytes_up_per_update), 1)
        return data


def bar(share: float, width: int = 24) -> str:
    """Return a bar of `share` (0 to 1) of `width` characters; at least one where the share is not zero."""
    return "█" * max(1 if share > 0 else 0, round(share * width))


def screen(outcome: Outcome, sentence: tuple[Place, ...], commands: tuple[tuple[str, str], ...]) -> str:
    """Return the last screen, at most 78 columns wide: what was learned, what it cost, what was refused, what next."""
    o = outcome
    lines = [
        f"{o.devices} devices learned for {o.nights} nights; {o.updates_applied} updates made {o.versions} versions, "
        f"{o.refreshes} released.",
        "",
        f"NEXT WORD, {o.persons} people nobody trained on, {o.words:,} words        top 3    top 1",
        f"  before   public starting weights                      {o.top3_before:6.2f} % {o.top1_before:6.2f} %",
        f"  after    the fleet's last release                     {o.top3_after:6.2f} % {o.top1_after:6.2f} %",
        f"  and with the person's own copy and word cache         {o.top3_personal:6.2f} % {o.top1_personal:6.2f} %",
        "",
        *_sentence(sentence),
        f"BYTES      an update {o.bytes_up_per_update:,}; in float32 it is {o.bytes_float32:,}: "
        f"{o.bytes_float32 / max(1, o.bytes_up_per_update):.0f} times fewer",
        *_histogram("STALENESS", o.updates_by_staleness),
        "REFUSED    " + (", ".join(f"{name} {count}" for name, count in sorted(o.refused.items())) or "none"),
        "STAYED     "
        + (", ".join(f"{count} {reason}" for reason, count in sorted(o.stayed_away.items())) or "nobody stayed away"),
        f"           {o.interrupted} interrupted, {o.resumed} resumed, {o.killed} killed; each counted once",
        f"MODEL      {o.model_hash}",
        "",
        "Next:",
        *(f"  {command}\n      {what}" for command, what in commands),
    ]
    return "\n".join(lines)


def _sentence(sentence: tuple[Place, ...]) -> list[str]:
    if not sentence:
        return []
    typed = max(14, min(26, max(len(row.typed) for row in sentence)))
    lines = [
        "A SENTENCE   (* the word that came)",
        f"  {'typed so far'.ljust(typed)}  {'first model'.ljust(22)}  last model",
    ]
    for row in sentence:
        shown = row.typed if len(row.typed) <= typed else "…" + row.typed[1 - typed :]
        first, last = (", ".join(f"{w}*" if w == row.came else w for w in words) for words in (row.first, row.last))
        lines.append(f"  {shown.ljust(typed)}  {_cut(first, 22).ljust(22)}  {_cut(last, 24)}".rstrip())
    return [*lines, ""]


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _histogram(title: str, counts: dict[str, int]) -> list[str]:
    most = max(counts.values(), default=0)
    lines = []
    for i, (name, count) in enumerate(sorted(counts.items())):
        lines.append(f"{(title if i == 0 else '').ljust(10)} {name}: {str(count).rjust(5)} {bar(count / max(1, most))}")
    return lines or [f"{title.ljust(10)} no update was accepted"]
