"""Simulate useful work on spot machines by checkpoint interval.

    python -m benchmarks.spot [--losses 1] [--write 9.6] [--restart 35] [--replace 300] [--patient]

Machines are lost one by one, each at the same rate, at random. A loss throws back to the last
checkpoint and costs a restart; the others go on, and when a replacement comes, all start again
from the last checkpoint (docs/decisions/008-lost-nodes.md), or, --patient, from the next one. Work
is counted in what all machines together do, so a missing one costs its part. The optimum is held
against Young's formula, the root of 2 x write x mean time between two throwbacks, and Daly's, which
is of higher order.
"""

import argparse
import math
import random

DAY = 86400.0
INSTANCE_TYPES = (2, 8, 64)
"""8 GPUs on 4 a machine; 64 and 512 on 8 a machine."""
INTERVALS = (30, 60, 120, 240, 480, 900, 1800, 3600, 7200, 14400)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--losses", type=float, default=1.0, help="losses of a machine a day")
    parser.add_argument("--write", type=float, default=9.6, help="seconds that a checkpoint takes")
    parser.add_argument("--restart", type=float, default=35.0, help="seconds of a restart")
    parser.add_argument("--replace", type=float, default=300.0, help="seconds to a replacement")
    parser.add_argument("--patient", action="store_true", help="grow only at a checkpoint")
    parser.add_argument("--days", type=float, default=400.0, help="simulated days for each cell")
    given = parser.parse_args()
    growth = "at the next checkpoint" if given.patient else "at once"
    print(
        f"growth {growth}; losses a machine a day {given.losses:g}, write {given.write:g} s, "
        f"restart {given.restart:g} s, replacement {given.replace:g} s; {given.days:g} days each\n"
    )
    print("| checkpoint every | " + " | ".join(f"{n} machines" for n in INSTANCE_TYPES) + " |")
    print("|---" * (len(INSTANCE_TYPES) + 1) + "|")
    shares = {
        n: {every: useful_share(n, every, given) for every in INTERVALS} for n in INSTANCE_TYPES
    }
    for every in INTERVALS:
        print(
            f"| {every:,} s | "
            + " | ".join(f"{shares[n][every]:.1%}" for n in INSTANCE_TYPES)
            + " |"
        )
    print("\n| | " + " | ".join(f"{n} machines" for n in INSTANCE_TYPES) + " |")
    print("|---" * (len(INSTANCE_TYPES) + 1) + "|")
    for name, value in (
        ("losses a day", lambda n: f"{n * given.losses:g}"),
        ("best interval of a finer search", lambda n: f"{best(n, given):,.0f} s"),
        ("Young", lambda n: f"{young(n, given):,.0f} s"),
        ("Daly", lambda n: f"{daly(n, given):,.0f} s"),
        ("share at Young's", lambda n: f"{useful_share(n, young(n, given), given):.1%}"),
    ):
        print(f"| {name} | " + " | ".join(value(n) for n in INSTANCE_TYPES) + " |")


def useful_share(machines: int, every: float, given: argparse.Namespace, seed: int = 0) -> float:
    """Simulate a cluster and return its share of useful work.

    Args:
        machines: how many there are when none is missing.
        every: seconds of work between two checkpoints.
        given: rates and durations; see the command line.
        seed: of the losses.
    """
    draw = random.Random(seed)
    rate = given.losses / DAY
    end = given.days * DAY
    now, kept = 0.0, 0.0
    unsaved = written = 0.0  # work, and seconds of it, since the last checkpoint
    returns: list[float] = []  # when replacements come
    while now < end:
        present = machines - len(returns)
        loss = now + (draw.expovariate(present * rate) if present else math.inf)
        back = min(returns, default=math.inf)
        if given.patient and present and back < math.inf:
            cycle = every + given.write
            back = now - written + cycle * max(math.ceil((back - now + written) / cycle), 1)
        event = min(loss, back)
        if present:
            # Up to the event: whole intervals, each with its checkpoint, and a rest.
            cycle = every + given.write
            position = written
            ahead = event - now
            if cycles := math.floor((position + ahead) / cycle + 1e-9):  # not lost to rounding
                share = present / machines
                kept += unsaved + max(every - position, 0.0) * share
                kept += (cycles - 1) * every * share
                rest = max(position + ahead - cycles * cycle, 0.0)
                unsaved, written = min(rest, every) * share, rest
            else:
                unsaved += max(min(every - position, ahead), 0.0) * present / machines
                written += ahead
        now = event
        if event == loss:
            returns.append(now + given.replace)
        else:
            returns.remove(min(returns))
        unsaved = written = 0.0  # thrown back, and started again
        now += given.restart
        returns = [max(each, now) for each in returns]
    return kept / now


def throwbacks(machines: int, given: argparse.Namespace) -> float:
    """Mean seconds between two restarts from a checkpoint."""
    return DAY / (machines * given.losses * (1 if given.patient else 2))


def young(machines: int, given: argparse.Namespace) -> float:
    """Young's interval, to first order."""
    return math.sqrt(2 * given.write * throwbacks(machines, given))


def daly(machines: int, given: argparse.Namespace) -> float:
    """Daly's interval, of higher order."""
    mean = throwbacks(machines, given)
    root = math.sqrt(given.write / (2 * mean))
    return math.sqrt(2 * given.write * mean) * (1 + root / 3 + root**2 / 9) - given.write


def best(machines: int, given: argparse.Namespace) -> float:
    """Search for the best interval around Young's, over several seeds."""
    middle = young(machines, given)
    candidates = [middle * 1.15**k for k in range(-8, 9)]
    return max(
        candidates,
        key=lambda every: sum(useful_share(machines, every, given, seed) for seed in range(4)),
    )


if __name__ == "__main__":
    main()
