"""What this device holds out of the person's own, in the form that a version is scored on; never trained on."""

from collections.abc import Sequence

from edge_runtime.adapters.example_store import SqliteExampleStore
from edge_runtime.array_examples import ArrayExamples, of_records
from edge_runtime.evaluation_task import newest_streams
from edge_runtime.model_health_task import MOST_WORDS
from edge_runtime.model_slots import ModelSlots
from wire_contract.manifest import Manifest


class HomeHeldOut:
    """Implements `model_health_task.HeldOut` over a home's versions and example store."""

    def __init__(self, slots: ModelSlots, examples: SqliteExampleStore) -> None:
        self._slots = slots
        self._examples = examples

    def streams(self, manifest: Manifest) -> Sequence[Sequence[int]]:
        """Return the newest held-out sentences as id streams of the version's vocabulary, oldest first."""
        vocabulary = self._slots.vocabulary(manifest.vocabulary_sha256)
        if vocabulary is None:
            return ()
        return newest_streams(self._examples.held_out_sentences(), vocabulary, MOST_WORDS)

    def arrays(self, manifest: Manifest) -> ArrayExamples:
        """Return the held-out examples that are of the version's arrays."""
        return of_records(self._examples.held_out_arrays(), manifest.examples)
