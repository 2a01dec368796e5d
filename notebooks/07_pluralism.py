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
# # Pluralism: principals whose values really differ
#
# **Claim.** The paper (arXiv:2606.28217) lets every agent act for a principal with a value profile
# of its own, and credits an update only as far as it is admissible to them. What happens to credit
# where no single model is right for everybody? (The question, and how to answer it, are our
# reading.)
#
# **Equation.** With one utility a beneficiary $b$, $v_b(w) = -L_b(\theta - \eta \sum_i w_i
# \tilde g_i)$, the *credit matrix* $C_{bi}$ is agent $i$'s credit in the game of $b$. A row says
# who helped $b$ and who harmed it; whoever pays prices $p_b$ for the benefit of $b$ pays agent $i$
# the price of $\sum_b p_b C_{bi}$. Principal $b$ protects its own people:
# $\langle \tilde g, \nabla V_b \rangle \ge 0$, $V_b$ the loss on rows of its own country.
#
# **Principals.** Countries of the World Values Survey: what people would have their government do
# about foreign workers, one of four answers. The model is told what a person thinks of bribes and
# in which wave it was asked, not the country, so that one answer must serve all of them.
#
# **Found.** One model for eight countries costs each of them: the loss on a country's own people is
# higher than that of a model of its own rows alone, most of all for the country whose answers are
# farthest from the rest. Unscreened, half of the pairs of contributor and beneficiary *harm*, which
# credit for the mean hides. Under everyone's profiles hardly an update is admissible as it comes,
# and a protected loss rises twenty times less in a step than without; the worst served country
# gains, and the others pay for it. Whom it is paid for decides who is paid: the country that earns
# the least for the mean is owed the most, or nearly, where each pays for its own benefit.

# %%
from functools import partial

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import pandas
from matplotlib.figure import Figure

import vcca_jax as vcca
from experiments import stored
from vcca_jax.datasets import WORLD_VALUES_ANSWERS, world_values
from vcca_jax.plotting.parts import INK, PALETTE, STYLE, set_note, set_title, settle

# %% [markdown]
# ## Eight countries, by the number of people who answered
#
# The countries are not chosen: they are those with the most answers.

# %%
COUNTRIES, PEOPLE = stored.sized(8, 3), stored.sized(2000, 200)
SEEDS, EPOCHS, BATCH = stored.sized(5, 2), stored.sized(16, 2), 128
RATE = 0.1
SCREENED = "everyone's profiles"
study = world_values(countries=COUNTRIES, per_agent=PEOPLE)
shares = pandas.DataFrame(
    {
        country: np.bincount(study.train[k].targets, minlength=4) / len(study.train[k].targets)
        for k, country in enumerate(study.agents)
    },
    index=WORLD_VALUES_ANSWERS,
).T
(100 * shares).round(0).astype(int)

# %% [markdown]
# ## One model, trained four ways
#
# Everything at once, for every seed: unscreened; each update screened by its own principal's
# profile; by everyone's; and every country alone, with as many passes over its own rows.

# %%
members = vcca.cooperative(study.train, names=study.agents, classes=4)
model = vcca.mlp(len(study.feature_names), (16,), 4, cut=1)
loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
sgd = optax.sgd(RATE)
everybody = jnp.ones(COUNTRIES)


def rows_of(split):
    """Every country's own rows of a split, as many of each."""
    size = min(mask.sum() for mask in split.groups.values())
    chosen = [np.flatnonzero(split.groups[country])[:size] for country in study.agents]
    return split.inputs[np.stack(chosen)], split.targets[np.stack(chosen)]


protected, validation, test = (rows_of(s) for s in (study.values, study.validation, study.test))
values = vcca.value_losses(
    {
        country: vcca.group_loss(loss_fn, protected[0][k], protected[1][k])
        for k, country in enumerate(study.agents)
    }
)
profiles = vcca.value_profiles(values.names, [[vcca.protect(country)] for country in study.agents])


def losses_on(rows, params):
    """[B], the mean loss of every country's own people."""
    return jax.vmap(lambda inputs, targets: loss_fn(params, inputs, targets).mean())(*rows)


def plans(cooperative, seed):
    """All epochs' plans, one after the other."""
    epochs = [
        vcca.virtual_batches(cooperative, BATCH, seed=seed, epoch=epoch) for epoch in range(EPOCHS)
    ]
    return jax.tree.map(lambda *fields: np.concatenate(fields), *epochs)


def together(screen):
    """Train under a screen; credit every agent for every beneficiary at every step."""

    def step(params, batch):
        gradients = vcca.agent_gradients(loss_fn, params, batch)
        before, rows = values.gradients(params, None)
        report = vcca.untouched(gradients, rows)
        if screen is not None:
            gradients, report = screen(gradients, rows, profiles)
        utilities = vcca.one_step_utility(
            params, sgd.init(params), gradients, sgd, partial(losses_on, validation)
        )
        matrix = vcca.credit_matrix(partial(vcca.aumann_shapley, nodes=2), utilities, everybody)
        moved = optax.apply_updates(params, jax.tree.map(lambda g: -RATE * g, gradients.sum()))
        risen = values.losses(moved, None) - before
        by = vcca.screened_by(report, profiles, gradients.active)
        return moved, (matrix, by, risen, report.admissible)

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0))
    def run(key, plan):
        start = model.init(key)
        batches = jax.vmap(partial(vcca.gather, members.shards))(plan)
        params, (matrix, by, risen, admissible) = jax.lax.scan(step, start, batches)
        return {
            "validation": losses_on(validation, params),
            "test": losses_on(test, params),
            "matrix": matrix.sum(axis=0),
            "by": by.sum(axis=0),
            "worst rise": risen.max(axis=0),
            "admissible": admissible.mean(axis=0),
        }

    return run


keys = jax.vmap(jax.random.key)(np.arange(SEEDS))
plan = jax.tree.map(lambda *f: np.stack(f), *(plans(members, seed) for seed in range(SEEDS)))
SCREENS = {
    "unscreened": None,
    "own profile": vcca.screen("project", scope="own"),
    SCREENED: vcca.screen("project", scope="everyone"),
}
found = {
    name: jax.tree.map(np.asarray, together(screen)(keys, plan)) for name, screen in SCREENS.items()
}

# %%
lone = [vcca.cooperative([shard], classes=4) for shard in study.train]


@jax.jit
def alone(key, shards, plan):
    """Losses on everyone's test rows of a model of one country's rows."""
    trainer = vcca.traversal(loss_fn, sgd)
    batches = jax.vmap(partial(vcca.gather, shards))(plan)
    state, _ = jax.lax.scan(trainer.step, trainer.init(model.init(key)), batches)
    return losses_on(test, state.params)


own = np.array(
    [
        [alone(key, each.shards, plans(each, seed))[k] for k, each in enumerate(lone)]
        for seed, key in enumerate(keys)
    ]
)

# %% [markdown]
# ## What a common model costs each of them
#
# Nats a person on test rows: a country's own model, and the common one. The difference is the price
# of one answer for everybody; that screening lowers it is *not* to be expected, since the screen
# forbids steps that raise a loss, and makes none that lower it more.

# %%
told = {"own rows alone": own, **{name: each["test"] for name, each in found.items()}}
costs = pandas.DataFrame(
    {name: loss.mean(axis=0) for name, loss in told.items()}, index=study.agents
)
costs["price of one model"] = costs["unscreened"] - costs["own rows alone"]
costs.round(3)

# %%
with matplotlib.rc_context({**STYLE, "axes.grid.axis": "x"}):
    figure = Figure(figsize=(9.5, 0.55 * COUNTRIES + 2.2), layout="constrained")
    ax = figure.subplots()
    for k, (name, marker) in enumerate(zip(told, "o|sD", strict=True)):
        loss = told[name]
        at = np.arange(COUNTRIES) + 0.16 * (k - 1.5)
        ax.errorbar(
            loss.mean(axis=0),
            at,
            xerr=loss.std(axis=0, ddof=1),
            fmt=marker,
            color=(INK, *PALETTE)[k],
            markersize=9 if marker == "|" else 6,
            linewidth=1.2,
            label=name,
        )
    ax.set_yticks(range(COUNTRIES), study.agents)
    ax.invert_yaxis()
    ax.set_xlabel("mean loss on the country's own test rows, nats a person")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right upper")
    dearest = costs["price of one model"].idxmax()
    set_title(figure, f"One model for all costs {dearest} the most")
    set_note(figure, f"Mean and standard deviation over {SEEDS} seeds.")
    settle(figure)
stored.show(figure)

# %% [markdown]
# ## Who helps whom
#
# The credit matrix of the whole run, summed over its steps, in hundredths of a nat of the
# beneficiary's mean loss. A negative cell is harm: the contributor's rows made the model worse for
# that country.


# %%
def heat(ax, cells):
    """A matrix in colours about zero, with its numbers."""
    limit = np.abs(cells).max()
    ax.grid(visible=False)
    ax.imshow(cells, cmap="PuOr_r", vmin=-limit, vmax=limit, aspect="auto")
    for b, i in np.ndindex(cells.shape):
        text = f"{cells[b, i]:.0f}".replace("-0", "0").replace("-", "−")
        dark = abs(cells[b, i]) > 0.6 * limit
        ax.text(i, b, text, ha="center", va="center", color="white" if dark else INK)
    ax.set_xticks(range(COUNTRIES), study.agents, rotation=45, ha="right")


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(1.25 * COUNTRIES + 3.5, 0.6 * COUNTRIES + 2.9), layout="constrained")
    row = figure.subplots(1, 2, sharey=True)
    for ax, name in zip(row, ("unscreened", SCREENED), strict=True):
        heat(ax, 100 * found[name]["matrix"].mean(axis=0))
        ax.set_xlabel(f"contributor, {name}")
    row[0].set_yticks(range(COUNTRIES), study.agents)
    row[0].set_ylabel("beneficiary")
    harmful = {
        name: int((found[name]["matrix"].mean(axis=0) < 0).sum())
        for name in ("unscreened", SCREENED)
    }
    set_title(
        figure,
        f"{harmful['unscreened']} of {COUNTRIES**2} pairs harm unscreened,"
        f" {harmful[SCREENED]} under {SCREENED}",
    )
    set_note(
        figure,
        f"Hundredths of a nat, on validation rows; colours by panel; mean of {SEEDS} seeds.",
    )
    settle(figure)
stored.show(figure)

# %% [markdown]
# A row adds up to what the beneficiary gained, up to the quadrature's error; the mean over rows is
# the credit for the mean utility, since Aumann-Shapley is linear in it. So the matrix costs nothing
# in consistency: the usual credit is its column mean.

# %%
gains = found["unscreened"]["matrix"].sum(axis=2)
fallen = losses_on(validation, model.init(keys[0])) - found["unscreened"]["validation"][0]
np.testing.assert_allclose(gains[0], fallen, rtol=2e-2, atol=1e-3)
print(
    f"a row's sum and the fall of its loss differ by {np.abs(gains[0] - fallen).max():.1e} at most"
)

# %% [markdown]
# ## Who restrained whom
#
# The length that a principal's profile added to or took from an agent's updates, over the whole run
# (`screened_by`), and what the screen promises: no protected loss rises on the rows it is measured
# on, beyond second order in the step.

# %%
by = found[SCREENED]["by"].mean(axis=0)
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(0.75 * COUNTRIES + 3.2, 0.6 * COUNTRIES + 3.2), layout="constrained")
    ax = figure.subplots()
    ax.grid(visible=False)
    drawn = ax.imshow(by, cmap="Purples", vmin=0)
    figure.colorbar(drawn, ax=ax, label="length put on the updates, in all")
    ax.set_xticks(range(COUNTRIES), study.agents, rotation=45, ha="right")
    ax.set_yticks(range(COUNTRIES), study.agents)
    ax.set_xlabel("whose profile")
    ax.set_ylabel("whose update")
    strictest = study.agents[int(by.sum(axis=0).argmax())]
    set_title(figure, f"{strictest}'s profile restrains the others most")
    set_note(figure, f"Scope everyone; mean over {SEEDS} seeds.")
    settle(figure)
stored.show(figure)

# %%
pandas.DataFrame(
    {
        name: {
            "updates admissible as they came, %": 100 * each["admissible"].mean(),
            "largest rise of a protected loss in a step, nats": each["worst rise"].max(),
            "mean loss on test rows, nats": each["test"].mean(),
            "largest of the countries' mean losses, nats": each["test"].mean(axis=0).max(),
        }
        for name, each in found.items()
    }
).T.round(4)

# %%
if not stored.SMOKE:  # what is said above
    apart = {name: costs[name] - costs["unscreened"] for name in told}
    worst = costs["unscreened"].idxmax()
    assert (costs["price of one model"] > 0).all()
    assert costs["price of one model"].idxmax() == worst
    assert 0.4 < harmful["unscreened"] / COUNTRIES**2 < 0.6
    assert found[SCREENED]["admissible"].mean() < 0.01
    rise = {name: each["worst rise"].max() for name, each in found.items()}
    assert 20 * rise[SCREENED] < rise["unscreened"]
    assert apart[SCREENED][worst] < -0.02 < 0 < apart[SCREENED].mean()

# %% [markdown]
# ## Two ways to pay
#
# *By the mean*: one revenue, divided by credit for the mean utility. *By beneficiary*: every
# country pays an equal part of the same revenue for its own benefit, divided by its own row. Who
# harms a beneficiary is owed nothing by it, and its harm is no debt to others.

# %%
REVENUE = 800_000
matrix = found[SCREENED]["matrix"].mean(axis=0)
by_mean = vcca.allocate(REVENUE, np.maximum(matrix.mean(axis=0), 0).tolist(), ids=study.agents)
each = REVENUE // COUNTRIES
rows = [vcca.allocate(each, np.maximum(row, 0).tolist(), ids=study.agents) for row in matrix]
by_row = np.sum(rows, axis=0)
assert sum(by_mean) == REVENUE
assert by_row.sum() == each * COUNTRIES
pandas.DataFrame(
    {"by the mean": by_mean, "by beneficiary": by_row, "from its own row": np.diag(rows)},
    index=study.agents,
)

# %% [markdown]
# ## Limits
#
# - One question, and inputs that hardly tell the answers apart: the model learns how people answer
#   *on average*, and that is what the countries disagree on. A real assistant's answers depend on
#   the question.
# - Countries are not principals. Within each of them people disagree more than countries do.
# - "Protect" asks that a loss not rise from where it is, not that it be as low as with a model of
#   one's own. The price of one model remains.
# - Paying by row clips harm at zero: a contributor that harms one beneficiary and helps another
#   pays nothing for the harm. Under the ledger's high-water mark by principal it would be carried.
