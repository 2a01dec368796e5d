import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.games import of_table
from vcca_jax import contribution
from vcca_jax.contribution import coalitions


def counted(seen):
    """A utility that notes on the host every coalition it is asked for."""

    def utility(w):
        jax.debug.callback(lambda w: seen.update([tuple(np.asarray(w).tolist())]), w)
        return jnp.sum(w)

    return utility


EXACT = {
    "exact_shapley": contribution.exact_shapley,
    "banzhaf": contribution.banzhaf,
    "beta_shapley": functools.partial(contribution.beta_shapley, alpha=2, beta=1),
    "coalition_values": contribution.coalition_values,
}


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("batch_size", [None, 1, 7, 8])
def test_exact_values_evaluate_every_coalition_exactly_once(name, batch_size):
    seen = collections.Counter()
    jax.block_until_ready(EXACT[name](counted(seen), jnp.ones(5), batch_size=batch_size))
    jax.effects_barrier()
    assert len(seen) == 2**5
    assert set(seen.values()) == {1}


def test_leave_one_out_evaluates_one_coalition_an_agent_and_the_grand_one():
    seen = collections.Counter()
    jax.block_until_ready(contribution.leave_one_out(counted(seen), jnp.ones(5)))
    jax.effects_barrier()
    assert set(seen) == {tuple(1.0 - row) for row in [*np.eye(5), np.zeros(5)]}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize("antithetic", [False, True])
@pytest.mark.parametrize("name", ["permutation", "multilinear"])
def test_sampled_values_report_their_evaluations(name, antithetic):
    seen = collections.Counter()
    size = {"permutation": "permutations", "multilinear": "samples"}[name]
    sampled = getattr(contribution, f"{name}_shapley_with_error")(
        counted(seen), jnp.ones(3), key=jax.random.key(0), antithetic=antithetic, **{size: 4}
    )
    jax.block_until_ready(sampled)
    jax.effects_barrier()
    assert sampled.evaluations == sum(seen.values())


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 64])
def test_chunks_neither_reorder_nor_change(batch_size):
    table = np.random.default_rng(0).normal(size=2**4).astype(np.float32)
    values = contribution.coalition_values(of_table(table), jnp.ones(4), batch_size=batch_size)
    np.testing.assert_array_equal(values, table)
    rows = jnp.arange(13)
    np.testing.assert_array_equal(
        coalitions.chunked_map(lambda row: jnp.stack([row, -row]), rows, batch_size=batch_size),
        np.stack([np.arange(13), -np.arange(13)], axis=1),
    )


def largest_intermediate(jaxpr):
    """Entries of the largest array anywhere in a program, its loops' bodies included."""
    sizes = [variable.aval.size for equation in jaxpr.eqns for variable in equation.outvars]
    for equation in jaxpr.eqns:
        for parameter in equation.params.values():
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                sizes.append(largest_intermediate(inner))
    return max(sizes, default=0)


def test_memory_is_bounded_by_the_chunk():
    """What a coalition needs (here, 1000 units) is held for a chunk, never for all 1024."""

    def utility(w):
        return jnp.sum(jnp.tanh(w @ jnp.ones((10, 1000))))

    def largest(batch_size):
        estimate = functools.partial(contribution.exact_shapley, utility, batch_size=batch_size)
        return largest_intermediate(jax.make_jaxpr(estimate)(jnp.ones(10)).jaxpr)

    assert largest(1024) == 1024 * 1000
    assert largest(32) == 32 * 1000


def test_all_coalitions_enumerates_binary_numbers():
    rows = np.asarray(contribution.all_coalitions(4))
    assert rows.shape == (16, 4)
    np.testing.assert_array_equal(rows @ (2 ** np.arange(4)), np.arange(16))


def test_evaluate_drops_terms_and_renormalises_nothing():
    weights = jnp.array([0.5, 1.0, 0.25])
    members = jnp.array([[True, False, True], [False, False, False], [True, True, True]])
    values = contribution.evaluate(
        lambda w: jnp.sum(w * jnp.array([1.0, 2.0, 4.0])), weights, members
    )
    np.testing.assert_array_equal(values, [1.5, 0.0, 3.5])


def test_a_vote_may_answer_yes_or_no():
    """Booleans and integers are utilities too."""
    vote = lambda w: jnp.sum(w) >= 2  # noqa: E731
    credits = contribution.exact_shapley(vote, jnp.ones(3))
    np.testing.assert_allclose(credits, np.full(3, 1 / 3), rtol=1e-6)
    assert credits.dtype == jnp.float32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"21 agents.*use a sampler, as permutation_shapley"):
        contribution.exact_shapley(jnp.sum, jnp.ones(21))
    with pytest.raises(ValueError, match=r"utility returned shape \(3,\)"):
        contribution.leave_one_out(lambda w: w, jnp.ones(3))
    with pytest.raises(ValueError, match="order is 3; choose 1 or 2"):
        contribution.in_run(jnp.sum, jnp.ones(3), order=3)
    with pytest.raises(ValueError, match="mode is 'sideways'"):
        contribution.influence(jnp.sum, jnp.ones(3), mode="sideways")
    with pytest.raises(ValueError, match="nodes is 0"):
        contribution.aumann_shapley(jnp.sum, jnp.ones(3), nodes=0)
    for alpha, beta in ((0, 1), (1, -1), (np.inf, 1), (1, np.nan)):
        with pytest.raises(ValueError, match=r"(alpha|beta) is .*; pass a positive"):
            contribution.beta_shapley(jnp.sum, jnp.ones(3), alpha=alpha, beta=beta)
    with pytest.raises(ValueError, match=r"credits has shape \(2,\)"):
        contribution.efficiency_gap(jnp.sum, jnp.ones(3), jnp.ones(2))


@pytest.mark.parametrize("name", ["permutation", "multilinear"])
def test_bad_sample_sizes_are_named(name):
    size = {"permutation": "permutations", "multilinear": "samples"}[name]
    estimate = functools.partial(
        getattr(contribution, f"{name}_shapley"), jnp.sum, jnp.ones(3), key=jax.random.key(0)
    )
    with_error = functools.partial(
        getattr(contribution, f"{name}_shapley_with_error"),
        jnp.sum,
        jnp.ones(3),
        key=jax.random.key(0),
    )
    with pytest.raises(ValueError, match=f"{size} is 0; pass at least 1"):
        estimate(**{size: 0})
    with pytest.raises(ValueError, match=f"{size} is 5; antithetic .* in pairs"):
        estimate(**{size: 5}, antithetic=True)
    with pytest.raises(ValueError, match=f"{size} is 1; a standard error needs at least 2"):
        with_error(**{size: 1})
    with pytest.raises(ValueError, match=f"{size} is 2; a standard error needs at least 4"):
        with_error(**{size: 2}, antithetic=True)


@pytest.mark.parametrize(("permutations", "antithetic"), [(1, False), (3, False), (4, True)])
def test_order_m_depends_on_the_key_and_m_alone(permutations, antithetic):
    """So that a longer run extends a shorter one, and no chunk or device count enters."""
    table = np.random.default_rng(4).normal(size=2**4).astype(np.float32)
    key = jax.random.key(1)
    positions = []
    for draw in range(2 if antithetic else permutations):
        order = np.asarray(jax.random.permutation(jax.random.fold_in(key, draw), 4))
        positions += [order, 3 - order] if antithetic else [order]
    paths = np.zeros((permutations, 4))
    for path, position in zip(paths, positions, strict=True):
        for agent in range(4):
            before = int(np.sum(2 ** np.flatnonzero(position < position[agent])))
            path[agent] = table[before | 1 << agent] - table[before]
    estimate = functools.partial(
        contribution.permutation_shapley, permutations=permutations, antithetic=antithetic, key=key
    )
    credits = jax.jit(functools.partial(estimate, of_table(table)))(jnp.ones(4))
    np.testing.assert_allclose(credits, paths.mean(axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("permutation_shapley", "permutations"),
        ("permutation_shapley_with_error", "permutations"),
        ("multilinear_shapley", "samples"),
        ("multilinear_shapley_with_error", "samples"),
        ("banzhaf_sampled", "samples"),
        ("stratified_shapley", "evaluations"),
        ("kernel_shapley", "evaluations"),
        ("leverage_shapley", "evaluations"),
        ("aumann_shapley", "nodes"),
        ("exact_shapley", "batch_size"),
    ],
)
def test_counts_that_are_no_whole_numbers_are_named(name, option):
    estimate = functools.partial(
        getattr(contribution, name), jnp.sum, jnp.ones(3), key=jax.random.key(0)
    )
    for count in (16.0, 13.5, "4", True, None):
        if count is None and option == "batch_size":
            continue
        with pytest.raises(ValueError, match=f"{option} is .*; pass a whole number"):
            estimate(**{option: count})
    jax.eval_shape(lambda: estimate(**{option: np.int64(16)}))


@pytest.mark.parametrize("key", [0, "a", jnp.zeros(2), jax.random.split(jax.random.key(0), 3)])
def test_what_is_no_key_is_named(key):
    with pytest.raises(ValueError, match=r"key (is|has shape) .*; pass a"):
        contribution.permutation_shapley(jnp.sum, jnp.ones(3), permutations=2, key=key)


def test_keys_of_both_kinds_are_taken():
    draw = functools.partial(
        contribution.permutation_shapley, lambda w: w.max(), jnp.array([1.0, 0.5, 0.2])
    )
    new, old = jax.random.key(3), jax.random.PRNGKey(3)
    np.testing.assert_array_equal(draw(permutations=5, key=new), draw(permutations=5, key=old))


@pytest.mark.parametrize("name", ["stratified", "kernel", "leverage"])
def test_samplers_that_solve_a_system_run_in_low_precision(name):
    """Factorisations know no bfloat16."""
    estimate = getattr(contribution, f"{name}_shapley_with_error")
    told = jax.jit(
        functools.partial(
            estimate,
            lambda w: w @ jnp.array([1, 2, 3, 4, 5], w.dtype),
            evaluations=24,
            key=jax.random.key(0),
        )
    )(jnp.ones(5, jnp.bfloat16))
    assert told.credits.dtype == told.standard_error.dtype == jnp.bfloat16
    np.testing.assert_allclose(told.credits.astype(jnp.float32), [1, 2, 3, 4, 5], rtol=0.02)
