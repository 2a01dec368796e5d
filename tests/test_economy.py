"""The economy at smoke size: twin worlds, the library's own credit, money that adds up."""

import re
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from scipy import stats

import vcca_jax as vcca
from experiments.economy import agents, analysis, settling, tables, train, training
from experiments.economy.agents import CHEAT, SYBIL_SLOTS
from experiments.economy.config import DEFAULT_RULE, SMOKE
from experiments.economy.figures import draw_figures

TABLE = agents.scenarios(SMOKE)


def samples(world) -> np.ndarray:
    """[P, T, B, 65], each slot's input and label, 0 where there is padding."""
    owners, rows, mask = world.plan
    inputs, targets = (x[owners, rows] for x in (world.shards.inputs, world.shards.targets))
    return np.concatenate([inputs, targets[..., None]], axis=-1) * mask[..., None]


@pytest.fixture(scope="module")
def outcomes():
    return train.train(SMOKE, TABLE)


@pytest.fixture(scope="module")
def written(outcomes, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("economy")
    return folder, train.write(SMOKE, TABLE, outcomes, folder)


@pytest.mark.parametrize("name", ["splitter", "parker", "free rider", "label flipper"])
def test_a_cheat_and_its_twin_get_the_same_batches(name):
    world = agents.make_world(SMOKE, TABLE[name], 1)
    twin = agents.make_world(SMOKE, TABLE[TABLE[name].twin], 1)
    np.testing.assert_array_equal(world.plan.mask, twin.plan.mask)
    if name == "label flipper":
        np.testing.assert_array_equal(world.plan.owners, twin.plan.owners)
        others = np.arange(agents.CAPACITY) != CHEAT
        np.testing.assert_array_equal(world.shards.targets[others], twin.shards.targets[others])
        brought = (
            world.shards.targets[CHEAT, : SMOKE.rows] != twin.shards.targets[CHEAT, : SMOKE.rows]
        )
        assert brought.all()
    else:
        np.testing.assert_array_equal(samples(world), samples(twin))
    if name in ("splitter", "parker"):
        assert (world.plan.owners >= 16).any()
        assert world.shards.mask.sum() == twin.shards.mask.sum()


def test_the_parker_parks_all_wrong_rows_and_no_right_one():
    world = agents.make_world(SMOKE, TABLE["parker"], 0)
    honest = agents.make_world(SMOKE, TABLE["honest"], 0)
    truth = {
        tuple(x): int(y)
        for x, y in zip(honest.shards.inputs[CHEAT], honest.shards.targets[CHEAT], strict=True)
    }
    for slot, right in ((CHEAT, True), (SYBIL_SLOTS[0], False)):
        own = world.shards.mask[slot]
        assert own.any()
        for x, y in zip(
            world.shards.inputs[slot][own], world.shards.targets[slot][own], strict=True
        ):
            assert (truth[tuple(x)] == int(y)) is right


def test_who_is_absent_has_no_sample():
    for name, absent in (
        ("late joiner", slice(0, SMOKE.join_at)),
        ("leaver", slice(SMOKE.leave_at, None)),
    ):
        world = agents.make_world(SMOKE, TABLE[name], 0)
        there = ((world.plan.owners == CHEAT) & world.plan.mask).any(axis=(1, 2))
        expected = np.ones(SMOKE.periods, bool)
        expected[absent] = False
        np.testing.assert_array_equal(there, expected)
        np.testing.assert_array_equal(world.active[:, CHEAT], expected)


def test_purposes_share_no_row():
    rows = agents.deal_rows(agents.Config(), 3)
    upright = [x for inputs, _ in rows.train for x in (1 - inputs[:16], inputs[16:])]
    parts = [np.concatenate(upright), rows.validation[0], rows.audit[0], 1 - rows.protected[0]]
    distinct = [{x.tobytes() for x in part} for part in [*parts, rows.test[0]]]
    assert sum(map(len, distinct)) == len(set().union(*distinct))
    for part in (rows.validation, rows.audit):
        counts = np.bincount(part[1], minlength=10)
        assert counts.max() - counts.min() <= 3


def test_credits_are_those_of_the_librarys_own_step(outcomes):
    """The experiment's step is ``cooperate`` but for the many estimators."""
    world = agents.make_world(SMOKE, TABLE["honest"], SMOKE.first_seed)
    model = training.model_of(SMOKE)
    loss_fn = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    validation = vcca.group_loss(loss_fn, *world.validation)
    values = vcca.value_losses({agents.PROTECTED: vcca.group_loss(loss_fn, *world.protected)})
    trainer = vcca.cooperate(
        loss_fn, optax.sgd(SMOKE.learning_rate), lambda p: validation(p, None), values
    )
    key = jax.random.fold_in(jax.random.key(0), world.seed)
    state = trainer.init(model.init(jax.random.fold_in(key, 0)), world.profiles)
    plan = jax.tree.map(lambda x: x.reshape((-1, *x.shape[2:])), world.plan)
    step = lambda s, at: trainer.step(s, vcca.gather(world.shards, at))  # noqa: E731
    _, info = jax.jit(lambda s: jax.lax.scan(step, s, plan))(state)
    by_period = np.asarray(info.credits).reshape(SMOKE.periods, SMOKE.steps, -1).sum(axis=1)
    sums = outcomes["honest"].sums
    np.testing.assert_allclose(sums["credits"][0, :, 0], by_period, atol=2e-5)
    np.testing.assert_allclose(sums["gain"][0].sum(), np.asarray(info.gain).sum(), atol=1e-5)


def test_a_zero_update_is_worth_and_paid_exactly_nothing(outcomes):
    assert not outcomes["free rider"].sums["credits"][..., CHEAT].any()
    assert np.abs(outcomes["honest"].sums["credits"][..., CHEAT]).min() > 0
    for rule in ("high water mark", "per period", "power 2", "capped"):
        paid = analysis.payouts(SMOKE, "free rider", outcomes["free rider"], rule)
        assert not analysis.earned("free rider", paid, CHEAT).any()


def test_identities_credit_sums_to_the_owners(outcomes):
    """Aumann-Shapley, influence and in-run credit are split-invariant; leave-one-out is not."""
    together = outcomes["honest, no values"].sums["credits"][..., CHEAT]
    slots = [CHEAT, *SYBIL_SLOTS]
    apart = outcomes["splitter, no values"].sums["credits"][..., slots].sum(axis=-1)
    np.testing.assert_allclose(apart[:, :, :4], together[:, :, :4], atol=3e-6)
    assert np.abs(apart[:, :, 4] - together[:, :, 4]).max() > 1e-4
    name, twin = "splitter, no values", "honest, no values"
    paid = [
        analysis.payouts(SMOKE, each, outcomes[each], DEFAULT_RULE, defence="quotient by principal")
        for each in (name, twin)
    ]
    earned = [analysis.earned(each, p, CHEAT) for each, p in zip((name, twin), paid, strict=True)]
    np.testing.assert_allclose(*earned, rtol=1e-4, atol=20)


def test_screens_differ_and_everyones_governs_the_breaker(outcomes):
    own, everyone, reject = (
        outcomes[name].sums for name in ("value breaker", "breaker, everyone", "breaker, reject")
    )
    assert own["conflicts"][..., CHEAT].sum() == 0  # its own profile is empty
    assert everyone["conflicts"][..., CHEAT].sum() > 0
    assert everyone["dropped"][..., CHEAT].sum() == 0
    dropped, conflicts = (reject[field][..., CHEAT] for field in ("dropped", "conflicts"))
    np.testing.assert_array_equal(dropped, conflicts)
    assert dropped.sum() > 0


def test_periods_are_settled_as_the_ledger_settles_them(written):
    assert written[1]["ledgers_that_agree"] == [7, 7]


def test_equal_claims_are_settled_as_the_ledger_settles_them(tmp_path):
    """Where remainders are equal, the odd unit goes to whom the ledger gives it."""
    credits = settling.Credits([dict.fromkeys("abc", 0.5)] * 6, [1.0, 1.0, -1.0, 1.0, 1.0, 1.0])
    rule = settling.share_rules(SMOKE)["per period"]
    booked = settling.settle_in_ledger(str(tmp_path / "ties.sqlite"), rule, credits, 100)
    assert settling.totals(settling.settle(rule, credits, 100)) == booked
    assert len(set(booked.values())) > 1


def test_rows_sent_three_times_are_counted_once(outcomes):
    honest, liar = (outcomes[name].distinct for name in ("honest", "size liar"))
    np.testing.assert_allclose(liar[:, CHEAT], honest[:, CHEAT] / SMOKE.repeats)
    assert (honest[:, :16] > 0.7).all()


def test_what_was_trained_can_be_settled_again(outcomes, tmp_path):
    train.save(outcomes, tmp_path / "trained.npz")
    jax.tree.map(
        np.testing.assert_array_equal, train.load(tmp_path / "trained.npz"), dict(outcomes)
    )


def test_no_period_pays_more_than_its_revenue_and_what_was_carried(outcomes):
    for name in ("mixed", "parker"):
        for rule in settling.share_rules(SMOKE):
            for seed in analysis.payouts(SMOKE, name, outcomes[name], rule):
                due = 0
                for paid in seed:
                    due += SMOKE.revenue
                    assert 0 <= sum(paid.values()) <= due
                    due = due if not paid else 0


def test_withheld_credit_goes_to_the_others():
    credits = np.ones((3, 3))
    plain = settling.credits_of(credits, np.ones(3), np.ones((3, 3), bool), range(3))
    less = settling.credits_of(
        credits, np.ones(3), np.ones((3, 3), bool), range(3), withheld={2: 1}
    )
    rule = settling.share_rules(SMOKE)["high water mark"]
    assert settling.totals(settling.settle(rule, plain, 300)) == {"00": 300, "01": 300, "02": 300}
    assert settling.totals(settling.settle(rule, less, 300)) == {"00": 400, "01": 400, "02": 100}


def test_gains_are_paired_and_their_intervals_students():
    cheat, honest = np.array([3.0, 5.0, 9.0]), np.array([1.0, 4.0, 4.0])
    record = analysis.gain_record(cheat, honest, fair=2.0)
    low, high = stats.t.interval(
        0.95, 2, loc=np.mean([100, 50, 250]), scale=stats.sem([100, 50, 250])
    )
    assert record["gain_percent"] == pytest.approx((low + high) / 2, abs=1e-3)
    assert record["gain_half_width"] == pytest.approx((high - low) / 2, abs=1e-3)
    assert record["honest_percent_of_fair_share"] == pytest.approx(150)


def test_every_cheat_rule_and_estimator_is_in_the_matrix(written):
    rows = tables.read(written[0] / "results", "gains")
    cheats = {name for name, scenario in TABLE.items() if scenario.twin}
    assert {row["scenario"] for row in rows} == cheats
    undefended = [row for row in rows if row["defence"] == "none"]
    # 7 rules under the default estimator, 6 rules under 5 others, the audit under the default rule.
    assert len(undefended) == len(cheats) * (7 + 6 * 5 + 1)
    assert len(rows) - len(undefended) == 3 * (7 + 1) + 1 + 2
    assert len({tuple(row.values())[:6] for row in rows}) == len(rows)


def test_efficient_estimators_sum_to_the_gain(written):
    rows = {r["estimator"]: r for r in tables.read(written[0] / "results", "estimators")}
    for name in ("aumann_shapley", "permutation_shapley"):
        assert float(rows[name]["sum_over_gain"]) == pytest.approx(1, abs=0.01)
    assert float(rows["influence"]["sum_over_gain"]) < 0.9
    assert float(rows["aumann_shapley"]["rank_correlation_with_default"]) == 1
    shares = [r["share_of_gain"] for r in tables.read(written[0] / "results", "periods")]
    assert sum(map(float, shares)) == pytest.approx(1, abs=1e-3)


def test_tables_and_figures_come_from_the_results_alone(written, tmp_path):
    results = written[0] / "results"
    text = tables.write_tables(results)
    assert "free rider, zero update" in text
    for target in ("once", "again"):
        draw_figures(results, tmp_path / target)
    drawn = sorted(path.name for path in (tmp_path / "once").iterdir())
    assert drawn == [
        "cumulative_payouts.png",
        "defences.png",
        "gains_by_estimator.png",
        "gains_by_rule.png",
    ]
    for name in drawn:
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_the_readme_shows_the_stored_results(tmp_path):
    folder = Path(tables.__file__).parent
    results = tmp_path / "results"
    shutil.copytree(folder / "results", results)
    text = tables.write_tables(results)
    assert text == (folder / "results" / "tables.md").read_text(encoding="utf-8")
    first = text.split("\n\n")[1]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert first in readme
    shown = re.findall(r"\]\((figures/\w+\.png)\)", readme)
    assert len(shown) == 4
    assert all((folder / name).exists() for name in shown)
