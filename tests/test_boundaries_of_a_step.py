"""What a step refuses, and what it is not led astray by."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from tests.problems import FEATURES, problem
from vcca_jax.profiles import named_values
from vcca_jax.rows import streamed_rows
from vcca_jax.values import loss_gap

METHODS = ["one_pass", "linearized", "scanned", "stacked"]
AGENTS = 5


@functools.cache
def rows():
    generator = np.random.default_rng(7)
    inputs = generator.normal(size=(9, FEATURES)).astype(np.float32)
    return inputs, np.arange(9, dtype=np.int32) % 3


def trainer(losses, **options):
    _, _, loss_fn, _, _ = problem()
    options = {"optimizer": optax.sgd(0.1), **options}
    validation = vcca.group_loss(loss_fn, *rows())
    return vcca.cooperate(
        loss_fn,
        options.pop("optimizer"),
        validation,
        vcca.value_losses(losses(loss_fn)),
        estimator=vcca.first_order,
        **options,
    )


def two(loss_fn):
    inputs, targets = rows()
    return {
        "first": vcca.group_loss(loss_fn, inputs[:5], targets[:5]),
        "second": vcca.group_loss(loss_fn, inputs[5:], targets[5:]),
    }


@pytest.mark.parametrize("names", [("second", "first"), ("first",), ("x", "first", "second")])
def test_profiles_of_other_values_are_refused(names):
    params, batch = problem()[3], problem()[4][0]
    wrong = vcca.value_profiles(names, [[vcca.protect("first")]] * AGENTS)
    right = vcca.value_profiles(("first", "second"), [[vcca.protect("first")]] * AGENTS)
    made = trainer(two)
    with pytest.raises(ValueError, match="profiles speak of the values"):
        made.init(params, wrong)
    # Profiles may be replaced between steps, and then the step refuses them.
    state = made.init(params, right)._replace(profiles=wrong)
    with pytest.raises(ValueError, match=r"value_profiles\(values.names"):
        jax.jit(made.step)(state, batch)


def test_profiles_of_other_values_are_refused_by_what_verifies_and_what_retrains():
    _, _, loss_fn, params, steps = problem()
    values = vcca.value_losses(two(loss_fn))
    wrong = vcca.value_profiles(("second", "first"), [[vcca.protect("first")]] * AGENTS)
    optimizer = vcca.keep_admissible(optax.sgd(0.1), values, learning_rate=0.1)
    with pytest.raises(ValueError, match="profiles speak of the values"):
        optimizer.update(
            params,
            optimizer.init(params),
            params,
            profiles=wrong,
            active=jnp.ones(AGENTS, bool),
        )
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps[:2])
    with pytest.raises(ValueError, match="profiles speak of the values"):
        vcca.training_utility(
            loss_fn, params, optax.sgd(0.1), batches, jnp.sum, values=values, profiles=wrong
        )


def test_names_do_not_retrace_and_survive_a_tree_map():
    profiles = vcca.value_profiles(("first", "second"), [[vcca.protect("first")]] * AGENTS)
    assert jax.tree.map(jnp.asarray, profiles).names.names == ("first", "second")
    traces = []

    @jax.jit
    def function(profiles):
        traces.append(1)
        return profiles.margin.sum()

    function(profiles)
    function(vcca.value_profiles(("first", "second"), [[vcca.forbid("second")]] * AGENTS))
    assert len(traces) == 1


def test_what_a_profile_speaks_of():
    stated = [
        [vcca.protect("a")],
        [vcca.within_angle("b", 30)],
        [vcca.trust_region(["c"], 1.0)],
        [],
    ]
    profiles = vcca.value_profiles(("a", "b", "c", "d"), stated)
    active = jnp.ones(4, bool)
    assert named_values(profiles, active, 4).tolist() == [True, True, True, False]
    nobody = named_values(profiles, active.at[1].set(False), 4)
    assert nobody.tolist() == [True, False, True, False]


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_another_number_of_agents_are_refused(method):
    _, _, loss_fn, params, steps = problem()
    gradients = vcca.agent_gradients(loss_fn, params, steps[0], method=method)
    changed = vcca.affine(gradients, jnp.ones(AGENTS), jnp.zeros((AGENTS, 1)), one_row(params))
    for operator in (gradients, changed):
        with pytest.raises(ValueError, match=r"weights \(2,\) are not one for each of 5"):
            operator.sum(jnp.ones(2))


def one_row(params):
    return jax.tree.map(lambda leaf: jnp.ones((1, *leaf.shape)), params)


def test_utilities_refuse_weights_of_another_number_of_agents():
    _, _, loss_fn, params, steps = problem()
    validation = vcca.group_loss(loss_fn, *rows())
    gradients = vcca.agent_gradients(loss_fn, params, steps[0])
    optimizer = optax.sgd(0.1)
    step = vcca.one_step_utility(
        params, optimizer.init(params), gradients, optimizer, lambda at: validation(at)
    )
    batches = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps[:2])
    run = vcca.training_utility(loss_fn, params, optimizer, batches, lambda at: validation(at))
    for utility in (step, run):
        with pytest.raises(ValueError, match="not one for each of 5"):
            vcca.leave_one_out(utility, jnp.ones(2))
    with pytest.raises(ValueError, match="not one for each of 5"):
        vcca.first_order(step, jnp.ones(2))
    nothing = jax.tree.map(lambda leaf: leaf[:0], batches)
    with pytest.raises(ValueError, match="batches hold no step"):
        vcca.training_utility(loss_fn, params, optimizer, nothing, lambda at: validation(at))


def watched(loss_fn):
    """A value whose slope is no number where training starts, that nobody speaks of."""
    start = problem()[3]

    def length(params, context):
        apart = jax.tree.map(lambda p, s: jnp.sum((p - s) ** 2), params, start)
        return jnp.sqrt(jax.tree.reduce(jnp.add, apart))

    return {"first": two(loss_fn)["first"], "moved": length}


def worst_square(loss_fn):
    """The same of a value that names its examples: the root of a loss less itself."""
    inputs, targets = rows()
    group = (jnp.asarray(inputs), jnp.asarray(targets))
    return {
        "first": two(loss_fn)["first"],
        "kink": vcca.HeldOutLoss(
            loss_fn, (group,), lambda losses: jnp.sqrt(jnp.sum(losses[0] - losses[0]))
        ),
    }


@pytest.mark.parametrize("method", [*METHODS, "streamed"])
@pytest.mark.parametrize("losses", [watched, worst_square])
def test_a_watched_value_without_a_slope_harms_nobody(method, losses):
    params, batch = problem()[3], problem()[4][0]
    options = {"stream_values": True} if method == "streamed" else {"method": method}
    made = trainer(losses, **options)
    names = tuple(losses(problem()[2]))
    step = jax.jit(made.step)

    def after(*constraints):
        return step(
            made.init(params, vcca.value_profiles(names, [list(constraints)] * AGENTS)), batch
        )

    state, info = after(vcca.protect("first"))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))
    assert np.isfinite(info.credits).all()
    alone = trainer(lambda loss_fn: {"first": two(loss_fn)["first"]}, **options)
    profiles = vcca.value_profiles(("first",), [[vcca.protect("first")]] * AGENTS)
    expected, told = jax.jit(alone.step)(alone.init(params, profiles), batch)
    np.testing.assert_allclose(info.credits, told.credits, rtol=1e-4, atol=1e-7)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        state.params,
        expected.params,
    )
    # Whoever does speak of it is not told that all is well.
    _, info = after(vcca.protect(names[1]))
    assert not np.isfinite(np.asarray(info.report.value_norms)[1]) or bool(
        np.asarray(info.report.dropped).any()
    )


def test_streamed_rows_leave_out_what_nobody_speaks_of():
    params = problem()[3]
    values = vcca.value_losses(watched(problem()[2]))
    named = jnp.array([True, False])
    rows_of = streamed_rows(values, params, None, named)
    assert np.isfinite(rows_of.dot(params)).all()
    combined = rows_of.combination(jnp.ones(2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(combined))


def threshold(params, inputs, targets):
    """A loss in which a parameter is compared with data, as learned thresholds are."""
    above = inputs[:, 0] > params["cut"]
    return jnp.where(above, 1.0, 0.5) * (inputs @ params["w"] - targets) ** 2


def test_a_parameter_that_is_compared_with_data_has_no_slope_there():
    batch = problem()[4][0]
    batch = batch._replace(targets=batch.targets.astype(jnp.float32))
    params = {"cut": jnp.float32(0.1), "w": jnp.linspace(-1.0, 1.0, FEATURES)}
    told = [
        vcca.agent_gradients(threshold, params, batch, method=method).sum() for method in METHODS
    ]
    for each in told[1:]:
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), told[0], each
        )
    assert told[0]["cut"] == 0


def test_norms_of_gradients_that_cancel_are_numbers():
    """A gap of the same rows in another order: its square is a difference of equal numbers."""

    def cancelling(loss_fn):
        inputs, targets = rows()
        order = np.random.default_rng(1).permutation(len(inputs))
        pair = [vcca.group_loss(loss_fn, inputs[o], targets[o]) for o in (slice(None), order)]
        return {"gap": loss_gap(*pair)}

    params, batch = problem()[3], problem()[4][0]
    for form in ("pairs", "stacked", "directions"):
        made = trainer(cancelling, method=vcca.OnePass(form=form))
        profiles = vcca.value_profiles(("gap",), [[vcca.within_angle("gap", 60)]] * AGENTS)
        _, info = jax.jit(made.step)(made.init(params, profiles), batch)
        assert np.isfinite(info.report.value_norms).all()


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"estimator": "shapley"}, r"estimator='shapley' is a str; give a function of \(utility"),
        ({"estimator": vcca.permutation_shapley}, r"estimator takes .*permutations.* must take"),
        ({"screen": "project"}, "screen='project' is a str"),
        ({"screen": vcca.screen}, r"screen takes .*method.* must take \(gradients, value_grad"),
        ({"metric": optax.sgd(0.1).init}, r"metric takes .* must take \(optimizer_state, gradient"),
        (
            {"metric": vcca.adam_metric(), "screen": lambda g, rows, profiles: (g, None)},
            r"screen takes .* must take \(gradients, value_gradients, profiles, metric=\)",
        ),
        ({"optimizer": 0.1}, "optimizer=0.1 is not an optax optimizer"),
        ({"values": {"first": jnp.sum}}, r"values is a dict; name the losses with value_losses"),
        ({"validation_loss": None}, "validation_loss=None is a NoneType"),
        ({"validation_loss": lambda: 0.0}, r"validation_loss takes \(\), and must take \(params\)"),
        ({"loss_fn": "cross entropy"}, "loss_fn='cross entropy' is a str"),
        ({"method": "guess"}, r"method='guess' must be 'auto', one of \['linearized'"),
        (
            {"method": vcca.OnePass(form="pairs"), "stream_values": True},
            "options that stream_values=True does not follow",
        ),
    ],
)
def test_what_is_no_stage_is_named(wrong, match):
    loss_fn = problem()[2]
    given = {
        "loss_fn": loss_fn,
        "optimizer": optax.sgd(0.1),
        "validation_loss": vcca.group_loss(loss_fn, *rows()),
        "values": vcca.value_losses(two(loss_fn)),
    }
    with pytest.raises(ValueError, match=match):
        vcca.cooperate(**{**given, **wrong})


def test_a_metric_that_was_not_made_yet_is_named():
    params, batch = problem()[3], problem()[4][0]
    made = trainer(two, metric=vcca.adam_metric)
    state = made.init(params, vcca.value_profiles(("first", "second"), [[]] * AGENTS))
    with pytest.raises(ValueError, match=r"metric returned a function; .*adam_metric\(\)"):
        made.step(state, batch)


def test_losses_and_names_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"losses is a list; name each loss"):
        vcca.value_losses([lambda params, context: 0.0])
    with pytest.raises(ValueError, match=r"value_names='women' is one string"):
        vcca.value_profiles("women", [[]])


def test_profiles_that_do_not_fit_are_refused_where_they_are_given():
    params, batch = problem()[3], problem()[4][0]
    made = trainer(two)
    with pytest.raises(ValueError, match=r"profiles is a list; make them with value_profiles"):
        made.init(params, [[vcca.protect("first")]] * AGENTS)
    state = made.init(params, vcca.value_profiles(("first", "second"), [[]] * (AGENTS + 1)))
    with pytest.raises(ValueError, match=rf"profiles are of 6 agents .* capacity={AGENTS}\)"):
        made.step(state, batch)


def test_what_a_run_is_begun_with_survives_it():
    params, batch = problem()[3], problem()[4][0]
    params, key = jax.tree.map(jnp.asarray, params), jax.random.key(3)
    profiles = vcca.value_profiles(("first", "second"), [[vcca.protect("first")]] * AGENTS)
    given = jax.tree.map(jnp.asarray, profiles)
    made = trainer(two)
    step = jax.jit(made.step, donate_argnums=0)
    # The parameters as a context too: no two leaves of a state may be one array.
    ends = [step(made.init(params, given, context=params, key=key), batch)[0] for _ in range(2)]
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((params, given)))
    jax.random.key_data(key)
    for one, other in zip(*(jax.tree.leaves(end.params) for end in ends), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_batch_is_gathered_of_trees_and_of_a_step_alone():
    members, params = problem()[0], problem()[3]
    plan = vcca.virtual_batches(members, 4, seed=0, epoch=0)
    first = jax.tree.map(lambda field: field[0], plan)
    plain = vcca.gather(members.shards, first)
    inputs = {"whole": members.shards.inputs, "half": members.shards.inputs[..., :2]}
    tree = vcca.gather(members.shards._replace(inputs=inputs), first)
    np.testing.assert_array_equal(tree.inputs["whole"], plain.inputs)
    np.testing.assert_array_equal(tree.inputs["half"], plain.inputs[:, :2])
    with pytest.raises(ValueError, match=r"shards is a Cooperative; give members.shards"):
        vcca.gather(members, first)
    with pytest.raises(ValueError, match=r"step.mask is \(\d+, 4\); give one step of the plan"):
        vcca.gather(members.shards, plan)
    del params


def test_cooperatives_are_compared_as_things():
    members = problem()[0]
    assert members == members
    assert members != vcca.leave(members, members.names[0])
    assert len({members, members}) == 1


def test_a_plan_is_no_batch_and_gradients_alone_are_no_answer():
    params, batch = problem()[3], problem()[4][0]
    profiles = vcca.value_profiles(("first", "second"), [[]] * AGENTS)
    made = trainer(two)
    plan = vcca.virtual_batches(problem()[0], 8, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"batch is a TraversalPlan; .* gather\("):
        made.step(made.init(params, profiles), plan)
    silent = trainer(two, screen=lambda gradients, value_gradients, profiles: gradients)
    with pytest.raises(ValueError, match="screen returns AgentGradients; return"):
        silent.step(silent.init(params, profiles), batch)


def test_shards_hold_numbers_and_batches_whole_slots():
    inputs = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match=r"shards\[0\] has targets of dtype <U1"):
        vcca.cooperative([(inputs, np.array(["a", "b"]))])
    assert vcca.cooperative([(inputs.astype(jnp.bfloat16), np.zeros(2))]).sizes.tolist() == [2]
    with pytest.raises(ValueError, match=r"batch_size=4.5 must be a whole number"):
        vcca.virtual_batches(problem()[0], 4.5, seed=0, epoch=0)


def test_money_goes_to_names_and_epochs_take_trainers(tmp_path):
    with (
        vcca.Ledger.open(tmp_path / "ledger.sqlite") as ledger,
        pytest.raises(ValueError, match="credits are of type ndarray, and money goes to names"),
    ):
        ledger.settle("1", np.ones(2), revenue=10)
    with pytest.raises(ValueError, match="trainer=3 has no step"):
        vcca.epoch_runner(3)
    rule = vcca.share_rules.high_water_mark()
    listed = rule._replace(spec={"rule": "mine"}, shares=lambda credits, standings: [1, 2])
    with pytest.raises(ValueError, match="shares returned a list; return a mapping"):
        vcca.conformance.check_share_rule(listed)
