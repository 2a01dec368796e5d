"""What a ledger can be opened with: all of it can be read back, or there is no file."""

import numpy as np
import pytest

from vcca_jax.conformance import check_share_rule
from vcca_jax.ledger import Ledger, LedgerError
from vcca_jax.share_rules import ShareRule, bounded, high_water_mark, per_period, power, softmax


def nothing(credits, standings):
    return {}


def positive(credits, standings):
    return {party: credit for party, credit in credits.items() if credit > 0}


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"release_lag": 1.5}, r"release_lag is 1\.5; give a whole number"),
        ({"release_lag": -1}, "release_lag is -1"),
        ({"scale_bits": 40.0}, r"scale_bits is 40\.0"),
        ({"scale_bits": "40"}, "scale_bits is '40'"),
        ({"scale_bits": True}, "scale_bits is True"),
        ({"scale_bits": 2000}, "scale_bits is 2000; give a whole number, 0 to 1023"),
        ({"run": 7}, "run is 7; give a text"),
        ({"config": 3}, "config is 3"),
        ({"currency": b"EUR"}, "currency is b'EUR'"),
        ({"rounding": ["up"]}, "rounding is"),
        ({"principals": 3}, "principals is 3; give a list of names"),
        ({"rule": "per_period"}, "rule is 'per_period'; give a ShareRule"),
        ({"rule": per_period}, "rule is <function per_period"),
        ({"rule": ShareRule(None, nothing)}, "spec is None"),
        ({"rule": ShareRule({}, nothing)}, "its name at 'rule'"),
        ({"rule": ShareRule({"rule": "top", "count": 3}, nothing)}, "write its numbers as text"),
        ({"rule": ShareRule({"rule": "top", 3: "count"}, nothing)}, "write its numbers as text"),
    ],
)
def test_terms_that_could_not_be_read_back_create_no_file(tmp_path, terms, message):
    path = tmp_path / "ledger"
    with pytest.raises(LedgerError, match=message):
        Ledger.open(path, **terms)
    assert list(tmp_path.iterdir()) == []
    Ledger.open(path).close()
    with pytest.raises(LedgerError, match=f"{message}|belongs to other terms"):
        Ledger.open(path, **terms)


def test_whole_numbers_of_any_library_and_names_from_anywhere_are_taken(tmp_path):
    path = tmp_path / "ledger"
    terms = {"scale_bits": np.int64(20), "release_lag": np.int32(1)}
    for _ in range(2):
        with Ledger.open(path, principals=iter(["bob", "ann"]), **terms) as ledger:
            assert ledger.terms.scale_bits == 20
            assert ledger.principals == ("ann", "bob")


def test_a_rule_that_counts_in_other_units_than_the_ledger_is_refused(tmp_path):
    for rule in (softmax(1), bounded(power(2, softmax(1)), cap=0.9)):
        with pytest.raises(LedgerError, match=r"softmax has scale_bits=40 .* has scale_bits=20"):
            Ledger.open(tmp_path / "ledger", scale_bits=20, rule=rule)
    assert list(tmp_path.iterdir()) == []
    rule = softmax(1, scale_bits=20)
    with Ledger.open(tmp_path / "ledger", scale_bits=20, rule=rule) as ledger:
        assert ledger.settle(1, {"a": 10, "b": 0}, 1000).payouts == {"a": 1000, "b": 0}
    check_share_rule(bounded(rule, cap=0.9))


@pytest.mark.parametrize("name", ["power", "per_period"])
def test_a_rule_of_ones_own_under_the_name_of_another_is_refused(tmp_path, name):
    rule = ShareRule({"rule": name}, positive)
    again = f"the rule's name is '{name}', which is a rule of this package"
    with pytest.raises(LedgerError, match=again):
        Ledger.open(tmp_path / "ledger", rule=rule)
    assert list(tmp_path.iterdir()) == []
    for wrapped in (power, bounded):
        with pytest.raises(ValueError, match=again):
            wrapped(of=rule, **({"exponent": 2} if wrapped is power else {}))
    with pytest.raises(ValueError, match=again):
        check_share_rule(rule)
    changed = high_water_mark()._replace(shares=positive)
    Ledger.open(tmp_path / "ledger").close()
    with pytest.raises(LedgerError, match="give yours another name"):
        Ledger.open(tmp_path / "ledger", rule=changed)


def test_a_share_that_is_true_or_too_long_is_refused_and_nothing_recorded(tmp_path):
    rule = ShareRule({"rule": "pos"}, lambda credits, _: {p: c > 0 for p, c in credits.items()})
    for name, one, message in (
        ("truth", rule, "the share of 'ana' is True"),
        ("long", power(300), "the share of 'ana' has more than 4000 digits"),
    ):
        with Ledger.open(tmp_path / name, rule=one) as ledger:
            with pytest.raises(ValueError, match=message):
                ledger.settle(1, {"ana": 1000, "ben": 999}, 10)
            assert len(list(ledger.entries())) == 1
    with Ledger.open(tmp_path / "short", rule=power(200)) as ledger:
        assert ledger.settle(1, {"ana": 1000, "ben": 500}, 10).payouts == {"ana": 10, "ben": 0}
        ledger.verify()


def test_a_number_is_a_periods_name_whatever_library_it_is_from(tmp_path):
    with Ledger.open(tmp_path / "ledger") as ledger:
        receipt = ledger.settle(np.int64(3), {"ana": 1.0}, 10)
        assert receipt.period == "3"
        assert ledger.settle("3", {"ana": 1.0}, 10) == receipt
