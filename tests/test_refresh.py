"""Rows drawn anew, and value gradients kept: what a screen is given, step by step."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.test_shared_pass import rows_of, setting
from vcca_jax.constraints import forbid, protect
from vcca_jax.contribution import first_order
from vcca_jax.cooperate import cooperate
from vcca_jax.held_out import DRAW
from vcca_jax.one_pass.shared_pass import losses_at, shared_pass
from vcca_jax.profiles import value_profiles
from vcca_jax.refresh import Tangents, redrawn, retaken, tangent_values
from vcca_jax.screening import screen
from vcca_jax.trainer import Trainer
from vcca_jax.values import drawn_loss, group_loss, value_losses, weighted_sum

POOL, SIZE = 11, 4


class State(NamedTuple):
    """What the wrappers read of a cooperative's state."""

    params: Any
    context: Any
    step: Any


def teller():
    """A trainer that tells the context it was given, and moves by the step's number."""

    def step(state, batch):
        moved = jax.tree.map(lambda leaf: leaf + 1.0 + state.step, state.params)
        return state._replace(params=moved, step=state.step + 1), state.context

    return Trainer(lambda params, profiles, context=None: State(params, context, 0), step)


def chosen(key):
    return np.asarray(jax.random.choice(key, POOL, (SIZE,), replace=False))


def test_a_pass_reads_the_rows_of_the_draw():
    """Alone and within a composed loss, told by one pass and looked at again."""
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()
        pool = rows_of(POOL, 8)
        drawn = drawn_loss(loss_fn, *pool, size=SIZE)
        mixed = weighted_sum([held_out["group"], drawn], [0.5, 2.0])
        traces = []

        @jax.jit
        def told(params, key):
            traces.append(1)
            context = {DRAW: key}
            seen = shared_pass(loss_fn, params, batch, [drawn, mixed], context)
            again = losses_at(loss_fn, params, [drawn, mixed], context)
            return seen.losses, again, seen.rows.each(lambda row: row)

        @jax.jit
        def expected(params, inputs, targets):
            rows = group_loss(loss_fn, inputs, targets)
            both = [rows, weighted_sum([held_out["group"], rows], [0.5, 2.0])]
            pairs = [jax.value_and_grad(loss)(params) for loss in both]
            losses = jnp.stack([loss for loss, _ in pairs])
            return losses, losses, jax.tree.map(lambda *r: jnp.stack(r), *(r for _, r in pairs))

        first, second = (jax.random.key(seed) for seed in (0, 1))
        assert set(chosen(first)) != set(chosen(second))
        for key in (first, second):
            theirs = expected(params, *(leaf[chosen(key)] for leaf in pool))
            ours = told(params, key)
            for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
                np.testing.assert_allclose(left, right, rtol=1e-9, atol=1e-12)
        assert len(traces) == 1
        # Without a draw all rows are read.
        whole = group_loss(loss_fn, *pool)(params)
        np.testing.assert_allclose(drawn(params), whole, rtol=1e-12)
        np.testing.assert_allclose(drawn(params, {"probe": 1}), whole, rtol=1e-12)


def test_draws_follow_the_step_and_leave_the_context_as_it_is():
    key = jax.random.key(3)
    trainer = redrawn(teller(), key, every=3)
    for context in (None, {"probe": 1.0}, Tangents({"probe": 1.0}, 0, 0, 0)):
        state = State(jnp.zeros(2), context, 0)
        for t in range(7):
            state, seen = trainer.step(state, None)
            inner = seen.context if isinstance(seen, Tangents) else seen
            assert (inner[DRAW] == jax.random.fold_in(key, t // 3)).all()
            assert set(inner) - {DRAW} == ({"probe"} if context else set())
            assert state.context == context
    with pytest.raises(ValueError, match="context is a list"):
        trainer.step(State(jnp.zeros(2), [1], 0), None)
    for wrapper in (redrawn, retaken):
        for every in (np.int64(0), 0.5, 2.5, "3"):
            with pytest.raises(ValueError, match="must be a whole number of steps"):
                wrapper(teller(), None, every=every)
        with pytest.raises(ValueError, match="every=0"):
            wrapper(teller(), None, every=0)
    with pytest.raises(ValueError, match=r"size=12 must lie between 1 and the group's 11"):
        drawn_loss(None, np.zeros((11, 2)), np.zeros(11), size=12)


def test_gradients_are_kept_until_they_are_taken_anew():
    scale = jnp.asarray([1.0, 2.0])
    values = value_losses(
        {
            "bowl": lambda params, context: (params**2 * scale).sum() * context["weight"],
            "line": lambda params, context: params.sum(),
        }
    )
    trainer = retaken(teller(), values, every=3)
    state = trainer.init(jnp.asarray([1.0, -1.0]), None, context={"weight": 0.5})

    @jax.jit
    def run(state):
        return jax.lax.scan(trainer.step, state._replace(step=jnp.int32(0)), None, length=5)

    _, seen = run(state)
    at = 1.0 + np.array([0, 1, 3, 6, 10])  # the first parameter, before each step
    anchors = at[[0, 0, 0, 3, 3]]
    np.testing.assert_allclose(seen.params[:, 0], anchors)
    np.testing.assert_allclose(seen.rows[:, 0], np.stack([anchors, 2 * (anchors - 2)], axis=1))
    np.testing.assert_allclose(seen.losses[:, 1], 2 * anchors - 2)
    np.testing.assert_allclose(seen.context["weight"], 0.5)


def test_a_tangent_is_the_loss_and_its_gradient_where_it_was_taken():
    context = Tangents(None, jnp.asarray([3.0, 5.0]), jnp.asarray([[1.0, 2.0], [0.5, -1.0]]), 1.0)
    context = context._replace(params=jnp.ones(2))
    values = tangent_values(value_losses({"a": lambda *_: 0.0, "b": lambda *_: 0.0}))
    params = jnp.asarray([2.0, 4.0])
    losses, rows = values.gradients(params, context)
    np.testing.assert_allclose(losses, [3 + 7, 5 - 2.5])
    np.testing.assert_allclose(rows, context.rows)
    np.testing.assert_allclose(values.losses(params, context), losses)
    for place, function in enumerate(values.functions):
        loss, row = jax.value_and_grad(function)(params, context)
        np.testing.assert_allclose(loss, losses[place])
        np.testing.assert_allclose(row, context.rows[place])


@functools.cache
def trained(method, kind):
    """Four steps of a cooperative in a scan, in float64."""
    with jax.enable_x64(True):
        loss_fn, params, batch, held_out = setting()
        values = value_losses(
            {"a": drawn_loss(loss_fn, *rows_of(POOL, 8), size=SIZE), "b": held_out["worst"]}
        )
        trainer = cooperate(
            loss_fn,
            optax.sgd(0.3, momentum=0.9),
            group_loss(loss_fn, *rows_of(5, 9)),
            tangent_values(values) if kind == "kept" else values,
            screen=screen("project", scope="everyone"),
            estimator=first_order,
            method=method,
        )
        trainer = retaken(trainer, values, every=1) if kind == "kept" else trainer
        trainer = redrawn(trainer, jax.random.key(5), every=2)
        profiles = value_profiles(values.names, [[protect("a")], [forbid("b")]] * 2, capacity=5)

        @jax.jit
        def run(params):
            state = trainer.init(params, profiles)
            return jax.lax.scan(lambda s, _: trainer.step(s, batch), state, None, length=4)

        state, infos = run(params)
        return jax.device_get((state.params, state.credits, infos.value_losses))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "kind"), [("one_pass", "drawn"), ("linearized", "kept"), ("one_pass", "kept")]
)
def test_every_form_trains_alike_on_drawn_rows_and_on_gradients_taken_each_step(method, kind):
    ours, theirs = trained(method, kind), trained("linearized", "drawn")
    for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-10)
    # The draw changed after two steps, in which value "a" did not merely go down.
    assert np.abs(np.diff(theirs[2][:, 0])).max() > 1e-3
