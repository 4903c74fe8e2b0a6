"""Claim: ten million broken inputs, and no decoder of bytes from outside accepts one, crashes, or grows in memory.

Every decoder of `wire_contract` gets its share. A third of the inputs break one known rule of one field (each rule of
each field again and again; accepting one is a failure by itself); the others are good bytes damaged at random, and
what is accepted of them must mean what a slow, independent reader reads. The updates among them are folded by the
numpy and the compiled kernel too, which must refuse the same in the same words or make the same sums. Then the
explicit cases: compression bombs, lengths that lie, deep nesting. `grown_mb` is how much the peak memory of the process
rose after a warm-up.

Run: python -m benchmarks.fuzz [--inputs 10000000] [--seed 1]
Exit code 1 if anything was found. The last line is one JSON object.
"""

import argparse
import json
import platform
import sys
import time
from importlib.metadata import version

from cloud_aggregator.aggregation_kernel import NumpyKernel, compiled_kernel
from tests.fuzzing.bombs import Bomb, bombs
from tests.fuzzing.contract import contract_targets
from tests.fuzzing.harness import Tally, check_seeds, fuzz, peak_memory_mb
from tests.fuzzing.kernels import KernelPair
from wire_contract.errors import ContractError

WARM_UP = 20_000
# A million inputs at a time, each with a seed of its own.
ROUND = 1_000_000
GROWTH_MB = 16.0


def add_up(whole: dict[str, Tally], tallies: list[Tally]) -> None:
    """Add a round's tallies to the sums so far."""
    for tally in tallies:
        into = whole.setdefault(tally.name, Tally(tally.name))
        for name in ("inputs", "refused", "accepted", "wrongly_accepted", "crashed"):
            setattr(into, name, getattr(into, name) + getattr(tally, name))
        into.broken.update(tally.broken)
        for finding in tally.findings:
            into.find(finding.why, finding.data)


def explode(cases: list[Bomb]) -> list[str]:
    """Give every explicit case to its decoder; return which were not refused."""
    found = []
    for bomb in cases:
        try:
            bomb.decode(bomb.data)
        except ContractError:
            continue
        except Exception as e:  # noqa: BLE001 - any other exception is what is looked for
            found.append(f"{bomb.name}: crashed with {type(e).__name__}: {e}")
        else:
            found.append(f"{bomb.name}: accepted")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    targets = contract_targets()
    # Making the bombs takes more memory than refusing them, so they are made before it is measured.
    cases = list(bombs())
    pair = KernelPair(NumpyKernel(), compiled_kernel())
    findings = [str(finding) for finding in check_seeds(targets)]
    fuzz(targets, WARM_UP, asked.seed, pair.see)
    before, started = peak_memory_mb(), time.process_time()
    whole: dict[str, Tally] = {}
    done = 0
    while done < asked.inputs:
        add_up(whole, fuzz(targets, min(ROUND, asked.inputs - done), asked.seed + 1 + done, pair.see))
        done = sum(tally.inputs for tally in whole.values())
        print(
            f"{done} inputs, {time.process_time() - started:.0f} CPU s, {peak_memory_mb() - before:.1f} MB grown",
            file=sys.stderr,
        )
    exploded = explode(cases)
    grown = peak_memory_mb() - before
    print(f"{'decoder':<26}{'inputs':>10}{'refused':>10}{'accepted':>10}{'wrongly':>9}{'crashed':>9}   rules broken")
    for target in targets:
        tally = whole[target.name]
        print(
            f"{tally.name:<26}{tally.inputs:>10}{tally.refused:>10}{tally.accepted:>10}{tally.wrongly_accepted:>9}"
            f"{tally.crashed:>9}   {len(tally.broken)} of {len(target.broken)}"
        )
        findings += map(str, tally.findings)
    findings += exploded + pair.disagreements
    print("rules of each field, and how often each was broken:")
    for target in targets:
        fields: dict[str, list[str]] = {}
        for (field, rule), count in whole[target.name].broken.items():
            fields.setdefault(field, []).append(f"{rule} ({count})")
        for field, rules in fields.items():
            print(f"  {target.name}: {field}: {', '.join(rules)}")
    for finding in findings:
        print(f"FOUND {finding}")
    report = {
        "benchmark": "fuzz",
        "seed": asked.seed,
        "inputs": done,
        "decoders": len(targets),
        "rules": sum(len(target.broken) for target in targets),
        "rules_broken": sum(len(tally.broken) for tally in whole.values()),
        "refused": sum(tally.refused for tally in whole.values()),
        "accepted_and_right": sum(tally.accepted for tally in whole.values()),
        "wrongly_accepted": sum(tally.wrongly_accepted for tally in whole.values()),
        "crashed": sum(tally.crashed for tally in whole.values()),
        "explicit_cases": len(cases),
        "explicit_not_refused": len(exploded),
        "kernel_inputs": pair.seen,
        "kernel_accepted": pair.accepted,
        "kernel_disagreements": len(pair.disagreements),
        "grown_mb": round(grown, 1),
        "cpu_s": round(time.process_time() - started, 1),
        "machine": platform.machine(),
        "versions": {name: version(name) for name in ("msgspec", "numba", "numpy", "zstandard")},
    }
    print(json.dumps(report))
    return int(bool(findings) or grown > GROWTH_MB or report["rules"] != report["rules_broken"])


if __name__ == "__main__":
    sys.exit(main())
