"""The experiment on attribution: measures by hand, substrates by oracles, the whole command."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vcca_jax as vcca
from experiments.attribution import analysis, cells, problems, substrates, tables, train
from experiments.attribution.config import AGENTS, FULL, SMOKE, TL, federated, own_rule, told
from experiments.fidelity.analysis import shapley
from experiments.fidelity.problems import Rows, pool
from experiments.pages import distinct, fill_page, read
from vcca_jax.baselines import fedavg
from vcca_jax.rounds import Round

pytestmark = pytest.mark.slow  # many small programs to compile

RATE = 0.2
COALITION = np.array([1, 0, 1, 1, 0, 0, 1, 0], np.float32)
CODE = int(sum(int(inside) << i for i, inside in enumerate(COALITION)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("attribution")
    train.main(["--out", str(out), "--smoke"])
    return out


@pytest.fixture(scope="module")
def cell(folder) -> dict:
    return json.loads((folder / "cells" / "digits_few_labels_0.json").read_text())


@pytest.fixture(scope="module")
def compiled() -> cells.Compiled:
    return cells.Compiled(SMOKE, "digits")


@pytest.fixture(scope="module")
def played(compiled) -> problems.Game:
    return compiled.game("few labels", 0)


def test_pairs_in_order_by_hand():
    # In the order of noise the scores are 4, 2, 3, 0.
    scores, noise = np.array([3.0, 4, 0, 2]), np.array([0.6, 0.0, 0.9, 0.3])
    by_gap = analysis.ordered_right(scores, noise)
    assert by_gap == pytest.approx([2 / 3, 1, 1])
    assert analysis.pairs_right(by_gap) == pytest.approx(5 / 6)
    # Kendall's tau is concordant less discordant.
    tau = analysis.nearness(scores, -noise)[1]
    assert analysis.pairs_right(by_gap) == pytest.approx((tau + 1) / 2)
    flat = analysis.ordered_right(np.ones(4), noise)
    assert flat == [0.5, 0.5, 0.5]
    assert analysis.pairs_right(flat) == 0.5
    assert analysis.ordered_right(noise, noise) == [0, 0, 0]


def test_resolution_is_the_difference_from_which_on_all_are_in_order():
    def resolved(*shares):
        return analysis.resolution(np.array(shares), 0.1)

    assert resolved([1.0, 1, 1]) == pytest.approx(0.1)
    assert resolved([0.8, 1, 1]) == pytest.approx(0.2)
    # A smaller difference in order by luck does not count.
    assert resolved([1.0, 0.5, 1]) == pytest.approx(0.3)
    assert resolved([0.5, 1, 0.5, 1]) == pytest.approx(0.4)
    assert resolved([1.0, 1, 0.5]) is None
    # The mean over seeds is what counts, and 95 % is enough.
    assert resolved([0.9, 1, 1], [1.0, 1, 1]) == pytest.approx(0.1)
    assert resolved([0.88, 1, 1], [1.0, 1, 1]) == pytest.approx(0.2)
    assert analysis.step_of([0.9, 0.0, 0.3, 0.6]) == pytest.approx(0.3)


def test_partitions_deal_every_row_once_and_noise_is_graded():
    rows = pool(FULL.tasks["digits"], 0).train
    noise = problems.noise_of(3)
    np.testing.assert_allclose(np.sort(noise), 0.9 * np.arange(AGENTS) / (AGENTS - 1))
    assert not np.array_equal(noise, problems.noise_of(4))
    for how in FULL.partitions:
        shards = problems.dealt(rows, how, 2, 10, 3)
        sizes = [len(targets) for _, targets in shards]
        assert sum(sizes) == len(rows.targets)
        assert min(sizes) >= problems.FEWEST_ROWS
        # Images are found again by their pixels, and with them the true labels.
        true = {image.tobytes(): label for image, label in zip(*rows, strict=True)}
        assert {image.tobytes() for inputs, _ in shards for image in inputs} == set(true)
        for (inputs, targets), share in zip(shards, noise, strict=True):
            labels = np.array([true[image.tobytes()] for image in inputs])
            assert abs(np.mean(labels != targets) - share) <= 1 / len(targets)
            if how == "few labels":
                assert len(set(labels)) == 2
    with pytest.raises(ValueError, match="none of this experiment's partitions"):
        problems.dealt(Rows(*rows), "other", 2, 10, 3)


def test_every_substrate_sees_every_row_as_often(played):
    live = int(np.asarray(played.shards.mask).sum())
    assert live == SMOKE.tasks["digits"].train
    assert int(played.arrays.batches.mask.sum()) == SMOKE.epochs * live
    for plan in played.rounds.values():
        assert int(plan.mask.sum()) == SMOKE.epochs * live
        # Shuffled anew in every round.
        assert not np.array_equal(plan.rows[0], plan.rows[1])


def test_traversal_retrained_with_fixed_weights_is_the_training_utility(compiled, played, cell):
    rate = cell["substrates"][TL]["rate"]
    model = compiled.model(rate)
    utility = vcca.training_utility(
        model.loss_fn,
        played.arrays.start,
        model.optimizer,
        played.arrays.batches,
        lambda params: substrates.mean_loss(model, params, played.arrays.validation),
    )
    worths = cell["substrates"][TL]["worths"]
    assert worths["fixed"]["validation"][CODE] == pytest.approx(
        float(jax.jit(utility)(jnp.asarray(COALITION))), abs=2e-6
    )


def test_traversal_renormalised_takes_the_members_mean_gradient(compiled, played, cell):
    rate = cell["substrates"][TL]["rate"]
    model = compiled.model(rate)
    members, batches = jnp.asarray(COALITION), played.arrays.batches

    @jax.jit
    def step(params, batch):
        inside = members[batch.owners] * batch.mask

        def loss(params):
            each = model.loss_fn(params, batch.inputs, batch.targets)
            return (inside * each).sum() / jnp.maximum(inside.sum(), 1)

        return jax.tree.map(lambda p, g: p - rate * g, params, jax.grad(loss)(params))

    params = played.arrays.start
    for t in range(batches.mask.shape[0]):
        params = step(params, jax.tree.map(lambda leaf, t=t: leaf[t], batches))
    expected = -substrates.mean_loss(model, params, played.arrays.validation)
    found = cell["substrates"][TL]["worths"]["renormalised"]["validation"][CODE]
    assert found == pytest.approx(float(expected), abs=2e-6)


def test_federated_renormalised_is_fedavg_of_the_members_alone(compiled, played, cell):
    """Who has no live row in a round has no weight in the trainer's own average."""
    rate = cell["substrates"][federated(1)]["rate"]
    model = compiled.model(rate)
    trainer = fedavg(model.loss_fn, model.optimizer)
    step = jax.jit(lambda state, plan: trainer.step(state, Round(played.shards, plan))[0])
    state = trainer.init(played.arrays.start)
    plans = played.rounds[1]
    for turn in range(plans.mask.shape[0]):
        plan = jax.tree.map(lambda leaf, turn=turn: leaf[turn], plans)
        inside = COALITION[plan.agents] > 0
        state = step(state, plan._replace(mask=plan.mask & inside[:, None, None]))
    held = played.arrays
    for rows, of in ((held.validation, "validation"), (held.test, "test")):
        expected = -substrates.mean_loss(model, state.params, rows)
        found = cell["substrates"][federated(1)]["worths"]["renormalised"][of][CODE]
        assert found == pytest.approx(float(expected), abs=2e-6)


def test_both_rules_agree_on_everybody_and_nobody_and_only_there(cell):
    for found in cell["substrates"].values():
        fixed, shared = (np.array(found["worths"][r]["validation"]) for r in analysis.RULES)
        assert abs(fixed[-1] - shared[-1]) < 2e-6
        assert fixed[0] == shared[0]
        assert np.abs(fixed - shared)[1:-1].min() > 1e-6


def test_credits_that_telescope_sum_to_the_gain_of_retraining(cell):
    """FedAvg's exact values to rounding; TL's by quadrature, over the kinks of a perceptron."""
    for name, efficient in ((TL, ("Aumann-Shapley",)), (federated(1), ("Shapley", "FedSV"))):
        found = cell["substrates"][name]
        worths = found["worths"][own_rule(name)]["validation"]
        size = np.abs(found["credits"]["first order"]).sum()
        for estimator in efficient:
            gap = sum(found["credits"][estimator]) - (worths[-1] - worths[0])
            assert abs(gap) < (0.02 * size if name == TL else 1e-5)


def test_records_are_of_the_cells(folder, cell):
    scores = read(folder / "results", "scores")
    own = [r for r in scores if r["partition"] == "few labels" and r["seed"] == 0]
    noise = np.array(cell["noise"])
    for name, found in cell["substrates"].items():
        table = np.array(found["worths"][own_rule(name)]["validation"])
        rows = {r["estimator"]: r for r in own if r["substrate"] == name}
        assert set(rows) == {*found["credits"], analysis.TRUTH, analysis.TRUTH_LEFT_OUT}
        assert rows[analysis.TRUTH]["spearman_shapley"] == 1
        assert rows[analysis.TRUTH]["runs"] == 2**AGENTS
        assert rows[analysis.TRUTH_LEFT_OUT]["pearson_left_out"] == pytest.approx(1, abs=1e-6)
        for estimator, credits in found["credits"].items():
            nearness = analysis.nearness(np.array(credits), shapley(table))
            assert rows[estimator]["spearman_shapley"] == pytest.approx(nearness[0], abs=1e-5)
            tau = analysis.nearness(np.array(credits), -noise)[1]
            assert rows[estimator]["pairs"] == pytest.approx((tau + 1) / 2, abs=1e-5)
            assert rows[estimator]["events"] == (6 if name == TL else 2)
            assert rows[estimator]["runs"] > 1


def test_rates_are_those_of_the_least_tuning_loss(folder, cell):
    for record in read(folder / "results", "tuning"):
        assert record["rate"] == record["rates"][int(np.argmin(record["losses"]))]
        if record["partition"] == "few labels":
            assert cell["substrates"][record["substrate"]]["rate"] == record["rate"]


def test_differences_are_paired_by_seed():
    def record(substrate, seed, value):
        fields = {"substrate": substrate, "seed": seed, "field": value}
        return {**fields, "partition": "IID", "estimator": "e"}

    other = federated(1)
    scores = [record(TL, 0, 0.5), record(TL, 1, 0.9), record(other, 1, 0.8), record(other, 0, 0.7)]
    found = tables.differences(scores, "field", "IID", other, "e", "e")
    assert found == pytest.approx([-0.2, 0.1])
    assert tables.differences(scores, "field", "IID", other, "e", "none") == []


def test_a_finished_cell_is_kept_and_its_results_are_the_same(folder, monkeypatch):
    def refuse(*args):
        raise AssertionError("trained again")

    before = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    monkeypatch.setattr(cells, "measured", refuse)
    monkeypatch.setattr(cells, "best_rates", refuse)
    monkeypatch.setattr(train, "draw_figures", lambda results, out: None)
    train.main(["--out", str(folder), "--smoke"])
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before
    other = SMOKE._replace(local_batch=8)
    assert told(other, "digits") != told(SMOKE, "digits")
    with pytest.raises(AssertionError, match="trained again"):
        train.run(other, folder)


def test_figures_are_drawn(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"digits_nearness.png", "digits_differences.png"}


def test_the_readmes_tables_are_those_of_the_results(tmp_path):
    results = tables.HERE / "results"
    shutil.copy(results / "scores.parquet", tmp_path)
    tables.write_tables(tmp_path)
    assert (tmp_path / "tables.md").read_bytes() == (results / "tables.md").read_bytes()
    text = (tables.HERE / "README.md").read_bytes()
    assert b"<!-- table: " in text
    copy = tmp_path / "README.md"
    copy.write_bytes(text)
    fill_page(copy, tables.parts(tmp_path))
    assert copy.read_bytes() == text


def test_kept_scores_are_those_of_the_kept_games():
    results = tables.HERE / "results"
    games, scores = read(results, "games"), read(results, "scores")
    assert distinct(games, "partition") == list(FULL.partitions)
    assert len(games) == FULL.seeds * len(FULL.partitions) * len(FULL.tasks)
    again = analysis.score_records(games[-1])
    kept = scores[-len(again) :]
    for ours, theirs in zip(again, kept, strict=True):
        assert (ours["substrate"], ours["estimator"]) == (theirs["substrate"], theirs["estimator"])
        for field in ("spearman_shapley", "pearson_shapley", "pairs", "gap", "runs"):
            # Worths are kept to seven digits, and a gap divides by a gain that may be next to none.
            rounding = 1e-6 / abs(ours["gain"]) if field == "gap" else 1e-4
            close = pytest.approx(theirs[field], rel=max(1e-4, rounding), abs=rounding)
            assert ours[field] == close, field
