"""Scoring a version on held-out text by the devices' own code: `edge-runtime evaluate` as a process.

The aggregator has no interpreter and imports none: what keyboards run is what judges.
"""

import json
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cloud_aggregator.errors import EvaluationFailed
from cloud_aggregator.ports import VersionFile


class CommandEvaluator:
    """`ports.Evaluator` by a command; scores are remembered by file, so the current version is scored once."""

    def __init__(self, command: Sequence[str], text: Path, timeout_s: float) -> None:
        self._command = list(command)
        self._text = text
        self._timeout_s = timeout_s
        self._scores: dict[str, float] = {}

    def top3(self, version: VersionFile) -> float:
        known = self._scores.get(version.model.name)
        if known is None:
            known = self._scores[version.model.name] = self._evaluate(version)
        return known

    def _evaluate(self, version: VersionFile) -> float:
        with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
            manifest = Path(folder) / "manifest.bin"
            manifest.write_bytes(version.signed_manifest)
            words = [*self._command, "evaluate", str(version.model), str(self._text)]
            words += ["--manifest", str(manifest), "--vocabulary", str(version.vocabulary), "--json"]
            try:
                done = subprocess.run(words, capture_output=True, timeout=self._timeout_s, check=False)
            except (OSError, subprocess.TimeoutExpired) as e:
                raise EvaluationFailed(f"{self._command[0]} evaluate: {e}") from e
        if done.returncode != 0:
            last = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
            raise EvaluationFailed(f"{self._command[0]} evaluate ended with {done.returncode}: {last[:200]}")
        try:
            answer = json.loads(done.stdout.decode("utf-8").splitlines()[-1])
            score = float(answer["top3"])
        except (ValueError, KeyError, IndexError, TypeError, UnicodeDecodeError) as e:
            raise EvaluationFailed(f"{self._command[0]} evaluate answered no top3: {e!r}") from e
        if not 0.0 <= score <= 100.0:
            raise EvaluationFailed(f"top3 is a percentage, got {score}")
        return score
