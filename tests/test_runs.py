"""The whole main job at smoke size: equal bytes twice, and after being stopped anywhere."""

import hashlib
import json
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest

from vcca_jax.ledger import Ledger, LedgerError
from vcca_jax.runs import (
    ConfigError,
    RunConfig,
    RunError,
    load_config,
    read_results,
    run,
    stored_config,
    verify_run,
)
from vcca_jax.runs.config import parse_config
from vcca_jax.runs.problem import make_problem
from vcca_jax.statements import money

CONFIG = Path(__file__).parent.parent / "experiments" / "heart" / "config.toml"


def smoke(**training) -> RunConfig:
    content = tomllib.loads(CONFIG.read_text())
    content["model"] = {"hidden": [4], "cut": 1}
    content["training"] = {"epochs": 3, "seeds": 2, "batch_size": 128, **training}
    return RunConfig.model_validate(content)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the checkpoints, whose library stores the time in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts
    }


class Stop(Exception):
    """Stands for a kill: nothing in the run catches it."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run(smoke(), folder)
    return folder


def test_a_run_leaves_all_it_promises(finished):
    names = set(digests(finished))
    assert names == {
        "config.json",
        "metrics.jsonl",
        "agents.jsonl",
        "game.jsonl",
        "payouts.jsonl",
        "results.json",
        "ledger.sqlite",
        *(
            f"figures/{name}.png"
            for name in (
                "loss_against_centralized",
                "value_losses",
                "value_losses_on_fresh_rows",
                "admissibility",
                "cumulative_credit",
                "cumulative_payout",
            )
        ),
    }
    assert stored_config(finished) == smoke()


def test_the_money_adds_up_and_follows_the_credit(finished):
    results = read_results(finished)
    paid = sum(row["payout"] for row in results["agents"])
    assert paid + results["reserve"] + results["carried"] == results["revenue"] == 3_000_000
    agents = [json.loads(line) for line in (finished / "agents.jsonl").read_text().splitlines()]
    with Ledger.open(finished / "ledger.sqlite", create=False, read_only=True) as ledger:
        scores = ledger.scores()
    for row in results["agents"]:
        own = [r["credit"] for r in agents if r["agent"] == row["agent"] and r["seed"] == 0]
        assert row["credit"] == pytest.approx(sum(own))
        assert scores[row["agent"]] == pytest.approx(row["credit"] * 2**40, rel=1e-9)


def test_credit_and_carry_over_account_for_the_fall_of_the_utility(finished):
    """Over a whole run of plain SGD the gains telescope to the fall of the validation loss."""
    game = [json.loads(line) for line in (finished / "game.jsonl").read_text().splitlines()]
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    for seed in range(2):
        own = [r for r in metrics if r["trainer"] == "cooperative" and r["seed"] == seed]
        fall = own[0]["validation_loss"] - own[-1]["validation_loss"]
        gains = [r for r in game if r["seed"] == seed]
        assert sum(r["gain"] for r in gains) == pytest.approx(fall, abs=2e-6)
        assert all(r["carry_over"] == 0 for r in gains)
        assert abs(sum(r["residual"] for r in gains)) < 1e-5


def test_unscreened_traversal_is_centralized_training(finished):
    metrics = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    losses = {
        name: [r["validation_loss"] for r in metrics if r["trainer"] == name]
        for name in ("unscreened", "centralized")
    }
    np.testing.assert_allclose(losses["unscreened"], losses["centralized"], rtol=1e-6)


def test_again_gives_the_same_bytes(finished, tmp_path):
    run(smoke(), tmp_path / "again")
    assert digests(tmp_path / "again") == digests(finished)
    run(smoke(), tmp_path / "again")  # a finished run started once more changes nothing
    assert digests(tmp_path / "again") == digests(finished)


@pytest.mark.parametrize("where", ["settled", "recorded", "saved"])
def test_stopped_and_resumed_gives_the_same_bytes(finished, tmp_path, monkeypatch, where):
    """Stopped in the second epoch: after the settlement, amid the records, after the checkpoint."""
    import sys

    module = sys.modules["vcca_jax.runs.run"]
    folder = tmp_path / "stopped"
    calls = []

    def stop_at(count: int, function):
        def stopping(*arguments, **options):
            result = function(*arguments, **options)
            calls.append(1)
            if len(calls) == count:
                raise Stop
            return result

        return stopping

    owner, name, count = {
        "settled": (module, "_settle", 2),
        "recorded": (module, "write_records", 5),
        "saved": (module.Checkpoints, "save", 2),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, stop_at(count, getattr(owner, name)))
        with pytest.raises(Stop):
            run(smoke(), folder)
    done = []
    run(smoke(), folder, progress=done.append)
    assert done[0] == (2 if where == "saved" else 1)
    assert digests(folder) == digests(finished)


def test_another_configuration_is_refused_in_the_same_folder(finished):
    before = digests(finished)
    with pytest.raises(RunError, match="another configuration"):
        run(smoke(learning_rate=0.5), finished)
    assert digests(finished) == before


def test_a_run_that_diverges_says_so(tmp_path):
    with pytest.raises(RunError, match="learning_rate"):
        run(smoke(learning_rate=1e38, epochs=2, seeds=1), tmp_path / "wild")


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(RunError, match="holds no run"):
        run(smoke(), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_verify_finds_a_ledger_that_was_cut_short(finished, tmp_path):
    """A ledger rebuilt with one settlement fewer is whole in itself; the kept heads tell."""
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    assert verify_run(copy).settlements == 3
    with Ledger.open(copy / "ledger.sqlite", create=False, read_only=True) as ledger:
        entries = [entry.content for entry in ledger.entries()]
        terms = ledger.terms
    (copy / "ledger.sqlite").unlink()
    with Ledger.open(
        copy / "ledger.sqlite",
        run=terms.run,
        config=terms.config,
        principals=terms.principals,
        currency=terms.currency,
    ) as shorter:
        first = next(entry for entry in entries if entry["kind"] == "settle")
        shorter.settle(1, {k: int(v) / 2**40 for k, v in first["credits"].items()}, 1_000_000)
    with pytest.raises(LedgerError, match="head"):
        verify_run(copy)


def test_test_rows_are_looked_at_only_at_the_end(tmp_path, monkeypatch):
    """A run whose test rows were replaced by noise makes the same choices and payments."""
    import sys

    from vcca_jax import datasets

    problem_module = sys.modules["vcca_jax.runs.problem"]
    original = datasets.heart_disease

    def corrupted(**options):
        study = original(**options)
        noise = np.random.default_rng(0).normal(size=study.test.inputs.shape).astype(np.float32)
        return study._replace(test=study.test._replace(inputs=noise))

    results = []
    for name in ("clean", "corrupted"):
        if name == "corrupted":
            monkeypatch.setattr(problem_module.datasets, "heart_disease", corrupted)
        results.append(run(smoke(epochs=1), tmp_path / name))
    clean, noisy = results
    assert clean["agents"] == noisy["agents"]
    assert clean["ledger_head"] == noisy["ledger_head"]
    assert clean["test"] != noisy["test"]


def test_profiles_say_what_the_configuration_says():
    config = smoke()
    problem = make_problem(config)
    assert problem.values.names == ("women", "men", "oldest third", "sex told")
    mask, sign, value = problem.profiles.mask, problem.profiles.sign, problem.profiles.value
    stated = [
        {
            (problem.values.names[v], s)
            for v, s, m in zip(value[i], sign[i], mask[i], strict=True)
            if m
        }
        for i in range(4)
    ]
    assert stated[0] == {("women", 1.0), ("men", 1.0)}
    assert stated[3] == {("oldest third", 1.0), ("sex told", -1.0)}


def with_every_kind(**screening) -> dict:
    """The smoke configuration with every kind of value and constraint, as nested dicts."""
    content = tomllib.loads(CONFIG.read_text())
    content["model"] = {"hidden": [4], "cut": 1}
    content["training"] = {"epochs": 1, "seeds": 1, "batch_size": 256}
    content["screening"] = screening
    content["values"] |= {
        "chances": {"equal_opportunity": "women"},
        "parity": {"demographic_parity": "women"},
        "odds": {"equalized_odds": "oldest third"},
    }
    content["profiles"] = {
        "cleveland": {
            "preserve": {"women": {"price": 2.0}},
            "max_norm": 0.5,
            "within_angle": {"men": 80.0},
            "weight": 2.0,
        },
        "hungarian": {
            "protect": {"chances": 0.0},
            "freeze": ["body"],
            "trust_region": [{"values": ["odds", "parity"], "radius": 0.05}],
        },
    }
    return content


def test_the_main_jobs_configuration_keeps_its_digest():
    """Runs and ledgers are bound to it: a setting that is added must not change it."""
    digest = "533f7b911ba399bec904ea26e8ba547e3906838039fe8a113674056d3bc7688d"
    assert load_config(CONFIG).digest() == digest


def test_a_setting_that_says_nothing_new_changes_no_digest():
    content = tomllib.loads(CONFIG.read_text())
    plain = RunConfig.model_validate(content)
    content["screening"]["policy"] = "drop"
    content["profiles"]["cleveland"] |= {
        "protect": {"women": {"margin": 0}, "men": {"price": float("inf")}},
        "preserve": {},
        "freeze": [],
        "weight": 1,
    }
    assert RunConfig.model_validate(content).digest() == plain.digest()
    for place, change in (
        ("profiles", {"cleveland": {"weight": 2.0}}),
        ("screening", {"policy": "least_violation"}),
    ):
        other = RunConfig.model_validate({**content, place: {**content[place], **change}})
        assert other.digest() != plain.digest()


def test_a_stored_configuration_of_every_kind_comes_back(tmp_path):
    config = RunConfig.model_validate(with_every_kind(scope="weighted", policy="least_violation"))
    (tmp_path / "config.json").write_text(config.canonical())
    assert stored_config(tmp_path) == config
    assert stored_config(tmp_path).canonical() == config.canonical()


def test_every_kind_of_constraint_and_value_becomes_part_of_the_problem():
    problem = make_problem(RunConfig.model_validate(with_every_kind()))
    names = problem.values.names
    assert names[4:] == ("chances", "parity", "odds")
    profiles = problem.profiles
    assert profiles.price[0, 0] == 2.0
    assert profiles.limits.max_norm[0] == 0.5
    np.testing.assert_allclose(profiles.limits.cosine[0, names.index("men")], 0.17364818)
    assert profiles.limits.region[1, 0].tolist() == [name in ("odds", "parity") for name in names]
    np.testing.assert_array_equal(profiles.weight, [2, 1, 1, 1])
    body = jax.tree.leaves(profiles.frozen.leaves["body"])
    head = jax.tree.leaves(profiles.frozen.leaves["head"])
    pattern = profiles.frozen.pattern[1]
    assert all(leaf[pattern] for leaf in body)
    assert not any(leaf[pattern] for leaf in head)


def test_a_fairness_value_compares_a_group_with_the_rest_on_the_rows_held_out_for_it():
    problem = make_problem(RunConfig.model_validate(with_every_kind()))
    params = jax.jit(problem.model.init)(jax.random.key(0))

    @jax.jit
    def measured(params):
        context = problem.fit_context(params)
        return [values.losses(params, context) for values in (problem.values, problem.fresh_values)]

    apply = jax.jit(problem.model.apply)
    for rows, losses in zip(
        (problem.study.values, problem.study.validation), measured(params), strict=True
    ):
        told = dict(zip(problem.values.names, losses.tolist(), strict=True))
        chance = 1 / (1 + np.exp(-np.asarray(apply(params, rows.inputs))[:, 0]))

        def gap(group, among, chance=chance, rows=rows):
            members = rows.groups[group]
            return (chance[members & among].mean() - chance[~members & among].mean()) ** 2

        ill, everyone = rows.targets == 1, np.ones(len(chance), bool)
        assert told["parity"] == pytest.approx(gap("women", everyone), rel=1e-3)
        assert told["chances"] == pytest.approx(gap("women", ill), rel=1e-3)
        both = (gap("oldest third", ill) + gap("oldest third", ~ill)) / 2
        assert told["odds"] == pytest.approx(both, rel=1e-3)


def test_prices_frozen_parts_and_weights_run(tmp_path):
    """All kinds but the limits, which take long to compile: a frozen body stays as it was."""
    content = with_every_kind(scope="own", policy="least_violation")
    content["values"] = {name: content["values"][name] for name in ("women", "sex told", "chances")}
    content["profiles"] = {
        agent: {
            "protect": {"chances": {"margin": 0.1, "price": 2.0}},
            "preserve": {"women": 0.0},
            "freeze": ["body"],
            "weight": 1.0 + k,
        }
        for k, agent in enumerate(("cleveland", "hungarian", "switzerland", "va long beach"))
    }
    config = RunConfig.model_validate(content)
    results = run(config, tmp_path / "frozen")
    assert results["settlements"] == 1
    metrics = [
        json.loads(line)
        for line in (tmp_path / "frozen" / "metrics.jsonl").read_text().splitlines()
    ]
    told = {(r["trainer"], r["epoch"]): r["value_losses"]["sex told"] for r in metrics}
    # The probe reads the body alone and is fitted anew: the same body tells the same.
    assert told["cooperative", 1] == pytest.approx(told["cooperative", 0], abs=1e-6)
    assert told["unscreened", 1] != pytest.approx(told["unscreened", 0], abs=1e-6)
    assert verify_run(tmp_path / "frozen").head == results["ledger_head"]


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["own", "everyone", "weighted"])
def test_every_kind_of_constraint_runs_under_every_scope(tmp_path, scope):
    config = RunConfig.model_validate(with_every_kind(scope=scope))
    results = run(config, tmp_path / scope)
    assert results["settlements"] == 1
    assert all(np.isfinite(row["credit"]) for row in results["agents"])
    removed = {row["agent"]: row["removed_share"] for row in results["agents"]}
    assert removed["cleveland"] > 0
    assert (removed["switzerland"] > 0) == (scope != "own")  # it states nothing itself


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        ("values", {"it": {"group": "women", "equal_opportunity": "women"}}, "exactly one of"),
        ("values", {"it": {}}, "values.it: name exactly one of group, probe, demographic_parity"),
        ("values", {"it": {"parity": "women"}}, "values.it.parity: no such setting"),
        ("values", {"it": {"equal_opportunity": "girls"}}, "'girls'; the study has"),
        ("profiles", {"cleveland": {"preserve": {"wimmin": 0}}}, "profiles.cleveland .*'wimmin'"),
        ("profiles", {"cleveland": {"within_angle": {"wimmin": 9}}}, "'wimmin'; the values are"),
        (
            "profiles",
            {"cleveland": {"trust_region": [{"values": ["wimmin"], "radius": 1}]}},
            "'wimmin'; the values are",
        ),
        ("profiles", {"cleveland": {"freeze": ["tail"]}}, r"\[0\] freezes 'tail'.*body.*cleveland"),
        ("profiles", {"cleveland": {"weight": 0}}, "profiles.cleveland.weight: this must be"),
        ("profiles", {"clevland": {}}, r"profiles name \['clevland'\]"),
        ("screening", {"policy": "force"}, "screening.policy: Input should be 'drop' or"),
        ("screening", {"scope": "nobody"}, "screening.scope: Input should be 'own', 'everyone'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_by_place(place, content, words):
    whole = tomllib.loads(CONFIG.read_text())
    with pytest.raises(ConfigError, match=words):
        make_problem(parse_config({**whole, place: {**whole[place], **content}}, "it"))


def test_a_group_without_a_row_of_a_target_is_told(monkeypatch):
    import sys

    from vcca_jax import datasets

    original = datasets.heart_disease

    def all_well(**options):
        study = original(**options)
        targets = np.where(study.values.groups["women"], 0, study.values.targets)
        return study._replace(values=study.values._replace(targets=targets))

    monkeypatch.setattr(sys.modules["vcca_jax.runs.problem"].datasets, "heart_disease", all_well)
    with pytest.raises(ConfigError, match=r"values.'chances' cannot be measured .* target 1"):
        make_problem(RunConfig.model_validate(with_every_kind()))


@pytest.mark.parametrize(
    ("units", "words"),
    [(0, "0.00"), (5, "0.05"), (-123456, "-1,234.56"), (2**63 - 1, "92,233,720,368,547,758.07")],
)
def test_money_is_written_exactly(units, words):
    assert money(units) == words
