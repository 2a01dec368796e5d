"""How many settlements a second, how many bytes each, and does a large ledger replay to the bit?

A settlement books P credits, divides 1,000,003 units and appends one entry. Measured are settling
one by one (a synced transaction each) and by the hundred, and verifying, which derives every entry
anew. "mixed": credits of both signs, about a quarter of the principals is paid; "rising": all are,
which writes twice as much. The time is the process's own (CPU, user and system), as the wall clock
tells more of the disk and of other programs: one synced transaction takes what the disk takes.

    python -m experiments.benchmarks.ledger [--smoke] [--out ledger.json] [--replay PERIODS]

With --replay it settles so many periods of the largest size, opens the file again (which derives
it), settles all anew from the entries alone, and compares the two files byte for byte.

Predicted before measuring: at P = 1,000 a settlement by the hundred costs 1 ms mixed and 2 ms
rising on a core of its own; cost and bytes grow by less than 10 times from 100 to 1,000; verifying
costs 1.5 times settling, since it reads and parses on top; bytes a settlement do not grow with the
number of settlements.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from experiments.benchmarks.timing import arguments, keep
from vcca_jax.ledger import Ledger, Period

REVENUE, BATCH = 1_000_003, 100


def periods(count: int, principals: int, kind: str, first: int = 0) -> list[Period]:
    """Periods of credits as an epoch may give them, of both signs or all positive."""
    draw = random.Random(f"{kind} {first}")
    names = [f"agent {i:05d}" for i in range(principals)]
    sign: Callable[[float], float] = abs if kind == "rising" else float
    return [
        Period(first + t, {name: sign(draw.gauss(0.01, 0.05)) for name in names}, REVENUE)
        for t in range(count)
    ]


def spent(call: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of the process and of the wall."""
    process, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - process, time.perf_counter() - wall


def measure(principals: int, kind: str, count: int, rounds: int) -> dict[str, Any]:
    """Settle ``count`` periods in every way, ``rounds`` times in turn; medians over rounds."""
    times: dict[str, list[tuple[float, float]]] = {"one by one": [], "by the hundred": []}
    times["verify"] = []
    asked = periods(count, principals, kind)
    sizes: list[int] = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            few = asked[: max(1, count // 10)]  # the disk makes these slow
            with Ledger.open(Path(folder) / "one") as ledger:
                for period in few:
                    times["one by one"].append(
                        spent(lambda p=period, to=ledger: to.settle(p.period, p.credits, p.revenue))
                    )
            path = Path(folder) / "many"
            with Ledger.open(path) as ledger:
                sizes = [path.stat().st_size]
                for first in range(0, count, BATCH):
                    batch = asked[first : first + BATCH]
                    cpu, wall = spent(lambda b=batch, to=ledger: to.settle_many(b))
                    times["by the hundred"].append((cpu / len(batch), wall / len(batch)))
                    sizes.append(path.stat().st_size)
                cpu, wall = spent(ledger.verify)
                times["verify"].append((cpu / count, wall / count))
    result: dict[str, Any] = {"principals": principals, "credits": kind, "settlements": count}
    for name, seconds in times.items():
        cpu = [c for c, _ in seconds]
        result[name] = {
            "per_cpu_second": 1 / max(median(cpu), 1e-9),
            "best_per_cpu_second": 1 / max(min(cpu), 1e-9) if name != "one by one" else None,
            "per_wall_second": 1 / median(w for _, w in seconds),
        }
    result["bytes_a_settlement"] = (sizes[-1] - sizes[0]) / count
    halves = len(sizes) // 2
    early, late = sizes[halves] - sizes[0], sizes[-1] - sizes[-1 - halves]
    result["growth_late_over_early"] = late / early
    return result


def line(result: dict[str, Any]) -> str:
    one, many, verified = (result[k] for k in ("one by one", "by the hundred", "verify"))
    return (
        f"P = {result['principals']:5d}  {result['credits']:6s} | settlements a CPU second: by the"
        f" hundred {many['per_cpu_second']:8.0f} (best {many['best_per_cpu_second']:8.0f}), one by"
        f" one {one['per_cpu_second']:7.0f} | a wall second: {many['per_wall_second']:8.0f},"
        f" {one['per_wall_second']:5.0f} | verified a CPU second {verified['per_cpu_second']:8.0f}"
        f" | bytes {result['bytes_a_settlement']:8.0f}, late over early"
        f" {result['growth_late_over_early']:.3f}"
    )


def replay(count: int, principals: int) -> dict[str, Any]:
    """Settle, derive again on opening, settle again from the entries alone; compare the bytes."""

    def asked_in(ledger: Ledger) -> Iterator[Period]:
        one = 2**ledger.terms.scale_bits
        for entry in ledger.entries():
            if entry.kind == "settle":
                credits = {name: int(text) / one for name, text in entry.content["credits"].items()}
                yield Period(entry.content["period"], credits, int(entry.content["revenue"]))

    def settle_again(source: Path, target: Path) -> str:
        with Ledger.open(source, read_only=True) as ledger, Ledger.open(target) as again:
            waiting: list[Period] = []
            for period in asked_in(ledger):
                waiting.append(period)
                if len(waiting) == BATCH:
                    again.settle_many(waiting)
                    waiting = []
            if waiting:
                again.settle_many(waiting)
            return again.head()

    def same_bytes(one: Path, other: Path) -> bool:
        with one.open("rb") as a, other.open("rb") as b:
            while True:
                left, right = a.read(2**20), b.read(2**20)
                if left != right:
                    return False
                if not left:
                    return True

    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder) / "ledger", Path(folder) / "again"
        seconds = 0.0
        with Ledger.open(path) as ledger:
            for first in range(0, count, BATCH):
                batch = periods(min(BATCH, count - first), principals, "mixed", first)
                seconds += spent(lambda b=batch, to=ledger: to.settle_many(b))[0]
            head = ledger.head()
        again = settle_again(path, copy)
        return {
            "settlements": count,
            "principals": principals,
            "heads_equal": head == again,
            "bytes_equal": same_bytes(path, copy),
            "bytes": path.stat().st_size,
            "settled_per_cpu_second": count / seconds,
        }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--replay", type=int, default=0, metavar="PERIODS", help="see above")
    options = parser.parse_args()
    sizes, count, rounds = ((4, 16), 20, 1) if options.smoke else ((10, 100, 1_000), 400, 5)
    results = []
    for kind in ("mixed", "rising"):
        for principals in sizes:
            results.append(measure(principals, kind, count, rounds))
            print(line(results[-1]), flush=True)
    replayed = None
    if options.replay or options.smoke:
        replayed = replay(options.replay or 20, sizes[-1])
        print(replayed)
    keep(options.out, results=results, replay=replayed)


if __name__ == "__main__":
    main()
