"""Screens under whole profiles: prices, limits, frozen parts, weights, metrics, least violation.

The twin builds every principal's constraints from the constructors' own fields and asks Clarabel
for the nearest update in parameter space, agent by agent.
"""

import functools
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conic_examples import Problem, exact_update
from tests.screens import (
    AGENTS,
    VALUES,
    WIDTH,
    case,
    flatten,
    gradients_of,
    linear_loss,
    unflatten,
)
from vcca_jax.constraints import (
    AngleCone,
    Freeze,
    HalfSpace,
    MaxNorm,
    TrustRegion,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)
from vcca_jax.gradients import agent_gradients
from vcca_jax.profiles import value_profiles
from vcca_jax.screening import screen

NAMES = tuple(f"V{m}" for m in range(VALUES))
PARAMS = unflatten(np.zeros(WIDTH))
FROZEN = {"a": slice(0, 6), "b": slice(6, WIDTH)}
# Each scope compiles a cone program of its own; the widest rule stands for the three by default.
SCOPES = (
    "everyone",
    pytest.param("own", marks=pytest.mark.slow),
    pytest.param("weighted", marks=pytest.mark.slow),
)
SEEDS = st.integers(0, 2**31)


def stated(seed):
    """Profiles of every kind of constraint, none of which excludes u = 0."""
    rng = np.random.default_rng((seed, 5))

    def one(i):
        kinds = rng.permutation(VALUES)
        price = [math.inf, float(rng.uniform(0.05, 0.4))][int(rng.random() < 0.4)]
        margin = float(rng.choice([0.0, -0.1]))
        made = [
            protect(NAMES[kinds[0]], margin, price=price),
            forbid(NAMES[kinds[1]]),
            preserve(NAMES[kinds[2]]),
            max_norm(float(rng.uniform(0.1, 0.6))),
            within_angle(NAMES[kinds[0]], float(rng.uniform(30, 80))),
            trust_region([NAMES[kinds[0]], NAMES[kinds[3]]], float(rng.uniform(0.05, 0.6))),
        ]
        chosen = [each for each in made if rng.random() < 0.4]
        return [*chosen, freeze("b")] if i == 2 else chosen

    return [one(i) for i in range(AGENTS)], [float(w) for w in rng.uniform(0.5, 2.0, AGENTS)]


def arrays(profiles, weights):
    return value_profiles(
        NAMES, profiles, params=PARAMS, weights=weights, constraints=4, regions=1, patterns=2
    )


def nearest(g, rows, constraints, metric):
    """The projection by Clarabel, in coordinates in which the metric is the Euclidean one."""
    free = np.ones(WIDTH)
    for part in (c.part for c in constraints if isinstance(c, Freeze)):
        free[FROZEN[part]] = 0
    root = np.sqrt(metric)
    spaces = [
        (NAMES.index(c.value), sign, sign * c.margin if c.kind == "preserve" else c.margin, c.price)
        for c in constraints
        if isinstance(c, HalfSpace)
        for sign in {"protect": [1], "forbid": [-1], "preserve": [1, -1]}[c.kind]
    ]
    value, sign, margin, price = (
        (np.array(x) for x in zip(*spaces, strict=True))
        if spaces
        else (np.zeros(0, int), *np.zeros((3, 0)))
    )
    cosines = np.full(VALUES, -1.0)
    for c in (c for c in constraints if isinstance(c, AngleCone)):
        cosine = math.cos(math.radians(c.degrees))
        cosines[NAMES.index(c.value)] = max(cosine, cosines[NAMES.index(c.value)])
    regions = [c for c in constraints if isinstance(c, TrustRegion)]
    problem = Problem(
        gradient=g * free * root,
        values=rows * free * root,
        value=value,
        sign=sign,
        margin=margin,
        price=price,
        max_norm=min([c.limit for c in constraints if isinstance(c, MaxNorm)], default=math.inf),
        cosines=cosines,
        weights=np.array([[float(n in c.values) for n in NAMES] for c in regions]).reshape(
            -1, VALUES
        ),
        radii=np.array([c.radius for c in regions]),
    )
    if not (spaces or regions or (cosines >= 0).any() or np.isfinite(problem.max_norm)):
        return g * free
    return exact_update(problem) / root * free


def twin(scope, given, profiles, weights, metric):
    """[A, D], the screened updates."""
    stack, present = gradients_of(given.batch)
    rows, active = flatten(given.rows), given.batch.active
    heard = [profile for profile, on in zip(profiles, active, strict=True) if on]
    say = np.array([w for w, on in zip(weights, active, strict=True) if on])

    def one(i, g):
        if scope == "own":
            return nearest(g, rows, profiles[i], metric)
        if scope == "everyone":
            return nearest(g, rows, merged(heard), metric)
        each = [nearest(g, rows, profile, metric) for profile in heard]
        return np.average(each, axis=0, weights=say)

    return np.stack(
        [
            one(i, g) if here else 0 * g
            for i, (g, here) in enumerate(zip(stack, present, strict=True))
        ]
    )


def merged(profiles):
    """What all of them state; on one side of a value the strictest that must hold, and for sale."""
    strictest, others = {}, []
    for constraint in (c for profile in profiles for c in profile):
        if not isinstance(constraint, HalfSpace):
            others.append(constraint)
            continue
        for kind in {"preserve": ("protect", "forbid")}.get(constraint.kind, (constraint.kind,)):
            key = kind, constraint.value, math.isinf(constraint.price)
            margin, price = strictest.get(key, (-math.inf, 0.0))
            strictest[key] = (
                max(margin, constraint.margin),
                max(price, constraint.price),
            )
    return [
        HalfSpace(kind, name, margin, price)
        for (kind, name, _), (margin, price) in strictest.items()
    ] + others


@functools.cache
def jitted(scope, method="project", policy="drop"):
    apply = screen(method, scope=scope, policy=policy, measure_norms=True)

    @jax.jit
    def run(given, profiles, metric):
        gradients = agent_gradients(linear_loss, given.params, given.batch)
        screened, report = apply(gradients, given.rows, profiles, metric=metric)
        return screened.stack(), screened.sum(), screened.present, report

    return run


@pytest.mark.parametrize("scope", SCOPES)
@given(seed=SEEDS, curved=st.booleans())
def test_projection_under_whole_profiles_equals_a_cone_program(scope, seed, curved):
    with jax.enable_x64(True):
        this = case(seed)
        profiles, weights = stated(seed)
        metric = np.random.default_rng(seed).uniform(0.3, 3.0, WIDTH) if curved else np.ones(WIDTH)
        stack, total, _, report = jitted(scope)(this, arrays(profiles, weights), unflatten(metric))
        wanted = twin(scope, this, profiles, weights, metric)
        np.testing.assert_allclose(flatten(stack), wanted, atol=3e-7)
        np.testing.assert_allclose(flatten(total), wanted.sum(axis=0), atol=1e-6)
        assert not np.asarray(report.dropped).any()

        # The report says what happened, in the metric's norm.
        before, _ = gradients_of(this.batch)
        moved = np.linalg.norm((wanted - before) * np.sqrt(metric), axis=1)
        np.testing.assert_allclose(report.removed_norm, moved, atol=1e-6)
        np.testing.assert_allclose(
            report.norm, np.linalg.norm(before * np.sqrt(metric), axis=1), rtol=1e-6
        )
        np.testing.assert_allclose(
            report.value_norms, np.linalg.norm(flatten(this.rows) * np.sqrt(metric), axis=1)
        )
        frozen = slice(6, WIDTH)
        if scope == "own":
            assert (flatten(stack)[2, frozen] == 0).all()
        if scope == "everyone":
            assert (flatten(stack)[:, frozen] == 0).all() or not this.batch.active[2]
