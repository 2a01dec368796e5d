"""The experiment on what traversal and its rivals lose: at smoke size, through its own command."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import vcca_jax as vcca
from experiments.lossless import analysis, cells, methods, problems, tables, train, tuning
from experiments.lossless.config import FULL, SMOKE, told
from vcca_jax.rounds import Round

DIGITS = SMOKE.tasks["digits"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lossless")
    train.main(["--out", str(out), "--smoke"])
    return out


def records(folder: Path, name: str) -> list[dict]:
    found = tables.read(folder / "results", name)
    return tables.unrolled(found) if name in ("curves", "differences") else found


def problem_of(how: str, seed: int) -> problems.Problem:
    room = problems.capacities(SMOKE, "digits")[how]
    (found,) = problems.problems(SMOKE, "digits", how, [seed], room)
    return found


def everything(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_cell_method_and_seed_is_in_the_records(folder):
    finals = records(folder, "finals")
    shown = [methods.CENTRALIZED, methods.TRAVERSAL, methods.DEEPER, *SMOKE.methods]
    assert {(r["partition"], r["method"], r["seed"], r["at"]) for r in finals} == {
        (how, method, seed, at)
        for how in DIGITS.partitions
        for method in shown
        for seed in SMOKE.reported
        for at in ("last", "chosen")
    }
    assert len(finals) == len(DIGITS.partitions) * len(shown) * SMOKE.seeds * 2
    assert {r["epoch"] for r in finals if r["at"] == "last"} == {DIGITS.epochs}
    assert {r["seed"] for r in records(folder, "curves")} == set(SMOKE.reported)
    for final in (r for r in finals if r["at"] == "chosen"):
        curve = {
            r["epoch"]: r["score"]
            for r in records(folder, "curves")
            if all(r[k] == final[k] for k in ("partition", "method", "seed"))
        }
        assert curve[final["epoch"]] == max(curve.values())


def test_traversal_loses_nothing_and_rivals_do(folder):
    differences = records(folder, "differences")
    assert {r["method"] for r in differences} == {
        methods.TRAVERSAL,
        methods.DEEPER,
        methods.VISITED,
        methods.EXACT,
    }
    assert max(r["parameters"] for r in differences) < 1e-6
    assert max(r["outputs"] for r in differences) < 1e-5
    assert {r["score"] for r in differences} == {0.0}
    worst = {
        method: max(r["parameters"] for r in differences if r["method"] == method)
        for method in (methods.VISITED, methods.EXACT)
    }
    assert worst[methods.VISITED] > 1e-9  # single precision: another order of summation
    assert worst[methods.EXACT] < 1e-13
    finals = [r for r in records(folder, "finals") if r["partition"] == "one label"]
    central = analysis.by_seed(finals, "accuracy", method=methods.CENTRALIZED, at="last")
    for method in (methods.TRAVERSAL, methods.DEEPER):
        ours = analysis.by_seed(finals, "accuracy", method=method, at="last")
        assert analysis.paired(ours, central) == [0.0] * SMOKE.seeds


def test_the_program_is_the_librarys_own_training(folder):
    """One cell again, step by step: FedAvg over the epochs' rounds, tested at the end."""
    problem = problem_of("one label", SMOKE.first_seed)
    cell = json.loads((folder / "cells" / "digits" / "one_label" / "FedAvg.json").read_text())
    model = methods.model_of("digits", DIGITS, 64, DIGITS.cuts[0])
    (rate,) = cell["tuning"]["chosen"]
    loss = vcca.model_loss(model, optax.softmax_cross_entropy_with_integer_labels)
    trainer = methods.fedavg(loss, optax.sgd(rate))
    key = jax.random.fold_in(jax.random.key(0), problem.seed)
    state, step = trainer.init(model.init(key)), jax.jit(trainer.step)
    for epoch in range(DIGITS.epochs):
        plan = jax.tree.map(lambda leaf, at=epoch: leaf[at], problem.rounds)
        assert plan.mask.sum() == DIGITS.train
        state, _ = step(state, Round(problem.shards, plan))
    outputs = np.asarray(model.apply(state.params, problem.test.inputs))
    expected = analysis.measures(outputs, problem.test.targets)
    (found,) = analysis.chosen(cell["finals"], seed=problem.seed, at="last")
    assert found["accuracy"] == expected["accuracy"]
    assert found["macro_f1"] == pytest.approx(expected["macro_f1"], abs=1e-12)


def test_settings_are_chosen_by_the_last_epochs_validation_score(folder):
    cell = json.loads((folder / "cells" / "digits" / "one_label" / "FedAvg.json").read_text())
    problem = problem_of("one label", SMOKE.tuning_seed)
    models = cells.Models("digits", DIGITS, 64)
    apart = 0.0
    for settings, score in cell["tuning"]["tried"]:
        params = models.train("FedAvg", problem, tuple(settings))
        outputs = models.outputs("FedAvg", params, problem.validation)
        curve = [analysis.measures(each, problem.validation.targets) for each in outputs]
        assert score == curve[-1]["accuracy"]
        apart = max(apart, abs(curve[0]["accuracy"] - score))
    assert apart > 0
    best = max(cell["tuning"]["tried"], key=lambda each: each[1])
    assert cell["tuning"]["chosen"] == best[0]


def test_all_methods_see_every_sample_once_an_epoch():
    problem = problem_of("one label", 1)
    owners, rows, mask = (np.asarray(field) for field in problem.plan)
    for epoch in range(DIGITS.epochs):
        live = mask[epoch]
        pooled = sorted(zip(owners[epoch][live], rows[epoch][live], strict=True))
        plan = jax.tree.map(lambda leaf, at=epoch: leaf[at], problem.rounds)
        agents = np.broadcast_to(plan.agents[:, None, None], plan.rows.shape)
        rounds = sorted(zip(agents[plan.mask], plan.rows[plan.mask], strict=True))
        assert pooled == rounds
        assert len(set(pooled)) == DIGITS.train


def test_rows_of_different_purposes_are_apart_and_seeds_draw_anew():
    parts = [problems.pool("digits", DIGITS, seed) for seed in SMOKE.all_seeds]
    for rows in parts:
        told_apart = [
            {each.tobytes() for each in part.inputs}
            for part in (rows.train, rows.validation, rows.test)
        ]
        assert sum(map(len, told_apart)) == len(set().union(*told_apart))
    assert not np.array_equal(parts[0].train.inputs, parts[1].train.inputs)
    assert SMOKE.tuning_seed not in SMOKE.reported
    assert FULL.tuning_seed not in FULL.reported


@pytest.mark.parametrize("how", FULL.tasks["mnist"].partitions)
def test_partitions_deal_out_every_row_once(how):
    rows = problems.pool("digits", DIGITS, 0)
    shards = problems.dealt(rows, how, 10, 0)
    assert len(shards) == 10
    dealt = np.concatenate([inputs for inputs, _ in shards])
    assert sorted(x.tobytes() for x in dealt) == sorted(x.tobytes() for x in rows.train.inputs)
    kinds = [len(set(targets.tolist())) for _, targets in shards]
    if how in ("one label", "two labels"):
        assert kinds == [1 if how == "one label" else 2] * 10


def test_natural_partitions_are_the_studys_own():
    task = FULL.tasks["heart"]
    rows = problems.pool("heart", task, 3)
    shards = problems.dealt(rows, "natural", 10, 0)
    study = vcca.datasets.heart_disease(split_seed=3, fractions=task.fractions)
    assert [len(t) for _, t in shards] == [len(shard.targets) for shard in study.train]
    with pytest.raises(ValueError, match="no data set"):
        problems.pool("weather", task, 0)


def test_choosing_never_looks_at_test_rows(folder, monkeypatch):
    """With test rows replaced by noise every choice is the same, and every test number is not."""
    honest = problems.problems

    def poisoned(*arguments):
        rng = np.random.default_rng(0)
        return [
            each._replace(
                test=problems.Rows(
                    np.full_like(each.test.inputs, np.nan), rng.permutation(each.test.targets)
                )
            )
            for each in honest(*arguments)
        ]

    monkeypatch.setattr(cells, "problems", poisoned)
    out = folder.parent / "poisoned"
    found = cells.run_task(SMOKE, "digits", out, lambda text: None)
    choices = [cell["tuning"] for cell in found if "tuning" in cell]
    kept = records(folder, "tuning")
    assert [{k: r[k] for k in choices[0]} for r in kept] == choices
    curves = [r["score"] for cell in found for r in cell.get("curves", [])]
    assert curves == pytest.approx([r["score"] for r in records(folder, "curves")], abs=1e-7)
    finals = [r for cell in found for r in cell.get("finals", [])]
    assert not any(r["finite"] for r in finals)
    assert [r["epoch"] for r in finals] == [r["epoch"] for r in records(folder, "finals")]


def test_a_killed_run_goes_on_where_it_was(folder, monkeypatch):
    before = everything(folder)
    lost = folder / "cells" / "digits" / "one_label" / "split_learning.json"
    lost.unlink()
    trained = []
    honest = cells.Models.train

    def counted(self, method, problem, settings):
        trained.append((method, problem.seed))
        return honest(self, method, problem, settings)

    monkeypatch.setattr(cells.Models, "train", counted)
    monkeypatch.setattr(train, "draw_figures", lambda results, out: None)
    train.main(["--out", str(folder), "--smoke"])
    assert {method for method, _ in trained} == {"split learning"}
    after = everything(folder)
    fixed = {"seconds"}
    for name in before.keys() | after.keys():
        if name.endswith(("split_learning.json", "summary.json")):
            ours, theirs = (
                {k: v for k, v in json.loads(each[name]).items() if k not in fixed}
                for each in (before, after)
            )
            assert ours == theirs
        else:
            assert before[name] == after[name]

    # Under other terms nothing is kept.
    changed = SMOKE._replace(extra=0)
    assert cells.held(lost, told(SMOKE, "digits")) is not None
    assert cells.held(lost, told(changed, "digits")) is None


def test_tables_come_from_the_results_alone(folder, tmp_path):
    written = (folder / "results" / "tables.md").read_bytes()
    (folder / "results" / "tables.md").unlink()
    tables.write_tables(folder / "results")
    assert (folder / "results" / "tables.md").read_bytes() == written
    readme = tmp_path / "README.md"
    readme.write_text(
        "before\n<!-- table: Margins of TL, last epoch -->\nold\n<!-- end -->\nafter\n"
    )
    tables.insert_tables(readme, folder / "results")
    once = readme.read_text()
    assert once.startswith("before\n")
    assert once.endswith("<!-- end -->\nafter\n")
    assert "old" not in once
    assert tables.parts(folder / "results")["Margins of TL, last epoch"] in once
    tables.insert_tables(readme, folder / "results")
    assert readme.read_text() == once
    readme.write_text("<!-- table: Weather -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="Weather"):
        tables.insert_tables(readme, folder / "results")


def test_the_readme_shows_the_tables_of_the_results_that_are_kept(tmp_path):
    kept = tables.HERE / "results"
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tables.md").unlink()
    tables.write_tables(tmp_path)
    assert (tmp_path / "tables.md").read_bytes() == (kept / "tables.md").read_bytes()
    readme = tmp_path / "README.md"
    readme.write_bytes((tables.HERE / "README.md").read_bytes())
    tables.insert_tables(readme, tmp_path)
    assert readme.read_bytes() == (tables.HERE / "README.md").read_bytes()


def test_figures_are_drawn(folder):
    names = {path.name for path in (folder / "figures").iterdir()}
    assert names == {"difference_digits.png", "curves.png", "apart.png"}


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8))
def test_intervals_are_scipys(numbers):
    found = analysis.interval(numbers)
    ours = np.array(numbers)
    spread = ours.std(ddof=1)
    assert found.mean == pytest.approx(ours.mean(), abs=1e-12)
    assert found.deviation == pytest.approx(spread, abs=1e-12)
    if spread > 1e-6:
        low, high = stats.ttest_1samp(ours, 0).confidence_interval(0.95)
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))


def test_measures_are_those_of_their_definitions():
    rng = np.random.default_rng(1)
    outputs, targets = rng.normal(size=(80, 2)).round(1), rng.integers(0, 2, 80)
    scores = outputs[:, 1] - outputs[:, 0]
    found = analysis.measures(outputs, targets)
    pairs = stats.mannwhitneyu(scores[targets == 1], scores[targets == 0]).statistic
    assert found["auc"] == pytest.approx(pairs / ((targets == 1).sum() * (targets == 0).sum()))
    decided = scores > 0
    assert found["accuracy"] == (decided == targets).mean()
    f1 = [
        2 * ((decided == c) & (targets == c)).sum() / ((decided == c).sum() + (targets == c).sum())
        for c in (0, 1)
    ]
    assert found["macro_f1"] == pytest.approx(np.mean(f1))
    assert analysis.measures(np.eye(3)[[0, 1, 1]], np.array([0, 1, 2]))["auc"] is None
    # A class that is neither there nor said counts as 0, so three outputs have three parts.
    assert analysis.measures(np.eye(3)[[0, 1]], np.array([0, 1]))["macro_f1"] == pytest.approx(
        2 / 3
    )
    diverged = analysis.measures(np.full((4, 2), np.nan), np.array([0, 0, 0, 1]))
    assert (diverged["accuracy"], diverged["auc"], diverged["finite"]) == (0.75, 0.5, False)


def test_margins_are_over_the_best_rival_and_over_the_mean():
    rows = {"TL": (0.9, 0.8), "A": (0.6, 0.7), "B": (0.7, 0.8)}
    finals = [
        {"method": method, "seed": seed, "auc": value}
        for method, values in rows.items()
        for seed, value in enumerate(values)
    ]
    found = analysis.margins(finals, "TL", ["A", "B"], "auc")
    assert found.best == "B"
    assert found.over_best == pytest.approx([0.2, 0.0])
    assert found.over_mean == pytest.approx([0.25, 0.05])


def test_a_grid_is_widened_while_the_best_lies_at_its_edge():
    grid = methods.Grid(("rate",), ((0.1, 0.2, 0.4),))
    asked = []

    def score(best):
        def of(settings):
            asked.append(settings)
            return -abs(np.log(settings[0] / best))

        return of

    inside = tuning.tuned(grid, score(0.2), extra=2)
    assert (inside.chosen, len(inside.tried), inside.at_edge) == ((0.2,), 3, [])
    beyond = tuning.tuned(grid, score(0.8), extra=2)
    assert (beyond.chosen, beyond.at_edge) == ((0.8,), [])
    assert [settings for settings, _ in beyond.tried][3:] == [(0.8,), (1.6,)]
    far = tuning.tuned(grid, score(1e-6), extra=1)
    assert (far.chosen, far.at_edge, len(far.tried)) == ((0.05,), ["rate"], 4)
    assert len(asked) == 3 + 5 + 4
    two = methods.Grid(("rate", "pull"), ((0.1, 0.2, 0.4), (1.0, 2.0)))
    found = tuning.tuned(two, lambda s: -abs(np.log(s[0] / 0.2)) + s[1], extra=1)
    assert (found.chosen, found.at_edge, len(found.tried)) == ((0.2, 4.0), ["pull"], 7)
    assert tuning.Tuning.read(json.loads(json.dumps(found.record()))) == found


def test_every_method_has_the_same_budget():
    for name, task in FULL.tasks.items():
        for method in (methods.CENTRALIZED, *FULL.methods):
            axes = methods.grid(FULL, task, method).values
            assert np.prod([len(values) for values in axes]) == 6, (name, method)
            assert all(list(values) == sorted(set(values)) for values in axes)


@pytest.mark.slow
def test_every_method_trains_and_the_same_algorithms_agree(tmp_path):
    """All rivals on the hospitals; SplitFed v1 gives FedAvg's numbers, SCAFFOLD its own."""
    task = FULL.tasks["heart"]._replace(epochs=3, partitions=("natural",))
    config = SMOKE._replace(tasks={"heart": task}, methods=FULL.methods, seeds=1)
    found = {
        cell["method"]: cell
        for cell in cells.run_task(config, "heart", tmp_path, lambda text: None)
        if "method" in cell
    }
    assert set(found) == {cells.POOLED, cells.DOUBLE, *FULL.methods}
    assert found["SplitFed v1"]["tuning"]["chosen"] == found["FedAvg"]["tuning"]["chosen"]
    for ours, theirs in zip(found["SplitFed v1"]["curves"], found["FedAvg"]["curves"], strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=0.01)
    room = problems.capacities(config, "heart")["natural"]
    (problem,) = problems.problems(config, "heart", "natural", [0], room)
    models = cells.Models("heart", task, problem.validation.inputs.shape[-1])
    settings = tuple(found["SCAFFOLD"]["tuning"]["chosen"])
    params = jax.tree.map(lambda leaf: leaf[-1], models.train("SCAFFOLD", problem, settings))
    trainer = methods.scaffold(
        methods.loss(models.model), settings[0], capacity=4, weighting="samples"
    )
    key = jax.random.fold_in(jax.random.key(0), problem.seed)
    state, step = trainer.init(models.model.init(key)), jax.jit(trainer.step)
    for epoch in range(task.epochs):
        plan = jax.tree.map(lambda leaf, at=epoch: leaf[at], problem.rounds)
        state, _ = step(state, Round(problem.shards, plan))
    for ours, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(state.params), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-4, atol=2e-5)
