"""The three settings: hospitals, occupations, and images with forbidden classes."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.values.config import Config, Size
from experiments.values.problems import (
    Data,
    Problem,
    Reported,
    binary_loss,
    group_value,
    opportunity_value,
    planned,
    probe_value,
)
from vcca_jax import datasets
from vcca_jax.datasets import FASHION_MNIST_CLASSES, Split, Study

HEART_PROFILES = {
    "cleveland": (vcca.protect("women"), vcca.protect("men")),
    "hungarian": (vcca.protect("women"), vcca.forbid("sex told")),
    "switzerland": (vcca.protect("men"), vcca.protect("oldest third")),
    "va long beach": (vcca.protect("oldest third"), vcca.forbid("sex told")),
}

FORBIDDEN = ("bag", "ankle boot")
FASHION_PROFILES: tuple[tuple[vcca.Constraint, ...], ...] = (
    (vcca.forbid("bag"),),
    (vcca.protect("allowed"),),
    (vcca.forbid("ankle boot"),),
    (vcca.protect("shirt"),),
    (vcca.forbid("bag"), vcca.protect("allowed")),
    (vcca.forbid("ankle boot"), vcca.protect("shirt")),
    (vcca.protect("allowed"),),
    (),
)


ADULT_PROFILES = {
    "adm-clerical": (vcca.protect("women"), vcca.protect("opportunity gap")),
    "other-service": (vcca.protect("women"), vcca.protect("black")),
    "prof-specialty": (vcca.protect("women"),),
    "machine-op-inspct": (vcca.protect("black"),),
    "sales": (vcca.protect("women"),),
    "exec-managerial": (vcca.protect("black"),),
    "tech-support": (vcca.protect("women"), vcca.protect("black")),
}


def heart(config: Config) -> Problem:
    """Four hospitals; women, men and the oldest third are protected, telling sex is forbidden."""
    studies = [datasets.heart_disease(split_seed=seed) for seed in seeds(config)]
    model = study_model(studies[0], config.heart)
    loss_fn = vcca.model_loss(model, binary_loss)
    told, fit = probe_value(model, "sex told")
    groups = {name: group_value(loss_fn, name) for name in ("women", "men", "oldest third")}

    def rows(split: Split, half: slice = slice(None)) -> dict[str, Any]:
        men = split.inputs[half][split.groups["men"][half]]
        women = split.inputs[half][split.groups["women"][half]]
        return {**group_rows(split, groups), "sex told": (men, women)}

    # Every other held-out row fits the probe and the rest measure it.
    return of_studies(
        studies,
        config,
        config.heart,
        model,
        values=vcca.value_losses({**groups, "sex told": told}),
        profiles=HEART_PROFILES,
        order=list(HEART_PROFILES),
        rows=partial(rows, half=slice(1, None, 2)),
        fresh=rows,
        fit=fit,
        fits=lambda split: {"sex told": rows(split, slice(0, None, 2))["sex told"]},
    )


def adult(config: Config) -> Problem:
    """Thirteen occupations; losses of women and of Black people, and a gap in opportunity."""
    studies = [
        datasets.adult(split_seed=seed, rows_limit=config.adult_rows) for seed in seeds(config)
    ]
    model = study_model(studies[0], config.adult)
    loss_fn = vcca.model_loss(model, binary_loss)
    groups = {name: group_value(loss_fn, name) for name in ("women", "black")}

    def rows(split: Split) -> dict[str, Any]:
        earns = split.targets == 1
        sides = [split.inputs[split.groups[name] & earns] for name in ("women", "men")]
        return {**group_rows(split, groups), "opportunity gap": tuple(sides)}

    gap = opportunity_value(model, "opportunity gap")
    profiles = ADULT_PROFILES
    return of_studies(
        studies,
        config,
        config.adult,
        model,
        values=vcca.value_losses({**groups, "opportunity gap": gap}),
        profiles=profiles,
        order=list(profiles),
        rows=rows,
        fresh=rows,
        fit=lambda params, fits: {},
        fits=lambda split: {},
    )


def of_studies(
    studies: Sequence[Study],
    config: Config,
    size: Size,
    model: vcca.SplitModel,
    *,
    values: vcca.Values,
    profiles: dict[str, Any],
    order: Sequence[str],
    rows: Callable[[Split], dict[str, Any]],
    fresh: Callable[[Split], dict[str, Any]],
    fit: Callable[..., Any],
    fits: Callable[[Split], dict[str, Any]],
) -> Problem:
    """A problem of one study a seed."""
    agents = studies[0].agents
    capacity = max(len(shard.targets) for study in studies for shard in study.train)
    steps = max(-(-len(study.pooled_train.targets) // size.batch_size) for study in studies)
    data, reported = [], []
    for seed, study in zip(seeds(config), studies, strict=True):
        shards, plan = planned(study.train, agents, capacity, size, seed, steps)
        data.append(
            Data(
                shards=shards,
                plan=plan,
                rows=rows(study.values),
                fresh=fresh(study.test),
                fits=fits(study.values),
                validation=(study.validation.inputs, study.validation.targets),
                test=study.test.inputs,
                seed=np.int32(seed),
            )
        )
        own = study.test.owners[None, :] == np.arange(len(agents))[:, None]
        audience = own / np.maximum(own.sum(axis=1, keepdims=True), 1)
        reported.append(Reported(study.test.targets, audience, dict(study.test.groups)))
    return Problem(
        agents=agents,
        model=model,
        loss_fn=vcca.model_loss(model, binary_loss),
        values=values,
        profiles=tuple(profiles.get(name, ()) for name in agents),
        order=tuple(agents.index(name) for name in order),
        fit=fit,
        data=tuple(data),
        reported=tuple(reported),
    )


def fashion(config: Config) -> Problem:
    """Eight agents with skewed shares of the classes; two classes are forbidden purposes."""
    size, names = config.fashion, FASHION_MNIST_CLASSES
    (pool, told), (test_pool, test_told) = datasets.fashion_mnist()
    counts = (config.fashion_train, config.fashion_values, config.fashion_validation)
    agents = tuple(f"agent {i}" for i in range(len(FASHION_PROFILES)))
    model = vcca.mlp(14 * 14, size.hidden, len(names), cut=1)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    allowed = [k for k, name in enumerate(names) if name not in FORBIDDEN]
    chosen = {"allowed": allowed} | {n: [names.index(n)] for n in ("shirt", *FORBIDDEN)}

    def rows(inputs: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
        masks = {name: np.isin(targets, classes) for name, classes in chosen.items()}
        return {name: (inputs[mask], targets[mask]) for name, mask in masks.items()}

    dealt, data, reported = [], [], []
    for seed in seeds(config):
        order = np.random.default_rng((seed, 2)).permutation(len(told))
        train, values, validation = np.split(order[: sum(counts)], np.cumsum(counts)[:-1])
        shards = vcca.partition.dirichlet(
            pooled(pool[train]), told[train], len(agents), alpha=0.5, seed=seed
        )
        shown = np.random.default_rng((seed, 3)).permutation(len(test_told))[: config.fashion_test]
        dealt.append((shards, values, validation, shown))
    capacity = max(len(targets) for shards, *_ in dealt for _, targets in shards)
    steps = -(-config.fashion_train // size.batch_size)
    for seed, (shards, values, validation, shown) in zip(seeds(config), dealt, strict=True):
        arrays, plan = planned(shards, agents, capacity, size, seed, steps)
        targets = test_told[shown]
        data.append(
            Data(
                shards=arrays,
                plan=plan,
                rows=rows(pooled(pool[values]), told[values]),
                fresh=rows(pooled(test_pool[shown]), targets),
                fits={},
                validation=(pooled(pool[validation]), told[validation]),
                test=pooled(test_pool[shown]),
                seed=np.int32(seed),
            )
        )
        shares = np.stack([np.bincount(y, minlength=len(names)) / len(y) for _, y in shards])
        audience = (shares / np.bincount(targets, minlength=len(names))[None, :])[:, targets]
        groups = {name: np.isin(targets, classes) for name, classes in chosen.items()}
        reported.append(Reported(targets, audience, groups))
    return Problem(
        agents=agents,
        model=model,
        loss_fn=loss_fn,
        values=vcca.value_losses({name: group_value(loss_fn, name) for name in chosen}),
        profiles=FASHION_PROFILES,
        order=tuple(range(len(agents))),
        fit=lambda params, fits: {},
        data=tuple(data),
        reported=tuple(reported),
    )


SETTINGS: dict[str, Callable[[Config], Problem]] = {
    "heart": heart,
    "adult": adult,
    "fashion": fashion,
}


def size_of(config: Config, setting: str) -> Size:
    """The terms of a setting."""
    return {"heart": config.heart, "adult": config.adult, "fashion": config.fashion}[setting]


def seeds(config: Config) -> range:
    """The seeds of every condition."""
    return range(config.first_seed, config.first_seed + config.seeds)


def study_model(study: Study, size: Size) -> vcca.SplitModel:
    """A small perceptron whose first layer is the body."""
    return vcca.mlp(len(study.feature_names), size.hidden, 1, cut=1, activation=jnp.tanh)


def group_rows(split: Split, groups: Any) -> dict[str, Any]:
    """By group, its rows of a split; shuffled, so that fewer of them are no other kind."""
    chosen = {}
    for place, name in enumerate(groups):
        members = np.flatnonzero(split.groups[name])
        members = np.random.default_rng((len(members), place)).permutation(members)
        chosen[name] = (split.inputs[members], split.targets[members])
    return chosen


def pooled(images: np.ndarray) -> np.ndarray:
    """Images [n, 28, 28, 1] as rows of 14 x 14 means."""
    return images.reshape(-1, 14, 2, 14, 2).mean(axis=(2, 4)).reshape(len(images), -1)


def profiles_of(
    problem: Problem,
    *,
    stating: int | None = None,
    price: tuple[str, float] | None = None,
) -> vcca.ValueProfiles:
    """The problem's profiles as arrays of one shape.

    Args:
        problem: whose.
        stating: how many principals, in the problem's order, state anything; all by default.
        price: (value, price) for all constraints on one value.
    """
    heard = problem.order if stating is None else problem.order[:stating]
    stated = [
        tuple(_priced(c, price) for c in profile) if i in heard else ()
        for i, profile in enumerate(problem.profiles)
    ]
    return vcca.value_profiles(
        problem.values.names,
        stated,
        constraints=max(len(profile) for profile in problem.profiles),
        prices=price is not None,
    )


def _priced(constraint: vcca.Constraint, price: tuple[str, float] | None) -> vcca.Constraint:
    if price is None or getattr(constraint, "value", None) != price[0]:
        return constraint
    return constraint._replace(price=price[1])  # type: ignore[call-arg]


def stated_signs(problem: Problem) -> jax.Array:
    """[M], +1 for a value that somebody protects, -1 for one that is forbidden, 0 for neither."""
    signs = dict.fromkeys(problem.values.names, 0.0)
    for profile in problem.profiles:
        for constraint in profile:
            if isinstance(constraint, vcca.constraints.HalfSpace):
                signs[constraint.value] = 1.0 if constraint.kind == "protect" else -1.0
    return jnp.array(list(signs.values()))
