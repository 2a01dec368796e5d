"""From credits to gains: what each cheat earns more than its honest twin, and what defends."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from experiments.economy.agents import ALL, CHEAT, MIXED, Scenario, owners
from experiments.economy.config import (
    AUDIT,
    DEFAULT_ESTIMATOR,
    DEFAULT_RULE,
    ESTIMATORS,
    Config,
)
from experiments.economy.settling import credits_of, settle, share_rules, totals
from vcca_jax.duplicates import near_duplicates, update_cosines

Record = dict[str, Any]
DEFENCES = ("none", "quotient by principal", "near-duplicate report", "distinct rows")


class Outcome(NamedTuple):
    """A trained scenario, seeds leading, as NumPy arrays; fields as in ``PeriodSums``.

    Attributes:
        active: [R, P, A] bool.
        sums: field -> array [R, P, ...].
        distinct: [R, A], distinct rows over rows sent, where they were counted.
    """

    active: np.ndarray
    sums: Mapping[str, np.ndarray]
    distinct: np.ndarray | None = None


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval (Student's t) over seeds."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return float(values.mean()), float("nan")
    error = values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(stats.t.ppf(0.975, len(values) - 1) * error)


def reported(config: Config, outcome: Outcome, seed: int) -> dict[int, int]:
    """Slot -> first period in which a report has it as the later of near-duplicates.

    A report is made after every period from ``report_after`` on, of all rounds so far. Which of
    two alike is the copy no report can say: here it is who registered later.
    """
    found: dict[int, int] = {}
    known = np.asarray(_cosines_so_far(outcome.sums["gram"][seed]))
    for period in range(config.report_after, config.periods):
        for group in near_duplicates(known[period - 1], config.duplicate_threshold):
            for slot in group[1:]:
                found.setdefault(slot, period)
    return found


@jax.jit
def _cosines_so_far(grams: jax.Array) -> jax.Array:
    """[R, A, A], after each round the cosines over all rounds up to it."""
    rounds = jnp.arange(grams.shape[0])

    def after(last: jax.Array) -> jax.Array:
        # A round in which nobody took part counts for nothing.
        return update_cosines(jnp.where((rounds <= last)[:, None, None], grams, 0))

    return jax.vmap(after)(rounds)


def payouts(
    config: Config,
    name: str,
    outcome: Outcome,
    rule: str,
    estimator: str = DEFAULT_ESTIMATOR,
    defence: str = "none",
) -> list[list[dict[str, int]]]:
    """Every seed's payouts, a {party: minor units} a period, parties named by slot."""
    row = ESTIMATORS.index(estimator)
    gains = outcome.sums["audit_gain" if estimator == AUDIT else "gain"]
    behind = owners(name) if defence == "quotient by principal" else ALL
    share_rule = share_rules(config)[rule]
    found = []
    for seed in range(len(gains)):
        withheld = reported(config, outcome, seed) if defence == DEFENCES[2] else None
        own = outcome.sums["credits"][seed, :, row]
        if defence == DEFENCES[3] and outcome.distinct is not None:
            own = own * outcome.distinct[seed]
        credits = credits_of(
            own,
            gains[seed],
            outcome.active[seed],
            behind,
            withheld=withheld,
        )
        found.append(settle(share_rule, credits, config.revenue))
    return found


def earned(name: str, paid: Sequence[Sequence[Mapping[str, int]]], slot: int) -> np.ndarray:
    """[R], what the principal behind a slot earned under all its identities, a seed each."""
    own = [f"{s:02}" for s, owner in enumerate(owners(name)) if owner == slot]
    return np.array([sum(totals(each).get(party, 0) for party in own) for each in paid], float)


def gain_record(cheat: np.ndarray, honest: np.ndarray, fair: float) -> Record:
    """Paired differences over seeds, in % of an even share of all revenue."""
    gain, half = interval((cheat - honest) / fair * 100)
    level, level_half = interval(cheat / fair * 100)
    return {
        "gain_percent": round(gain, 4),
        "gain_half_width": round(half, 4),
        "payout_percent_of_fair_share": round(level, 4),
        "payout_half_width": round(level_half, 4),
        "honest_percent_of_fair_share": round(honest.mean() / fair * 100, 4),
    }


def cases_of(config: Config, scenario: Scenario, counted: bool) -> list[tuple[str, str, str]]:
    """(rule, estimator, defence) that a scenario is settled under.

    Every rule under the default estimator and every estimator under the default rule; of the other
    pairs all but those of the slowest rule and of the audit. A defence stands beside the default
    where it can change anything.
    """
    rules, slow = list(share_rules(config)), "floor and cap"
    pairs = [
        (rule, estimator)
        for rule in rules
        for estimator in ESTIMATORS
        if estimator == DEFAULT_ESTIMATOR
        or rule == DEFAULT_RULE
        or (rule != slow and estimator != AUDIT)
    ]
    cases = [(*pair, DEFENCES[0]) for pair in pairs]
    if scenario.conduct.moves:
        cases += [(rule, DEFAULT_ESTIMATOR, DEFENCES[1]) for rule in rules]
    if scenario.conduct.moves or scenario.shown == "replicator":
        cases.append((DEFAULT_RULE, DEFAULT_ESTIMATOR, DEFENCES[2]))
    if counted:
        cases.append((DEFAULT_RULE, DEFAULT_ESTIMATOR, DEFENCES[3]))
    return cases


def gains(
    config: Config,
    table: Mapping[str, Scenario],
    outcomes: Mapping[str, Outcome],
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Record]:
    """Each cheat's gain in every case; the honest twin is settled in the same way."""
    fair = config.revenue * config.periods / config.agents
    cache: dict[tuple[str, ...], np.ndarray] = {}

    def of(name: str, case: tuple[str, str, str]) -> np.ndarray:
        if (name, *case) not in cache:
            paid = payouts(config, name, outcomes[name], *case)
            cache[name, *case] = earned(name, paid, CHEAT)
        return cache[name, *case]

    for name, scenario in table.items():
        if not scenario.twin:
            continue
        progress(f"settling {name}")
        for case in cases_of(config, scenario, outcomes[name].distinct is not None):
            rule, estimator, defence = case
            yield {
                "scenario": name,
                "shown": scenario.shown,
                "screen": scenario.screen,
                "rule": rule,
                "estimator": estimator,
                "defence": defence,
                **gain_record(of(name, case), of(scenario.twin, case), fair),
            }


def duplicate_records(
    config: Config, table: Mapping[str, Scenario], outcomes: Mapping[str, Outcome]
) -> Iterator[Record]:
    """What the near-duplicate report says in every scenario: copies found, others accused."""
    for name in outcomes:
        copies = {"replicator": {CHEAT}, "mixed": {MIXED.index("replicator")}}.get(name, set())
        originals = {0} if copies else set()
        found, accused, alike, others, first = 0, 0, [], [], []
        for seed in range(config.seeds):
            reports = reported(config, outcomes[name], seed)
            found += len(copies & set(reports))
            accused += len(set(reports) - copies)
            first += [reports[s] for s in copies & set(reports)]
            cosines = np.asarray(_cosines_so_far(outcomes[name].sums["gram"][seed]))[-1]
            for i, j in zip(*np.triu_indices(len(cosines), 1), strict=True):
                pair = {int(i), int(j)}
                same = len(pair & copies) == 1 and pair - copies <= originals
                (alike if same else others).append(float(cosines[i, j]))
        yield {
            "scenario": name,
            "shown": table[name].shown,
            "screen": table[name].screen,
            "copies": len(copies) * config.seeds,
            "found": found,
            "accused_wrongly": accused,
            "mean_first_report": round(float(np.mean(first)), 2) if first else None,
            "least_cosine_of_copies": round(min(alike), 4) if alike else None,
            "mean_cosine_of_copies": round(float(np.mean(alike)), 4) if alike else None,
            "greatest_cosine_of_others": round(max(others), 4),
        }


def row_records(table: Mapping[str, Scenario], outcomes: Mapping[str, Outcome]) -> Iterator[Record]:
    """Rows that count as distinct, in % of those sent: the agent in question, and all others."""
    for name, outcome in outcomes.items():
        if outcome.distinct is not None:
            own, half = interval(outcome.distinct[:, CHEAT] * 100)
            others, others_half = interval(outcome.distinct[:, :CHEAT].mean(axis=1) * 100)
            yield {
                "scenario": name,
                "shown": table[name].shown,
                "distinct_percent": round(own, 3),
                "half_width": round(half, 3),
                "others_percent": round(others, 3),
                "others_half_width": round(others_half, 3),
            }


def value_records(
    config: Config, table: Mapping[str, Scenario], outcomes: Mapping[str, Outcome]
) -> Iterator[Record]:
    """Under each screen: what the breaker does to the value, and what it is paid."""
    for name in outcomes:
        scenario, sums = table[name], outcomes[name].sums
        steps = sums["steps"][:, :, CHEAT].sum(axis=1)
        record: Record = {"scenario": name, "shown": scenario.shown, "screen": scenario.screen}
        measures = {
            "protected_loss": sums["protected_loss"][:, -1],
            "validation_loss": sums["validation_loss"][:, -1],
            "audit_loss": sums["audit_loss"][:, -1],
            "test_accuracy": sums["test_accuracy"][:, -1],
            "share_of_steps_in_conflict": sums["conflicts"][:, :, CHEAT].sum(axis=1) / steps,
            "share_of_steps_dropped": sums["dropped"][:, :, CHEAT].sum(axis=1) / steps,
            "efficiency_gap": sums["gain"].sum(axis=1) - sums["credits"][:, :, 0].sum(axis=(1, 2)),
        }
        for measure, values in measures.items():
            mean, half = interval(values)
            record[measure], record[f"{measure}_half_width"] = round(mean, 5), round(half, 5)
        yield record


def estimator_records(config: Config, outcome: Outcome) -> Iterator[Record]:
    """How the estimators agree on honest agents' credit over the whole run, means over seeds."""
    credits = outcome.sums["credits"].sum(axis=1)[:, :, : config.agents]
    gains = outcome.sums["gain"].sum(axis=1)
    for row, name in enumerate(ESTIMATORS):
        pairs = list(zip(credits[:, row], credits[:, 0], strict=True))
        yield {
            "estimator": name,
            "sum_over_gain": round(float((credits[:, row].sum(axis=1) / gains).mean()), 4),
            "rank_correlation_with_default": round(
                float(np.mean([stats.spearmanr(*pair).statistic for pair in pairs])), 4
            ),
            "correlation_with_default": round(
                float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs])), 4
            ),
        }


def period_records(config: Config, outcome: Outcome, every: int = 10) -> Iterator[Record]:
    """Where in an honest run the gain lies, and how many credits are negative there."""
    credits, gains = outcome.sums["credits"][:, :, 0, : config.agents], outcome.sums["gain"]
    for first in range(0, config.periods, every):
        part = slice(first, first + every)
        yield {
            "first_period": first + 1,
            "last_period": min(first + every, config.periods),
            "share_of_gain": round(
                float((gains[:, part].sum(axis=1) / gains.sum(axis=1)).mean()), 4
            ),
            "share_of_negative_credits": round(float((credits[:, part] < 0).mean()), 4),
            "share_of_periods_without_gain": round(float((gains[:, part] <= 0).mean()), 4),
        }


def payout_records(config: Config, outcome: Outcome) -> Iterator[Record]:
    """The mixed cooperative under the defaults: each kind's cumulative payout, in revenue's units.

    Honest agents are averaged, so that every line is one principal's.
    """
    for rule in (DEFAULT_RULE, "per period", "softmax"):
        paid = payouts(config, "mixed", outcome, rule)
        for kind in dict.fromkeys(MIXED):
            slots = [slot for slot, other in enumerate(MIXED) if other == kind]
            own = {f"{s:02}" for s, owner in enumerate(owners("mixed")) if owner in slots}
            by_seed = np.array(
                [[sum(p.get(s, 0) for s in own) / len(slots) for p in each] for each in paid]
            ).cumsum(axis=1)
            for period in range(config.periods):
                values = by_seed[:, period]
                yield {
                    "rule": rule,
                    "kind": kind,
                    "period": period + 1,
                    "mean": round(float(values.mean()), 1),
                    "low": float(values.min()),
                    "high": float(values.max()),
                }
