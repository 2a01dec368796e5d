"""The contract of a screen, and what it promises to whom."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.conformance.comparison import apart, described, finite
from vcca_jax.constraints import forbid, protect
from vcca_jax.gradients import from_stack
from vcca_jax.profiles import ValueProfiles, value_profiles
from vcca_jax.rows import rows_combination, rows_dot
from vcca_jax.screen_report import ScreenReport
from vcca_jax.screening import Screen

CLOSE = 1e-5
"""Relative: rounding of single precision, not more."""

_AGENTS, _VALUES, _ABSENT, _GONE = 5, 2, 3, 4


class Promises(NamedTuple):
    """What a screen keeps, measured on the example: violations over |u| |grad V|, 0 where kept.

    Attributes:
        own: the worst violation of an agent's update of its own principal's profile.
        everyone: the worst violation by the sum of all updates, of any active principal's profile.
        needless: the largest |u - g| / |g| of an agent whose update was admissible to everyone.
        dropped: how many of the three agents with an update lost all of it.
    """

    own: float
    everyone: float
    needless: float
    dropped: int


class _Example(NamedTuple):
    stack: Any
    rows: Any
    profiles: ValueProfiles
    present: np.ndarray
    active: np.ndarray


def _leaves(flat: np.ndarray) -> Any:
    """[..., 7] as parameters of two leaves."""
    flat = flat.astype(np.float32)
    return {"body": flat[..., :4].reshape(*flat.shape[:-1], 2, 2), "head": flat[..., 4:]}


def _flat(tree: Any) -> np.ndarray:
    """Two leaves as [..., 7], in float64."""
    leaves = [np.asarray(tree[name], np.float64) for name in ("body", "head")]
    return np.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)


def _example(margin: float = 0.0) -> _Example:
    """Agent 0 is in nobody's way, 1 harms what it protects, 2 what others do.

    Agent 3 has no sample, agent 4 is no member.
    """
    flat = np.random.default_rng(2).normal(size=(_AGENTS, 7))
    first, second = np.eye(7)[:2] * 1.5 + 0.1
    flat[:, :2] = np.array([[0.8, 0.3], [-0.9, 0.4], [0.5, -1.5], [0.0, 0.0], [1.0, 1.0]])
    flat[:, 2:] *= 0.2
    flat[_ABSENT] = 0
    stated = [
        [protect("first"), protect("second")],
        [protect("first", margin), forbid("second", margin - 2.0)],
        [protect("first")],
        [protect("second")],
        [forbid("first"), forbid("second")],
    ]
    if margin:
        stated[0] = [protect("first", margin), forbid("first", margin)]
    profiles = value_profiles(["first", "second"], stated, constraints=3)
    present = np.array([True, True, True, False, False])
    active = np.array([True, True, True, True, False])
    flat[_GONE] = 0
    return _Example(_leaves(flat), _leaves(np.stack([first, second])), profiles, present, active)


def check_screen(screen: Screen) -> Promises:
    """Check that a screen can take the place of any other, and measure what it promises.

    What is asked of all, on five agents of whom one has no sample and one is no member:

        shape       an operator over updates of the gradients' shapes and types, and a
                    ``ScreenReport`` of [A] and [A, M] entries
        operator    sum(w) and dot(d) of the result are those of its stack
        absence     an absent agent stays absent, its update exactly 0; nobody becomes present
        finiteness  finite numbers, also where margins exclude each other
        padding     what stands in a padding slot of the profiles does not matter
        transforms  the same updates under ``jit`` and ``vmap``

    Args:
        screen: ``screen(gradients, value_gradients, profiles) -> (gradients, report)``.

    Returns:
        What it kept; a screen is free to promise less, if it says so.

    Raises:
        ValueError: the law that is broken, what was seen, and the remedy.
    """
    at = _example()
    compiled = jax.jit(lambda *given: _screened(screen, *given))
    told = compiled(*at)
    _check_shapes(told, at)
    _check_operator(told)
    for example in (at, _example(margin=5.0)):
        _check_presence(compiled(*example), example)
    padded = at.profiles._replace(
        value=np.where(at.profiles.mask, at.profiles.value, 1),
        margin=np.where(at.profiles.mask, at.profiles.margin, 9.0),
    )
    if (gap := apart(told["stack"], compiled(*at._replace(profiles=padded))["stack"])) > CLOSE:
        raise ValueError(
            f"screen's updates change by {gap:.3g} of the largest when padding slots of the"
            " profiles are filled with something else; look at a constraint only where"
            " profiles.mask holds"
        )
    several = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), at.stack)
    together = jax.jit(
        jax.vmap(lambda stack: _screened(screen, *at._replace(stack=stack))["stack"])
    )(several)
    first = jax.tree.map(lambda leaf: leaf[0], together)
    if (gap := apart(told["stack"], first)) > CLOSE:
        raise ValueError(
            f"screen's updates under vmap differ by {gap:.3g} of the largest from those under jit;"
            " make it a pure JAX function"
        )
    return _measured(told, at)


def _screened(
    screen: Screen, stack: Any, rows: Any, profiles: Any, present: Any, active: Any
) -> dict[str, Any]:
    present, active = jnp.asarray(present), jnp.asarray(active)
    gradients = from_stack(stack, jnp.ones(_AGENTS), present, active)
    screened, report = screen(gradients, rows, profiles)
    if not isinstance(report, ScreenReport):
        raise ValueError(
            f"screen reports a {type(report).__name__}; return a ScreenReport, for instance"
            " untouched(gradients, value_gradients)._replace(...)"
        )
    weights = jnp.linspace(0.5, 1.5, _AGENTS)
    direction = jax.tree.map(lambda leaf: leaf[0] + leaf[1], rows)
    return {
        "stack": screened.stack(),
        "sum": screened.sum(weights),
        "dot": screened.dot(direction),
        "weights": weights,
        "direction": direction,
        "present": screened.present,
        "active": screened.active,
        "report": report,
    }


def _check_shapes(told: dict[str, Any], at: _Example) -> None:
    if described(told["stack"]) != described(at.stack):
        raise ValueError(
            f"screen returned updates of {described(told['stack'])} for gradients of"
            f" {described(at.stack)}; keep their shapes and types"
        )
    for name, field in told["report"]._asdict().items():
        wanted = {
            "conflicts": (_AGENTS, _VALUES),
            "coefficients": (_AGENTS, _VALUES),
            "violations": (_AGENTS, _VALUES),
            "value_norms": (_VALUES,),
        }.get(name, (_AGENTS,))
        if jnp.shape(field) != wanted:
            raise ValueError(
                f"report.{name} has shape {jnp.shape(field)}, and must have {wanted}; start from"
                " untouched(gradients, value_gradients)"
            )


def _check_operator(told: dict[str, Any]) -> None:
    of_stack = {
        "sum": rows_combination(told["stack"], told["weights"]),
        "dot": rows_dot(told["stack"], told["direction"]),
    }
    for name, wanted in of_stack.items():
        if (gap := apart(wanted, told[name])) > CLOSE:
            raise ValueError(
                f"{name} of the screened operator differs by {gap:.3g} of the largest from that of"
                " its own stack; build the result by affine(gradients, scale, coefficients,"
                " value_gradients) or from_stack"
            )


def _check_presence(told: dict[str, Any], at: _Example) -> None:
    if not finite((told["stack"], told["report"])):
        raise ValueError(
            "screen returned numbers that are not finite for finite updates; where no admissible"
            " update exists drop the update, or take the least violation"
        )
    alive = np.asarray(told["present"]) | (_flat(told["stack"]) != 0).any(axis=1)
    if (alive & ~at.present).any():
        raise ValueError(
            f"screen made an update for an absent agent (present {np.asarray(told['present'])},"
            f" before {at.present}); multiply scale and coefficients by gradients.present"
        )
    if (np.asarray(told["active"]) != at.active).any():
        raise ValueError("screen changed who is active; only members join and leave")


def _measured(told: dict[str, Any], at: _Example) -> Promises:
    updates, before, rows = (_flat(tree) for tree in (told["stack"], at.stack, at.rows))
    lengths = np.linalg.norm(rows, axis=1)

    def worst(update: np.ndarray, principals: list[int]) -> float:
        length = np.linalg.norm(update) or 1.0
        broken = [0.0]
        for i in principals:
            for value, sign, margin, live in zip(*(f[i] for f in at.profiles[:4]), strict=True):
                if live:
                    gap = margin - sign * (rows[value] @ update)
                    broken.append(gap / (length * lengths[value]))
        return max(broken)

    members = np.flatnonzero(at.active).tolist()
    own = max(worst(updates[i], [i]) for i in members)
    free = [i for i in np.flatnonzero(at.present).tolist() if worst(before[i], members) <= 0]
    moved = np.linalg.norm(updates - before, axis=1) / np.maximum(
        np.linalg.norm(before, axis=1), 1e-30
    )
    return Promises(
        own=own,
        everyone=worst(updates.sum(axis=0), members),
        needless=float(np.max(moved[free], initial=0.0)),
        dropped=int((at.present & ~updates.any(axis=1)).sum()),
    )
