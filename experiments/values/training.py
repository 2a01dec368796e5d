"""One compiled program a condition: a scan over epochs and steps, mapped over seeds."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.values.config import Size
from experiments.values.problems import Data, Problem, drawn, stacked
from experiments.values.settings import profiles_of, stated_signs
from vcca_jax.admission import FULL_STEPS
from vcca_jax.screening import Scope
from vcca_jax.trainer import Params, where_live

TOLERANCE = 1e-6
"""What ``keep_admissible`` allows a loss to move, in units of max(1, |V|): its default."""


COMPILE_FAST = {"xla_backend_optimization_level": "0"}
"""Compilation takes longer than most runs: the least of it is the fastest on the whole."""


class Way(NamedTuple):
    """How updates are screened and applied.

    Attributes:
        method, scope: of the screen.
        adam: whether the optimizer is Adam; else plain SGD.
        metric: whether the screen works in Adam's metric.
        verified: whether the optimizer is wrapped by ``keep_admissible``.
    """

    method: Any = "project"
    scope: Scope = "everyone"
    adam: bool = False
    metric: bool = False
    verified: bool = False


class Condition(NamedTuple):
    """A way, with who states what and what the values are measured on.

    Attributes:
        way: see ``Way``.
        stating: how many principals state anything; all by default.
        price: (value, price), see ``profiles_of``.
        share: of the value rows that an epoch looks at.
        anew: whether every epoch draws others.
    """

    way: Way = Way()
    stating: int | None = None
    price: tuple[str, float] | None = None
    share: float = 1.0
    anew: bool = False


class Step(NamedTuple):
    """What one step tells; sums over agents that are present."""

    live: jax.Array
    present: jax.Array
    admissible: jax.Array
    dropped: jax.Array
    norm: jax.Array
    removed: jax.Array
    bought: jax.Array  # [M], summed sizes of the coefficients
    binding: jax.Array  # [M], how many are not 0
    violation: jax.Array  # the largest left by the screen, in units of <u, grad V>
    rise: jax.Array  # [M], the measured unwanted change of the value losses
    beyond: jax.Array  # [M] bool, more than the tolerance
    verified: jax.Array
    shortened: jax.Array
    by: jax.Array  # [A, A], who was screened by whom


class Traced(NamedTuple):
    """A run, by epoch [E, ...]; losses also before training, [E + 1, M].

    Attributes:
        seen, fresh: value losses on the rows that screens see in full, and on test rows.
        validation: [E + 1], the utility's loss.
        sums: of ``Step`` over each epoch's steps, but the largest of ``violation`` and ``rise``.
        outputs: of the test rows, at the end.
        params: before each epoch and at the end, [E + 1, ...].
    """

    seen: jax.Array
    fresh: jax.Array
    validation: jax.Array
    sums: Step
    outputs: jax.Array
    params: Params


def conditions(counts: tuple[int, ...], few: float, order: tuple[int, ...]) -> dict[str, Condition]:
    """All conditions of a setting whose principals number ``len(order)``; no prices."""
    adam = Way(adam=True)
    table = {
        "unscreened": Condition(stating=0),
        "own": Condition(Way(scope="own")),
        "everyone": Condition(),
        "weighted": Condition(Way(scope="weighted")),
        "reject": Condition(Way(method="reject")),
        "shrink": Condition(Way(method="shrink")),
        "verified": Condition(Way(verified=True)),
        "adam, unscreened": Condition(adam, stating=0),
        "adam, gradients": Condition(adam),
        "adam, metric": Condition(adam._replace(metric=True)),
        "adam, verified": Condition(adam._replace(verified=True)),
        "few rows": Condition(share=few),
        "few rows, drawn anew": Condition(share=few, anew=True),
    }
    between = [count for count in counts if 0 < count < len(order)]
    return table | {f"{count} stating": Condition(stating=count) for count in between}


def prepared(problem: Problem, size: Size, condition: Condition) -> tuple[Data, Any]:
    """The stacked data [R, ...] and the profiles of a condition."""
    data = stacked(problem.data)
    seeds = [
        drawn(
            jax.tree.map(lambda leaf, r=r: leaf[r], data._replace(draws=None)),
            size.epochs,
            condition.share,
            anew=condition.anew,
            seed=int(each.seed),
        )
        for r, each in enumerate(problem.data)
    ]
    draws = jax.tree.map(lambda *leaves: np.stack(leaves), *(each.draws for each in seeds))
    profiles = profiles_of(problem, stating=condition.stating, price=condition.price)
    return data._replace(draws=draws), profiles


class Switches(NamedTuple):
    """A way as numbers, so that one program serves all ways; none has a seed axis."""

    screen: Any  # int32, which of SCREENS
    adam: Any
    metric: Any
    verified: Any


SCREENS: tuple[tuple[Any, Scope], ...] = (
    ("project", "everyone"),
    ("project", "own"),
    ("project", "weighted"),
    ("reject", "everyone"),
    ("shrink", "everyone"),
)


def switches(way: Way, screens: Sequence[tuple[Any, Scope]] = SCREENS) -> Switches:
    """The numbers of a way, for a program with these screens."""
    screen = np.int32(screens.index((way.method, way.scope)))
    return Switches(screen, np.bool_(way.adam), np.bool_(way.metric), np.bool_(way.verified))


def either(size: Size, adam: jax.Array) -> optax.GradientTransformation:
    """Adam or plain SGD, as a traced flag says; Adam's memory is kept in both cases."""
    fancy = optax.adam(size.adam_rate)

    def update(gradient: Params, state: Any, params: Params | None = None) -> tuple[Params, Any]:
        theirs, after = fancy.update(gradient, state, params)
        plain = jax.tree.map(lambda leaf: -size.learning_rate * leaf, gradient)
        return jax.tree.map(partial(jnp.where, adam), theirs, plain), after

    return optax.GradientTransformation(fancy.init, update)


def program(
    problem: Problem, size: Size, screens: Sequence[tuple[Any, Scope]] = SCREENS
) -> Callable[[Data, Any, Switches], Traced]:
    """``run(data [R, ...], profiles, switches) -> Traced [R, ...]``, compiled once a shape."""
    values, signs = problem.values, stated_signs(problem)
    adam_metric = vcca.adam_metric()
    makers = [
        (vcca.screen(method, scope=scope, measure_norms=True), scope) for method, scope in screens
    ]

    def step(shards: Any, context: Any, profiles: Any, way: Switches, carried: Any, at: Any) -> Any:
        params, memory = carried
        batch = vcca.gather(shards, at)
        # The models are small: all agents' gradients at once are the fastest form.
        gradients = vcca.agent_gradients(problem.loss_fn, params, batch, method="stacked")
        before, rows = values.gradients(params, context)
        metric = jax.tree.map(
            lambda leaf: jnp.where(way.metric, leaf, 1), adam_metric(memory, gradients.sum())
        )

        def screened(screen: vcca.screening.Screen, scope: Scope) -> Any:
            changed, report = screen(gradients, rows, profiles, metric=metric)
            if scope == "everyone":
                by = vcca.screened_by(report, profiles, batch.active)
            else:
                by = jnp.zeros((batch.active.shape[0],) * 2)
            return changed.sum(), report, by

        direction, report, by = jax.lax.switch(
            way.screen, [partial(screened, *maker) for maker in makers]
        )
        plain = either(size, way.adam)
        rate = jnp.where(way.adam, size.adam_rate, size.learning_rate)
        kept = keeping(plain, rate)

        def verified(_: None) -> Any:
            return kept.update(
                direction,
                memory,
                params,
                value_gradients=rows,
                profiles=profiles,
                active=batch.active,
                context=context,
            )

        def applied(_: None) -> Any:
            updates, inner = plain.update(direction, memory.inner, params)
            return updates, memory._replace(inner=inner)

        updates, after = jax.lax.cond(way.verified, verified, applied, None)
        moved = optax.apply_updates(params, updates)
        rise = signs * (values.losses(moved, context) - before)
        told = Step(
            live=batch.mask.any(),
            present=gradients.present.sum(),
            admissible=report.admissible.sum(),
            dropped=report.dropped.sum(),
            norm=jnp.where(gradients.present, report.norm, 0).sum(),
            removed=jnp.where(gradients.present, report.removed_norm, 0).sum(),
            bought=jnp.abs(report.coefficients).sum(axis=0),
            binding=(report.coefficients != 0).sum(axis=0),
            violation=report.violations.max(),
            rise=rise,
            beyond=rise > TOLERANCE * jnp.maximum(1, jnp.abs(before)),
            verified=after.report.verified & way.verified,
            shortened=(after.report.attempts > FULL_STEPS) & way.verified,
            by=by,
        )
        told = where_live(batch, told, jax.tree.map(jnp.zeros_like, told))
        return where_live(batch, (moved, after), carried), told

    def keeping(plain: Any, rate: Any) -> optax.GradientTransformationExtraArgs:
        return vcca.keep_admissible(
            plain, values, learning_rate=lambda count: rate, tolerance=TOLERANCE
        )

    def epoch(data: Data, profiles: Any, way: Switches, carried: Any, each: Any) -> Any:
        plan, draws = each
        params = carried[0]
        probes = problem.fit(params, data.fits)
        inputs, targets = data.validation
        measured = (
            values.losses(params, {"rows": data.rows, "probes": probes}),
            values.losses(params, {"rows": data.fresh, "probes": probes}),
            problem.loss_fn(params, inputs, targets).mean(),
        )
        seen = jax.tree.map(lambda leaf, chosen: leaf[chosen], data.rows, draws)
        context = {"rows": seen, "probes": probes}
        after, told = jax.lax.scan(
            partial(step, data.shards, context, profiles, way), carried, plan
        )
        sums = jax.tree.map(lambda leaf: leaf.sum(axis=0), told)._replace(
            violation=told.violation.max(), rise=told.rise.max(axis=0)
        )
        return after, (*measured, sums, params)

    def run(data: Data, profiles: Any, way: Switches) -> Traced:
        key = jax.random.fold_in(jax.random.key(0), data.seed)
        params = problem.model.init(key)
        start = (params, keeping(either(size, way.adam), 1.0).init(params))
        # One more epoch, of empty batches, so that the end is measured where the epochs are.
        plan, draws = jax.tree.map(
            lambda leaf: jnp.concatenate([leaf, leaf[-1:]]), (data.plan, data.draws)
        )
        plan = plan._replace(mask=jnp.asarray(plan.mask).at[-1].set(False))
        (final, _), (seen, fresh, validation, sums, kept) = jax.lax.scan(
            partial(epoch, data, profiles, way), start, (plan, draws)
        )
        outputs = problem.model.apply(final, data.test)
        sums = jax.tree.map(lambda leaf: leaf[:-1], sums)
        return Traced(seen, fresh, validation, sums, outputs, kept)

    return jax.vmap(run, in_axes=(0, None, None))
