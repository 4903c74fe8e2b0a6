"""The rules of local training that a plan may name beside plain SGD: their names, ranges and order.

With g the gradient of a batch's mean loss, s the share of the batch's positions that hold a token, eta the step's rate,
w the weights and w0 the received ones, a step is

    d = g, changed by `freeze`, `clip` and `proximal` in the plan's order
    v = beta v + s d                                             (`momentum`, `nesterov`; without them v = s d)
    w = w - eta v                                                (`nesterov`: w - eta (s d + beta v))

| name | value | a step |
|---|---|---|
| example-clip | C > 0 | g is the mean over the batch of g_b min(1, C / norm(g_b)), g_b one row's gradient (below) |
| example-noise | z >= 0 | d + Gaussian noise of standard deviation z C / batch in every value of every tensor |
| freeze | - | d is 0 in the named fleet tensors: they stay bit for bit (head-only: freeze all but the head) |
| clip | c > 0 | d min(1, c / norm(d)), the norm over all tensors (Pascanu et al. 2013) |
| proximal | mu > 0 | d + mu (w - w0), the gradient of mu/2 norm(w - w0)^2 (FedProx, Li et al. 2020, eq. 2) |
| momentum | 0 < beta < 1 | heavy ball (Polyak 1964), v starts at 0 and is part of the checkpoint |
| nesterov | 0 < beta < 1 | the look-ahead form (Nesterov 1983, as Sutskever et al. 2013 write it) |
| schedule-linear | 0 <= f < 1 | eta falls in a line from the plan's rate to f times it after the last step |
| schedule-cosine | 0 <= f < 1 | likewise on half a cosine (Loshchilov and Hutter 2017, eq. 5, without restarts) |
| warm-up | whole W >= 1 | eta times (n + 1) / W in the first W steps, n from 0; times the schedule, if there is one |
| max-steps | whole N >= 1 | the training ends after N steps, and a schedule is stretched over those |

What is refused, and why:
- an unknown rule, one that stands twice, a value out of its range, a tensor that the model does not have: what a device
  does not understand it does not guess;
- two schedules, or momentum with nesterov: two answers to one question;
- `freeze` after `clip` or `proximal`: the norm would count what does not move; and either of them after a velocity:
  what is bounded must be one batch's gradient. The rules of the rate and of the count may stand anywhere;
- freezing every tensor: nothing would train;
- a proximal pull with rate x mu > 1: a step would throw the weights past w0.

Private steps: `example-clip` is asked for with the signature `train_private`, and that signature with it. g_b is the
gradient of row b's loss summed over its tokens and divided by the row's length, not by how many tokens it holds; the
sum is divided by the graph's batch, not by how many rows came; and s is 1. So one row moves g by C / batch at most,
whatever the other rows are, and with every g_b shorter than C the step is that of `train`. `example-noise` (z is the
noise multiplier) stands before every other rule of the direction, so that all they do is done to what is noisy already.
The noise comes from the device's own key (`example_noise`), once a step; with z > 0 the losses of the training are not
reported, for no noise is in them, and the plan says residual_keep 0, for what an earlier plan left behind may hold none
either. A frozen tensor's gradient counts in norm(g_b): the bound holds, and some of C is spent on what does not move.
Whether it adds up to a promise about a person is for an accountant to say; there is none.

There is no weight decay: it would move every row of the model at every step, where a batch moves those of its words;
`proximal` holds the weights near the fleet's and leaves untouched rows alone. numpy is not imported here: the agent
names its rules when it checks in (`CAPABILITIES`), and is idle then. The maths is `local_optimizer`'s.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass

from wire_contract.manifest import signature_family
from wire_contract.messages import LocalRule, Plan

PRIVATE_FAMILY = "train_private"


class PlanRefused(Exception):  # noqa: N818 - an answer, not a fault
    """The plan asks for what this device cannot do, or has too little text for; the message names it."""


@dataclass(frozen=True, slots=True)
class _Kind:
    """`place`: rules of the direction stand in this order; None for those of the rate and the count."""

    place: int | None = None
    low: float = 0.0
    high: float = 1e6
    holds_low: bool = False
    whole: bool = False
    takes_value: bool = True
    takes_tensors: bool = False


_FRACTION = _Kind(high=1.0, holds_low=True)
_COUNT = _Kind(low=1.0, holds_low=True, whole=True)
_KINDS = {
    "example-clip": _Kind(place=-2),
    "example-noise": _Kind(place=-1, holds_low=True),
    "clip": _Kind(place=1),
    "freeze": _Kind(place=0, takes_value=False, takes_tensors=True),
    "max-steps": _COUNT,
    "momentum": _Kind(place=2, high=1.0),
    "nesterov": _Kind(place=2, high=1.0),
    "proximal": _Kind(place=1),
    "schedule-cosine": _FRACTION,
    "schedule-linear": _FRACTION,
    "warm-up": _COUNT,
}
BASE_RULES = ("sgd",)
RULES = tuple(_KINDS)
CAPABILITIES = tuple(f"rule:{name}" for name in sorted((*BASE_RULES, *RULES)))
_DIRECTION = tuple(name for name, kind in _KINDS.items() if kind.place is not None)
_EXCLUSIVE = (("momentum", "nesterov"), ("schedule-linear", "schedule-cosine"))


def check_rules(plan: Plan, tensors: Collection[str]) -> None:
    """Raise `PlanRefused` unless every rule of the plan is known, in range and in order; `tensors` are the model's."""
    if plan.rule not in BASE_RULES:
        raise PlanRefused(f"this device knows the update rules {BASE_RULES}, the plan asks for {plan.rule!r}")
    seen: list[str] = []
    for rule in plan.rules:
        kind = _KINDS.get(rule.name)
        if kind is None:
            raise PlanRefused(f"this device knows the local rules {RULES}, the plan asks for {rule.name!r}")
        if rule.name in seen:
            raise PlanRefused(f"a rule stands in a plan once, got {rule.name!r} twice")
        _check_value(rule, kind)
        _check_tensors(rule, kind, tensors)
        for before in seen:
            _check_pair(before, rule.name)
        seen.append(rule.name)
    _check_private(plan)
    mu = value_of(plan, "proximal")
    if mu is not None and plan.learning_rate * mu > 1.0:
        raise PlanRefused(
            f"'proximal' needs learning rate x value <= 1, got {plan.learning_rate} x {mu} = {plan.learning_rate * mu}"
        )


def _check_private(plan: Plan) -> None:
    private = signature_family(plan.signature) == PRIVATE_FAMILY
    clips = value_of(plan, "example-clip") is not None
    if private and not clips:
        raise PlanRefused(f"{plan.signature!r} needs the rule 'example-clip', the plan has it not")
    for name in ("example-clip", "example-noise"):
        if value_of(plan, name) is not None and not private:
            raise PlanRefused(f"{name!r} needs the signature {PRIVATE_FAMILY!r}, the plan asks for {plan.signature!r}")

    if value_of(plan, "example-noise") and plan.residual_keep > 0.0:
        raise PlanRefused(f"'example-noise' needs residual_keep 0, got {plan.residual_keep}")


def _check_value(rule: LocalRule, kind: _Kind) -> None:
    value = rule.value
    if not kind.takes_value:
        if value != 0.0:
            raise PlanRefused(f"{rule.name!r} takes no value, got {value}")
        return
    # NaN compares false with everything, so it is out of every range.
    above = value >= kind.low if kind.holds_low else value > kind.low
    if not (above and (value < kind.high or (kind.whole and value <= kind.high)) and math.isfinite(value)):
        low = "<=" if kind.holds_low else "<"
        raise PlanRefused(f"{rule.name!r} takes a value with {kind.low:g} {low} value < {kind.high:g}, got {value}")
    if kind.whole and value != int(value):
        raise PlanRefused(f"{rule.name!r} takes a whole number of steps, got {value}")


def _check_tensors(rule: LocalRule, kind: _Kind, tensors: Collection[str]) -> None:
    if not kind.takes_tensors:
        if rule.tensors:
            raise PlanRefused(f"{rule.name!r} is about no tensors, got {rule.tensors}")
        return
    unknown = [name for name in rule.tensors if name not in tensors]
    if unknown:
        raise PlanRefused(f"{rule.name!r} names tensors of this model, {sorted(tensors)}, got {unknown}")
    if len(set(rule.tensors)) != len(rule.tensors) or not rule.tensors:
        raise PlanRefused(f"{rule.name!r} names one tensor or more, each once, got {rule.tensors}")
    if len(rule.tensors) == len(set(tensors)):
        raise PlanRefused(f"{rule.name!r} leaves a tensor to train, got all of {rule.tensors}")


def _check_pair(before: str, name: str) -> None:
    for pair in _EXCLUSIVE:
        if before in pair and name in pair:
            raise PlanRefused(f"{before!r} and {name!r} exclude each other, the plan has both")
    first, second = _KINDS[before].place, _KINDS[name].place
    if first is not None and second is not None and first > second:
        raise PlanRefused(f"{name!r} stands before {before!r} in a plan, got it after")


def value_of(plan: Plan, name: str) -> float | None:
    """Return the value of a rule, or None if the plan does not have it."""
    return next((rule.value for rule in plan.rules if rule.name == name), None)


def directs(plan: Plan) -> bool:
    """Whether the plan changes a step's direction, so that the gradient itself is needed."""
    return any(rule.name in _DIRECTION for rule in plan.rules)


def has_velocity(plan: Plan) -> bool:
    """Whether a velocity is carried from step to step."""
    return any(rule.name in ("momentum", "nesterov") for rule in plan.rules)


def most_steps(plan: Plan, steps: int) -> int:
    """Return how many of `steps` the plan lets happen."""
    cap = value_of(plan, "max-steps")
    return steps if cap is None else min(steps, int(cap))


def rate(plan: Plan, step: int, steps: int) -> float:
    """Return the learning rate of step number `step`, from 0, of `steps`; without such rules exactly the plan's."""
    factor = 1.0
    for rule in plan.rules:
        if rule.name == "schedule-linear":
            factor *= 1.0 - (1.0 - rule.value) * step / steps
        elif rule.name == "schedule-cosine":
            factor *= rule.value + (1.0 - rule.value) * (1.0 + math.cos(math.pi * step / steps)) / 2.0
        elif rule.name == "warm-up":
            factor *= min(1.0, (step + 1) / rule.value)
    return plan.learning_rate * factor
