"""What a configuration says, and that all of it becomes part of the problem."""

import json
import re
import sys
import tomllib

import jax
import numpy as np
import pytest

from tests.run_examples import CONFIG, smoke
from vcca_jax.profile_files import Profile
from vcca_jax.runs import ConfigError, RunConfig, load_config, run, stored_config, verify_run
from vcca_jax.runs.config import (
    Credit,
    Data,
    Model,
    Screening,
    Settlement,
    Training,
    Value,
    parse_config,
)
from vcca_jax.runs.problem import make_problem
from vcca_jax.runs.rules import Rule


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


@pytest.mark.slow
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

    from vcca_jax import datasets

    original = datasets.heart_disease

    def all_well(**options):
        study = original(**options)
        targets = np.where(study.values.groups["women"], 0, study.values.targets)
        return study._replace(values=study.values._replace(targets=targets))

    monkeypatch.setattr(sys.modules["vcca_jax.runs.problem"].datasets, "heart_disease", all_well)
    with pytest.raises(ConfigError, match=r"values.'chances' cannot be measured .* target 1"):
        make_problem(RunConfig.model_validate(with_every_kind()))


SECTIONS = (Data, Model, Training, Screening, Credit, Settlement)


def keys(section: type, place: str = "") -> dict[str, object]:
    """Every key of a section and of those within it, with its default; None where it has none."""
    found = {}
    for name, field in section.model_fields.items():
        within = f"{place}.{name}".removeprefix(".")
        inner = {"values": ("NAME", Value), "profiles": ("AGENT", Profile)}.get(within)
        if inner is not None:
            found |= keys(inner[1], f"{within}.{inner[0]}")
        elif field.annotation in SECTIONS:
            found |= keys(field.annotation, within)
        else:
            default = field.get_default(call_default_factory=True)
            found[within] = default.name if isinstance(default, Rule) else default
    return found


def test_the_page_on_runs_tells_every_key_and_its_default():
    page = (CONFIG.parents[2] / "docs" / "how_to" / "runs.md").read_text()
    part = page.split("## What the file says")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \|([^|]*)\|", part, re.MULTILINE)
    told = {key: default.strip(" `") for key, default in rows}
    expected = keys(RunConfig)
    assert list(told) == list(expected)
    for key, default in expected.items():
        if default is None:
            assert told[key] in ("", "none"), key
        else:
            assert tomllib.loads(f"it = {told[key]}")["it"] == json.loads(json.dumps(default)), key


@pytest.mark.parametrize(
    ("settlement", "words"),
    [
        ({"rule": "proportional"}, "settlement.rule.name: Input should be 'high_water_mark'"),
        ({"rule": 3}, "settlement.rule: give a rule's name, or a table"),
        ({"rule": {"name": "power"}}, "settlement.rule: power needs exponent; give it"),
        ({"rule": {"name": "softmax", "cap": 1}}, "cap is no option of softmax, which has temp"),
        ({"rule": {"name": "softmax", "temperature": -1}}, "temperature is -1"),
        ({"rule": {"name": "bounded", "of": {"exponent": 2}}}, "settlement.rule.of: exponent is"),
        ({"rounding": "up"}, "settlement.rounding: Input should be 'largest_remainder' or"),
        ({"release_lag": -1}, "settlement.release_lag: "),
        ({"decimals": 19}, "settlement.decimals: "),
    ],
)
def test_terms_that_cannot_be_are_refused_by_place(settlement, words):
    whole = tomllib.loads(CONFIG.read_text())
    with pytest.raises(ConfigError, match=words):
        parse_config({**whole, "settlement": settlement}, "it")


def test_terms_are_part_of_the_digest_where_they_say_something_new():
    content = tomllib.loads(CONFIG.read_text())
    plain = RunConfig.model_validate(content)
    content["settlement"] |= {"rule": "high_water_mark", "decimals": 2, "release_lag": 0}
    assert RunConfig.model_validate(content).digest() == plain.digest()
    rule = {"name": "bounded", "cap": 0.4, "of": {"name": "power", "exponent": 0.1}}
    content["settlement"]["rule"] = rule
    config = RunConfig.model_validate(content)
    assert config.digest() != plain.digest()
    assert config.model_dump()["settlement"]["rule"] == rule
    assert parse_config(json.loads(config.canonical()), "it") == config
    spec = config.settlement.rule.share_rule().spec
    assert (spec["cap"], spec["of"]["exponent"]) == ("2/5", "1/10")  # as written, not as floats are
