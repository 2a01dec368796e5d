"""Every screen against the twin of ``tests.screens``, and what a screened step does to values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.screens import (
    AGENTS,
    MARGINS,
    SLOTS,
    VALUES,
    case,
    curved_values,
    flatten,
    gradients_of,
    linear_loss,
    twin,
    unflatten,
)
from vcca_jax.constraints import forbid, max_norm, protect
from vcca_jax.gradients import agent_gradients, from_stack
from vcca_jax.profiles import value_profiles
from vcca_jax.screening import screen

# Each method under each scope, and each form of the gradients twice: one twin for them all.
KINDS = {
    "project own": "linearized",
    "project everyone": "scanned",
    "reject own": "stacked",
    "reject everyone": "linearized",
    "shrink own": "scanned",
    "shrink everyone": "stacked",
}
SEEDS = st.integers(0, 2**31)


def answer(operator, report, given):
    """Everything a screened operator says."""
    return {
        "stack": operator.stack(),
        "dot": operator.dot(given.direction),
        "sum": operator.sum(),
        "weighted": operator.sum(given.weights),
        "report": report,
    }


def one_screen(kind, form):
    method, scope = kind.split()
    apply = screen(method, scope=scope, measure_norms=True)

    def run(given):
        gradients = agent_gradients(linear_loss, given.params, given.batch, method=form)
        return answer(*apply(gradients, given.rows, given.profiles), given)

    return run


@functools.cache
def jitted(kind):
    return jax.jit(one_screen(kind, KINDS[kind]))


def expected(kind, given):
    stack, present = gradients_of(given.batch)
    rows = flatten(given.rows)
    return twin(*kind.split(), stack, present, given.batch.active, rows, given.profiles)


def assert_equal(told, wanted, given, tolerance):
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(np.isfinite(leaf), True), told)
    close = functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)
    close(flatten(told["stack"]), wanted.stack)
    close(told["dot"], wanted.stack @ flatten(given.direction))
    close(flatten(told["sum"]), wanted.stack.sum(axis=0))
    close(flatten(told["weighted"]), np.asarray(given.weights) @ wanted.stack)
    rows = flatten(given.rows)
    close(told["report"].value_norms, np.linalg.norm(rows, axis=1))
    assert not np.asarray(told["report"].limited).any()
    for name, field in told["report"]._asdict().items():
        if name in ("value_norms", "limited"):
            continue
        if field.dtype == bool:
            np.testing.assert_array_equal(field, getattr(wanted, name), err_msg=name)
        else:
            close(field, getattr(wanted, name), err_msg=name)
    dropped = ~np.asarray(told["report"].feasible)
    assert (flatten(told["stack"])[dropped] == 0).all()
    assert (np.asarray(told["dot"])[dropped] == 0).all()
    assert (np.asarray(told["report"].coefficients)[dropped] == 0).all()


@pytest.mark.parametrize("kind", list(KINDS))
@given(seed=SEEDS, margins=st.sampled_from(list(MARGINS)))
@example(seed=29, margins="mixed")  # one margin asks for more of g than another allows
def test_every_screen_equals_its_twin_in_float64(kind, seed, margins):
    with jax.enable_x64(True):
        given = case(seed, margins)
        assert_equal(jitted(kind)(given), expected(kind, given), given, 1e-9)


def test_the_cases_are_neither_all_admissible_nor_all_dropped():
    """What the twin test would not notice: an empty choice of cases."""
    cases = [case(seed, margins) for seed in range(8) for margins in MARGINS]
    for kind in KINDS:
        answers = [expected(kind, given) for given in cases]
        present = np.concatenate([gradients_of(given.batch)[1] for given in cases])
        for field in ("admissible", "feasible"):
            told = np.concatenate([getattr(each, field) for each in answers])[present]
            assert 0.02 < told.mean() < 0.98, (kind, field)
        assert not present.all()


def screened_again(told, given):
    """The case whose agent gradients are the screened ones of another."""
    stack, (_, present) = flatten(told["stack"]), gradients_of(given.batch)
    agents = np.arange(SLOTS) % AGENTS
    mask = (np.arange(SLOTS) < AGENTS) & present[agents]
    batch = given.batch._replace(
        inputs=stack[agents] * mask.sum(), owners=agents.astype(np.int32), mask=mask
    )
    return given._replace(batch=batch)


@pytest.mark.parametrize("kind", list(KINDS))
@given(seed=SEEDS)
def test_screening_twice_is_screening_once(kind, seed):
    with jax.enable_x64(True):
        first = case(seed, "negative")
        told = jitted(kind)(first)
        second = screened_again(told, first)
        twice = jitted(kind)(second)
        np.testing.assert_allclose(
            flatten(twice["stack"]), flatten(told["stack"]), rtol=1e-12, atol=1e-13
        )


@pytest.mark.parametrize("kind", list(KINDS))
def test_empty_profiles_change_nothing(kind):
    with jax.enable_x64(True):
        given = case(3)
        nobody = given.profiles._replace(mask=np.zeros_like(given.profiles.mask))
        told = jitted(kind)(given._replace(profiles=nobody))
        np.testing.assert_array_equal(
            told["report"].feasible, np.asarray(told["report"].admissible)
        )
        stack, present = gradients_of(given.batch)
        np.testing.assert_array_equal(told["report"].admissible, present)
        np.testing.assert_allclose(flatten(told["stack"]), stack, rtol=1e-14)
        assert not np.asarray(told["report"].removed_norm)[present].any()


@pytest.mark.parametrize("kind", ["project everyone", "shrink everyone", "reject everyone"])
def test_an_inactive_principal_restrains_nobody(kind):
    with jax.enable_x64(True):
        given = next(c for c in map(case, range(99)) if not c.batch.active[3])
        only_theirs = np.zeros_like(given.profiles.mask)
        only_theirs[3] = True
        strict = np.full_like(given.profiles.margin, 5.0)
        given = given._replace(profiles=given.profiles._replace(mask=only_theirs, margin=strict))
        stack, _ = gradients_of(given.batch)
        told = jitted(kind)(given)
        np.testing.assert_allclose(flatten(told["stack"]), stack, rtol=1e-14)
        joined = given.batch._replace(active=np.ones(AGENTS, bool))
        told = jitted(kind)(given._replace(batch=joined))
        changed = np.abs(flatten(told["stack"]) - stack).max(axis=1) > 1e-3
        np.testing.assert_array_equal(changed, told["report"].norm > 0)


@pytest.mark.parametrize("kind", ["project own", "project everyone"])
def test_margins_that_exclude_each_other_drop_the_update_and_say_so(kind):
    with jax.enable_x64(True):
        given = case(0, "zero")
        owners = np.arange(SLOTS, dtype=np.int32) % 4
        names = [f"V{m}" for m in range(VALUES)]
        impossible = [protect("V1", 0.1), forbid("V1", 0.1)]
        profiles = value_profiles(
            names, [[], impossible, [protect("V0")]], capacity=AGENTS, constraints=3
        )
        batch = given.batch._replace(
            owners=owners, mask=np.ones(SLOTS, bool), active=np.arange(AGENTS) < 4
        )
        given = given._replace(batch=batch, profiles=profiles)
        told = jitted(kind)(given)
        assert_equal(told, expected(kind, given), given, 1e-9)
        own = [True, False, True, True, False]
        assert told["report"].feasible.tolist() == (own if "own" in kind else [False] * AGENTS)
        np.testing.assert_allclose(
            np.asarray(told["report"].removed_norm)[1], told["report"].norm[1]
        )


@functools.cache
def vmapped():
    return jax.jit(jax.vmap(one_screen("project everyone", "linearized")))


def test_under_vmap_in_float32():
    kind = "project everyone"
    cases = [case(seed, margins, np.float32) for seed in range(5) for margins in MARGINS]
    told = vmapped()(jax.tree.map(lambda *leaves: np.stack(leaves), *cases))
    for number, this in enumerate(cases):
        one = jax.tree.map(lambda leaf, n=number: leaf[n], told)
        assert_equal(one, expected(kind, this), this, 1e-5)


def test_without_a_margin_above_zero_nothing_is_ever_dropped():
    """The update 0 is admissible then, however badly rounding treats nearly opposing values."""
    cases = []
    for seed in range(15):
        this = case(seed, "zero", np.float32)
        rng = np.random.default_rng(seed)
        rows = flatten(this.rows)[: VALUES // 2]
        opposing = 1e-3 * rng.standard_normal(rows.shape) - rows
        profiles = this.profiles._replace(
            sign=np.ones_like(this.profiles.sign), mask=np.ones_like(this.profiles.mask)
        )
        rows = unflatten(np.concatenate([rows, opposing]).astype(np.float32))
        cases.append(this._replace(rows=rows, profiles=profiles))
    told = vmapped()(jax.tree.map(lambda *leaves: np.stack(leaves), *cases))
    present = [gradients_of(this.batch)[1] for this in cases]
    np.testing.assert_array_equal(told["report"].feasible, present)


def test_screens_chain_and_what_was_dropped_stays_dropped():
    with jax.enable_x64(True):
        first, second = screen("reject"), screen("project", scope="everyone", measure_norms=True)

        @jax.jit
        def run(given):
            gradients = agent_gradients(linear_loss, given.params, given.batch)
            between, _ = first(gradients, given.rows, given.profiles)
            return answer(*second(between, given.rows, given.profiles), given)

        dropped = moved = 0
        for seed in range(16):
            this = case(seed, "mixed")
            rows, active = flatten(this.rows), this.batch.active
            stack, present = gradients_of(this.batch)
            between = twin("reject", "own", stack, present, active, rows, this.profiles)
            wanted = twin(
                "project", "everyone", between.stack, between.feasible, active, rows, this.profiles
            )
            told = run(this)
            assert_equal(told, wanted, this, 1e-9)
            dropped += (present & ~between.feasible).sum()
            moved += (wanted.coefficients != 0).any(axis=1).sum()
        assert dropped > 0
        assert moved > 0


def test_the_sum_is_admissible_to_everyone_unless_a_margin_is_negative():
    """Each of n updates may use up a negative margin by itself, so their sum can exceed it."""
    kind = "project everyone"
    with jax.enable_x64(True):
        worst = {}
        for margin in (0.25, 0.0, -0.25):
            slack = []
            for seed in range(12):
                given = case(seed)
                signs = np.ones_like(given.profiles.sign)
                margins = np.full_like(given.profiles.margin, margin)
                profiles = given.profiles._replace(sign=signs, margin=margins)
                told = jitted(kind)(given._replace(profiles=profiles))
                used = np.unique(profiles.value[profiles.mask & given.batch.active[:, None]])
                slack.append(flatten(given.rows)[used] @ flatten(told["sum"]) - margin)
            worst[margin] = np.concatenate(slack).min()
    assert worst[0.25] > -1e-12
    assert worst[0.0] > -1e-12
    assert worst[-0.25] < -0.2


def changes(values):
    """What updates [U] of several lengths [E] do to the values, [U, E, M]."""

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(None, 0, None))
    @functools.partial(jax.vmap, in_axes=(None, None, 0))
    def change(params, update, eta):
        moved = jax.tree.map(lambda p, u: p - eta * u, params, update)
        return values.losses(moved, None) - values.losses(params, None)

    return change


def test_after_a_small_step_no_protected_loss_rises_and_no_forbidden_one_falls():
    """Beyond second order: what a step does in the forbidden direction falls as eta squared."""
    etas = 10.0 ** -np.arange(1.0, 5.0)
    worst = {name: np.zeros(4) for name in ("own", "everyone", "unscreened")}
    with jax.enable_x64(True):
        values = curved_values()
        rows_at = jax.jit(lambda params: values.gradients(params, None)[1])
        change = changes(values)
        for seed in range(8):
            this = case(seed, "zero")
            this = this._replace(rows=rows_at(this.params))
            v, s, _, mask = this.profiles[:4]
            own = [
                [*zip(v[i, mask[i]], s[i, mask[i]], strict=True)] if this.batch.active[i] else []
                for i in range(AGENTS)
            ]
            told = jitted("project own")(this)
            every = jitted("project everyone")(this)["sum"]
            unscreened = unflatten(gradients_of(this.batch)[0])
            for name, updates, stated in (
                ("own", told["stack"], own),
                (
                    "everyone",
                    jax.tree.map(lambda leaf: leaf[None], every),
                    [[each for profile in own for each in profile]],
                ),
                ("unscreened", unscreened, own),
            ):
                moves = np.asarray(change(this.params, updates, etas))
                for moved, constraints in zip(moves, stated, strict=True):
                    for value, sign in constraints:
                        worst[name] = np.maximum(worst[name], sign * moved[:, value])
    for name, excess in worst.items():
        # A tenth of the step: a tenth of the harm unscreened, a hundredth of it screened.
        order = 1 if name == "unscreened" else 2
        fall = np.log10(excess[:-1] / excess[1:])
        np.testing.assert_allclose(fall, order, atol=0.2, err_msg=name)


def test_norms_are_not_measured_unless_asked_for():
    @functools.partial(jax.jit, static_argnums=1)
    def screened(given, method):
        gradients = agent_gradients(linear_loss, given.params, given.batch)
        unasked = gradients._replace(stack=lambda: pytest.fail("a stack was formed"))
        if method == "project":
            unasked = unasked._replace(squared_norms=lambda _: pytest.fail("norms were measured"))
        return gradients.present, screen(method)(unasked, given.rows, given.profiles)[1]

    present, report = screened(case(7, "zero", np.float32), "project")
    assert not report.admissible[present].all()
    assert not report.norm.any()
    # Whoever must tell a crossing from rounding measures them.
    assert screened(case(7, "zero", np.float32), "reject")[1].norm[present].all()


@pytest.mark.parametrize("after", ["reject", "shrink", "project"])
def test_what_one_screen_left_on_a_border_passes_the_next_in_single_precision(after):
    """64 agents, 200 parameters: products of what was projected are rounding, of either sign."""
    rng = np.random.default_rng(0)
    stack, rows = rng.normal(size=(64, 200)), rng.normal(size=(3, 200))
    stated = [[protect("a"), protect("b"), forbid("c")]] * 64
    profiles = value_profiles(("a", "b", "c"), stated)
    everyone = jnp.ones(64, bool)

    @jax.jit
    def run(stack, rows):
        gradients = from_stack(stack, jnp.zeros(64), everyone, everyone)
        first, _ = screen("project")(gradients, rows, profiles)
        second, report = screen(after, scope="everyone", measure_norms=True)(first, rows, profiles)
        return first.stack(), second.stack(), report

    first, second, report = run(*jax.tree.map(jnp.float32, (stack, rows)))
    assert report.admissible.all()
    assert not report.conflicts.any()
    np.testing.assert_allclose(second, first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["project", "reject", "shrink"])
def test_what_one_sells_does_not_bind_because_another_insists_on_less(method):
    sale, loose = protect("v", 0.5, price=0.1), protect("v", 0.0)
    upper = forbid("v", -0.3)
    g, row = jnp.array([[0.2, 1.0, 0.0]] * 3), jnp.array([[1.0, 0.0, 0.0]])
    everyone = jnp.ones(3, bool)
    wanted = {"project": [0.3, 1.0, 0.0]}.get(method, g[0])
    for stated in ([[sale], [], []], [[sale], [loose], []], [[sale], [loose], [upper]]):
        profiles = value_profiles(("v",), stated)
        gradients = from_stack(g, jnp.zeros(3), everyone, everyone)
        screened, report = screen(method, scope="everyone")(gradients, row, profiles)
        assert report.feasible.all()
        np.testing.assert_allclose(screened.stack(), [wanted] * 3, atol=1e-6)


@pytest.mark.parametrize("limits", [[], [max_norm(1e6)]], ids=["half-spaces", "conic"])
def test_margins_that_exclude_each_other_are_told_however_steep_the_update(limits):
    g, row = jnp.array([[-10.2, 99.5, 0.0]] * 2), jnp.array([[1.0, 0.0, 0.0]])
    both = jnp.ones(2, bool)
    asked = [protect("v", 0.001), *limits], [forbid("v", 0.001)]
    profiles = value_profiles(("v",), asked)
    gradients = from_stack(g, jnp.zeros(2), both, both)
    _, report = screen(scope="everyone")(gradients, row, profiles)
    assert report.dropped.all()
    # Margins that meet leave exactly one product.
    meeting = value_profiles(("v",), [[protect("v", 0.001), *limits], [forbid("v", -0.001)]])
    screened, report = screen(scope="everyone")(gradients, row, meeting)
    assert report.feasible.all()
    np.testing.assert_allclose(screened.dot(row[0]), 0.001, atol=1e-5)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="method='guess'"):
        screen("guess")
    with pytest.raises(ValueError, match="scope='nobody'"):
        screen("project", scope="nobody")
    given = case(0, dtype=np.float32)
    gradients = agent_gradients(linear_loss, given.params, given.batch)
    for agents in (1, AGENTS + 1):
        profiles = value_profiles(["V0"], [[]] * agents)
        with pytest.raises(ValueError, match=f"profiles are of {agents} agents .* {AGENTS}"):
            screen("project")(gradients, given.rows, profiles)
