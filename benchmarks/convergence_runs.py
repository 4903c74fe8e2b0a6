"""One run of `benchmarks.convergence`: a codec, or a staleness, on the converged base with one seed; its record.

What a record depends on is hashed into its name: the base, the variant's settings, the seed, the people it is scored
on, and the code listed in `CODE`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import msgspec

from benchmarks import learning_base
from benchmarks.learning_base import Base
from cloud_aggregator import index_sets
from cloud_aggregator.bases import principal_axes
from cloud_aggregator.config import PopulationSettings
from cloud_aggregator.server_optimizer import OptimizerSettings
from fleet_simulator.learning import Fleet, LearningSettings, Round, run, with_index_set
from keyboard_demo.typists import Split
from wire_contract.basis import Basis, decode_basis
from wire_contract.index_set import IndexSet, decode_index_set, encode_index_set
from wire_contract.messages import CodecPlan, Plan
from wire_contract.patch import read_tensors

STEPS: Final = 36
GOAL: Final = 20
ASYNC_STEPS: Final = 240
TAIL_IDS: Final = 1200
OLD_TOPK: Final = CodecPlan(mode="topk4", kept=0.01)
CODE: Final = (
    "benchmarks/convergence_runs.py", "cloud_aggregator/admission.py", "cloud_aggregator/bases.py",
    "edge_runtime/client_update.py", "edge_runtime/residual.py", "wire_contract/basis.py", "wire_contract/codec.py",
)  # fmt: skip
SHARED_CODE: Final = ("cloud_aggregator/index_sets.py", "wire_contract/ring.py")


@dataclass(frozen=True)
class Variant:
    """One row of the table. `residual_keep` 0 sends without error feedback; `principal` names a basis."""

    name: str
    codec: CodecPlan = OLD_TOPK
    float32: bool = False
    principal: bool = False
    residual_keep: float = 0.0
    shared: bool = False


@dataclass(frozen=True)
class Timing:
    """One side of the asynchronous comparison."""

    name: str
    staleness: tuple[float, ...]
    optimizer: OptimizerSettings


def population(variant: Variant, first_step: int) -> PopulationSettings:
    """Return the operator's settings of a run that goes on after `first_step` steps."""
    plan = Plan(
        rows=256, epochs=1, learning_rate=1.0, dropout=0.2, example_cap=64, residual_keep=variant.residual_keep,
        codec=variant.codec,
    )  # fmt: skip
    optimizer = OptimizerSettings(
        learning_rate=2e-2, beta1=0.9, beta2=0.99, epsilon=1e-4, warmup_steps=first_step,
        decay_steps=first_step + STEPS, final_share=0.1,
    )  # fmt: skip
    return PopulationSettings(goal_count=GOAL, plan=plan, optimizer=optimizer)


def basis_of(base: Base) -> Basis:
    """Return the principal axes of the population's first version, as an aggregator makes them at import."""
    tensors = read_tensors(base.public.file, base.manifest)
    return decode_basis(principal_axes(tensors, base.layout, words=base.manifest.vocabulary_words))


def index_set_of(base: Base, share: float, seed: int) -> IndexSet:
    """Return the set that an aggregator makes at a release of the converged base: by its optimizer's second moment."""
    size = base.layout.size
    count = max(1, round(share * size))
    chosen = index_sets.choose_scored(base.converged.optimizer.v, count=count, explore_share=0.15, seed=seed)
    return decode_index_set(encode_index_set(size, chosen))


def learn(base: Base, variant: Variant, seed: int, observe: Callable[[Round], None]) -> Round:
    """Run the 36 steps of one variant and return the last."""
    settings = population(variant, base.converged.optimizer.step)
    index_set = basis = None
    if variant.shared:
        index_set = index_set_of(base, variant.codec.kept, seed)
        settings = with_index_set(settings, index_set)
    if variant.principal:
        basis = basis_of(base)
        codec_plan = msgspec.structs.replace(settings.plan.codec, basis=basis.sha256)
        settings = msgspec.structs.replace(settings, plan=msgspec.structs.replace(settings.plan, codec=codec_plan))
    learning = LearningSettings(settings, STEPS, seed=seed, float32=variant.float32)
    streams = base.streams(learning_base.halves()[1])
    return run(Fleet(streams, base.converged, learning, base.runner(), index_set, basis), observe)


def run_variant(base: Base, variant: Variant, seed: int, split: Split) -> dict[str, object]:
    """Return one run's record: scores before and after, bytes of each update, verdicts."""
    sizes: list[int] = []
    refused: list[str] = []

    def observe(made: Round) -> None:
        sizes.extend(made.update_bytes)
        refused.extend(made.refused)

    last = learn(base, variant, seed, observe)
    runner = base.runner()
    tails = base.tails(learning_base.people(split), TAIL_IDS)
    before = base.score(runner, base.converged.file, tails)
    after = base.score(runner, last.file, tails)
    return {
        "variant": variant.name,
        "seed": seed,
        "split": split,
        "words": before.count,
        "loss": [before.mean_loss, after.mean_loss],
        "top1": [before.top1, after.top1],
        "top3": [before.top3, after.top3],
        "bytes": sizes,
        "refused": refused,
    }


def run_timing(base: Base, timing: Timing, seed: int, split: Split) -> dict[str, object]:
    """Return one asynchronous or synchronous run's record."""
    plan = Plan(rows=64, epochs=1, learning_rate=1.0, dropout=0.2, example_cap=64)
    settings = PopulationSettings(goal_count=GOAL, plan=plan, optimizer=timing.optimizer)
    learning = LearningSettings(settings, ASYNC_STEPS, seed=seed, float32=True, staleness=timing.staleness)
    runner = base.runner()
    people = [person for half in learning_base.halves() for person in half]
    tails = base.tails(learning_base.people(split), TAIL_IDS)
    last = run(Fleet(base.streams(people), base.public, learning, runner), lambda each: None)
    after = base.score(runner, last.file, tails)
    return {"variant": timing.name, "seed": seed, "split": split, "top1": after.top1, "top3": after.top3,
            "loss": after.mean_loss}  # fmt: skip


def name_of(base: Base, made: Variant | Timing, seed: int, split: Split) -> str:
    """Return the name under which a run's record is kept."""
    settings = f"{base.sha256} {made} {seed} {split} hysteresis {learning_base.BASE_POPULATION.hysteresis}"
    shared = isinstance(made, Variant) and made.shared
    return learning_base.hash_of(settings, CODE + SHARED_CODE if shared else CODE)
