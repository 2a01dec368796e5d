"""Credit over seeds and validation draws against NumPy, SciPy and closed forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from tests.games import learning
from vcca_jax import contribution
from vcca_jax.contribution import across, bootstrap, credit_matrix, slope_matrix

SEEDS, AGENTS = 7, 5
LEVEL = 0.05


@functools.cache
def compiled():
    return jax.jit(lambda credits, active: across(credits, level=LEVEL, active=active))


def settled(credits, active):
    """The oracle: a paired t-test of every pair, by SciPy."""
    pairs = max(active.sum() * (active.sum() - 1) / 2, 1)
    above = np.zeros((AGENTS, AGENTS), bool)
    for i, j in np.argwhere(active[:, None] & active & ~np.eye(AGENTS, dtype=bool)):
        found = scipy.stats.ttest_rel(credits[:, i], credits[:, j])
        above[i, j] = found.statistic > 0 and found.pvalue * pairs <= LEVEL
    return above


@given(seed=st.integers(0, 2**31 - 1), gap=st.floats(0, 2), absent=st.booleans())
def test_pairs_are_settled_as_by_paired_t_tests(seed, gap, absent):
    generator = np.random.default_rng(seed)
    # What moves all agents alike is large, and must not hide their order.
    credits = gap * np.arange(AGENTS) + 10 * generator.normal(size=(SEEDS, 1))
    credits = credits + generator.normal(size=(SEEDS, AGENTS))
    active = np.arange(AGENTS) != (1 if absent else -1)
    with jax.enable_x64(True):
        found = jax.tree.map(np.asarray, compiled()(credits, active))
    np.testing.assert_allclose(found.credits, credits.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.standard_error, scipy.stats.sem(credits, axis=0), rtol=1e-12)
    expected = settled(credits, active)
    np.testing.assert_array_equal(found.above, expected)
    best = np.where(active, 1 + expected.sum(axis=0), 0)
    np.testing.assert_array_equal(found.best_rank, best)
    worst = np.where(active, active.sum() - expected.sum(axis=1), 0)
    np.testing.assert_array_equal(found.worst_rank, worst)
    assert found.repetitions == SEEDS


def test_what_never_varies_is_settled_and_twins_never_are():
    level = np.array([0.0, 1.0, 1.0, 3.0, 2.0])
    credits = level + np.random.default_rng(0).normal(size=(SEEDS, 1)).astype(np.float32).round(2)
    found = compiled()(jnp.asarray(credits.round(2)), jnp.ones(AGENTS, bool))
    np.testing.assert_array_equal(found.above, level[:, None] > level)
    np.testing.assert_array_equal(found.best_rank, [5, 3, 3, 1, 2])
    np.testing.assert_array_equal(found.worst_rank, [5, 4, 4, 1, 2])


def test_equals_are_called_apart_at_most_as_often_as_the_level_says():
    """All agents are equal: any settled pair is wrong."""
    credits = np.random.default_rng(1).standard_t(20, size=(600, SEEDS, AGENTS)).astype(np.float32)
    active = jnp.ones((600, AGENTS), bool)
    wrong = np.asarray(jax.vmap(compiled())(jnp.asarray(credits), active).above).any(axis=(1, 2))
    # Bonferroni over dependent pairs is not far from exact here.
    assert 0.01 < wrong.mean() < LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / 600)


PARTS = 0.4 * jax.random.normal(jax.random.key(0), (AGENTS, 3)) + 0.1
WEIGHTS = jnp.array([1.0, 0.0, 1.0, 0.5, 1.0])
CURVATURES = np.linspace(0.5, 2.0, 9)


def utilities(weights):
    """One utility a validation example."""
    return jnp.stack([learning(PARTS, curvature)(weights) for curvature in CURVATURES])


@functools.cache
def matrices():
    @jax.jit
    def run(weights):
        diagonal = functools.partial(contribution.aumann_shapley, nodes=3)
        return {
            "influence": (
                slope_matrix(utilities, weights),
                credit_matrix(contribution.influence, utilities, weights),
            ),
            "aumann_shapley": (
                slope_matrix(utilities, weights, nodes=3),
                credit_matrix(diagonal, utilities, weights),
            ),
            "chunked": (
                slope_matrix(utilities, weights, nodes=2, batch_size=2),
                slope_matrix(utilities, weights, nodes=2),
            ),
        }

    return jax.tree.map(np.asarray, run(WEIGHTS))


@pytest.mark.parametrize("nodes", [None, 3])
def test_an_infinite_slope_at_an_absent_agent_spoils_nobodys_row(nodes):
    def rooted(weights):
        return jnp.array([1.0, 3.0]) * (jnp.log1p(weights.sum()) + jnp.sqrt(weights[1]))

    weights = jnp.array([1.0, 0.0, 0.5])
    matrix = jax.jit(lambda w: slope_matrix(rooted, w, nodes=nodes))(weights)
    plain = slope_matrix(lambda w: jnp.array([1.0, 3.0]) * jnp.log1p(w.sum()), weights, nodes=nodes)
    np.testing.assert_allclose(matrix, plain, rtol=1e-6)


@pytest.mark.parametrize("name", ["influence", "aumann_shapley", "chunked"])
def test_forward_mode_gives_the_matrix_of_reverse_mode(name):
    ours, expected = matrices()[name]
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-7)
    assert (ours[:, 1] == 0).all()
    assert np.abs(np.delete(ours, 1, axis=1)).min() > 1e-4


def depths(program, name, loops=0):
    """In how many loops each operation of this name stands."""
    for equation in program.eqns:
        if equation.primitive.name == name:
            yield loops
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from depths(inner, name, loops + (equation.primitive.name == "scan"))


def test_utilities_are_evaluated_once_for_all_agents_slopes():
    """In the loop over nodes, and outside of that over chunks of agents."""

    def counted(weights):
        return jnp.exp(jnp.sin(weights @ PARTS))

    traced = jax.make_jaxpr(lambda w: slope_matrix(counted, w, nodes=2, batch_size=1))(WEIGHTS)
    assert list(depths(traced.jaxpr, "sin")) == [1]
    assert list(depths(traced.jaxpr, "exp")) == [1]
    assert max(depths(traced.jaxpr, "mul")) == 2


def test_a_matrix_tells_the_error_of_its_mean():
    """The closed form of the bootstrap: its draws spread as the standard error says."""
    matrix = matrices()["aumann_shapley"][0]
    found = across(jnp.asarray(matrix), active=WEIGHTS > 0)
    drawn = bootstrap(jnp.asarray(matrix), key=jax.random.key(3), draws=4000)
    assert drawn.shape == (4000, AGENTS)
    spread = np.asarray(drawn).std(axis=0)
    # A resampled variance divides by U, an estimated one by U - 1.
    closed = np.asarray(found.standard_error) * np.sqrt(1 - 1 / len(CURVATURES))
    np.testing.assert_allclose(spread, closed, rtol=0.05, atol=1e-9)
    np.testing.assert_allclose(drawn.mean(axis=0), matrix.mean(axis=0), atol=5e-3)


def test_a_statistic_is_taken_of_every_draw():
    matrix = jnp.asarray(matrices()["aumann_shapley"][0])

    def lowest(credits):
        return {"lowest": jnp.argmin(credits), "share": credits / credits.sum()}

    key = jax.random.key(4)
    drawn = bootstrap(matrix, key=key, draws=50)
    told = bootstrap(matrix, key=key, draws=50, statistic=lowest)
    np.testing.assert_array_equal(told["lowest"], np.asarray(drawn).argmin(axis=1))
    np.testing.assert_allclose(
        told["share"], drawn / drawn.sum(axis=1, keepdims=True), rtol=1e-5, atol=1e-6
    )
    assert len(np.unique(np.asarray(drawn)[:, 0])) > 25


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: across(jnp.ones(3)), r"credits has shape \(3,\)"),
        (lambda: across(jnp.ones((1, 3))), "S >= 2"),
        (lambda: across(jnp.ones((2, 3)), level=1.0), r"level=1\.0"),
        (lambda: across(jnp.ones((2, 3)), active=jnp.ones(2, bool)), "active has shape"),
        (lambda: bootstrap(jnp.ones((1, 3)), key=jax.random.key(0)), "U >= 2"),
        (lambda: bootstrap(jnp.ones((2, 3)), key=jax.random.key(0), draws=0), "draws is 0"),
        (lambda: bootstrap(jnp.ones((2, 3)), key=None), "key is None; .* examples are"),
        (lambda: bootstrap(jnp.ones((2, 3)), key=jax.random.key(0), draws=2.5), "draws is 2.5"),
        (lambda: slope_matrix(lambda w: w.sum(), jnp.ones(2)), r"utilities returned shape \(\)"),
        (lambda: slope_matrix(lambda w: w, jnp.ones(2), nodes=0), "nodes is 0"),
        (lambda: slope_matrix(lambda w: w, 2 * jnp.ones(2)), "weights must lie"),
    ],
)
def test_bad_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()
