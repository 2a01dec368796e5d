"""A screening problem with free inputs, and its twin: NumPy float64, agent by agent.

The per-example loss is linear in the parameters, so an example's gradient is its input, and any
agent gradients at all can be asked for.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import quadprog

from vcca_jax.profiles import ValueProfiles
from vcca_jax.values import value_losses
from vcca_jax.virtual_batch import VirtualBatch

AGENTS, SLOTS, VALUES, CONSTRAINTS, WIDTH = 5, 9, 4, 3, 10
MARGINS = {"zero": (0.0,), "negative": (-0.25,), "mixed": (-0.5, 0.0, 0.25, 0.5)}


def linear_loss(params, inputs, targets):
    """Example s loses <inputs_s, params>, so its gradient is its input."""
    del targets
    return inputs[:, :6] @ params["a"].ravel() + inputs[:, 6:] @ params["b"]


def unflatten(rows):
    """[..., 10] as params."""
    rows = jnp.asarray(rows)
    return {"a": rows[..., :6].reshape((*rows.shape[:-1], 2, 3)), "b": rows[..., 6:]}


def flatten(tree):
    """Params with leading axes as [..., 10]."""
    a, b = np.asarray(tree["a"]), np.asarray(tree["b"])
    return np.concatenate([a.reshape((*b.shape[:-1], 6)), b], axis=-1).astype(np.float64)


@functools.cache
def curved_values():
    """Value losses with curvature on the parameters of ``linear_loss``."""
    mixes = np.random.default_rng(11).standard_normal((VALUES, 6, WIDTH))

    def loss(mix):
        def value(params, context):
            at = jnp.concatenate([params["a"].ravel(), params["b"]])
            return jax.nn.logsumexp(mix @ at)

        return value

    return value_losses({f"V{m}": loss(mix) for m, mix in enumerate(mixes)})


class Case(NamedTuple):
    """What a screen is given; one shape for every seed."""

    params: Any
    batch: VirtualBatch
    rows: Any
    profiles: ValueProfiles
    direction: Any
    weights: Any


def case(seed, margins="mixed", dtype=np.float64):
    """Agent 3 is sometimes inactive, and some active agent often has no sample."""
    rng = np.random.default_rng((seed, len(margins)))
    active = np.array([True, True, True, rng.random() < 0.5, True])
    owners = rng.choice(np.flatnonzero(active), SLOTS).astype(np.int32)
    value = np.zeros((AGENTS, CONSTRAINTS), np.int32)
    sign = np.zeros((AGENTS, CONSTRAINTS), np.float32)
    for i in range(AGENTS):
        kinds = rng.choice(2 * VALUES, CONSTRAINTS, replace=False)
        value[i], sign[i] = kinds % VALUES, np.where(kinds < VALUES, 1, -1)
    inputs = rng.standard_normal((SLOTS, WIDTH)).astype(dtype)
    return Case(
        params=unflatten(rng.standard_normal(WIDTH).astype(dtype)),
        batch=VirtualBatch(
            inputs=inputs,
            targets=np.zeros(SLOTS, np.int32),
            owners=owners,
            rows=np.zeros(SLOTS, np.int32),
            mask=np.arange(SLOTS) < rng.integers(1, SLOTS + 1),
            active=active,
        ),
        rows=unflatten(rng.standard_normal((VALUES, WIDTH)).astype(dtype)),
        profiles=ValueProfiles(
            value,
            sign,
            rng.choice(MARGINS[margins], value.shape).astype(np.float32),
            rng.random(value.shape) < 0.7,
        ),
        direction=unflatten(rng.standard_normal(WIDTH).astype(dtype)),
        weights=jnp.asarray(rng.random(AGENTS).astype(dtype)),
    )


class Screened(NamedTuple):
    """The twin's answer; the report's fields have the names of ``ScreenReport``."""

    stack: np.ndarray
    admissible: np.ndarray
    feasible: np.ndarray
    dropped: np.ndarray
    conflicts: np.ndarray
    coefficients: np.ndarray
    violations: np.ndarray
    scale: np.ndarray
    removed_norm: np.ndarray
    norm: np.ndarray


def gradients_of(batch):
    """[A, D] and present [A]."""
    mask, inputs = np.asarray(batch.mask), np.asarray(batch.inputs, np.float64)
    own = [mask & (np.asarray(batch.owners) == i) for i in range(len(batch.active))]
    stack = np.stack([inputs[rows].sum(axis=0) / max(mask.sum(), 1) for rows in own])
    return stack, np.array([rows.any() for rows in own])


def twin(method, scope, stack, present, active, rows, profiles):
    """Screen one agent after the other, with lists and a quadratic program."""
    fields = [np.asarray(field) for field in profiles[:4]]
    stated = [
        [(int(v), int(s), float(m)) for v, s, m, live in zip(*each, strict=True) if live and on]
        for each, on in zip(zip(*fields, strict=True), active, strict=True)
    ]
    everyone = [constraint for profile in stated for constraint in profile]
    answers = [
        _twin_of_one(method, g, here, rows, everyone if scope == "everyone" else stated[i])
        for i, (g, here) in enumerate(zip(stack, present, strict=True))
    ]
    return Screened(*(np.stack(field) for field in zip(*answers, strict=True)))


def _twin_of_one(method, g, here, rows, constraints):
    nothing = np.zeros(len(rows), bool)
    if not here:
        zeros = np.zeros(len(rows))
        return Screened(0 * g, False, False, False, nothing, zeros, zeros, 0.0, 0.0, 0.0)
    met = [s * (rows[v] @ g) >= m for v, s, m in constraints]
    conflicts = nothing.copy()
    conflicts[[v for (v, _, _), fine in zip(constraints, met, strict=True) if not fine]] = True
    update = {"project": nearest, "reject": whole, "shrink": scaled}[method](g, rows, constraints)
    feasible = update is not None
    kept = update if feasible else 0 * g
    added = kept - g if feasible and method == "project" else 0 * g
    coefficients = np.linalg.lstsq(rows.T, added, rcond=None)[0]
    violations = np.zeros(len(rows))
    for v, s, m in constraints:
        violations[v] = max(violations[v], m - s * (rows[v] @ kept))
    scale = 1.0 if method == "project" else np.linalg.norm(kept) / max(np.linalg.norm(g), 1e-300)
    return Screened(
        stack=kept,
        admissible=all(met),
        feasible=feasible,
        dropped=not feasible,
        conflicts=conflicts,
        coefficients=coefficients,
        violations=violations,
        scale=scale if feasible else 0.0,
        removed_norm=np.linalg.norm(kept - g),
        norm=np.linalg.norm(g),
    )


def nearest(g, rows, constraints):
    """argmin |u - g| by quadprog; rows are independent, so only a value's own margins exclude."""
    strictest = {}
    for v, s, m in constraints:
        strictest[v, s] = max(m, strictest.get((v, s), -np.inf))
    room = {v: -strictest[v, 1] - strictest[v, -1] for v, s in strictest if (v, -s) in strictest}
    if any(width < 0 for width in room.values()):
        return None
    fixed = [(v, 1) for v, width in room.items() if width == 0]
    free = [(v, s) for v, s in strictest if room.get(v, 1) > 0]
    if not strictest:
        return g
    normals = np.stack([s * rows[v] for v, s in fixed + free])
    limits = np.array([strictest[key] for key in fixed + free])
    return quadprog.solve_qp(np.eye(len(g)), g, normals.T, limits, meq=len(fixed))[0]


def whole(g, rows, constraints):
    """All of it or None."""
    return g if all(s * (rows[v] @ g) >= m for v, s, m in constraints) else None


def scaled(g, rows, constraints):
    """s g with the largest s of an intersection of intervals."""
    low, high = 0.0, 1.0
    for v, s, m in constraints:
        product = s * (rows[v] @ g)
        if product > 0:
            low = max(low, m / product)
        elif product < 0:
            high = min(high, m / product)
        elif m > 0:
            return None
    return high * g if low <= high else None
