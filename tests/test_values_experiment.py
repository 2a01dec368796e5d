"""The experiment on values at smoke size: one program for all conditions, records, figures."""

import json
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from scipy import stats

import vcca_jax as vcca
from experiments.values import analysis, figures, loss_figures, settings, tables, train, training
from experiments.values.config import SMOKE
from experiments.values.problems import drawn
from experiments.values.settings import HEART_PROFILES
from experiments.values.sweeps import slope


@pytest.fixture(scope="module")
def problem():
    return settings.heart(SMOKE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("values")
    train.main(["--out", str(out), "--smoke"])
    return out


def records(folder: Path, name: str) -> list[dict]:
    return tables.read(folder / "results", name)


@pytest.mark.slow
def test_every_condition_seed_and_value_is_in_the_records(folder):
    finals, values = records(folder, "finals"), records(folder, "values")
    assert SMOKE.conditions is not None
    assert [(r["condition"], r["seed"]) for r in finals] == [
        (name, seed) for name in SMOKE.conditions for seed in range(SMOKE.seeds)
    ]
    assert len(values) == len(finals) * 4
    kinds = {r["value"]: r["kind"] for r in values}
    told = {c.value: c.kind for profile in HEART_PROFILES.values() for c in profile}
    assert kinds == told


@pytest.mark.slow
def test_unscreened_training_is_the_librarys_own(folder, problem):
    """With nobody stating anything the program is plain SGD on the pooled batches."""
    data = problem.data[0]
    trainer = vcca.traversal(problem.loss_fn, optax.sgd(SMOKE.heart.learning_rate))
    state = trainer.init(problem.model.init(jax.random.fold_in(jax.random.key(0), data.seed)))
    plan = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), data.plan)
    step = lambda s, at: trainer.step(s, vcca.gather(data.shards, at))  # noqa: E731
    state, _ = jax.jit(lambda s: jax.lax.scan(step, s, plan))(state)
    expected = problem.loss_fn(state.params, *data.validation).mean()
    (found,) = [
        r for r in records(folder, "finals") if r["condition"] == "unscreened" and r["seed"] == 0
    ]
    assert found["validation"] == pytest.approx(float(expected), abs=2e-6)
    assert (found["admissible"], found["removed"], found["verified"]) == (1, 0, 0)


@pytest.mark.slow
def test_screening_removes_and_verification_keeps(folder):
    finals = records(folder, "finals")
    for name in ("everyone", "verified", "adam, verified"):
        assert min(tables.collected(finals, "removed", condition=name)) > 0.01
    worst = tables.collected(finals, "worst_rise", condition="unscreened")
    assert min(worst) > 1e-4
    for name in ("verified", "adam, verified"):
        assert max(tables.collected(finals, "worst_rise", condition=name)) <= training.TOLERANCE
        assert set(tables.collected(finals, "steps_beyond", condition=name)) == {0}
        assert min(tables.collected(finals, "verified", condition=name)) == 1
    # One principal's two values bind less often than all principals' four.
    one, all_ = (
        np.mean(tables.collected(finals, "admissible", condition=name))
        for name in ("1 stating", "everyone")
    )
    assert one > all_


@pytest.mark.slow
def test_restraint_is_ascribed_to_who_states_the_value(folder):
    by = {(r["agent"], r["by"]): r["mean"] for r in records(folder, "screened_by")}
    assert len(by) == 16
    assert min(by.values()) >= 0
    assert max(by.values()) > 0


@pytest.mark.slow
def test_a_finished_setting_is_kept(folder, monkeypatch):
    def refuse(*args):
        raise AssertionError("trained again")

    before = {path.name: path.read_bytes() for path in (folder / "results").iterdir()}
    monkeypatch.setattr(train, "run_setting", refuse)
    monkeypatch.setattr(train, "draw_figures", lambda results, out: None)
    train.main(["--out", str(folder), "--smoke"])
    assert {path.name: path.read_bytes() for path in (folder / "results").iterdir()} == before
    path = folder / "heart.json"
    held = json.loads(path.read_text())
    path.write_text(json.dumps(held | {"config": {}}))
    with pytest.raises(AssertionError, match="trained again"):
        train.main(["--out", str(folder), "--smoke"])


@pytest.mark.slow
def test_figures_are_drawn(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    shown = {"accuracy", "prices", "first_order", "principals", "cones_plane", "cones_space"}
    assert {f"{name}.png" for name in shown | {"values_heart", "restraint_heart"}} <= names


EPOCHS = [
    {
        "setting": "heart",
        "condition": condition,
        "value": value,
        "rows": rows,
        "epoch": epoch,
        "mean": epoch * change,
        "sd": 0.01,
    }
    for condition, changes in (
        ("unscreened", {"women": 0.2, "sex told": -0.1}),
        ("everyone", {"women": -0.2, "sex told": 0.0005}),
        ("few rows", {"women": 0.1, "sex told": 0.3}),
        ("few rows, drawn anew", {"women": -0.2, "sex told": 0.1}),
    )
    for value, change in changes.items()
    for rows in ("seen", "fresh")
    for epoch in (0, 1)
]


def test_the_unwanted_side_is_shaded_and_told_in_the_title():
    kinds = {"women": "protect", "sex told": "forbid"}
    title = loss_figures.screened_title(EPOCHS, "heart", kinds)
    assert "2 of 2 values" in title
    assert title.endswith("0 under “everyone”; fresh rows: 2 and 0")
    told = loss_figures.fresh_title(EPOCHS, "heart", kinds)
    assert "1 of 2 values end worse with few value rows, 0 with few" in told
    figure = loss_figures.value_losses(EPOCHS, "heart", title, loss_figures.LINES, kinds=kinds)
    shades = {}
    for ax in figure.axes:
        ends = [each.get_extents().intervaly for each in ax.patches]
        shades.setdefault(ax.get_title(loc="left").split("\n")[0], []).extend(ends)
        low, high = ax.get_ylim()
        assert low < 0 < high  # some of the shaded side is always to be seen
    assert len(shades["women"]) == len(shades["sex told"]) == 1
    plain = loss_figures.value_losses(EPOCHS, "heart", title, loss_figures.LINES)
    assert not any(ax.patches for ax in plain.axes)


def test_the_matrix_of_restraint_names_its_unit_and_who_restrains_most():
    by = [
        {"setting": "heart", "agent": agent, "by": principal, "mean": mean}
        for agent, row in (("ana", (0.1, 0.0)), ("ben", (0.2, 0.1)))
        for principal, mean in zip(("ana", "ben"), row, strict=True)
    ]
    figure = figures.restraint(by, "heart")
    assert "75 % of what the screen changed was for the values of ana" in figure.get_suptitle()
    assert figure.axes[1].get_ylabel() == "% of all changes by the screen"
    assert [each.get_text() for each in figure.axes[0].texts] == ["25.0", "–", "50.0", "25.0"]


@pytest.mark.parametrize("anew", [False, True])
def test_few_rows_are_repeated_and_sides_of_a_row_stay_together(problem, anew):
    data = drawn(problem.data[0], 3, 0.25, anew=anew, seed=0)
    inputs, targets = data.draws["women"]
    np.testing.assert_array_equal(inputs, targets)
    count = len(problem.data[0].rows["women"][0])
    assert inputs.shape == (3, count)
    distinct = [len(set(epoch)) for epoch in inputs.tolist()]
    assert distinct == [max(8, round(0.25 * count))] * 3
    assert bool((inputs == inputs[0]).all()) is not anew
    first, second = data.draws["sex told"]
    assert first.shape != second.shape


def test_accuracies_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=60).round(1), rng.integers(0, 2, 60)
    pairs = stats.mannwhitneyu(scores[targets == 1], scores[targets == 0]).statistic
    expected = pairs / ((targets == 1).sum() * (targets == 0).sum())
    assert analysis.auc(scores, targets) == pytest.approx(expected)
    reported = settings.Reported(targets, np.eye(2)[[0] * 30 + [1] * 30].T / 30, {})
    found = analysis.accuracies(np.append(scores, 9.0)[:, None], reported)
    right = (scores > 0) == (targets == 1)
    assert found["accuracy"] == pytest.approx(right.mean())
    halves = right[:30].mean(), right[30:].mean()
    assert found["least_served"] == pytest.approx(min(halves))
    sides = right[targets == 1].mean(), right[targets == 0].mean()
    assert found["balanced_accuracy"] == pytest.approx(np.mean(sides))


def test_slopes_and_what_is_shown():
    etas = np.array([0.01, 0.1, 1.0])
    assert slope(etas, 3 * etas**2) == pytest.approx(2)
    assert np.isnan(slope(etas, np.array([-1.0, -1.0, 0.5])))
    assert tables.shown([1.0, 3.0], digits=1) == "2.0 ± 1.4"
    assert tables.shown([float("nan")]) == "diverged"
