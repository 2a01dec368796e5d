# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Settlement, to the last cent, and who earns more by cheating
#
# **Claim.** The paper (arXiv:2606.28217; only its abstract could be had) accumulates credit over
# steps and settles revenue on the accumulated credit. It names no rule. For people to rely on it,
# money must sum exactly, nobody must be able to change the record unseen, and honesty must not be
# the dearer choice.
#
# **Equation** (our reading). With $c_i^t$ agent $i$'s credit of step $t$, $B_i$ its score and $H_i$
# its high-water mark, revenue $R_\tau$ of period $\tau$ is divided by
#
# $$ B_i \leftarrow B_i + \sum_{t \in \tau} c_i^t, \qquad s_i = \max(0,\, B_i - H_i), \qquad
#    p_i = \operatorname{round}^*\!\Big(R_\tau \frac{s_i}{\sum_j s_j}\Big), \qquad
#    H_i \leftarrow \max(H_i, B_i), $$
#
# where $\operatorname{round}^*$ is the method of largest remainders, so that
# $\sum_i p_i = R_\tau$ in whole cents. This is the default; five other rules are in
# `vcca_jax.share_rules`.

# %%
import shutil
import sqlite3
import tempfile
from fractions import Fraction
from pathlib import Path

import jax
import matplotlib
import numpy as np
import optax
import pandas
from IPython.display import Markdown
from matplotlib.figure import Figure

import vcca_jax as vcca
from experiments import stored
from experiments.economy.config import DEFAULT_ESTIMATOR, DEFAULT_RULE
from experiments.economy.figures import defences, defended, gain_matrix
from vcca_jax import corruption, share_rules
from vcca_jax.datasets import breast_cancer
from vcca_jax.ledger import CorruptLedgerError, Period, SettlementConflictError
from vcca_jax.plotting.parts import FAINT, PALETTE, STYLE, set_note, set_title
from vcca_jax.plotting.statement import statement_figure
from vcca_jax.statements import as_text, document, money

gains = stored.table("economy", "gains")


def gain(scenario, rule=DEFAULT_RULE, estimator=DEFAULT_ESTIMATOR, defence="none"):
    """Stored gain of a cheat over honesty and half of its interval, % of an even share."""
    wanted = {"scenario": scenario, "rule": rule, "estimator": estimator, "defence": defence}
    rows = gains[(gains[list(wanted)] == pandas.Series(wanted)).all(axis=1)]
    return tuple(rows[["gain_percent", "gain_half_width"]].iloc[0])


def told(*which, **terms):
    """The same in words."""
    mean, half = gain(*which, **terms)
    digits = 0 if max(abs(mean), half) >= 10 else 1 if max(abs(mean), half) >= 0.1 else 4
    return f"{mean:+.{digits}f} ± {half:.{digits}f} %".replace("-", "−")


config = stored.document("economy", "summary")["config"]
people, rows = {"defence": "quotient by principal"}, {"defence": "distinct rows"}
audit = {"estimator": f"{DEFAULT_ESTIMATOR} on audit rows"}
Markdown(
    f"""**Found** (stored experiment: {config["agents"]} agents, {config["seeds"]} seeds; a gain is
over the same agent being honest, in % of an even share of the revenue). Free riding does not pay:
{told("free rider")} for a zero update, {told("inventor")} for invented data,
{told("label flipper")} for flipped labels.

**The shortfalls.** Under the default rule several identities earn their owner
{told("splitter")}; parking wrong rows at one of them {told("parker")}; sending every row
{config["repeats"]} times {told("size liar")}; knowing the validation rows {told("over-fitter")}.
There is a defence against each: identities settled by principal ({told("splitter", **people)} and
{told("parker", **people)}), rows counted once ({told("size liar", **rows)}), credit on audit rows
({told("over-fitter", **audit)}). None is on by default, since each has to be told what a ledger
cannot know: who is whose, which rows are alike, which rows nobody has seen. And a breaker of values
is still paid something where everyone's profile screens it, if less than its honest twin
({told("breaker, everyone")})."""
)

# %% [markdown]
# ## Live: six agents, one of whom may cheat
#
# Breast cancer data, dealt out evenly; every principal protects the loss on malignant tumours; a
# settlement an epoch. *dee* is honest, or one of four cheats. All scenarios fit into one padded
# axis of nine agents, so one compiled program runs them all.

# %%
PERIODS, SEEDS, BATCH, REVENUE = stored.sized(12, 4), stored.sized(4, 1), 64, 100_000
inputs, targets = breast_cancer()
order = np.random.default_rng(0).permutation(len(targets))
held, train = order[:150], order[150:510]
NAMES = ["ana", "ben", "cem", "dee", "eva", "fay"]
CHEATS = {
    "honest": lambda shard: {"dee": shard},
    "splits in four": lambda shard: {
        f"dee {k}": part for k, part in enumerate(corruption.split(shard, 4), start=1)
    },
    "sends rows three times": lambda shard: {"dee": corruption.repeat(shard, 3)},
    "invents data": lambda shard: {"dee": corruption.invent(shard, classes=2, seed=7)},
    "flips labels": lambda shard: {"dee": corruption.flip_labels(shard, classes=2, seed=7)},
}


def members_of(cheat, seed):
    """The cooperative in which dee behaves so; honest agents hold the same rows in all."""
    shards = vcca.partition.iid(inputs[train], targets[train], len(NAMES), seed=seed)
    there = {}
    for name, shard in zip(NAMES, shards, strict=True):
        there |= CHEATS[cheat](shard) if name == "dee" else {name: shard}
    return vcca.cooperative(
        list(there.values()), names=list(there), capacity=9, sample_capacity=180, classes=2
    )


model = vcca.mlp(30, (16,), 2, cut=1)
loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
malignant = held[targets[held] == 0]
values = vcca.value_losses(
    {"malignant": vcca.group_loss(loss_fn, inputs[malignant], targets[malignant])}
)
profiles = vcca.value_profiles(values.names, [[vcca.protect("malignant")]] * 9)
trainer = vcca.cooperate(
    loss_fn,
    optax.sgd(0.1, momentum=0.5),
    vcca.group_loss(loss_fn, inputs[held], targets[held]),
    values,
    method="one_pass",
)
traces = []


@jax.jit
def trained(params, shards, plan):
    traces.append("one")
    state = trainer.init(params, profiles)
    keep = lambda info: (info.credits, info.gain, info.carry_over, info.residual)  # noqa: E731
    return vcca.scan_steps(trainer, state, shards, plan, keep=keep)[1]


def periods_of(cheat, seed):
    """What each period's settlement is asked with."""
    members = members_of(cheat, seed)
    steps = -(-480 // BATCH)
    plans = [
        vcca.virtual_batches(members, BATCH, seed=seed, epoch=epoch, steps=steps)
        for epoch in range(PERIODS)
    ]
    plan = jax.tree.map(lambda *fields: np.concatenate(fields), *plans)
    kept = trained(starts[seed], members.shards, plan)
    summed = [np.asarray(part, np.float64).reshape(PERIODS, steps, -1).sum(axis=1) for part in kept]
    credits, gained, carried, left = summed
    told = [dict(zip(members.names, row, strict=True)) for row in credits]
    return [
        Period(
            period,
            {name: credit for name, credit in row.items() if name},
            REVENUE,
            gain=float(gained[period, 0]),
            carry_over=float(carried[period, 0]),
        )
        for period, row in enumerate(told)
    ], float(left.sum() / gained.sum())


initial = jax.jit(model.init)
starts = [initial(jax.random.key(seed)) for seed in range(SEEDS)]
runs = {(cheat, seed): periods_of(cheat, seed) for cheat in CHEATS for seed in range(SEEDS)}
assert len(traces) == 1
worst = max(abs(left) for _, left in runs.values())
print(f"{len(runs)} runs of {PERIODS} periods, traced {len(traces)} time")
print(f"credits leave at most {worst:.1e} of the gain to nobody")

# %% [markdown]
# ## Every rule divides every cent
#
# A sum in whole cents, the rest handed out one by one to the largest remainders:

# %%
print(vcca.allocate(100, [1, 1, 1]), vcca.allocate(100, [Fraction(1, 7), 0.25, 2]))

# %% [markdown]
# The honest run under each rule. Momentum goes on by itself when nobody brings anything: what it
# gains is credited to nobody, and the reserve takes part in the division with it: a large part,
# which whoever chooses a momentum should know.

# %%
RULES = {
    "high-water mark": share_rules.high_water_mark(),
    "per period": share_rules.per_period(),
    "accumulated": share_rules.accumulated(),
    "softmax": share_rules.softmax(Fraction(1, 500)),
    "square": share_rules.power(2),
    "capped": share_rules.bounded(share_rules.high_water_mark(), cap=Fraction(1, 5)),
}
folder = Path(tempfile.mkdtemp())


def settled(path, periods, rule):
    """Balances, the reserve among them, after the file has been closed, opened and verified."""
    with vcca.Ledger.open(path, rule=rule) as ledger:
        ledger.settle_many(periods)
    with vcca.Ledger.open(path, read_only=True) as ledger:
        ledger.verify()
        accounts = ledger.accounts()
        assert sum(accounts.values()) == 0
        kept = {"(reserve)": ledger.reserve(), "(carried)": accounts.get("carried", 0)}
        return {**ledger.balances(), **kept}


honest, _ = runs["honest", 0]
paid = {name: settled(folder / f"{name}.sqlite", honest, rule) for name, rule in RULES.items()}
for name, balances in paid.items():
    assert sum(balances.values()) == PERIODS * REVENUE, name
print(f"{money(PERIODS * REVENUE, 'EUR')} under each of {len(paid)} rules, to the cent;")
reserved = paid["high-water mark"]["(reserve)"] / (PERIODS * REVENUE)
print(f"of it {reserved:.0%} to the reserve under the default rule")
assert 0.3 < reserved < 0.6
pandas.DataFrame(paid).map(money)

# %% [markdown]
# ## A record that cannot be edited unseen
#
# Each entry carries the hash of all before it, and opening a ledger computes every share and payout
# anew. A row is changed in the file, as whoever has the disk can do:

# %%
path = folder / "high-water mark.sqlite"
with vcca.Ledger.open(path, read_only=True) as ledger:
    head = ledger.head()
    print(ledger.verify())


def edited(statement, *values):
    """What is said on opening a copy of the ledger in which a row was changed."""
    copy = folder / "edited.sqlite"
    shutil.copyfile(path, copy)
    with sqlite3.connect(copy) as rows:
        assert rows.execute(statement, values).rowcount == 1
    rows.close()
    try:
        vcca.Ledger.open(copy, read_only=True).close()
    except CorruptLedgerError as error:
        return str(error).replace(f"{folder}/", "")
    raise AssertionError("an edited ledger was opened")


with sqlite3.connect(path) as rows:
    (entry,) = rows.execute("SELECT payload FROM entries WHERE seq = 3").fetchone()
rows.close()
print("entry 3:", entry[:160], "...")
print(
    "\na cent more:",
    edited("UPDATE entries SET payload = ? WHERE seq = 3", entry.replace("1", "2", 1)),
)
print("\na row less:", edited("DELETE FROM entries WHERE seq = 3"))

# %% [markdown]
# Whoever writes the whole file anew, hashes and all, can make one that is sound in itself. One hash
# kept elsewhere finds that out, which is why the commands of a statement name it:

# %%
forged = [period._replace(credits={**period.credits, "dee": 1.0}) for period in honest]
with vcca.Ledger.open(folder / "forged.sqlite", rule=RULES["high-water mark"]) as ledger:
    ledger.settle_many(forged)
    print("by itself:", ledger.verify().settlements, "settlements are sound")
    try:
        ledger.verify(head)
    except CorruptLedgerError as error:
        print("against the head kept elsewhere:", error)
    else:
        raise AssertionError("a forged ledger was accepted")

# %% [markdown]
# To settle a period again with the same numbers is harmless, so that an interrupted run may repeat
# what it is not sure of; with other numbers it is refused.

# %%
with vcca.Ledger.open(path) as ledger:
    again = ledger.settle_many(honest)
    assert ledger.head() == head
    try:
        ledger.settle_many([honest[0]._replace(revenue=REVENUE + 1)])
    except SettlementConflictError as error:
        print(error)
    else:
        raise AssertionError("a period was settled twice")
    ledger.verify(head)

# %% [markdown]
# ## One principal's statement
#
# All of it is derived from the ledger; with a run's own records beside it, it also says what was
# screened out and by which value.

# %%
with vcca.Ledger.open(path, read_only=True) as ledger:
    statement = ledger.statement("dee")
    words = document(statement, {}, rule=ledger.terms.rule["rule"], checks=[])
assert statement.paid == paid["high-water mark"]["dee"]
print(as_text([words[0], words[1]]))

# %%
stored.show(statement_figure(statement, {}))

# %% [markdown]
# ## Live: what dee would have earned by cheating
#
# The same rows, first parameters and seeds, with dee behaving otherwise; payments to all of dee's
# identities together, over an even share, with the reserve left out. Splitting is settled twice:
# as the ledger sees it, and by principal, dee's credits summed before they are divided.


# %%
def by_principal(periods):
    """The same periods, with the credits of all of dee's identities on one account."""
    summed = []
    for period in periods:
        parts = {name: credit for name, credit in period.credits.items() if name.startswith("dee")}
        others = {name: credit for name, credit in period.credits.items() if name not in parts}
        summed.append(period._replace(credits={**others, "dee": sum(parts.values())}))
    return summed


def earned(cheat, seed, rule, change=list):
    """What dee is paid, in % of an even share of the revenue."""
    path = folder / f"{cheat} {seed} {rule} {change.__name__}.sqlite"
    among_agents = [period._replace(carry_over=None) for period in runs[cheat, seed][0]]
    balances = settled(path, change(among_agents), RULES[rule])
    own = sum(cents for name, cents in balances.items() if name.startswith("dee"))
    return 100 * own / (PERIODS * REVENUE / len(NAMES))


SHOWN = ("high-water mark", "accumulated", "capped", "softmax")
table = {}
for rule in SHOWN:
    honestly = np.array([earned("honest", seed, rule) for seed in range(SEEDS)])
    for label, cheat, change in (
        *((cheat, cheat, list) for cheat in CHEATS if cheat != "honest"),
        ("splits in four, by principal", "splits in four", by_principal),
    ):
        one = np.array([earned(cheat, seed, rule, change) for seed in range(SEEDS)])
        table.setdefault(label, {})[rule] = one - honestly
found = pandas.DataFrame(table).T
print(f"gain over honesty, % of an even share; mean and range over seeds {[*range(SEEDS)]}")
found.map(lambda each: f"{each.mean():+.0f} ({each.min():+.0f} to {each.max():+.0f})")

# %%
assert (
    max(
        found.loc["invents data", "high-water mark"].mean(),
        found.loc["flips labels", "high-water mark"].mean(),
    )
    < 0
)
shutil.rmtree(folder)

# %% [markdown]
# A few seeds of a small problem show directions, no sizes. The stored experiment has sixteen
# seeds, twelve cheats, seven rules and seven estimators.
#
# ## Stored: which cheats pay
#
# `experiments/economy`, digits, sixteen agents, fifty settlements. First by share rule:

# %%
plain = [row for row in stored.records("economy", "gains") if row["defence"] == "none"]
NOTE = (
    "Gain over the same agent behaving honestly in the same seed, in % of an even share of the"
    " revenue, ± half of its 95 % interval.\nOrange: cheating pays; blue: it costs; white:"
    " within noise of nothing."
)
rows = [row for row in plain if row["estimator"] == DEFAULT_ESTIMATOR]
stored.show(
    gain_matrix(rows, "rule", "What a cheat gains over honesty, by share rule", NOTE), dpi=64
)

# %% [markdown]
# No rule stops all. Caps hold whoever claims more rows and invite whoever comes as several; the
# square does the reverse; accumulated credit is indifferent to splitting and pays repeated rows
# double. By estimator, under the default rule:

# %%
rows = [row for row in plain if row["rule"] == DEFAULT_RULE]
stored.show(
    gain_matrix(rows, "estimator", "What a cheat gains over honesty, by estimator", NOTE), dpi=64
)

# %% [markdown]
# Estimators rank agents alike and do not sum alike. What sums to less of the gain has more periods
# of negative credit, and splitting gains more on it. What rows credit is measured on matters as
# much: on rows that nobody knows, the over-fitter's gain is gone.

# %%
alike = stored.table("economy", "estimators").set_index("estimator")
pandas.DataFrame(
    {
        "sum of credits over the gain": alike["sum_over_gain"].map("{:.2f}".format),
        "rank correlation to the default": alike["rank_correlation_with_default"].map(
            "{:.2f}".format
        ),
    }
)

# %% [markdown]
# ## Stored: which defence stops which cheat

# %%
stored.show(
    defences(
        defended(stored.records("economy", "gains")),
        "95 % intervals over seeds. Undefended: Aumann-Shapley, high-water mark, each agent"
        " screened by its own profile.",
    ),
    dpi=72,
)

# %%
copies = stored.table("economy", "duplicates")
distinct = stored.table("economy", "rows").set_index("scenario")["distinct_percent"]
print(
    f"near-duplicate report: {copies.found.sum()} of {copies.copies.sum()} copies found,"
    f" {copies.accused_wrongly.sum()} honest agents accused in {len(copies)} scenarios"
)
print(f"rows counted as distinct, %: {distinct.to_dict()}")

# %% [markdown]
# ## Why an indifferent estimator does not make an indifferent rule
#
# Four identities' credits sum to the owner's. But a high-water mark is an option on the running
# credit, and four options on the parts are worth more than one on their sum, wherever credits
# change sign. They do so late in a run, when the model has little left to learn and revenue flows
# on:

# %%
periods = stored.table("economy", "periods")
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(8.2, 3.8), layout="constrained")
    ax = figure.subplots()
    at = (periods.first_period + periods.last_period) / 2
    ax.plot(at, 100 * periods.share_of_gain, "o-", color=PALETTE[0], label="of the whole gain")
    ax.plot(
        at,
        100 * periods.share_of_negative_credits,
        "s--",
        color=PALETTE[5],
        label="of credits, negative",
    )
    ax.axhline(
        100 / len(periods), color=FAINT, linewidth=1.2, linestyle=":", label="of the revenue"
    )
    ax.set(xlabel="settlement period, middle of ten", ylabel="share, %", ylim=(0, None))
    ax.legend()
    set_title(figure, "Early periods bring the gain; late ones pay as much, on noise")
    set_note(figure, "Honest agents only, Aumann-Shapley, stored experiment.")
stored.show(figure)

# %% [markdown]
# ## Limits
#
# - One data set and one model in the stored experiment; one cheat at a time, in the same slot;
#   cheats that do not adapt; revenue that does not depend on what was gained. Many intervals are
#   wide.
# - A ledger knows names and no people: the quotient by principal needs an identity from outside.
# - The near-duplicate report cannot tell a copy from its original, and more noise will get past
#   the count of distinct rows.
# - Amounts are exact; *credit* is measured on held-out rows, and which of several like agents is
#   paid more is decided by those rows as much as by the agents (`experiments/economy/README.md`).
# - What the estimator leaves to nobody (`residual`) is told at every step and is not booked: the
#   period's revenue is divided among what was credited. The optimizer's own gain (`carry_over`)
#   takes part where a settlement names it.
