"""The experiment on fidelity: measures against closed forms, the whole command at smoke size."""

import itertools
import json
import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import vcca_jax as vcca
from experiments.fidelity import analysis, estimators, problems, tables, train
from experiments.fidelity.config import AGENTS, FULL, SMOKE, UPDATE_CHEATS, told

pytestmark = pytest.mark.slow  # many small programs to compile

TASK = SMOKE.tasks["digits"]


def additive(worths: np.ndarray) -> np.ndarray:
    """v(S) = sum of the members' worths, of all coalitions."""
    codes = np.arange(2 ** len(worths))
    return ((codes[:, None] >> np.arange(len(worths))) & 1) @ worths


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fidelity")
    train.main(["--out", str(out), "--smoke"])
    return out


@pytest.fixture(scope="module")
def cell(folder) -> dict:
    return json.loads((folder / "cells" / "digits_cheats_0.json").read_text())


def read(folder: Path, name: str) -> list[dict]:
    return tables.read(folder / "results", name)


def test_shapley_is_the_mean_over_all_orders():
    table = np.random.default_rng(0).normal(size=16)
    mean = np.zeros(4)
    for order in itertools.permutations(range(4)):
        inside = 0
        for agent in order:
            mean[agent] += (table[inside | 1 << agent] - table[inside]) / math.factorial(4)
            inside |= 1 << agent
    np.testing.assert_allclose(analysis.shapley(table), mean, atol=1e-12)


def test_both_truths_of_an_additive_game_are_its_worths():
    worths = np.array([3.0, -1.0, 0.5, 2.0])
    np.testing.assert_allclose(analysis.shapley(additive(worths)), worths, atol=1e-12)
    np.testing.assert_allclose(analysis.left_out(additive(worths)), worths, atol=1e-12)


def test_leave_one_out_of_a_pair_that_is_worth_something_together_only():
    table = np.array([0.0, 0, 0, 1])
    assert analysis.left_out(table).tolist() == [1, 1]
    assert analysis.shapley(table).tolist() == [0.5, 0.5]


def test_nearness_by_hand():
    truth = np.array([1.0, 2, 3, 4])
    swapped = np.array([1.0, 3, 2, 4])
    spearman, kendall, pearson = analysis.nearness(swapped, truth)
    # 1 - 6 sum d^2 / (n (n^2 - 1)) and (concordant - discordant) / pairs.
    assert spearman == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert kendall == pytest.approx((5 - 1) / 6)
    assert pearson == pytest.approx(np.corrcoef(swapped, truth)[0, 1])
    assert analysis.nearness(np.ones(4), truth) == (None, None, None)


def test_auc_is_mann_whitneys():
    rng = np.random.default_rng(1)
    scores, bad = rng.integers(0, 4, 12).astype(float), [0, 3, 4, 7]
    good = np.delete(scores, bad)
    expected = stats.mannwhitneyu(good, scores[bad]).statistic / (len(bad) * len(good))
    assert analysis.auc(scores, bad) == pytest.approx(expected)
    assert analysis.auc(np.array([0.0, 1, 2, 3]), [0, 1]) == 1
    assert analysis.auc(np.array([0.0, 1, 2, 3]), [2, 3]) == 0
    assert analysis.auc(np.zeros(4), [0]) == 0.5


def test_removal_of_a_known_game():
    worths = np.array([4.0, -2.0, 1.0, 5.0])  # the best coalition's gain is 10
    table = additive(worths) + 7
    best = analysis.removal(worths, table, best_first=True)
    worst = analysis.removal(worths, table, best_first=False)
    np.testing.assert_allclose(best, [0.8, 0.3, -0.1, -0.2, 0])
    np.testing.assert_allclose(worst, [0.8, 1, 0.9, 0.5, 0])
    # Equal scores go in the order of the axis, either way.
    flat = analysis.removal(np.zeros(4), table, best_first=True)
    np.testing.assert_allclose(flat, [0.8, 0.4, 0.6, 0.5, 0])


def test_products_count_loops_as_often_as_they_run():
    matrix = jnp.ones((3, 4))

    def program(matrix):
        def body(carried, _):
            return carried @ matrix.T @ matrix, None

        return jax.lax.scan(body, matrix, None, length=5)[0]

    # 3 x 4 by 4 x 3, then 3 x 3 by 3 x 4, five times; gradients cost as much again, twice over.
    assert estimators.products(program, matrix) == 5 * (3 * 4 * 3 + 3 * 3 * 4)
    batched = jax.vmap(program)
    assert estimators.products(batched, jnp.ones((2, 3, 4))) == 2 * 5 * 72


def test_scenarios_are_graded_and_hide_what_they_say():
    rows = problems.pool(TASK, 0).train
    noisy, bad = problems.dealt(rows, "label noise", 10, 0)
    clean = problems.cut(rows, (1.0,) * AGENTS)
    wrong = [float(np.mean(a[1] != b[1])) for a, b in zip(noisy, clean, strict=True)]
    expected = 0.9 * np.arange(AGENTS) / (AGENTS - 1)
    np.testing.assert_allclose(wrong, expected, atol=0.5 / len(clean[0][1]) + 1e-9)
    assert bad == (4, 5, 6, 7)
    sized, nobody = problems.dealt(rows, "sizes", 10, 0)
    assert nobody is None
    assert np.all(np.diff([len(targets) for _, targets in sized]) > 0)
    assert sum(len(targets) for _, targets in sized) == TASK.train
    cheats, _ = problems.dealt(rows, "cheats", 10, 0)
    by_role = dict(zip(problems.ROLES, cheats, strict=True))
    for copied, original in zip(by_role["replica of the clean"], by_role["clean"], strict=True):
        np.testing.assert_array_equal(copied, original)
    assert (by_role["few features"][0] != 0).any(axis=0).sum() <= round(0.2 * 64)
    original = problems.cut(rows, problems.SHARES)
    assert np.all(by_role["wrong labels"][1] != original[7][1])
    assert 0 < np.mean(by_role["random labels"][1] == original[5][1]) < 0.3
    with pytest.raises(ValueError, match="none of this experiment"):
        problems.dealt(rows, "other", 10, 0)


def test_stored_worths_are_the_librarys_own_runs(cell):
    """Everybody, nobody and one coalition, by a loop over steps written out."""
    model = problems.model_of(TASK, 64)
    game = problems.game(TASK, model, "cheats", 0)
    rows = game.arrays

    @jax.jit
    def trained(weights):
        params, state = rows.start, model.optimizer.init(rows.start)
        for t in range(TASK.steps):
            batch = jax.tree.map(lambda leaf, t=t: leaf[t], rows.batches)
            each = weights[batch.owners] * batch.mask / batch.mask.sum()
            slope = jax.grad(
                lambda p, batch=batch, each=each: jnp.sum(
                    each * model.loss_fn(p, batch.inputs, batch.targets)
                )
            )(params)
            updates, state = model.optimizer.update(slope, state, params)
            params = optax.apply_updates(params, updates)
        return [-model.loss_fn(params, *held).mean() for held in (rows.validation, rows.test)]

    for code in (0, 0b10100110, 2**AGENTS - 1):
        weights = jnp.asarray((code >> np.arange(AGENTS)) & 1, jnp.float32)
        expected = [float(v) for v in trained(weights)]
        found = [cell[held][code] for held in ("validation", "test")]
        np.testing.assert_allclose(found, expected, atol=2e-6)
    assert cell["sizes"] == list(game.sizes)


def test_every_estimator_is_scored_and_retraining_agrees_with_itself(folder, cell):
    scores = read(folder, "scores")
    names = set(cell["credits"])
    assert SMOKE.programs is not None
    assert names == {
        *SMOKE.programs,
        *estimators.samplers(SMOKE),
        *("Shapley", "leave-one-out", "Banzhaf", "size", "random"),
    }
    assert {(r["estimator"], r["seed"]) for r in scores} == set(
        itertools.product(names, range(SMOKE.seeds))
    )
    for record in scores:
        if record["estimator"] == "Shapley":
            assert record["spearman_shapley"] == 1
            assert record["pearson_shapley"] == pytest.approx(1, abs=1e-6)
            assert abs(record["gap"]) < 1e-3
            assert record["runs"] == 2**AGENTS
        if record["estimator"] == "leave-one-out":
            assert record["pearson_left_out"] == pytest.approx(1, abs=1e-6)
            assert record["runs"] == AGENTS + 1
        if record["estimator"] == "online in-run 1":
            assert 2 < record["runs"] < 6


def test_removal_curves_begin_with_everybody_and_end_with_nobody(folder):
    curves = read(folder, "curves")
    assert {record["estimator"] for record in curves} == set(analysis.DRAWN) & {
        record["estimator"] for record in read(folder, "scores")
    }
    for record in curves:
        assert record["worst_first"][0] == record["best_first"][0]
        assert max(record["worst_first"] + record["best_first"]) <= 1
        assert record["worst_first"][-1] == record["best_first"][-1] == 0


def test_axioms_of_the_two_games(folder):
    axioms = {record["estimator"]: record for record in read(folder, "axioms")}
    for name in ("Shapley", "Banzhaf", "leave-one-out", "Aumann-Shapley of the run, 2"):
        assert axioms[name]["null"] == 0
        assert axioms[name]["asymmetry"] < 1e-3
    assert abs(axioms["Shapley"]["gap"]) < 1e-3
    assert abs(axioms["Aumann-Shapley of the run, 2"]["split_gain"]) < 1e-3
    assert abs(axioms["Shapley"]["split_gain"]) > 1e-3


def test_a_finished_cell_is_kept_and_its_results_are_the_same(folder, monkeypatch):
    def refuse(*args):
        raise AssertionError("trained again")

    before = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    monkeypatch.setattr("experiments.fidelity.cells.valued", refuse)
    monkeypatch.setattr(train, "draw_figures", lambda results, out: None)
    train.main(["--out", str(folder), "--smoke"])
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before
    other = SMOKE._replace(orders=(16,))
    assert told(other, "digits") != told(SMOKE, "digits")
    with pytest.raises(AssertionError, match="trained again"):
        train.run(other, folder)


def test_figures_are_drawn(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"fidelity_cost.png", "fidelity_clock.png", "removal.png"}


def test_the_readmes_tables_are_those_of_the_results(tmp_path):
    """What is kept gives the same bytes again; a table that is asked for must exist."""
    kept = (tables.HERE / "results" / "tables.md").read_bytes()
    for name in ("scores", "axioms"):
        shutil.copy(tables.HERE / "results" / f"{name}.parquet", tmp_path)
    tables.write_tables(tmp_path)
    assert (tmp_path / "tables.md").read_bytes() == kept
    text = (tables.HERE / "README.md").read_bytes()
    copy = tmp_path / "README.md"
    copy.write_bytes(text)
    tables.insert_tables(copy, tmp_path)
    assert copy.read_bytes() == text
    copy.write_text("<!-- table: nothing -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="there is none of that title"):
        tables.insert_tables(copy, tmp_path)


def test_kept_scores_are_those_of_the_kept_games():
    games = tables.read(tables.HERE / "results", "games")
    scores = tables.read(tables.HERE / "results", "scores")
    assert {game["data"] for game in games} <= set(FULL.tasks)
    first = next(game for game in games if game["scenario"] == "cheats")
    again = [analysis.digits(record) for record in analysis.score_records(first)]
    chosen = {key: first[key] for key in ("data", "scenario", "seed")}
    kept = [r for r in scores if all(r[key] == value for key, value in chosen.items())]
    assert len(again) == len(kept)
    for ours, theirs in zip(again, kept, strict=True):
        assert ours["estimator"] == theirs["estimator"]
        for field in ("spearman_shapley", "pearson_left_out", "gap", "auc", "area", "runs"):
            if theirs[field] is None:
                assert ours[field] is None, field
            else:
                assert ours[field] == pytest.approx(theirs[field], rel=1e-4, abs=1e-4), field


@pytest.fixture(scope="module")
def cheated(tmp_path_factory) -> tuple[Path, dict]:
    """The folder of a tiny run of the cheats in updates alone, and its only cell."""
    out = tmp_path_factory.mktemp("update_cheats")
    train.run(SMOKE._replace(scenarios=(UPDATE_CHEATS,), seeds=1, axiom_seeds=0), out)
    return out, json.loads((out / "cells" / "digits_update_cheats_0.json").read_text())


def test_worths_of_cheats_in_updates_are_those_of_a_run_by_hand(cheated):
    """Who sends what is written out agent by agent, with the random rider's own draws."""
    model = problems.model_of(TASK, 64)
    rows = problems.game(TASK, model, UPDATE_CHEATS, 0).arrays
    train_rows = problems.pool(TASK, 0).train
    of_class = np.flatnonzero(train_rows.targets == problems.PROTECTED_CLASS)
    chosen = np.resize(of_class, problems.PROTECTED_ROWS)
    broken = jnp.asarray(train_rows.inputs[chosen]), jnp.asarray(train_rows.targets[chosen])
    norm = optax.tree_utils.tree_norm

    def sent(params, batch, t):
        def gradient(agent):
            each = (batch.owners == agent) * batch.mask / batch.mask.sum()
            return jax.grad(
                lambda p: jnp.sum(each * model.loss_fn(p, batch.inputs, batch.targets))
            )(params)

        updates = [gradient(agent) for agent in range(AGENTS)]
        visited = [jnp.any((batch.owners == agent) & batch.mask) for agent in range(AGENTS)]
        zero, random, breaker = problems.ZERO, problems.RANDOM, problems.BREAKER
        updates[zero] = jax.tree.map(jnp.zeros_like, params)
        leaves, tree = jax.tree.flatten(params)
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), t), random)
        keys = jax.random.split(key, len(leaves))
        drawn = [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
        length = visited[random] * norm(updates[random]) / norm(drawn)
        updates[random] = jax.tree.unflatten(tree, [length * each for each in drawn])
        uphill = jax.grad(lambda p: model.loss_fn(p, *broken).mean())(params)
        push = visited[breaker] * norm(updates[breaker]) / norm(uphill)
        updates[breaker] = jax.tree.map(lambda g, d: g - push * d, updates[breaker], uphill)
        return jax.tree.map(lambda *parts: jnp.stack(parts), *updates)

    @jax.jit
    def trained(weights):
        params, state = rows.start, model.optimizer.init(rows.start)
        for t in range(TASK.steps):
            batch = jax.tree.map(lambda leaf, t=t: leaf[t], rows.batches)
            whole = jax.tree.map(
                lambda leaf: jnp.tensordot(weights, leaf, 1), sent(params, batch, t)
            )
            updates, state = model.optimizer.update(whole, state, params)
            params = optax.apply_updates(params, updates)
        return [-model.loss_fn(params, *held).mean() for held in (rows.validation, rows.test)]

    _, cell = cheated
    for code in (0, 0b11000110, 0b01111111, 2**AGENTS - 1):
        weights = jnp.asarray((code >> np.arange(AGENTS)) & 1, jnp.float32)
        found = [cell[held][code] for held in ("validation", "test")]
        np.testing.assert_allclose(found, [float(v) for v in trained(weights)], atol=5e-6)


def test_who_sends_nothing_is_worth_nothing_and_who_sends_something_else_is_not(cheated):
    out, cell = cheated
    table = np.array(cell["validation"])
    without = np.flatnonzero((np.arange(len(table)) >> problems.ZERO) & 1 == 0)
    assert (table[without | 1 << problems.ZERO] == table[without]).all()
    exact = {"Shapley", "leave-one-out", "Banzhaf", "permutation, 8 orders"}
    for name in exact | set(SMOKE.programs or ()):
        assert cell["credits"][name][problems.ZERO] == 0, name
        assert cell["credits"][name][problems.RANDOM] != 0, name
        assert cell["credits"][name][problems.BREAKER] != 0, name
    assert cell["bad"] == [problems.ZERO, problems.RANDOM, problems.BREAKER]
    title = "Cheats in updates"
    assert f"## {title}" in (out / "results" / "tables.md").read_text(encoding="utf-8")


def test_estimators_of_a_table_are_the_librarys(cell):
    table = np.array(cell["validation"])
    credits, asked = estimators.from_table(table, 0, SMOKE)
    np.testing.assert_allclose(credits["Shapley"], analysis.shapley(table), atol=1e-5)
    np.testing.assert_allclose(credits["leave-one-out"], analysis.left_out(table), atol=1e-6)
    assert asked["stratified, 40"] == 40
    assert asked["permutation, 8 orders"] == 8 * (AGENTS - 1) + 2
    everybody = vcca.banzhaf(estimators.tabled(jnp.asarray(additive(np.arange(8.0)))), jnp.ones(8))
    np.testing.assert_allclose(everybody, np.arange(8.0), atol=1e-5)
