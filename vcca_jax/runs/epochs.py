"""One epoch of all trainers and all seeds, on the device, and what is kept of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.cooperate import CooperateInfo
from vcca_jax.cooperative import Shards
from vcca_jax.epochs import scan_steps
from vcca_jax.plan import TraversalPlan
from vcca_jax.runs.problem import Problem

States = dict[str, Any]


class EpochSummary(NamedTuple):
    """Sums over an epoch's T steps, for one seed.

    Attributes:
        train_loss: {trainer: scalar}, mean over the epoch's samples.
        steps: [A] int, steps in which the agent had a sample.
        admissible: [A] int, of them, those whose update was admissible as it came.
        dropped: [A] int, those whose update was dropped.
        conflicts: [A, M] int, those whose update violated a constraint on the value.
        removed: [A], sum over steps of the share of the update's norm that was removed.
        credits: [A].
        gain, carry_over, residual: scalars, see ``CooperateInfo``.
    """

    train_loss: dict[str, jax.Array]
    steps: jax.Array
    admissible: jax.Array
    dropped: jax.Array
    conflicts: jax.Array
    removed: jax.Array
    credits: jax.Array
    gain: jax.Array
    carry_over: jax.Array
    residual: jax.Array


class Evaluation(NamedTuple):
    """A trainer's parameters, measured on held-out rows, for one seed.

    Attributes:
        validation_loss: scalar.
        validation_outputs: [n] logits.
        value_losses: [M], with probes refitted on this trainer's own body.
        fresh_value_losses: [M], the same on validation rows.
    """

    validation_loss: jax.Array
    validation_outputs: jax.Array
    value_losses: jax.Array
    fresh_value_losses: jax.Array


def initial_states(problem: Problem, key: jax.Array) -> States:
    """Every trainer's state from the same parameters; ``key`` is one seed's."""
    params = problem.model.init(jax.random.fold_in(key, 0))
    return {
        name: trainer.init(
            params,
            problem.profiles,
            context=problem.fit_context(params),
            key=jax.random.fold_in(key, 1),
        )
        if name == "cooperative"
        else trainer.init(params)
        for name, trainer in problem.trainers.items()
    }


def epoch(
    problem: Problem, states: States, shards: Shards, plan: TraversalPlan
) -> tuple[States, EpochSummary]:
    """Train every trainer through one plan [T, B]; then refit the cooperative's probes."""
    finals: States = {}
    losses: dict[str, jax.Array] = {}
    infos: dict[str, Any] = {}
    live = plan.mask.sum(axis=1)
    for name, trainer in problem.trainers.items():
        finals[name], infos[name] = scan_steps(trainer, states[name], shards, plan)
        losses[name] = (infos[name].loss * live).sum() / live.sum()
    ours = finals["cooperative"]
    finals["cooperative"] = ours._replace(context=problem.fit_context(ours.params))
    return finals, _summary(losses, infos["cooperative"])


def evaluate(problem: Problem, states: States) -> dict[str, Evaluation]:
    """Measure every trainer's parameters."""
    measured = {}
    for name, state in states.items():
        params = state.params
        context = problem.fit_context(params)
        measured[name] = Evaluation(
            problem.validation_loss(params),
            problem.model.apply(params, problem.study.validation.inputs)[:, 0],
            problem.values.losses(params, context),
            problem.fresh_values.losses(params, context),
        )
    return measured


def over_seeds(
    function: Callable[..., Any], *mapped: int | None, donated: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """Jit a function, mapped over the seeds' axis of its arguments; some may be donated."""
    return jax.jit(jax.vmap(function, in_axes=mapped), donate_argnums=donated)


def _summary(losses: dict[str, jax.Array], info: CooperateInfo) -> EpochSummary:
    """Sum the step infos [T, ...]."""
    report, present = info.report, info.present
    share = report.removed_norm / jnp.where(report.norm > 0, report.norm, 1)

    def count(flags: jax.Array) -> jax.Array:
        return flags.sum(axis=0).astype(jnp.int32)

    return EpochSummary(
        train_loss=losses,
        steps=count(present),
        admissible=count(report.admissible),
        dropped=count(present & ~report.feasible),
        conflicts=count(report.conflicts),
        removed=jnp.where(present, share, 0).sum(axis=0),
        credits=info.credits.sum(axis=0),
        gain=info.gain.sum(),
        carry_over=info.carry_over.sum(),
        residual=info.residual.sum(),
    )
