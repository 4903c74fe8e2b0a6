"""Scoring a version on held-out text by the devices' own code: `edge-runtime evaluate` as a process.

The aggregator has no interpreter and imports none: what keyboards run is what judges.
"""

import json
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from cloud_aggregator.errors import EvaluationFailed
from cloud_aggregator.ports import Score, VersionFile
from wire_contract.errors import ContractError
from wire_contract.manifest import GoldenVector, check_golden_vectors

# What a refresh must answer exactly on every device is asked for with its score.
GOLDEN_QUESTIONS = 16


class CommandEvaluator:
    """`ports.Evaluator` by a command; scores are remembered by file, so the current version is scored once."""

    def __init__(self, command: Sequence[str], text: Path, timeout_s: float) -> None:
        self._command = list(command)
        self._text = text
        self._timeout_s = timeout_s
        self._scores: dict[str, Score] = {}
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def score(self, version: VersionFile) -> Score:
        known = self._scores.get(version.model.name)
        if known is None:
            known = self._scores[version.model.name] = self._evaluate(version)
        return known

    def stop(self) -> None:
        """End the evaluation that runs, and any later one, with `EvaluationFailed`. Safe to call twice."""
        with self._lock:
            self._stopped = True
            if self._running is not None:
                self._running.kill()

    def _run(self, words: Sequence[str]) -> tuple[int, bytes, bytes]:
        with self._lock:
            if self._stopped:
                raise EvaluationFailed("the evaluator was stopped")
            running = self._running = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            out, errors = running.communicate(timeout=self._timeout_s)
        except BaseException:
            running.kill()
            running.communicate()
            raise
        finally:
            with self._lock:
                self._running = None
        return running.returncode, out, errors

    def _evaluate(self, version: VersionFile) -> Score:
        with tempfile.TemporaryDirectory(prefix="evaluate-") as folder:
            manifest = Path(folder) / "manifest.bin"
            manifest.write_bytes(version.signed_manifest)
            words = [*self._command, "evaluate", str(version.model), str(self._text)]
            words += ["--manifest", str(manifest)]
            words += [] if version.vocabulary is None else ["--vocabulary", str(version.vocabulary)]
            words += ["--golden", str(GOLDEN_QUESTIONS), "--json"]
            try:
                code, out, errors = self._run(words)
            except (OSError, subprocess.TimeoutExpired) as e:
                raise EvaluationFailed(f"{self._command[0]} evaluate: {e}") from e
        if code != 0:
            last = (errors.decode("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
            raise EvaluationFailed(f"{self._command[0]} evaluate ended with {code}: {last[:200]}")
        # A model of arrays has no vocabulary; one that predicts numbers has no accuracy either, and is not judged.
        score_name, counted = ("accuracy", "examples") if version.vocabulary is None else ("top3", "words")
        try:
            answer = json.loads(out.decode("utf-8").splitlines()[-1])
            score, count = float(answer[score_name]), int(answer.get(counted, 0))
            golden = msgspec.convert(answer.get("golden_vectors", ()), tuple[GoldenVector, ...])
            check_golden_vectors(golden, 0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, ContractError) as e:
            raise EvaluationFailed(f"{self._command[0]} evaluate answered no {score_name}: {e!r}") from e
        if not 0.0 <= score <= 100.0:
            raise EvaluationFailed(f"{score_name} is a percentage, got {score}")
        return Score(score_name, score, counted, count, golden)
