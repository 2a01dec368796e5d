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
# # What it costs, and how it grows with the agents
#
# **Claim.** The paper (arXiv:2606.28217; only its abstract could be had) wants marginal
# contributions *online*, agent by agent and step by step, in a fully delegated cooperative, where
# agents are many and come and go. It gives no cost. Done as it is said, a step holds or visits
# every agent's gradient: $O(A D)$ memory, or $A$ passes.
#
# **Equation** (our reading). The agents' gradients are a linear operator, and screening and
# first-order credit need two of its actions alone:
#
# $$ \operatorname{dot}(d) = \big(\langle g_i, d \rangle\big)_{i=1}^A, \qquad
#    \operatorname{sum}(w) = \sum_i w_i\, g_i . $$
#
# The first is one forward-mode pass and a segment sum, the second one backward pass: both are free
# of $A$. In one pass over batch and held-out rows together, with inputs $h$ and cotangents $d$ of
# every layer, inner products come from pairs of examples, $\langle \nabla \ell_s, \nabla \ell_r
# \rangle = \sum_{\text{layers}} (h_s \cdot h_r + 1)(d_s \cdot d_r)$, and no gradient is formed
# before it is known what to do with it.

# %%
import functools
import time

import jax
import matplotlib
import numpy as np
import optax
import pandas
from IPython.display import Markdown
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

import vcca_jax as vcca
from experiments import stored
from vcca_jax.datasets import digits
from vcca_jax.plotting.parts import PALETTE, STYLE, set_note, set_title

jax.config.update("jax_num_cpu_devices", 4)  # for the last live cell; before JAX is first used

steps = stored.table("benchmarks", "traversal", "results")
ratios = steps.groupby("candidate")["ratio"].agg(["min", "max"])
whole = stored.document("benchmarks", "one_pass")["results"]
models = pandas.DataFrame(whole["models"])
one_pass = models["one pass"].map(lambda each: each["ratio"]).groupby(models["model"])
scale = stored.document("benchmarks", "scale")
first, *_, largest = scale["results"]
few, *_, many = whole["agents"]
grown = many["one pass"]["ratio"] / few["one pass"]["ratio"]


def span(table, name, digits=1):
    """The least and the greatest ratio in words."""
    least, greatest = table.loc[name, ["min", "max"]]
    return f"{least:.{digits}f} to {greatest:.{digits}f}"


spans = one_pass.agg(["min", "max"])
Markdown(
    f"""**Found** (stored benchmarks, {scale["machine"]["cores"]} cores without an accelerator).
Lossless traversal costs {span(ratios, "linearized", 2)} times a centralized step. The whole step
(values, screen, everybody's credit) is {span(spans, "transformer")} times a *plain* one for a
transformer, {span(spans, "convolutional")} for a convolutional network, and its ratio grows
{grown:.2f} times from {few["agents"]} to {many["agents"]} agents. An epoch of
{largest["agents"]:,} agents takes {largest["seconds"]["epoch"]:.1f} s.

**The shortfalls.** For a perceptron the whole step is {span(spans, "perceptron")} times the plain
one, and {span(ratios, "whole step")} times where held-out losses do not name their examples. At a
fixed batch a step still grows {largest["step_ms"] / first["step_ms"]:.1f} times from
{first["agents"]} to {largest["agents"]:,} agents: only present principals' small programs are
solved, but credits and profiles have a row for everybody. Compiling is dear,
{largest["seconds"]["compilation"]:.0f} s there. All of it is measured on one shared machine; of
several real machines nothing is."""
)

# %% [markdown]
# ## Live: one program, whoever is a member
#
# Digits, a capacity of sixteen agents, the whole step: two values, projection, credit of everyone,
# in one pass. `epoch_runner` compiles a chunk of steps with donated state, and is called for
# epochs of any length. Meanwhile members leave, join, run out of rows and change their profiles.

# %%
AGENTS, BATCH, CHUNK = 16, 64, 8
inputs, targets = digits()
order = np.random.default_rng(0).permutation(len(targets))
held, low, high, train = (
    order[:60],
    order[60:90],
    order[90:120],
    order[120 : stored.sized(1500, 800)],
)
low, high = low[targets[low] < 5], high[targets[high] >= 5]
shards = vcca.partition.dirichlet(inputs[train], targets[train], AGENTS, alpha=1.0, seed=0)
room = max(len(shard[1]) for shard in shards)
members = vcca.cooperative(shards[:12], capacity=AGENTS, sample_capacity=room, classes=10)
model = vcca.mlp(64, (32,), 10, cut=1)
loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
values = vcca.value_losses(
    {
        "low digits": vcca.group_loss(loss_fn, inputs[low], targets[low]),
        "high digits": vcca.group_loss(loss_fn, inputs[high], targets[high]),
    }
)
LOW, HIGH = vcca.protect("low digits"), vcca.protect("high digits")
whole_step = vcca.cooperate(
    loss_fn,
    optax.sgd(0.3),
    vcca.group_loss(loss_fn, inputs[held], targets[held]),
    values,
    estimator=vcca.first_order,
    method="one_pass",
)
traces = []


def counted(state, batch):
    """The step, and a mark whenever it is traced."""
    traces.append("one")
    return whole_step.step(state, batch)


epoch = vcca.epoch_runner(
    vcca.Trainer(whole_step.init, counted),
    chunk=CHUNK,
    keep=lambda info: {"credit": info.credits, "loss": info.loss},
)
profiles = vcca.value_profiles(values.names, [[LOW]] * AGENTS, constraints=2)
initial = jax.jit(model.init)(jax.random.key(0))
state = whole_step.init(initial, profiles)
seen = []


def one_epoch(state, members, what):
    """An epoch, and a line of what it took."""
    plan = vcca.virtual_batches(members, BATCH, seed=0, epoch=len(seen))
    begun = time.perf_counter()
    state, kept = epoch(state, members.shards, plan)
    jax.block_until_ready(state.params)
    seen.append(
        {
            "what changed": what,
            "members": len(members.members),
            "rows": int(members.sizes.sum()),
            "steps": len(plan.mask),
            "traces so far": len(traces),
            "loss at the end": round(float(kept["loss"][-1]), 3),
            "ms": round(1000 * (time.perf_counter() - begun)),
        }
    )
    return state, kept


state, _ = one_epoch(state, members, "nothing yet: compiled")
state, _ = one_epoch(state, members, "nothing")
members = vcca.leave(members, "agent 3")
state, _ = one_epoch(state, members, "agent 3 left")
for name in range(12, 16):
    members = vcca.join(members, f"agent {name}", shards[name])
state, _ = one_epoch(state, members, "four joined")
members = vcca.leave(members, "agent 5")
members = vcca.join(members, "agent 5", (inputs[:0], targets[:0]))
state, kept = one_epoch(state, members, "agent 5 has no rows left")
assert (kept["credit"][:, members.index("agent 5")] == 0).all()
stricter = vcca.value_profiles(values.names, [[LOW, HIGH]] * AGENTS, constraints=2)
state, _ = one_epoch(state._replace(profiles=stricter), members, "everyone protects both values")
assert len(traces) == 1
pandas.DataFrame(seen).set_index("what changed")

# %% [markdown]
# Capacities are shapes, members are masks. Whatever changes is an array: the compiled program,
# which took the first line's time, serves all the others.
#
# ## Live: an epoch under scan
#
# The same traversal, called from Python step by step and as one scan. The numbers are the same;
# what the host's loop costs is a dispatch a step.

# %%
plain = vcca.traversal(loss_fn, optax.sgd(0.3))
plan = vcca.virtual_batches(members, BATCH, seed=0, epoch=0)
on_device = jax.device_put(members.shards)
steps_apart = [jax.tree.map(lambda field, t=t: field[t], plan) for t in range(len(plan.mask))]
step = jax.jit(lambda state, shards, at: plain.step(state, vcca.gather(shards, at))[0])
scan = jax.jit(lambda state, shards, plan: vcca.scan_steps(plain, state, shards, plan)[0])


def by_hand():
    """A compiled step, called by Python."""
    state = plain.init(initial)
    for at in steps_apart:
        state = step(state, on_device, at)
    return state


def by_scan():
    """The same steps in one program."""
    return scan(plain.init(initial), on_device, plan)


def fastest(candidates, rounds):
    """Milliseconds of each, the least of so many rounds in turns; and what it returned."""
    ends = {name: jax.block_until_ready(call()) for name, call in candidates.items()}
    taken = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, call in candidates.items():
            begun = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(1000 * (time.perf_counter() - begun))
    return {name: min(each) for name, each in taken.items()}, ends


found, ends = fastest({"step by step": by_hand, "one scan": by_scan}, stored.sized(25, 3))
for one, other in zip(*map(jax.tree.leaves, ends.values()), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-6)
print(
    {name: f"{taken:.1f} ms" for name, taken in found.items()},
    f"an epoch of {len(plan.mask)} steps",
)

# %% [markdown]
# ## Live: four forms of one operator
#
# `agent_gradients(method=...)`: the sum, and an inner product of every agent. One batch, its
# samples dealt out to more and more agents; times as they come on the machine that ran this,
# memory by the compiler's account.

# %%
COUNTS, ROWS = stored.sized((4, 32, 256), (4, 32)), 256
FORMS = ("linearized", "one_pass", "scanned", "stacked")
wide = vcca.mlp(64, (128,), 10, cut=1)
wide_loss = vcca.model_loss(wide, optax.softmax_cross_entropy_with_integer_labels)
params = jax.jit(wide.init)(jax.random.key(0))
generator = np.random.default_rng(0)
way = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape).astype("f4"), params)


def dealt(agents):
    """One virtual batch of the same rows, owned by so many agents in turn."""
    rows = train[:ROWS]
    owners = np.arange(ROWS, dtype=np.int32) % agents
    return vcca.VirtualBatch(
        inputs[rows],
        targets[rows],
        owners,
        np.arange(ROWS, dtype=np.int32) // agents,
        np.ones(ROWS, bool),
        np.ones(agents, bool),
    )


def actions(method):
    """The sum and everybody's inner product, compiled."""

    def run(params, batch):
        gradients = vcca.agent_gradients(wide_loss, params, batch, method=method)
        return gradients.sum(), gradients.dot(way)

    return jax.jit(run)


rows = []
for agents in COUNTS:
    batch = dealt(agents)
    programs = {name: actions(name).lower(params, batch).compile() for name in FORMS}
    found, ends = fastest(
        {name: functools.partial(programs[name], params, batch) for name in FORMS},
        stored.sized(25, 3),
    )
    for name in FORMS:
        for one, other in zip(
            *(jax.tree.leaves(ends[each]) for each in (name, "stacked")), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())
        held_bytes = programs[name].memory_analysis().temp_size_in_bytes
        rows.append({"form": name, "agents": agents, "ms": found[name], "MB": held_bytes / 1e6})
forms = pandas.DataFrame(rows)
memory = forms.pivot(index="form", columns="agents", values="MB")
assert memory[COUNTS[-1]]["stacked"] > 3 * memory[COUNTS[0]]["stacked"]
assert memory[COUNTS[-1]]["linearized"] < 1.2 * memory[COUNTS[0]]["linearized"]

MARKS = ("o-", "s--", "^-.", "D:", "v-", "P--", "X-.", "*:")


def lines(ax, table, x, y, names, **axes):
    """One line a name on axes with logarithmic scales."""
    for name, mark, colour in zip(names, MARKS, PALETTE, strict=False):
        each = table[table.iloc[:, 0] == name]
        ax.plot(each[x], each[y], mark, color=colour, label=name)
    ax.set(xscale="log", yscale="log", **axes)
    # Plain numbers; where there is little more than a decade, 2 and 5 as well as 1.
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    ax.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    low, high = ax.get_ylim()
    if high < 30 * low:
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_minor_formatter(NullFormatter())


with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    lines(left, forms, "agents", "ms", FORMS, xlabel="agents", ylabel="time, ms")
    lines(right, forms, "agents", "MB", FORMS, xlabel="agents", ylabel="temporaries, MB")
    right.legend()
    set_title(figure, "Four forms, the same numbers: holding every gradient grows with the agents")
    set_note(figure, f"{ROWS} samples, perceptron 64-128-10; the sum and A inner products.")
stored.show(figure)

# %% [markdown]
# ## Live: agents on four devices
#
# A processor pretends to be four devices: this shows that nothing depends on how many there are,
# not that it is fast. Samples are put on their agent's device; sums are added block by block in
# one order, so that the parameters of an epoch are the same, bit for bit.


# %%
def spread(count):
    """The parameters after an epoch over so many devices."""
    mesh = vcca.agent_mesh(jax.devices("cpu")[:count])
    there = vcca.shard_cooperative(members, mesh)
    trainer = vcca.sharded(
        vcca.traversal(vcca.sharded_loss(loss_fn, mesh, blocks=8), optax.sgd(0.3)), mesh
    )
    laid = vcca.sharded_plan(plan, members, 8, block_capacity=32)
    step = jax.jit(
        lambda state, shards, at: trainer.step(state, vcca.sharded_gather(shards, at, mesh))[0]
    )
    state = trainer.init(initial)
    for t in range(len(laid.mask)):
        state = step(state, there.shards, jax.tree.map(lambda field, t=t: field[t], laid))
    return jax.device_get(state.params)


alone, four = spread(1), spread(4)
differing = sum(
    int((one != other).sum())
    for one, other in zip(*map(jax.tree.leaves, (alone, four)), strict=True)
)
assert differing == 0
print(f"one device and four: {differing} parameters differ in a bit")
for one, other in zip(*map(jax.tree.leaves, (alone, by_scan().params)), strict=True):
    np.testing.assert_allclose(one, other, atol=1e-5)

# %% [markdown]
# ## Stored: traversal against centralized training
#
# Perceptron 784-256-128-10, one virtual batch of 512 samples, over a centralized step at the same
# number of agents, timed in turns.

# %%
NAMES = ("centralized", "linearized", "one pass", "split", "scanned", "stacked")
shown = steps[["candidate", "agents", "ratio", "temporaries_mb"]]
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.4, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    times = "time over a centralized step"
    lines(left, shown, "agents", "ratio", NAMES, xlabel="agents", ylabel=times)
    memory = "temporaries, MB"
    lines(right, shown, "agents", "temporaries_mb", NAMES, xlabel="agents", ylabel=memory)
    figure.legend(*left.get_legend_handles_labels(), loc="outside right center")
    set_title(figure, "A lossless step costs a centralized step; visits cost more, stacks grow")
stored.show(figure)

# %% [markdown]
# ## Stored: the whole step over a plain one
#
# Traversal, four value gradients and the validation gradient, projection of 64 agents' updates,
# first-order credit, every held-out loss measured again. The floor is what so many more rows cost
# at the least.

# %%
CANDIDATES = {"floor": "floor", "one pass": "one pass", "linearized": "linearized"}
labels = [f"{r.model}, B = {r.batch}, {r.held_out} held out" for r in models.itertuples()]
with matplotlib.rc_context(STYLE | {"axes.grid.axis": "x"}):
    figure = Figure(figsize=(9.4, 4.6), layout="constrained")
    ax = figure.subplots()
    for name, mark, colour in zip(
        CANDIDATES, "|oD", ("#222222", PALETTE[0], PALETTE[5]), strict=True
    ):
        each = models[name] if name == "floor" else models[name].map(lambda told: told["ratio"])
        ax.plot(each, range(len(models)), mark, color=colour, label=name, markersize=9, mew=2)
    ax.set(
        xlabel="time over a plain step",
        yticks=range(len(models)),
        yticklabels=labels,
        xlim=(0.9, None),
    )
    ax.invert_yaxis()
    ax.legend(loc="lower right")
    set_title(figure, "In one pass the whole step is near its floor; linearized it is not")
stored.show(figure)

# %%
rows = [
    {"candidate": name, "agents": each["agents"]} | each[name]
    for name in ("plain", "one pass", "stacked")
    for each in whole["agents"]
    if name in each
]
growth = pandas.DataFrame(rows)
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.4, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    three = ("plain", "one pass", "stacked")
    lines(left, growth, "agents", "ratio", three, xlabel="agents", ylabel="time over a plain step")
    lines(
        right, growth, "agents", "temporaries_mb", three, xlabel="agents", ylabel="temporaries, MB"
    )
    left.legend()
    set_title(figure, f"The whole step from {few['agents']} to {many['agents']} agents")
    set_note(
        figure, "Perceptron, 512 samples, 125 held-out rows. Stacked was not tried at the largest."
    )
stored.show(figure)

# %% [markdown]
# ## Stored: a hundred thousand agents
#
# Ten noisy digits each, batches of 8192, every principal protecting four values; each size in a
# process of its own.

# %%
STAGES = ("cooperative", "plan", "profiles", "epoch", "settlement", "replay", "compilation")
rows = [
    {"stage": stage, "agents": each["agents"], "seconds": each["seconds"][stage]}
    for stage in STAGES
    for each in scale["results"]
]
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(9.4, 4.8), layout="constrained")
    ax = figure.subplots()
    lines(
        ax, pandas.DataFrame(rows), "agents", "seconds", STAGES, xlabel="agents", ylabel="time, s"
    )
    streamed = scale["streamed"]
    at = streamed["agents"], streamed["seconds"]["epoch"]
    ax.plot(*at, "*", color="#222222", markersize=13, linestyle="none", label="epoch, streamed")
    figure.legend(loc="outside right center")
    set_title(figure, "A hundred thousand agents: compiling costs more than an epoch")
stored.show(figure)

# %% [markdown]
# Fitted over three decades nothing grows faster than the agents, and in the last one the epoch does
# not either: a step of the same batch solves the programs of the principals present, no others.

# %%
exponents = {stage: scale["exponents"][stage] for stage in STAGES}
assert max(exponents.values()) < 1.0
print("growth exponents, fitted:", {stage: round(each, 2) for stage, each in exponents.items()})
before = scale["results"][-2]
times = {name: each["seconds"]["epoch"] for name, each in (("less", before), ("all", largest))}
jump = times["all"] / times["less"] / (largest["agents"] / before["agents"])
assert jump < 1.1
assert largest["seconds"]["compilation"] > largest["seconds"]["epoch"]
print(
    f"from {before['agents']:,} to {largest['agents']:,} the epoch grows"
    f" {jump:.2f} times the agents"
)
peak, less = largest["peak_gb"], streamed["peak_gb"]
print(f"peak memory at {largest['agents']:,} agents: {peak:.1f} GB, streamed {less:.1f} GB")
big = scale["parameters"]
print(
    f"a model of {big['parameters']:,} parameters: {big['seconds']['second step']:.0f} s a step,"
    f" peak {big['peak_gb']:.1f} GB"
)

# %% [markdown]
# ## Stored: projection, the only stage that looks at each agent alone
#
# The dual stage: $A$ programs of $K$ constraints each, float32, against loops and batched solvers.

# %%
projection = stored.records("benchmarks", "projection", "results")
SOLVERS = ("ours", "quadprog loop", "nnls loop", "qpax", "jaxopt")
with matplotlib.rc_context(STYLE):
    figure = Figure(figsize=(10.8, 4.0), layout="constrained")
    for ax, count in zip(figure.subplots(1, 3, sharey=True), (4, 16, 64), strict=True):
        rows = [
            {"solver": name, "agents": each["agents"], "ms": each["milliseconds"][name]}
            for name in SOLVERS
            for each in projection
            if each["rows"] == count and not each["correlated"]
        ]
        lines(ax, pandas.DataFrame(rows), "agents", "ms", SOLVERS, xlabel="agents")
        ax.set_title(f"{count} constraints", loc="left")
    figure.axes[0].set_ylabel("time, ms")
    figure.legend(*ax.get_legend_handles_labels(), loc="outside right center")
    errors = {
        name: max(each["error"][name] for each in projection if name in each["error"])
        for name in ("ours", "jaxopt")
    }
    set_title(
        figure,
        "On independent rows only jaxopt keeps up,"
        f" at {errors['jaxopt'] / errors['ours']:.0f} times the error",
    )
    set_note(
        figure,
        f"Independent rows. Largest error against float64 quadprog: ours {errors['ours']:.0e},"
        f" jaxopt {errors['jaxopt']:.0e}.",
    )
stored.show(figure)

# %% [markdown]
# ## Stored: starting, and looping

# %%
starting = pandas.DataFrame(stored.document("benchmarks", "latency")["best"])
hand = stored.document("benchmarks", "cuts")["epochs"]
loops = {
    each["agents"]: round(each["loop_over_this"], 1)
    for each in hand
    if each["candidate"] == "together"
}
print("an agent-by-agent loop in Python over one scan, times:", loops)
starting.map("{:.3g}".format)

# %% [markdown]
# Seconds of a process started anew, with an empty folder of compiled programs (cold) and with the
# one that the process before left (warm): most of what compiling costs is paid once.
#
# ## Limits
#
# - One shared x86-64 machine of two cores, loaded to different degrees: ratios are of candidates
#   timed in turns, single milliseconds are rough. On an accelerator none of these was measured.
# - Several devices are one processor in parts, here and in the tests; several processes met over
#   loopback (`experiments/distributed/README.md`): they show that numbers do not depend on the
#   layout, and nothing of speed.
# - A batch of fixed size holds at most that many agents: with a hundred thousand most are absent
#   from most steps.
# - One pass needs values and validation to be example losses of the same `loss_fn`; others cost
#   what the linearized form costs (`docs/forms.md`).
