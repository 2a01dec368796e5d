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
# # Extend it: one new stage of every kind, each in under fifteen lines
#
# **Claim.** The paper (arXiv:2606.28217; only its abstract could be had) fixes an *order*: an
# update is screened against the principals' values first and credited second, credit accumulates,
# revenue is settled on it. It fixes neither what a value is, nor how an update is screened, nor
# which contribution is meant, nor by which rule money is divided. Those are questions of research,
# so each of them is a function that can be replaced.
#
# **Equation.** A step is a composition, and its parts have these shapes (our reading):
#
# $$ V: \theta \mapsto \mathbb{R}, \qquad
#    \text{screen}: (g_1, \dots, g_A) \mapsto (\tilde g_1, \dots, \tilde g_A), \qquad
#    \text{credit}: \big(v: [0,1]^A \to \mathbb{R}\big) \mapsto c \in \mathbb{R}^A, $$
#
# $$ \text{rule}: \Big(c,\ \textstyle\sum_t c^t\Big) \mapsto \text{shares}, \qquad
#    \text{trainer}: (\text{state}, \text{batch}) \mapsto (\text{state}, \text{info}). $$
#
# **Found.** All five are written below outside the package, without a class, a registry or a hook;
# they run together in one compiled scan and are settled in a ledger. `vcca_jax.conformance` says
# what each keeps, and it finds a mistake in the first version of the trainer. Because everything
# is a pure function, `vmap` over seeds and a derivative of everybody's credit in the learning rate
# are one line more. **The shortfalls**, each shown where it is met: the value is held a little
# looser on rows that it is not measured on; screening by loudness promises nothing to anybody's
# values; two ends of a queue leave part of the gain to nobody; and the share rule pays whoever
# comes twice.

# %%
import inspect
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas
from matplotlib.figure import Figure

import vcca_jax as vcca
from experiments import stored
from experiments.fidelity import figures as fidelity
from vcca_jax.conformance import check_estimator, check_screen, check_share_rule, check_trainer
from vcca_jax.datasets import breast_cancer
from vcca_jax.plotting.parts import PALETTE, STYLE, set_note, set_title
from vcca_jax.share_rules import RESERVE, ShareRule
from vcca_jax.trainer import where_live

# %% [markdown]
# The problem: the Wisconsin breast cancer data, dealt out unevenly to six agents, a perceptron cut
# at its first layer. A quarter of the rows is held out and halved: one half measures values and
# utility, the other is looked at by nobody until the end.

# %%
AGENTS, EPOCHS, BATCH, RATE = 6, stored.sized(12, 3), 64, 0.3
inputs, targets = breast_cancer()
order = np.random.default_rng(0).permutation(len(targets))
train, measured, fresh = order[:425], order[425:497], order[497:]
names = ["ana", "ben", "cem", "dee", "eva", "fay"]
shards = vcca.partition.dirichlet(inputs[train], targets[train], AGENTS, alpha=0.5, seed=1)
members = vcca.cooperative(shards, names=names, classes=2)
model = vcca.mlp(30, (16,), 2, cut=1, activation=jnp.tanh)
loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
validation_loss = vcca.group_loss(loss_fn, inputs[measured], targets[measured])
plan = jax.tree.map(
    lambda *fields: np.concatenate(fields),
    *(vcca.virtual_batches(members, BATCH, seed=0, epoch=epoch) for epoch in range(EPOCHS)),
)
print({name: int(size) for name, size in zip(members.names, members.sizes, strict=True)})
print(f"{len(plan.mask)} virtual batches of {BATCH}")

# %% [markdown]
# ## A value: any differentiable scalar of the parameters
#
# *The model must not come to rely on one measurement*: the mean squared derivative of the logits'
# difference in one input column. It holds a derivative of its own, and is differentiated again.


# %%
def reliance(column, rows):
    """A value loss: how much the answer hangs on one column of the inputs."""

    def answer(params, row):
        told = model.apply(params, row[None])[0]
        return told[1] - told[0]

    def loss(params, context):
        del context
        slopes = jax.vmap(jax.grad(answer, argnums=1), in_axes=(None, 0))(params, rows)
        return (slopes[:, column] ** 2).mean()

    return loss


COLUMN = 27  # the largest of a tumour's "concave points"
values = vcca.value_losses({"reliance": reliance(COLUMN, inputs[measured])})
profiles = vcca.value_profiles(values.names, [[vcca.protect("reliance")]] * AGENTS)

# %% [markdown]
# ## A screen: agent gradients to agent gradients, and a report
#
# Against one loud agent: nobody may move the model by more than twice the median of those present.
# Screens chain, so the package's projection comes first.


# %%
def not_louder(times):
    """A screen: no update longer than so many times the median of those present."""

    def apply(gradients, value_gradients, profiles):
        norm = vcca.agent_norms(gradients)
        median = jnp.nanmedian(jnp.where(gradients.present, norm, jnp.nan))
        limit = jnp.nan_to_num(times * median)
        scale = jnp.where(gradients.present, limit / jnp.maximum(norm, limit + 1e-12), 0.0)
        report = vcca.untouched(gradients, value_gradients)
        report = report._replace(scale=scale, removed_norm=(1 - scale) * norm, norm=norm)
        return vcca.affine(gradients, scale, report.coefficients, value_gradients), report

    return apply


def in_turn(*screens):
    """A screen made of several; the last one reports."""

    def apply(gradients, value_gradients, profiles):
        for screen in screens:
            gradients, report = screen(gradients, value_gradients, profiles)
        return gradients, report

    return apply


# %% [markdown]
# `check_screen` runs a screen on a small example, raises where it breaks what others rely on, and
# measures what a screen is free to promise or not:


# %%
def compared(check, own, others):
    """A row a stage: one's own, and in a run of full size others beside it."""
    found = {name: check(stage) for name, stage in (own | stored.sized(others, {})).items()}
    return pandas.DataFrame({name: kept._asdict() for name, kept in found.items()}).T


promised = compared(
    check_screen,
    {"loudness": not_louder(2.0)},
    {"projection, everyone": vcca.screen("project", scope="everyone")},
)
assert promised["own"]["loudness"] > 0.1 > promised["needless"]["loudness"]
promised.map("{:.2g}".format)

# %% [markdown]
# Loudness says nothing of values (`own`, `everyone`: violations left, over the lengths); nobody was
# loud in the example, so nothing was cut without need. Behind the projection it scales updates that
# are admissible already: in a cone they stay so; where a profile has margins they would not.
#
# ## An estimator: a utility of participation weights to credits
#
# Shapley's value averages over all positions in a queue. Its two ends alone, first and last, cost
# $2A$ evaluations and are exact in any quadratic game.


# %%
def two_ends(utility, weights, *, key=None):
    """An estimator: the mean of what an agent adds as the first to come and as the last."""
    del key
    count, own = len(weights), jnp.diag(weights)
    ends = jnp.concatenate([own, weights[None, :] - own, 0 * weights[None, :], weights[None, :]])
    worth = jax.lax.map(utility, ends)
    first, last = worth[:count] - worth[-2], worth[-1] - worth[count:-2]
    return jnp.where(weights > 0, (first + last) / 2, 0.0)


axioms = compared(
    check_estimator,
    {"two ends": two_ends},
    {
        "exact Shapley": vcca.exact_shapley,
        "leave one out": vcca.leave_one_out,
        "Aumann-Shapley": vcca.aumann_shapley,
    },
)
own = axioms.loc["two ends"]
assert own[["null_player", "symmetry", "additivity"]].max() < 1e-5 < own["splitting"]
assert 1e-4 < own["efficiency"] < 0.05
axioms.map("{:.1e}".format)

# %% [markdown]
# Every number is a violation, as a part of the gain. Two ends are symmetric, give a null player
# nothing and are additive; they do not quite sum to the gain, and splitting changes them.
#
# ## A share rule: credits and standings to shares
#
# Half of the revenue evenly among those whose credit so far is above zero, half in proportion to
# it. Money is divided on the host, in integers: no floating-point number, no JAX.


# %%
def half_even():
    """A share rule: by credit so far, and as much again evenly among those who have any."""

    def shares(credits, standings):
        above = {party: score for party, score in standings.scores.items() if score > 0}
        even = sum(above.values()) // max(len(above), 1)
        return {party: score + even for party, score in above.items() if party != RESERVE}

    return ShareRule({"rule": "half_even"}, shares)


traits = compared(
    check_share_rule,
    {"half even": half_even()},
    {
        "accumulated": vcca.share_rules.accumulated(),
        "high-water mark": vcca.share_rules.high_water_mark(),
    },
)
assert traits["sybil_gain"]["half even"] > 0 == traits["free_rider"]["half even"]
traits.map(lambda part: f"{float(part):.2%}")

# %% [markdown]
# Sums, purity and replay are in order; parts are of a period's revenue. `sybil_gain` is the price
# of the even half: who comes as two is paid the even part twice. Settle such a rule by principal
# (`06_settlement_and_cheats`).
#
# ## A trainer: init and step
#
# A running average of the parameters beside those that are trained, often the better model to hand
# out (Polyak and Juditsky, 1992). It wraps any trainer whose state has `params`. The first version:


# %%
def averaged_at_first(trainer, decay):
    """A trainer: another one, and the running average of its parameters beside it."""

    def init(params, *terms, **options):
        return trainer.init(params, *terms, **options), params

    def step(state, batch):
        inner, info = trainer.step(state[0], batch)
        return (inner, optax.incremental_update(inner.params, state[1], 1 - decay)), info

    return vcca.Trainer(init, step)


plain = vcca.centralized(loss_fn, optax.sgd(RATE))
start = jax.jit(model.init)(jax.random.key(0))
batch = vcca.gather(members.shards, jax.tree.map(lambda field: field[0], plan))
tried = averaged_at_first(plain, 0.9)
moved, _ = jax.jit(tried.step)(tried.init(start), batch)
try:
    check_trainer(tried, moved, batch)
except ValueError as error:
    print(error)
else:
    raise AssertionError("the mistake was not found")

# %% [markdown]
# A batch without a live sample must change nothing, since epochs of several lengths are filled up
# with them; this average moves on such a batch as well. (The state is one that has moved already:
# at the very first one average and parameters are the same but for rounding.) The remedy is the one
# that is named:


# %%
def averaged(trainer, decay):
    """A trainer: another one, and the running average of its parameters beside it."""

    def init(params, *terms, **options):
        return trainer.init(params, *terms, **options), params

    def step(state, batch):
        inner, info = trainer.step(state[0], batch)
        after = inner, optax.incremental_update(inner.params, state[1], 1 - decay)
        return where_live(batch, after, state), info

    return vcca.Trainer(init, step)


tried = averaged(plain, 0.9)
check_trainer(tried, moved, batch)
print("the second version keeps the contract of a trainer")

# %% [markdown]
# ## None of them took fifteen lines

# %%
LINES = {
    stage.__name__: len(inspect.getsource(stage).splitlines())
    for stage in (reliance, not_louder, in_turn, two_ends, half_even, averaged)
}
assert max(LINES.values()) < 15, LINES
print(LINES)

# %% [markdown]
# ## All five in one run, settled in a ledger
#
# The state of `cooperate` inside `averaged`, all steps in one scan. Profiles are arrays, so the
# same compiled program also runs with nobody asking for anything, to see what the value costs.


# %%
def run(rate, params, profiles, *screens):
    """The state after the last step, and what every step told."""
    trainer = vcca.cooperate(
        loss_fn,
        optax.sgd(rate),
        validation_loss,
        values,
        screen=in_turn(*screens, not_louder(2.0)),
        estimator=two_ends,
    )
    trainer = averaged(trainer, 0.9)
    return vcca.scan_steps(trainer, trainer.init(params, profiles), members.shards, plan)


silent = vcca.value_profiles(values.names, [[]] * AGENTS, constraints=1)
traces = []


@jax.jit
def compiled(params, profiles):
    traces.append("one")
    return run(RATE, params, profiles, vcca.screen("project", scope="everyone"))


(state, average), infos = compiled(start, profiles)
(free, _), unasked = compiled(start, silent)
assert len(traces) == 1
loud = np.asarray(infos.report.scale < 1) & np.asarray(infos.present)
print(f"{loud.sum()} of {int(infos.present.sum())} updates were cut for loudness")

# %% [markdown]
# The new value on the rows that it is measured on, and on those that nobody has looked at:


# %%
@jax.jit
def looked_at(params):
    answers = model.apply(params, inputs[fresh]).argmax(-1)
    return {
        "reliance, measured rows": reliance(COLUMN, inputs[measured])(params, None),
        "reliance, fresh rows": reliance(COLUMN, inputs[fresh])(params, None),
        "accuracy, fresh rows": (answers == targets[fresh]).mean(),
    }


ends = {
    "at the start": start,
    "nobody asks": free.params,
    "protected": state.params,
    "protected, running average": average,
}
found = pandas.DataFrame({name: looked_at(params) for name, params in ends.items()}).T.astype(float)
found = found[["reliance, measured rows", "reliance, fresh rows", "accuracy, fresh rows"]]
for rows in ("reliance, measured rows", "reliance, fresh rows"):
    assert found[rows]["protected"] < 0.5 * found[rows]["nobody asks"]
assert found.loc["protected"].iloc[0] < found.loc["protected"].iloc[1]
found.map("{:.4f}".format)

# %% [markdown]
# Protected, the value does not rise where it is measured beyond second order in the rate; nobody
# promises anything of other rows, where it ends higher, if far below what it is unasked. A
# constraint is one of small steps: it holds the reliance on *this* column, and says nothing of a
# column that goes along with it.

# %%
lines = {"nobody asks": unasked, "protected": infos}
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, each), colour in zip(lines.items(), (PALETTE[5], PALETTE[0]), strict=True):
        left.plot(each.value_losses[:, 0], color=colour, label=name)
    left.set(xlabel="step", ylabel="reliance, squared logits per squared unit", yscale="log")
    left.legend()
    for slot, (name, colour) in enumerate(zip(members.names, PALETTE, strict=False)):
        right.plot(np.cumsum(infos.credits[:, slot]), color=colour, label=name)
    right.set(xlabel="step", ylabel="credit so far, nats of validation loss")
    right.legend(ncols=2)
    set_title(figure, "A new value holds what it protects; a new estimator credits what is left")
    set_note(figure, "Right: by the two ends, of the protected run.")
stored.show(figure)

# %% [markdown]
# What the credits leave of the gain is known at every step (`residual`), and settled like money
# with the credits: the ledger takes the new rule, writes its name down, and refuses to be read
# under another.

# %%
credits = dict(zip(members.names, state.credits.tolist(), strict=True))
gain, residual = float(infos.gain.sum()), float(infos.residual.sum())
print(f"gain {gain:.4f}, of which {residual / gain:.2%} is credited to nobody")
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "ledger.sqlite"
    with vcca.Ledger.open(path, rule=half_even()) as ledger:
        ledger.settle("first", credits, 100_001, gain=gain)
        paid, reserve = ledger.balances(), ledger.reserve()
        ledger.verify()
    try:
        vcca.Ledger.open(path, read_only=True)
    except (ValueError, vcca.LedgerError) as error:
        print("without the rule:", str(error).replace(str(path), path.name))
    else:
        raise AssertionError("a ledger under an unknown rule was opened")
assert sum(paid.values()) + reserve == 100_001
pandas.DataFrame({"credit": credits, "paid, cents": paid})

# %% [markdown]
# ## Transforms are extensions too
#
# `run` is a pure function of the rate and of the first parameters, so what a researcher may want
# to ask is a transform away: everybody's credit under four seeds (`vmap`), and how it would change
# with the learning rate (`jvp`, straight through the scan, the screen by loudness and the
# estimator).


# %%
def credited(rate, params):
    return run(rate, params, silent)[0][0].credits


@jax.jit
def over_seeds(rate, params):
    def one(first):
        return jax.jvp(lambda rate: credited(rate, first), (rate,), (1.0,))

    return jax.vmap(one)(params)


seeds = jax.vmap(model.init)(jax.random.split(jax.random.key(1), 4))
told, slopes = over_seeds(RATE, seeds)
STEP = 1e-2
differences = (over_seeds(RATE + STEP, seeds)[0] - over_seeds(RATE - STEP, seeds)[0]) / (2 * STEP)
gap = float(jnp.abs(differences - slopes).max() / jnp.abs(slopes).max())
assert gap < 0.1
print(f"central differences at a step of {STEP} differ by {gap:.1%} of the largest slope")

# %%
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.4, 4.0), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    for ax, numbers, label in (
        (left, told, "credit of the run, nats"),
        (right, slopes, "its derivative in the rate, nats"),
    ):
        for seed, (row, marker) in enumerate(zip(np.asarray(numbers), "os^D", strict=True)):
            ax.scatter(range(AGENTS), row, color=PALETTE[seed], marker=marker, label=f"seed {seed}")
        ax.axhline(0, color="#222222", linewidth=1)
        ax.set(xlabel="agent", ylabel=label, xticks=range(AGENTS), xticklabels=members.names)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    set_title(figure, "Credit over seeds, and what a higher rate would do to it")
    set_note(
        figure, f"Rate {RATE}; {len(plan.mask)} steps; loudness screened, no values asked for."
    )
stored.show(figure)

# %% [markdown]
# Projection onto cones has derivatives of its own and could have been left in; it doubles the time
# to compile.
#
# ## Stored: what a new estimator is up against
#
# `experiments/fidelity` asks how near the estimators of the package come to the exact Shapley value
# of whole training runs, and at what cost; a new one is one line there as well.

# %%
scores = stored.records("fidelity", "scores")
part = [r for r in scores if r["data"] in ("digits", "digits, Adam")]
stored.show(fidelity.plane(part, "runs"))

# %% [markdown]
# ## Limits
#
# - A check is no proof. Each runs one small example; a value, whose only contract is to be a
#   differentiable scalar, has none.
# - Screens speak through a report of a fixed form, made for half-spaces. What a screen of another
#   kind wants to tell (here: who was loud) it has to put into `scale` and `removed_norm`.
# - A rule from outside the package has to be handed over each time its ledger is opened, by
#   everyone who wants to verify it.
# - An estimator inside `cooperate` sees the utility of one step. That of a whole run is another
#   function of the same shape (`vcca.training_utility`).
