"""Every public stage keeps its contract, an unlisted one fails, and a broken one is found out."""

import functools
import inspect
import itertools
from fractions import Fraction
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import vcca_jax as vcca
from tests.problems import criterion, problem, tanh_mlp
from tests.round_examples import CAPACITY, ONE_OF_A_KIND, initial, members, rounds
from tests.round_examples import trainers as round_trainers
from vcca_jax import baselines, share_rules, traversal
from vcca_jax.admissibility import ScreenMethod
from vcca_jax.conformance import (
    check_screen,
    check_share_rule,
    check_trainer,
    check_value_loss,
)
from vcca_jax.share_rules import RESERVE, ShareRule
from vcca_jax.trainer import Trainer, strong
from vcca_jax.values import value_losses

RULES = {
    "high_water_mark": share_rules.high_water_mark(),
    "per_period": share_rules.per_period(),
    "accumulated": share_rules.accumulated(),
    "softmax": share_rules.softmax(2),
    "power": share_rules.power(Fraction(1, 2)),
    "bounded": share_rules.bounded(share_rules.per_period(), floor=0, cap=Fraction(1, 3)),
}
SCOPES = get_args(inspect.get_annotations(vcca.screen, eval_str=True)["scope"])
SCREENS = list(itertools.product(get_args(ScreenMethod), SCOPES))


@functools.cache
def batch_trainers():
    """Every trainer that takes virtual batches, with its first state."""
    _, model, loss_fn, params, _ = problem()
    sgd = optax.sgd(0.3, momentum=0.9)
    values = value_losses({"size": lambda params, context: optax.tree_utils.tree_norm(params)})
    profiles = vcca.value_profiles(["size"], [[vcca.protect("size")]] * 5)

    def validation(params):
        return optax.tree_utils.tree_norm(params, squared=True)

    made = {
        "centralized": vcca.centralized(loss_fn, sgd),
        "traversal": vcca.traversal(loss_fn, sgd),
        "split_traversal": vcca.split_traversal(model, criterion, sgd),
        "cooperate": vcca.cooperate(
            loss_fn, sgd, validation, values, screen=vcca.screen("reject", scope="everyone")
        ),
    }
    states = {
        name: trainer.init(params, *([profiles] if name == "cooperate" else []))
        for name, trainer in made.items()
    }
    return {name: (made[name], states[name]) for name in made}


def test_no_public_stage_is_unlisted():
    def makers(module, wanted):
        """Public functions that are said to return what is wanted."""
        names = getattr(module, "__all__", None) or [n for n in vars(module) if n[0] != "_"]
        functions = [getattr(module, name) for name in names]
        return {
            each.__name__
            for each in functions
            if inspect.isfunction(each) and inspect.signature(each).return_annotation is wanted
        }

    assert makers(share_rules, ShareRule) - {"rule_from_spec"} == set(RULES)
    found = makers(baselines, Trainer) | makers(traversal, Trainer) | makers(vcca, Trainer)
    wrappers = {
        "gradient_trainer",
        "noisy",
        "checked",
        "federated",
        "sharded",
        "redrawn",
        "retaken",
    }
    assert found - wrappers == set(batch_trainers()) | set(round_trainers())


def quick(names, slow):
    """For parametrize; what takes long to compile, and shares its code with another, is slow."""
    return [pytest.param(n, marks=[pytest.mark.slow] if n in slow else []) for n in names]


@pytest.mark.parametrize(
    "made", quick(SCREENS, [("project", "own"), ("project", "weighted")]), ids=" ".join
)
def test_screens_and_what_they_promise(made):
    method, scope = made
    promises = check_screen(vcca.screen(method, scope=scope))
    assert promises.needless < 1e-6
    if scope == "own":
        assert promises.own < 1e-5 < 0.01 < promises.everyone
    if scope == "everyone":
        assert max(promises.own, promises.everyone) < 1e-5
    if scope == "weighted":  # a compromise, and no promise to anyone
        assert promises.own > 0.1
    assert (promises.dropped > 0) == (method != "project" and scope != "weighted")


@pytest.mark.parametrize("name", sorted(RULES))
def test_share_rules_and_what_they_pay_for(name):
    traits = check_share_rule(RULES[name])
    assert (traits.free_rider > 0) == (name == "softmax")
    assert (traits.harm > 0) == (name == "softmax")
    assert (traits.sybil_gain > 0) == (name in ("power", "softmax", "bounded"))


@pytest.mark.parametrize("name", ["centralized", "traversal", "split_traversal", "cooperate"])
def test_trainers_of_virtual_batches(name):
    trainer, state = batch_trainers()[name]
    check_trainer(trainer, state, problem()[4][0])


def linear(params, inputs, targets):
    return (inputs.sum(axis=1) * params["slope"] + params["shift"] - targets) ** 2


@pytest.mark.parametrize("shift", [0.0, jnp.asarray(0.0)], ids=["python", "weak"])
def test_a_step_compiles_once_for_weakly_typed_parameters(shift):
    trainer = vcca.centralized(linear, optax.adam(0.1))
    state = trainer.init({"slope": jnp.ones(()), "shift": shift})
    check_trainer(trainer, state, problem()[4][0])
    step = jax.jit(trainer.step)
    for batch in problem()[4][:2]:
        state, _ = step(state, batch)
    assert step._cache_size() == 1


def test_strong_types_are_kept_and_weak_ones_made_strong():
    key, array = jax.random.key(0), jnp.ones(2, jnp.bfloat16)
    made = strong({"key": key, "array": array, "weak": jnp.asarray(1.0), "n": 3, "no": None})
    assert made["key"] == key
    assert made["array"].dtype == array.dtype
    assert made["array"].unsafe_buffer_pointer() != array.unsafe_buffer_pointer()
    kinds = [(made[name].dtype, made[name].weak_type) for name in ("weak", "n")]
    assert kinds == [(jnp.float32, False), (jnp.int32, False)]
    assert made["no"] is None


@pytest.mark.parametrize("name", quick(round_trainers(), set(round_trainers()) - {*ONE_OF_A_KIND}))
def test_trainers_of_rounds(name):
    with jax.enable_x64(True):
        there = members()
        plans = rounds(there, 1, steps=4)
        first = jax.tree.map(lambda field: field[0], plans)
        trainer = round_trainers(CAPACITY)[name]
        check_trainer(trainer, trainer.init(initial()), vcca.Round(there.shards, first))


PLAIN = vcca.screen("project")


def silent(gradients, rows, profiles):
    return gradients, None


def generous(gradients, rows, profiles):
    report = vcca.untouched(gradients, rows)
    ones = jnp.ones(gradients.active.shape)
    return vcca.affine(gradients, ones, report.coefficients + 1.0, rows), report


def dishonest(gradients, rows, profiles):
    screened, report = PLAIN(gradients, rows, profiles)
    return screened._replace(sum=gradients.sum), report


def unmasked(gradients, rows, profiles):
    report = vcca.untouched(gradients, rows)
    scale = jnp.where(gradients.present, 1 / (1 + jnp.abs(profiles.margin).sum(axis=1)), 0)
    return vcca.affine(gradients, scale, report.coefficients, rows), report


def dividing(gradients, rows, profiles):
    report = vcca.untouched(gradients, rows)
    scale = gradients.dot(jax.tree.map(lambda leaf: leaf[0], rows))
    return vcca.affine(gradients, scale / scale, report.coefficients, rows), report


@pytest.mark.parametrize(
    ("screen", "message"),
    [
        (silent, "ScreenReport"),
        (generous, "absent agent"),
        (dishonest, "its own stack"),
        (unmasked, "padding slots"),
        (dividing, "not finite"),
    ],
)
def test_a_broken_screen_is_found_out(screen, message):
    with pytest.raises(ValueError, match=message):
        check_screen(screen)


def ruled(shares, spec=None):
    return ShareRule({"rule": "mine"} if spec is None else spec, shares)


SEEN: list[int] = []


def forgetful(credits, standings):
    SEEN.append(1)
    return {party: len(SEEN) for party in credits} | {"ana": 1}


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ruled(lambda credits, standings: credits), "no share may be negative"),
        (ruled(lambda credits, standings: {"zoe": 1}), f"share of '{RESERVE}'"),
        (ruled(lambda credits, standings: {next(iter(credits)): 1}), "another order"),
        (ruled(lambda credits, standings: {credits.popitem()[0]: 1}), "pure function"),
        (ruled(lambda credits, standings: {"ana": float("nan")}), "finite"),
        (ruled(lambda credits, standings: {"ana": 1}, {"rule": "mine", "n": 3}), "all of it text"),
        (ruled(forgetful), "no state"),
    ],
)
def test_a_broken_share_rule_is_found_out(rule, message):
    with pytest.raises(ValueError, match=message):
        check_share_rule(rule)


def spoiled(step):
    trainer, _ = batch_trainers()["traversal"]
    return Trainer(trainer.init, step(trainer.step))


def with_step(change):
    return lambda step: lambda state, batch: change(step, state, batch)


@with_step
def widening(step, state, batch):
    after, info = step(state, batch)
    return after._replace(step=after.step * 1.0), info


@with_step
def never_idle(step, state, batch):
    after, info = step(state, batch)
    return after._replace(step=state.step + 1), info


@with_step
def blind(step, state, batch):
    live = batch.mask.any()
    return step(state, batch._replace(mask=jnp.ones_like(batch.mask) & live))


@with_step
def drifting(step, state, batch):
    after, info = step(state, batch)
    noise = np.random.default_rng().uniform()
    return jax.tree.map(lambda leaf: leaf * 0 + noise if leaf.ndim else leaf, after), info


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (widening, "keeps its structure"),
        (never_idle, "where_live"),
        (blind, "padding slot"),
        (drifting, "pure JAX function"),
    ],
)
def test_a_broken_trainer_is_found_out(step, message):
    _, state = batch_trainers()["traversal"]
    with pytest.raises(ValueError, match=message):
        check_trainer(spoiled(step), state, problem()[4][0])


def test_a_state_that_holds_one_array_twice_is_found_out():
    trainer, state = batch_trainers()["traversal"]
    twice = state._replace(optimizer_state=(state.params, state.optimizer_state))
    with pytest.raises(ValueError, match=r"one array at \.params.* cannot be donated"):
        check_trainer(trainer, twice, problem()[4][0])


def test_a_state_whose_weak_types_a_step_strengthens_is_found_out():
    def step(state, batch):
        at = vcca.where_live(batch, state["at"] + jnp.float32(1), state["at"])
        return {"at": at}, None

    def check(at):
        check_trainer(Trainer(dict, step), {"at": at}, problem()[4][0])

    check(strong(0.0))
    with pytest.raises(ValueError, match="types are weak"):
        check(jnp.asarray(0.0))


def test_a_batch_that_shows_nothing_is_refused():
    trainer, state = batch_trainers()["traversal"]
    batch = problem()[4][0]
    with pytest.raises(ValueError, match="three at least"):
        check_trainer(trainer, state, batch._replace(mask=np.zeros_like(batch.mask)))


PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[0.5]])}


def test_a_value_loss_and_its_slope():
    def size(params, context):
        return context * optax.tree_utils.tree_norm(params, squared=True)

    slope = check_value_loss(size, PARAMS, 0.5)
    assert slope.loss == pytest.approx(0.5 * 5.25)
    assert slope.norm == pytest.approx(np.sqrt(5.25))
    assert slope.error < 1e-2
    stopped = check_value_loss(lambda p, c: size(jax.lax.stop_gradient(p), 1.0) + p["a"][0], PARAMS)
    assert stopped.error > 0.5
    assert check_value_loss(lambda params, context: jnp.float32(3.0), PARAMS) == (3.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda params: params["a"].sum(), "takes both"),
        (lambda params, context: params["a"], "one floating-point number"),
        (lambda params, context: params["a"].argmax(), "one floating-point number"),
        (lambda params, context: jnp.log(params["a"]).sum(), "must be finite"),
        (lambda params, context: jnp.sqrt(jnp.abs(params["a"] - 1)).sum(), "must be finite"),
        (lambda p, context: p["a"].sum() * np.random.default_rng().uniform(), "pure JAX"),
    ],
)
def test_what_cannot_stand_for_a_value_is_found_out(loss, message):
    with pytest.raises(ValueError, match=message):
        check_value_loss(loss, PARAMS)


def test_a_model_is_checked_elsewhere():
    vcca.check_boundary(tanh_mlp(), problem()[3], np.eye(5, dtype=np.float32)[:3])
