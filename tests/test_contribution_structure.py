"""Credit by principal, by beneficiary, by example and by part of the model."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.cooperatives import LOSS, held_out, members_and_params
from tests.games import learning, majority, shapley_by_orders, table_of
from tests.problems import batches
from vcca_jax import contribution
from vcca_jax.contribution import (
    aumann_shapley,
    by_principal,
    credit_matrix,
    exact_shapley,
    first_order,
    in_run,
    influence,
    leave_one_out,
    permutation_shapley,
    principal_credits,
    with_validation_error,
)
from vcca_jax.gradients import agent_gradients
from vcca_jax.subtrees import by_subtree
from vcca_jax.utility import one_step_utility
from vcca_jax.virtual_batch import by_example

PARTS = 0.4 * jax.random.normal(jax.random.key(0), (5, 3)) + 0.1
WEIGHTS = jnp.array([1.0, 0.0, 1.0, 0.5, 1.0])
PRINCIPALS = np.array([0, 1, 1, 2, 0])
EVERY = {
    "aumann_shapley": aumann_shapley,
    "exact_shapley": exact_shapley,
    "leave_one_out": leave_one_out,
    "influence": influence,
    "banzhaf": contribution.banzhaf,
    "permutation_shapley": partial(permutation_shapley, permutations=4),
}
KEY = jax.random.key(1)


def told(estimator, utility, weights, **options):
    """The estimate, as one program: taken operation by operation it would compile each of them."""
    return jax.jit(lambda w: estimator(utility, w, **options))(jnp.asarray(weights))


def test_principals_play_the_quotient_game():
    """Seven voters of three principals: blocs of 3, 3 and 1 decide together, any two win."""
    game = majority(7)
    principals = np.array([0, 0, 0, 1, 1, 1, 2])
    blocs = game._replace(
        agents=3, utility=lambda u: game.utility(jnp.take(u, jnp.asarray(principals)))
    )
    credits = told(by_principal(exact_shapley, principals), game.utility, jnp.ones(7))
    summed = principal_credits(credits, principals)
    np.testing.assert_allclose(summed, shapley_by_orders(table_of(blocs)), atol=1e-6)
    np.testing.assert_allclose(summed, np.full(3, 1 / 3), atol=1e-6)
    np.testing.assert_allclose(credits[:3], credits[0])  # divided equally


@pytest.mark.parametrize("name", list(EVERY))
def test_sending_more_agents_changes_no_principals_credit(name):
    estimator = EVERY[name]
    halves = jnp.concatenate([PARTS.at[4].multiply(0.25), PARTS[4:] * 0.75])
    one, two = (
        principal_credits(
            told(by_principal(estimator, owners), learning(parts), weights, key=KEY), owners
        )
        for parts, weights, owners in (
            (PARTS, WEIGHTS, PRINCIPALS),
            (halves, jnp.append(WEIGHTS, 1.0), np.append(PRINCIPALS, 0)),
        )
    )
    np.testing.assert_allclose(one, two, atol=2e-6)
    assert float(jnp.abs(one).min()) > 1e-4


def test_without_principals_a_split_pays_under_shapley_and_not_under_aumann_shapley():
    halves = jnp.concatenate([PARTS.at[4].multiply(0.25), PARTS[4:] * 0.75])
    gains = {}
    for name in ("exact_shapley", "aumann_shapley"):
        whole = told(EVERY[name], learning(PARTS, 3.0), WEIGHTS)[4]
        split = told(EVERY[name], learning(halves, 3.0), jnp.append(WEIGHTS, 1.0))
        gains[name] = split[4:].sum() - whole
    assert abs(gains["exact_shapley"]) > 1e-3
    assert abs(gains["aumann_shapley"]) < 1e-4


def test_an_absent_agent_takes_no_part_of_its_principals_credit():
    shapley = by_principal(exact_shapley, PRINCIPALS)
    credits = told(shapley, learning(PARTS), WEIGHTS)
    assert credits[1] == 0
    assert credits[2] != 0
    nobody = told(shapley, learning(PARTS), WEIGHTS.at[2].set(0.0))
    assert nobody[1] == nobody[2] == 0


@pytest.mark.parametrize(
    ("principals", "count", "words"),
    [
        (np.array([0, -1]), None, "must lie in 0"),
        (np.array([0, 3]), 2, "must lie in 0..1"),
        (np.array([0.0, 1.0]), None, "dtype float32"),
        (np.array([[0, 1]]), None, "one integer an agent"),
    ],
)
def test_bad_principals_are_refused(principals, count, words):
    with pytest.raises(ValueError, match=words):
        by_principal(exact_shapley, principals, count=count)


@pytest.mark.parametrize(
    ("principals", "words"),
    [
        ([0, 1, 5], r"principals=\[0 1 5\] must lie in 0..1"),
        ([0, 1, -1], r"must lie in 0..1"),
        ([0], r"principals has shape \(1,\)"),
        ([0.0, 1.0, 1.0], "dtype float32"),
    ],
)
def test_the_quotient_game_refuses_principals_that_do_not_fit(principals, words):
    with pytest.raises(ValueError, match=words):
        contribution.quotient(jnp.sum, jnp.ones(3), principals)(jnp.ones(2))


def test_credits_that_are_not_one_an_agent_are_not_summed():
    for credits in (jnp.ones((5, 5)), jnp.ones(4), jnp.ones((5, 1))):
        with pytest.raises(ValueError, match=r"credits has shape .* one credit an agent"):
            principal_credits(credits, PRINCIPALS)


def test_principals_of_another_cooperative_are_refused():
    with pytest.raises(ValueError, match=r"principals has shape \(5,\)"):
        by_principal(exact_shapley, PRINCIPALS)(learning(PARTS), jnp.ones(4))


def three_utilities(weights):
    """Three beneficiaries with curvatures of their own."""
    return jnp.stack([learning(PARTS, curvature)(weights) for curvature in (0.5, 1.0, 2.0)])


@pytest.mark.parametrize("name", list(EVERY))
def test_a_row_of_the_matrix_is_the_credit_for_that_utility(name):
    matrix = jax.jit(lambda w: credit_matrix(EVERY[name], three_utilities, w, key=KEY))(WEIGHTS)
    for row, curvature in zip(matrix, (0.5, 1.0, 2.0), strict=True):
        expected = told(EVERY[name], learning(PARTS, curvature), WEIGHTS, key=KEY)
        np.testing.assert_allclose(row, expected, atol=2e-6)
    assert float(jnp.abs(matrix[0] - matrix[2]).max()) > 1e-3


def test_each_coalition_is_run_once_for_all_beneficiaries():
    """The matrix product that a coalition costs is not repeated by beneficiary."""
    parts = jnp.ones((4, 7))

    def utilities(weights):
        return jnp.outer(jnp.ones(6), weights @ parts).sum(axis=1)

    traced = jax.make_jaxpr(lambda w: credit_matrix(exact_shapley, utilities, w))(jnp.ones(4))
    shapes = [tuple(v.aval.shape for v in e.invars) for e in products(traced.jaxpr)]
    assert shapes
    assert all(6 not in shape for pair in shapes for shape in pair)


def products(program):
    """Products of a program that take the agents' parts, those of inner programs too."""
    for equation in program.eqns:
        if equation.primitive.name == "dot_general" and equation.invars[1].aval.shape == (4, 7):
            yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_the_matrix_of_first_order_credit_is_theirs_or_refused():
    """A function of weights has no parameters to be expanded at; its slope is another credit."""
    games = [learning(PARTS, curvature) for curvature in (0.5, 2.0)]
    slopes = jnp.arange(10.0).reshape(2, 5)

    class Expanded:
        def __call__(self, weights):
            return jnp.stack([game(weights) for game in games])

        def first_order(self, weights):
            return slopes * weights[None]

    for estimator in (first_order, by_principal(first_order, PRINCIPALS)):
        with pytest.raises(ValueError, match="utilities have no first_order"):
            credit_matrix(estimator, three_utilities, WEIGHTS)
    np.testing.assert_array_equal(
        credit_matrix(first_order, Expanded(), WEIGHTS), slopes * WEIGHTS[None]
    )
    shared = credit_matrix(by_principal(first_order, PRINCIPALS), Expanded(), WEIGHTS)
    for row, alone in zip(shared, slopes * WEIGHTS[None], strict=True):
        np.testing.assert_allclose(
            principal_credits(row, PRINCIPALS), principal_credits(alone, PRINCIPALS), rtol=1e-6
        )


def test_utilities_must_have_one_axis():
    with pytest.raises(ValueError, match=r"shape \(\)"):
        credit_matrix(influence, learning(PARTS), WEIGHTS)
    with pytest.raises(ValueError, match="at least two"):
        with_validation_error(influence, lambda w: learning(PARTS)(w)[None], WEIGHTS)


def one_step(batch, params, gradients=None, loss=LOSS, *, each=False, optimizer=None):
    inputs, targets = held_out(8, 4)

    def validation(at):
        losses = loss(at, inputs, targets)
        return losses if each else losses.mean()

    optimizer = optax.sgd(0.1) if optimizer is None else optimizer
    gradients = agent_gradients(loss, params, batch) if gradients is None else gradients
    return one_step_utility(params, optimizer.init(params), gradients, optimizer, validation)


def test_the_error_of_a_validation_draw_is_that_of_a_mean():
    members, params = members_and_params()
    batch = batches(members)[0]

    @jax.jit
    def run(weights):
        each, whole = one_step(batch, params, each=True), one_step(batch, params)
        return (
            with_validation_error(aumann_shapley, each, weights),
            credit_matrix(aumann_shapley, each, weights),
            aumann_shapley(whole, weights),
        )

    found, rows, whole = run(batch.active.astype(jnp.float32))
    np.testing.assert_allclose(found.credits, whole, atol=1e-7)
    np.testing.assert_allclose(
        found.standard_error, np.std(rows, axis=0, ddof=1) / np.sqrt(8), rtol=1e-5, atol=1e-9
    )
    assert float(found.standard_error.max()) > 0


def test_weights_of_agents_are_not_taken_for_those_of_their_subtrees():
    members, params = members_and_params()
    batch = batches(members)[0]
    whole = agent_gradients(LOSS, params, batch)
    parts, names = by_subtree(whole, params, lambda path: path.split("/")[0])
    agents = batch.active.shape[0]
    for weights in (jnp.ones(agents), jnp.ones(4 * agents)):
        with pytest.raises(ValueError, match=rf"one a player, \({agents * len(names)},\)"):
            parts.sum(weights)


SUMMING = {"influence": influence, "in_run": in_run, "aumann_shapley": aumann_shapley}


def test_an_agents_credit_is_the_sum_of_its_examples():
    members, params = members_and_params()

    @jax.jit
    def run(batch):
        alone = by_example(batch)
        utilities = (one_step(alone, params), one_step(batch, params))
        weights = (alone.active.astype(jnp.float32), batch.active.astype(jnp.float32))
        return [[e(u, w) for u, w in zip(utilities, weights)] for e in SUMMING.values()]  # noqa: B905

    for batch in batches(members)[::2]:
        for of_examples, of_agents in run(batch):
            summed = jax.ops.segment_sum(of_examples, batch.owners, batch.active.shape[0])
            np.testing.assert_allclose(summed, of_agents, atol=1e-7)
            assert not np.any(of_examples[~np.asarray(batch.mask)])
            assert float(jnp.abs(of_agents).max()) > 1e-5


def test_first_order_credit_by_principal_is_its_agents_sum():
    """Expanded at the parameters before the step, as for agents; influence follows the step."""
    members, params = members_and_params()
    batch = batches(members)[0]
    utility, weights = one_step(batch, params), batch.active.astype(jnp.float32)
    agents = len(weights)
    alone = told(first_order, utility, weights)
    each = told(by_principal(first_order, np.arange(agents)), utility, weights)
    np.testing.assert_allclose(each, alone, rtol=1e-6)
    assert np.abs(told(influence, utility, weights) - alone).max() > 1e-3 * np.abs(alone).max()
    principals = np.arange(agents) % 3
    shared = told(by_principal(first_order, principals), utility, weights)
    np.testing.assert_allclose(
        principal_credits(shared, principals), principal_credits(alone, principals), rtol=1e-5
    )


def test_an_agents_credit_is_the_sum_over_parts_of_the_model():
    members, params = members_and_params()
    batch, optimizer = batches(members)[0], optax.sgd(0.1, momentum=0.9)

    @jax.jit
    def run(weights):
        whole = agent_gradients(LOSS, params, batch)
        parts, names = by_subtree(whole, params, lambda path: path.split("/")[0])
        assert names == ("body", "head")
        apart = one_step(batch, params, parts, optimizer=optimizer)
        together = one_step(batch, params, optimizer=optimizer)
        return [
            (estimator(apart, jnp.repeat(weights, 2)).reshape(-1, 2), estimator(together, weights))
            for estimator in SUMMING.values()
        ]

    for credits, expected in run(batch.active.astype(jnp.float32)):
        np.testing.assert_allclose(credits.sum(axis=1), expected, atol=1e-7)
        assert np.all(np.asarray(jnp.abs(credits).max(axis=0)) > 1e-6)


def test_the_operator_of_parts_is_the_operator_of_its_stack():
    members, params = members_and_params()
    batch = batches(members)[0]
    count = batch.active.shape[0] * 2
    direction = jax.tree.map(
        lambda leaf: jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), params
    )
    weights = jnp.linspace(-1, 1, count)

    @jax.jit
    def run(batch):
        parts, names = by_subtree(
            agent_gradients(LOSS, params, batch), params, lambda path: path.rsplit("/", 1)[1]
        )
        assert names == ("bias", "kernel")
        return (
            parts.stack(),
            parts.dot(direction),
            parts.sum(weights),
            parts.squared_norms(),
            parts.squared_norms(jax.tree.map(jnp.abs, direction)),
        )

    stack, dots, total, squares, weighed = run(batch)
    flat = np.concatenate([leaf.reshape(count, -1) for leaf in jax.tree.leaves(stack)], axis=1)
    line = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(direction)])
    np.testing.assert_allclose(dots, flat @ line, atol=1e-6)
    total = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(total)])
    np.testing.assert_allclose(total, weights @ flat, atol=1e-6)
    np.testing.assert_allclose(squares, (flat**2).sum(1), atol=1e-6)
    np.testing.assert_allclose(weighed, (flat**2) @ np.abs(line), atol=1e-6)
