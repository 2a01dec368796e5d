"""Agents by the thousand, of whom a batch holds few: the screen solves for those alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vcca_jax.constraints import forbid, freeze, preserve, protect
from vcca_jax.gradients import agent_gradients
from vcca_jax.profiles import value_profiles
from vcca_jax.screening import screen
from vcca_jax.virtual_batch import VirtualBatch

AGENTS, SAMPLES, WIDTH = 11, 4, 6
NAMES = ("first", "second")
PARAMS = {"a": jnp.zeros(2), "b": jnp.zeros(4)}


def batch(owners, mask):
    generator = np.random.default_rng(1)
    return VirtualBatch(
        inputs=jnp.asarray(generator.normal(size=(SAMPLES, WIDTH)), jnp.float32),
        targets=jnp.asarray(generator.normal(size=SAMPLES), jnp.float32),
        owners=jnp.asarray(owners, jnp.int32),
        rows=jnp.zeros(SAMPLES, jnp.int32),
        mask=jnp.asarray(mask),
        active=jnp.arange(AGENTS) != 3,
    )


def loss(params, inputs, targets):
    return (inputs @ jnp.concatenate([params["a"], params["b"]]) - targets) ** 2


def profiles():
    stated = [
        [
            [protect("first"), forbid("second", price=0.3)],
            [preserve("second"), freeze("a")],
            [],
        ][i % 3]
        for i in range(AGENTS)
    ]
    weights = [1.0 + i % 4 for i in range(AGENTS)]
    return value_profiles(NAMES, stated, params=PARAMS, weights=weights)


ROWS = jax.tree.map(
    lambda leaf: jax.random.normal(jax.random.key(leaf.size), (len(NAMES), leaf.size)), PARAMS
)
BATCHES = {
    "several": batch([10, 2, 10, 7], [True] * 4),
    "the last slot alone": batch([10, 10, 10, 10], [True, True, False, False]),
    "nobody": batch([0, 1, 2, 4], [False] * 4),
    "the first and an empty place": batch([0, 0, 5, 9], [True, True, True, False]),
}


@pytest.mark.parametrize("method", ["project", "reject", "shrink"])
@pytest.mark.parametrize("scope", ["own", "everyone", "weighted"])
def test_a_screen_of_the_present_is_the_screen_of_all(scope, method):
    judged = screen(method, scope=scope, measure_norms=True)

    @jax.jit
    def both(batch):
        few = agent_gradients(loss, PARAMS, batch, method="stacked")
        assert few.most_present == SAMPLES < AGENTS
        told = []
        for gradients in (few, few._replace(most_present=None)):
            screened, report = judged(gradients, ROWS, profiles())
            told.append((screened.stack(), screened.present, report))
        return told

    for held in BATCHES.values():
        few, all_slots = both(held)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), few, all_slots
        )
        assert np.asarray(few[1]).sum() <= held.mask.sum()
    # The report says something of the agents of the first batch, and nothing of others.
    report = both(BATCHES["several"])[0][2]
    np.testing.assert_array_equal(np.flatnonzero(np.asarray(report.norm)), [2, 7, 10])


def test_small_programs_are_solved_for_a_batch_and_not_for_all_agents():
    """The multipliers' loop carries as many programs as the batch has samples."""

    def step(held, bounded):
        given = agent_gradients(loss, PARAMS, held, method="stacked")
        given = given if bounded else given._replace(most_present=None)
        return screen("project")(given, ROWS, profiles())[0].sum()

    def widths(bounded):
        program = jax.make_jaxpr(lambda held: step(held, bounded))(BATCHES["several"])
        return {
            variable.aval.shape[0]
            for equation in program.jaxpr.eqns
            if equation.primitive.name == "while"
            for variable in equation.outvars
            if variable.aval.shape
        }

    assert widths(bounded=True) == {SAMPLES}
    assert widths(bounded=False) == {AGENTS}
