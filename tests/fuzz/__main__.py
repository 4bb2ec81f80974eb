"""`python -m tests.fuzz --minutes 10` damages seeds and prints what it finds: put it into `tests/fuzz/corpus/NAME/`."""

import argparse
import sys
import time
from collections import Counter

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target, damaged

ROUND = 100  # files of a target in a row


def run(target: Target, seeds: list[bytes], number: int) -> None:
    """One round; raises what a target raises."""

    @seeded(number)
    @settings(
        max_examples=ROUND,
        deadline=None,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(st.sampled_from(seeds).flatmap(lambda one: damaged(one, target.text)))
    def damage(content: bytes) -> None:
        target.read(content)

    damage()


def main() -> int:
    """Fuzzes, and says what was done."""
    options = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=int(time.time()), help="printed, to repeat a run")
    options.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}; all by default")
    given_ = options.parse_args()
    if unknown := set(given_.targets) - TARGETS.keys():
        options.error(f"no target {', '.join(sorted(unknown))}")
    chosen = [TARGETS[name] for name in given_.targets or TARGETS]
    print(f"seed {given_.seed}", flush=True)
    seeds = {one.name: one.seeds() for one in chosen}
    done: Counter[str] = Counter()
    end, number = time.monotonic() + 60 * given_.minutes, given_.seed
    while time.monotonic() < end:
        for target in chosen:
            run(target, seeds[target.name], number)
            done[target.name] += ROUND
            if time.monotonic() >= end:
                break
        number += 1
    print(", ".join(f"{name} {count:,}" for name, count in done.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
