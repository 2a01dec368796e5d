"""What a configuration means: the study's cooperative, model, values, profiles and trainers."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vcca_jax import contribution, datasets, screening
from vcca_jax.baselines.centralized import centralized
from vcca_jax.cooperate import cooperate
from vcca_jax.cooperative import Cooperative, cooperative
from vcca_jax.model import SplitModel, mlp, model_loss
from vcca_jax.runs.config import ConfigError, Profile, RunConfig
from vcca_jax.trainer import ExampleLoss, Params, Trainer
from vcca_jax.traversal import traversal
from vcca_jax.values import (
    ValueLoss,
    ValueProfiles,
    Values,
    forbid,
    group_loss,
    protect,
    value_losses,
    value_profiles,
)

TRAINERS = ("cooperative", "unscreened", "centralized")


class Problem(NamedTuple):
    """A configuration made concrete.

    Attributes:
        study: the data by agent and by purpose.
        members: the training shards on the agent axis.
        model: the split model.
        loss_fn: per-example loss.
        validation_loss: of the parameters; the utility is its negative.
        values: the value losses; their context holds one probe for each probed attribute.
        fresh_values: the same values measured on validation rows, which no screen looks at.
        profiles: the principals'.
        fit_context: ``fit_context(params) -> context``, the probes refitted on the body's output.
        trainers: by name, the cooperative and what it is compared with.
    """

    study: datasets.Study
    members: Cooperative
    model: SplitModel
    loss_fn: ExampleLoss
    validation_loss: Callable[[Params], jax.Array]
    values: Values
    fresh_values: Values
    profiles: ValueProfiles
    fit_context: Callable[[Params], Any]
    trainers: dict[str, Trainer]


def binary_cross_entropy(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Loss [n] of logits [n, 1] for targets [n] in {0, 1}."""
    return optax.sigmoid_binary_cross_entropy(outputs[:, 0], targets.astype(outputs.dtype))


def make_problem(config: RunConfig) -> Problem:
    """Load the study and build everything a run needs.

    Raises:
        ConfigError: a profile for an unknown agent, or a value on an unknown group or attribute.
    """
    study = datasets.heart_disease(
        split_seed=config.data.split_seed, fractions=config.data.fractions
    )
    strangers = [name for name in config.profiles if name not in study.agents]
    if strangers:
        raise ConfigError(f"profiles name {strangers}; the agents are {list(study.agents)}")
    members = cooperative(study.train, names=study.agents)
    model = mlp(
        len(study.feature_names), config.model.hidden, 1, cut=config.model.cut, activation=jnp.tanh
    )
    loss_fn = model_loss(model, binary_cross_entropy)
    mean_loss = group_loss(loss_fn, study.validation.inputs, study.validation.targets)

    def validation_loss(params: Params) -> jax.Array:
        return mean_loss(params, None)

    losses: dict[str, ValueLoss] = {}
    fresh: dict[str, ValueLoss] = {}
    fits: dict[str, Callable[[Params], Any]] = {}
    for name, value in config.values.items():
        if value.group is not None:
            losses[name], fresh[name] = _group_value(study, loss_fn, value.group, name)
        else:
            losses[name], fresh[name], fits[name] = _probe_value(
                study, model, str(value.probe), name
            )
    values = value_losses(losses)
    optimizer = optax.sgd(config.training.learning_rate)
    chosen = getattr(contribution, config.credit.estimator)
    estimator = (
        partial(chosen, nodes=config.credit.nodes)
        if config.credit.estimator == "aumann_shapley"
        else chosen
    )
    return Problem(
        study=study,
        members=members,
        model=model,
        loss_fn=loss_fn,
        validation_loss=validation_loss,
        values=values,
        fresh_values=value_losses(fresh),
        profiles=value_profiles(
            values.names,
            [_constraints(config.profiles.get(name, Profile())) for name in study.agents],
        ),
        fit_context=lambda params: {name: fit(params) for name, fit in fits.items()},
        trainers={
            "cooperative": cooperate(
                loss_fn,
                optimizer,
                validation_loss,
                values,
                screen=screening.screen(
                    config.screening.method, scope=config.screening.scope, measure_norms=True
                ),
                estimator=estimator,
            ),
            "unscreened": traversal(loss_fn, optimizer),
            "centralized": centralized(loss_fn, optimizer),
        },
    )


def _constraints(profile: Profile) -> list[Any]:
    return [
        *(protect(name, margin) for name, margin in profile.protect.items()),
        *(forbid(name, margin) for name, margin in profile.forbid.items()),
    ]


def _group_value(
    study: datasets.Study, loss_fn: ExampleLoss, group: str, name: str
) -> tuple[ValueLoss, ValueLoss]:
    """Loss of a group, on the rows held out for values and on validation rows."""
    if group not in study.groups:
        raise ConfigError(
            f"values.{name!r} speaks of the group {group!r}; the study has {list(study.groups)}"
        )

    def on(split: datasets.Split) -> ValueLoss:
        rows = split.groups[group]
        return group_loss(loss_fn, split.inputs[rows], split.targets[rows])

    return on(study.values), on(study.validation)


def _probe_value(
    study: datasets.Study, model: SplitModel, attribute: str, name: str
) -> tuple[ValueLoss, ValueLoss, Callable[[Params], Any]]:
    """Loss of a linear probe for a binary attribute on the body's activations, and its fit.

    Every other held-out row fits the probe and the rest measure it, so what the probe learns by
    heart does not count as what the body tells.
    """
    if attribute != "sex":
        raise ConfigError(
            f"values.{name!r} probes {attribute!r}; the study's binary attribute is 'sex'"
        )

    def features(params: Params, inputs: Any) -> jax.Array:
        activations = model.body(params["body"], inputs)
        return jnp.concatenate([activations, jnp.ones((activations.shape[0], 1))], axis=1)

    def measured_on(split: datasets.Split, rows: slice) -> ValueLoss:
        inputs, labels = split.inputs[rows], jnp.float32(split.attributes[attribute][rows])

        def value(params: Params, context: Any) -> jax.Array:
            logits = features(params, inputs) @ context[name]
            return optax.sigmoid_binary_cross_entropy(logits, labels).mean()

        return value

    inputs, labels = study.values.inputs[::2], study.values.attributes[attribute][::2]

    def fit(params: Params) -> jax.Array:
        return fit_linear_probe(features(params, inputs), jnp.float32(labels))

    odd, every = slice(1, None, 2), slice(None)
    return measured_on(study.values, odd), measured_on(study.validation, every), fit


def fit_linear_probe(
    features: jax.Array, labels: jax.Array, *, ridge: float = 1e-2, iterations: int = 12
) -> jax.Array:
    """Ridge-penalised logistic regression by Newton's method, in a fixed number of iterations.

    Minimises mean_s [log(1 + exp(x_s w)) - y_s x_s w] + ridge/2 |w|^2.

    Args:
        features: [n, d], a constant column included.
        labels: [n] in {0, 1}.
        ridge: penalty, > 0.
        iterations: Newton steps from w = 0; the penalty keeps them well conditioned.

    Returns:
        w [d].
    """
    identity = ridge * jnp.eye(features.shape[1])

    def newton(_: int, weights: jax.Array) -> jax.Array:
        chance = jax.nn.sigmoid(features @ weights)
        gradient = features.T @ (chance - labels) / len(labels) + ridge * weights
        curvature = (chance * (1 - chance))[:, None] * features
        return weights - jnp.linalg.solve(features.T @ curvature / len(labels) + identity, gradient)

    return jax.lax.fori_loop(0, iterations, newton, jnp.zeros(features.shape[1]))
