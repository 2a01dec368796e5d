"""One content has one encoding: that of the standard library, with numbers written as text."""

import json
from fractions import Fraction

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from vcca_jax.ledger.chain import canonical, parse

number = st.one_of(st.integers(), st.integers(-(2**70), 2**70), st.fractions())
name = st.one_of(st.text(max_size=6), st.sampled_from(["a", "%", "%d", "100 %s", '"', "\\", "é"]))
leaf = st.one_of(number, st.text(max_size=6), st.none(), st.lists(st.text(max_size=3), max_size=3))
numbers = st.dictionaries(name, st.integers(), max_size=8)
content = st.dictionaries(
    name, st.one_of(leaf, numbers, st.dictionaries(name, leaf, max_size=4)), max_size=6
)


def as_text(value):
    if isinstance(value, int | Fraction):
        return str(value)
    if isinstance(value, dict):
        return {key: as_text(inner) for key, inner in value.items()}
    return value


@settings(max_examples=200)
@given(content)
def test_an_encoding_is_sorted_compact_ascii_json_with_numbers_as_text(content):
    expected = json.dumps(as_text(content), sort_keys=True, separators=(",", ":")).encode("ascii")
    assert canonical(content) == expected
    assert canonical(dict(reversed(content.items()))) == expected
    assert parse(expected) == as_text(content)


def test_more_names_than_are_remembered_are_encoded_alike():
    for start in range(0, 140_000, 35_000):
        many = {f"p{i}": i for i in range(start, start + 35_000)}
        assert parse(canonical(many)) == as_text(many)


@pytest.mark.parametrize("payload", [b'{"a":1}', b'{"a":1.5}', b'{"a":NaN}', b"[]", b"\xff", b""])
def test_bare_numbers_and_what_is_no_object_are_refused(payload):
    with pytest.raises(ValueError):  # noqa: PT011  # of any kind: the reader adds the words
        parse(payload)
