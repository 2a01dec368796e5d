"""What cheats do to their data and to their updates, for experiments and tests on robustness.

Corruptions of data are host functions in NumPy on one shard ``(inputs [n, ...], targets [n])``, as
``vcca_jax.partition`` deals them out, repeatable from their seed; they return new arrays and leave
the given ones alone. ``scaled_updates``, ``random_updates`` and ``updates_toward`` corrupt the
updates themselves and run under jit. A breaker of values flips labels ``within`` a protected group,
or sends updates toward a higher value loss.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vcca_jax.arguments import check_count
from vcca_jax.cooperative import Shard
from vcca_jax.gradients import AgentGradients
from vcca_jax.operators import affine
from vcca_jax.rows import tree_dot, weighted
from vcca_jax.trainer import Params


def flip_labels(
    shard: Shard,
    *,
    classes: int,
    fraction: float = 1.0,
    within: np.ndarray | None = None,
    seed: int,
) -> Shard:
    """Give some samples a wrong label, drawn evenly from the other classes.

    Args:
        shard: inputs [n, ...] and integer targets [n] in 0..classes - 1, one label a sample.
        classes: how many there are, at least 2.
        fraction: of the samples whose label is flipped; their count is round(fraction n), with n
            those within where they are given.
        within: [n] bool, the samples that may be flipped, all by default. The members of a
            protected group, say: then the shard teaches wrong things about that group alone, and
            raises the group's value loss while the mean loss hardly tells.
        seed: of the draw.

    Raises:
        ValueError: targets that are not one integer in 0..classes - 1 a sample, fewer than two
            classes, a fraction outside [0, 1], or ``within`` that is not one boolean a sample.
    """
    inputs, targets = _arrays(shard)
    classes = check_count("classes", classes, 0)
    if classes < 2:
        raise ValueError(f"classes={classes} leaves no other label; give at least 2")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in [0, 1]")
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise ValueError(
            f"targets has shape {targets.shape} and dtype {targets.dtype}; give one integer label a"
            f" sample, [{len(targets)}] (targets.astype(int), if they are whole numbers)"
        )
    strange = np.unique(targets[(targets < 0) | (targets >= classes)])
    if strange.size:
        raise ValueError(
            f"targets hold {strange[:5].tolist()}, which are not in 0..classes - 1 ="
            f" 0..{classes - 1}; number the labels from 0, or raise classes"
        )
    within = np.ones(len(targets), bool) if within is None else np.asarray(within)
    if within.shape != targets.shape or within.dtype != bool:
        raise ValueError(
            f"within has shape {within.shape} and dtype {within.dtype}; give one boolean a sample,"
            f" {targets.shape}"
        )
    generator = np.random.default_rng(seed)
    rows = generator.permutation(len(targets))
    rows = rows[within[rows]][: round(fraction * within.sum())]
    flipped = targets.copy()
    # A shift by 1..classes-1 reaches every other class once, and never the same one.
    shifts = generator.integers(1, classes, len(rows))
    flipped[rows] = (targets[rows] + shifts) % classes
    return inputs.copy(), flipped.astype(targets.dtype)


def add_noise(shard: Shard, *, scale: float, seed: int) -> Shard:
    """Add independent Gaussian noise of standard deviation ``scale`` to the inputs.

    Raises:
        ValueError: a scale that is negative or not finite, or inputs that are not floating-point:
            bytes would wrap around, and integers lose what is below 1.
    """
    inputs, targets = _arrays(shard)
    if inputs.dtype.kind != "f":
        raise ValueError(
            f"inputs are of {inputs.dtype}, which cannot hold the noise; convert them, for instance"
            " by inputs.astype(np.float32)"
        )
    if not (np.isfinite(scale) and scale >= 0):
        raise ValueError(f"scale={scale} must be finite and not negative")
    noise = np.random.default_rng(seed).normal(0.0, scale, inputs.shape)
    return (inputs + noise).astype(inputs.dtype), targets.copy()


def invent(shard: Shard, *, classes: int, seed: int) -> Shard:
    """Replace a shard by made-up data of its size: what a free rider sends who has none.

    Inputs are drawn evenly between the least and the greatest of the shard's own, both included
    where they are integers or booleans; labels evenly from all classes, as many as there are.

    Raises:
        ValueError: fewer than one class.
    """
    inputs, targets = _arrays(shard)
    if classes < 1:
        raise ValueError(f"classes={classes} must be at least 1")
    generator = np.random.default_rng(seed)
    low, high = (inputs.min(), inputs.max()) if inputs.size else (0, 0)
    made_up: np.ndarray
    if inputs.dtype.kind in "biu":
        made_up = generator.integers(int(low), int(high), inputs.shape, endpoint=True)
    else:
        made_up = generator.uniform(low, high, inputs.shape)
    labels = generator.integers(0, classes, targets.shape)
    return made_up.astype(inputs.dtype), labels.astype(targets.dtype)


def repeat(shard: Shard, times: int) -> Shard:
    """Send every sample several times: the way to claim more samples than one has.

    The whole shard is repeated, so the first n rows are the true ones.

    Raises:
        ValueError: ``times`` below one.
    """
    times = check_count("times", times)
    inputs, targets = _arrays(shard)
    return np.concatenate([inputs] * times), np.concatenate([targets] * times)


def replica(shard: Shard) -> Shard:
    """Copy another's samples, to bring them as one's own."""
    inputs, targets = _arrays(shard)
    return inputs.copy(), targets.copy()


def split(shard: Shard, parts: int) -> list[Shard]:
    """Divide one owner's samples among several identities (sybils).

    Row r goes to part ``r % parts``, where it is row ``r // parts``: sizes differ by at most one.

    Raises:
        ValueError: fewer than one part.
    """
    parts = check_count("parts", parts)
    inputs, targets = _arrays(shard)
    return [(inputs[j::parts].copy(), targets[j::parts].copy()) for j in range(parts)]


def scaled_updates(gradients: AgentGradients, scale: jax.Array) -> AgentGradients:
    """The operator h_i = s_i g_i: agents who send something other than their gradient.

    s_i = 0 is a free rider's zero update, s_i < 0 a reversed one, s_i > 1 an inflated one. It adds
    nothing to the cost of the operator beneath, and all but ``losses`` follow the scale.

    Args:
        gradients: (g_1, ..., g_A).
        scale: s, [A].

    Raises:
        ValueError: a scale that is not [A].
    """
    _one_an_agent("scale", scale, gradients)

    def stack() -> object:
        return jax.tree.map(
            lambda g: g * scale.reshape((-1,) + (1,) * (g.ndim - 1)).astype(g.dtype),
            gradients.stack(),
        )

    def total(weights: jax.Array | None = None) -> object:
        weights = jnp.ones_like(scale) if weights is None else weights
        return gradients.sum(weights * scale)

    return gradients._replace(
        dot=lambda direction: scale * gradients.dot(direction),
        sum=total,
        stack=stack,
        squared_norms=lambda weights=None: scale**2 * gradients.squared_norms(weights),
    )


def random_updates(
    gradients: AgentGradients, riders: jax.Array, *, norm: jax.typing.ArrayLike, key: jax.Array
) -> AgentGradients:
    """Free riders who send a random direction in place of the gradient they never took.

    h_i = n_i z_i / |z_i| for a rider, z_i standard normal in R^D, and g_i for everybody else.

    The direction is even on the sphere, so a rider's first-order credit is 0 in expectation; with
    the norm of an honest agent's gradient nothing but its direction gives it away. A rider without
    a live sample in the batch is not visited, and sends nothing.

    Directions are drawn anew in every action, one agent at a time, and never held together but in
    ``stack``; an action costs the operator's own and D random numbers a rider.

    Args:
        gradients: (g_1, ..., g_A).
        riders: [A] bool.
        norm: n, the same for all or [A]; not negative.
        key: of this step: fold the step's number in, or all steps send the same.

    Returns:
        The operator; ``losses`` remain those of the data.

    Raises:
        ValueError: riders that are not booleans [A], or norms that fit neither way.
    """
    _one_an_agent("riders", riders, gradients)
    if riders.dtype != bool:
        raise ValueError(f"riders has dtype {riders.dtype}; give booleans, True for a rider")
    if jnp.ndim(norm):
        _one_an_agent("norm", jnp.asarray(norm), gradients)
    riders = riders & gradients.present
    honest = scaled_updates(gradients, (~riders).astype(jnp.result_type(float)))
    norms = jnp.where(riders, jnp.asarray(norm, jnp.result_type(float, norm)), 0)
    shapes, tree = jax.tree.flatten(jax.eval_shape(gradients.sum))
    agents = riders.shape[0]

    def update(agent: jax.Array) -> Params:
        keys = jax.random.split(jax.random.fold_in(key, agent), len(shapes))
        drawn = [jax.random.normal(k, s.shape, s.dtype) for k, s in zip(keys, shapes, strict=True)]
        direction = jax.tree.unflatten(tree, drawn)
        length = norms[agent] / jnp.sqrt(tree_dot(direction, direction))
        return jax.tree.map(lambda leaf: length.astype(leaf.dtype) * leaf, direction)

    def of_riders(function: Callable[[Params], jax.Array]) -> jax.Array:
        """[A], a number of every rider's update and 0 of the others, whose draw is skipped."""

        def one(agent: jax.Array) -> jax.Array:
            return jax.lax.cond(
                riders[agent],
                lambda: jnp.asarray(function(update(agent)), norms.dtype),
                lambda: jnp.zeros((), norms.dtype),
            )

        return jax.lax.map(one, jnp.arange(agents))

    def total(weights: jax.Array | None = None) -> Params:
        weights = jnp.ones(agents, norms.dtype) if weights is None else weights

        def add(so_far: Params, agent: jax.Array) -> tuple[Params, None]:
            def added() -> Params:
                return jax.tree.map(
                    lambda s, u: s + weights[agent].astype(u.dtype) * u, so_far, update(agent)
                )

            return jax.lax.cond(riders[agent], added, lambda: so_far), None

        return jax.lax.scan(add, honest.sum(weights), jnp.arange(agents))[0]

    def stack() -> Params:
        sent = jax.lax.map(update, jnp.arange(agents))
        return jax.tree.map(jnp.add, honest.stack(), sent)

    def squared_norms(weights: Params | None = None) -> jax.Array:
        own = of_riders(lambda update: tree_dot(update, weighted(update, weights)))
        return honest.squared_norms(weights) + own

    return gradients._replace(
        dot=lambda d: honest.dot(d) + of_riders(lambda update: tree_dot(update, d)),
        sum=total,
        stack=stack,
        squared_norms=squared_norms,
    )


def updates_toward(
    gradients: AgentGradients, direction: Params, strength: jax.Array
) -> AgentGradients:
    """The operator h_i = g_i - s_i d: agents who push the parameters along d beside what they owe.

    A step moves the parameters by -eta sum_i h_i, and so by eta s_i d for agent i. With d the
    gradient of a value loss V it is a value breaker: V rises by eta s_i |d|^2 to first order, on
    top of what g_i does to it. A negative strength lowers it. An agent without a live sample in
    the batch is not visited, and sends nothing. It costs the operator beneath and one product.

    Args:
        gradients: (g_1, ..., g_A).
        direction: d, like the parameters.
        strength: s, [A]; 0 for the honest.

    Raises:
        ValueError: a strength that is not [A].
    """
    _one_an_agent("strength", strength, gradients)
    pushes = jnp.where(gradients.present, -strength, 0)
    rows = jax.tree.map(lambda leaf: leaf[None], direction)
    return affine(gradients, jnp.ones_like(pushes), pushes[:, None], rows)


def _one_an_agent(name: str, given: jax.Array, gradients: AgentGradients) -> None:
    if given.shape != gradients.active.shape:
        raise ValueError(
            f"{name} has shape {given.shape}; give one an agent, {gradients.active.shape}"
        )


def _arrays(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    inputs, targets = (np.asarray(part) for part in shard)
    if inputs.ndim == 0 or targets.ndim == 0 or len(inputs) != len(targets):
        raise ValueError(
            f"shard has inputs of shape {inputs.shape} and targets of shape {targets.shape};"
            " the leading axes must be the samples, equally many"
        )
    return inputs, targets
