"""Sentiment, on texts made here: tokens, the vocabulary, and whole documents."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcca_jax import datasets
from vcca_jax.datasets import sentiment as load
from vcca_jax.datasets.sentiment import build_vocabulary, encode, tokenise

POOLED = ("pooled_train", "values", "validation", "test")


def texts():
    rng = np.random.default_rng(0)
    words = [f"word{k}" for k in range(40)]
    rows = []
    for domain in datasets.SENTIMENT_AGENTS:
        for number in range(120):
            single = domain in ("tweets", "movie reviews")
            document = str(number) if single else str(number // 5)
            rating = rng.uniform(-3, 3)
            rows.append(
                {
                    "domain": domain,
                    "id": str(number) if single else f"{document}_{number % 5}",
                    "document": document,
                    "rating": repr(float(rating)),
                    "deviation": repr(float(rng.uniform(0, 2))),
                    # A word of its own marks each text.
                    "text": f"only{len(rows)} {' '.join(rng.choice(words, 6))} only{len(rows)}",
                }
            )
    rows[3]["text"] = rows[2]["text"]
    rows[2]["rating"] = rows[3]["rating"] = "2.0"
    rows[4]["text"] = "..."
    rows[5]["rating"] = "-0.49"
    rows[6]["rating"] = "0.5"
    return rows


ROWS = texts()
STUDY = load(rows=ROWS, length=5)


def test_tokens_are_words_emoticons_and_the_marks_that_carry_feeling():
    found = tokenise("DON'T &amp; can't... Great!! :) ;-( n\u00e4ive ''quoted'' 5/10?")
    expected = ["don't", "can't", "great", "!", "!", ":)", ";-(", "n\u00e4ive", "quoted"]
    assert found == [*expected, "5", "10", "?"]


def test_the_vocabulary_is_by_falling_frequency_then_alphabetical():
    found = build_vocabulary([["b", "a", "b"], ["a", "c", "b", "d", "d"]], size=9)
    assert found == ("<padding>", "<unknown>", "b", "a", "d")
    assert build_vocabulary([["b", "a", "b", "a"]], size=3) == (*found[:2], "a")


@given(
    tokens=st.lists(st.lists(st.sampled_from("abcxyz"), max_size=8), min_size=1, max_size=5),
    length=st.integers(1, 9),
)
def test_encoding_cuts_fills_and_marks_the_unknown(tokens, length):
    names = ("<padding>", "<unknown>", "a", "b", "c")
    found = encode(tokens, {name: k for k, name in enumerate(names)}, length=length)
    assert (found.shape, found.dtype) == ((len(tokens), length), np.int32)
    for row, text in zip(found, tokens, strict=True):
        known = [names[k] for k in row if k != datasets.PADDING]
        assert known == [t if t in "abc" else "<unknown>" for t in text[:length]]
        assert not np.any(row[len(known) :])


def test_the_vocabulary_holds_words_of_training_rows_alone():
    training = {f"only{row}" for row in STUDY.pooled_train.rows}
    found = {token for token in STUDY.vocabulary if token.startswith("only")}
    assert found == training
    assert np.all(STUDY.pooled_train.inputs[:, 0] > datasets.UNKNOWN)
    for name in POOLED[1:]:
        assert np.all(getattr(STUDY, name).inputs[:, 0] == datasets.UNKNOWN)


def test_whole_documents_are_dealt_out_and_every_usable_row_once():
    rows = np.concatenate([getattr(STUDY, name).rows for name in POOLED])
    ratings = np.array([float(row["rating"]) for row in ROWS])
    usable = set(np.flatnonzero(np.abs(ratings) >= 0.5).tolist()) - {3, 4}
    assert sorted(rows.tolist()) == sorted(usable)
    assert 6 in usable
    home = {}
    for name in POOLED:
        split = getattr(STUDY, name)
        for row, owner, target in zip(split.rows, split.owners, split.targets, strict=True):
            source = ROWS[row]
            assert datasets.SENTIMENT_AGENTS[owner] == source["domain"]
            assert target == (float(source["rating"]) > 0)
            document = (source["domain"], source["document"])
            assert home.setdefault(document, name) == name
        assert len(set(split.owners.tolist())) == 4


def test_contested_texts_are_the_third_on_which_training_raters_differ_most():
    train = STUDY.pooled_train
    assert train.groups["contested"].mean() == pytest.approx(1 / 3, abs=0.01)
    least = train.attributes["disagreement"][train.groups["contested"]].min()
    for name in POOLED:
        split = getattr(STUDY, name)
        assert np.array_equal(split.groups["agreed"], ~split.groups["contested"])
        assert np.all(split.attributes["disagreement"][split.groups["contested"]] > 0)
        clear = split.attributes["disagreement"] < least - 0.02
        assert not np.any(split.groups["contested"][clear])
        assert split.attributes["rating"].tolist() == [
            np.float32(ROWS[row]["rating"]) for row in split.rows
        ]


def test_a_held_out_text_reaches_no_other_row():
    altered = list(ROWS)
    for row in STUDY.test.rows:
        altered[row] = {**ROWS[row], "text": f"changed{row} " * 4, "deviation": "1.9"}
    again = load(rows=altered, length=5)
    assert again.vocabulary == STUDY.vocabulary
    for name in POOLED[:3]:
        assert np.array_equal(getattr(again, name).inputs, getattr(STUDY, name).inputs)
        before, after = getattr(STUDY, name).groups, getattr(again, name).groups
        assert np.array_equal(before["contested"], after["contested"])
    assert not np.array_equal(again.test.inputs, STUDY.test.inputs)


def test_limits_and_the_seed_are_heeded():
    fewer = load(rows=ROWS, per_agent=40)
    counts = sum(np.bincount(getattr(fewer, name).owners) for name in POOLED)
    assert counts.tolist() == [40] * 4
    assert len(load(rows=ROWS, vocabulary_size=10).vocabulary) == 10
    other = load(rows=ROWS, split_seed=1, length=5)
    assert not np.array_equal(other.test.rows, STUDY.test.rows)
    assert np.array_equal(load(rows=ROWS, length=5).test.inputs, STUDY.test.inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"length": 0}, "length=0"),
        ({"vocabulary_size": 2}, "vocabulary_size=2"),
        ({"neutral_below": float("nan")}, "neutral_below=nan"),
        ({"fractions": (1, 1, 1, 1)}, "sum to 1"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        load(rows=ROWS, **arguments)
