"""Sentiment of short texts in four domains, each rated by many people, as token ids."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import unescape
from typing import NamedTuple

import numpy as np

from vcca_jax.datasets.folder import read_fetched
from vcca_jax.datasets.study import Row, Shard, Split, deal, divide, sample

SENTIMENT_AGENTS = ("tweets", "movie reviews", "product reviews", "editorials")
SENTIMENT_GROUPS = ("contested", "agreed")
PADDING = 0
UNKNOWN = 1

_FILES = ("tweets", "movieReviewSnippets", "amazonReviewSnippets", "nytEditorialSnippets")
# Words with their apostrophes, emoticons, and the marks that carry feeling.
_TOKEN = re.compile(r"\w+(?:'\w+)*|[:;=]['-]?[()dp/]|[!?]")


class TextStudy(NamedTuple):
    """As `Study`, for texts.

    Attributes:
        agents: the agents' names; position = owner index.
        train: one `Shard` for each agent, token ids int32 [n, L], ready for `cooperative`.
        pooled_train: the same rows pooled, in the agents' order, with their attributes.
        values: held-out rows for value losses.
        validation: held-out rows for the utility.
        test: held-out rows to report on, never to choose by.
        vocabulary: the token of each id; "<padding>" is 0 and "<unknown>" is 1.
        groups: the names of the masks in every `Split.groups`.
    """

    agents: tuple[str, ...]
    train: tuple[Shard, ...]
    pooled_train: Split
    values: Split
    validation: Split
    test: Split
    vocabulary: tuple[str, ...]
    groups: tuple[str, ...]


def read_sentiment() -> list[dict[str, str]]:
    """Reads the fetched files as text rows, after verifying that they are those very files.

    Returns:
        23,703 rows, in the order of `SENTIMENT_AGENTS` and of each file: "domain", "id",
        "document" (the review or article that it is a sentence of), "rating" (mean over the
        raters, -4 to 4), "deviation" (of the raters, divisor n) and "text".

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: the SHA-256 of a file is not the recorded one.
    """
    rows: list[dict[str, str]] = []
    for domain, file in zip(SENTIMENT_AGENTS, _FILES, strict=True):
        texts = _lines(file, "GroundTruth")
        # The two files agree in their ids, but not everywhere in the order of their lines.
        deviations = {key: deviation for key, _, deviation, _ in _lines(file, "anonDataRatings")}
        for key, rating, text in texts:
            rows.append(
                {
                    "domain": domain,
                    "id": key,
                    "document": key.split("_")[0],
                    "rating": rating,
                    "deviation": deviations[key],
                    "text": text,
                }
            )
    return rows


def sentiment(
    *,
    length: int = 48,
    vocabulary_size: int = 8192,
    neutral_below: float = 0.5,
    split_seed: int = 0,
    fractions: Sequence[float] = (0.55, 0.15, 0.15, 0.15),
    rows_limit: int | None = None,
    per_agent: int | None = None,
    rows: Sequence[Row] | None = None,
) -> TextStudy:
    """Sentences from tweets, movie reviews, product reviews and editorials: glad or not.

    The target is 1 where the mean rating is above 0. Texts whose mean rating is nearer to 0
    than `neutral_below` are left out, and so are a text that repeats an earlier one and one
    without any token.

    Agents are the four domains. They differ in size, in words, in how many texts are
    positive, and in how hard they are: with the default arguments 3,432, 10,070, 2,977 and
    2,930 texts, of which 0.68, 0.50, 0.59 and 0.40 are positive.

    Splitting. As in `heart_disease`, each agent on its own, but whole reviews and articles
    are dealt out, in strata of the sign of their mean rating, since the sentences of one
    speak of the same thing. Tweets and movie snippets stand each alone.

    Tokens. HTML entities are resolved and letters lowered; a token is a word with its
    apostrophes, an emoticon, "!" or "?". The vocabulary is the tokens that occur at least
    twice in **training** rows, the most frequent first (then alphabetically), as many as fit;
    all others are `UNKNOWN` = 1. Ids are cut to `length` and filled up with `PADDING` = 0.

    Args:
        length: L, tokens a text; 48 cuts 0.3 % of the texts.
        vocabulary_size: at most so many ids, the two special ones included.
        neutral_below: texts with |mean rating| below it are left out, and those of exactly 0.
        split_seed: seed of the sampling and of the shuffle, an integer >= 0.
        fractions: shares of train, values, validation and test; all above 0, sum 1.
        rows_limit: at most so many rows in all, drawn by the seed; None = all.
        per_agent: at most so many rows of each agent, drawn by the seed; None = all.
        rows: text rows as `read_sentiment` returns them, which is called when None.

    Returns:
        The study. Attributes are "rating" and "disagreement" (standard deviation over the
        raters), both float32; "contested" are the rows whose disagreement is in the upper
        third of the training rows, "agreed" the others. `Split.rows` counts from 0 in
        `read_sentiment()`. The same arguments give the same arrays, bit for bit.

    Raises:
        FileNotFoundError: the set was not fetched.
        ValueError: a file was altered, or an argument is out of range.

    Source: Hutto, Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment
    Analysis of Social Media Text, ICWSM-14; MIT licence.
    """
    if length < 1:
        raise ValueError(f"length={length!r} must be at least 1")
    if vocabulary_size < 3:
        raise ValueError(
            f"vocabulary_size={vocabulary_size!r} must be at least 3: padding, unknown, a token"
        )
    if not neutral_below >= 0:
        raise ValueError(f"neutral_below={neutral_below!r} must be at least 0")
    rows = read_sentiment() if rows is None else rows
    tokens = [tokenise(row["text"]) for row in rows]
    rating = np.array([float(row["rating"]) for row in rows])
    _, first = np.unique([row["text"] for row in rows], return_index=True)
    usable = np.array([bool(found) for found in tokens])
    usable &= np.isin(np.arange(len(rows)), first)
    usable &= (np.abs(rating) >= neutral_below) & (rating != 0)
    lines = np.flatnonzero(usable)
    domains = {domain: agent for agent, domain in enumerate(SENTIMENT_AGENTS)}
    owners = np.array([domains[rows[line]["domain"]] for line in lines.tolist()], np.int32)
    kept = sample(owners, rows_limit=rows_limit, per_agent=per_agent, split_seed=split_seed)
    lines, owners, rating = lines[kept], owners[kept], rating[lines[kept]]
    rows = [rows[line] for line in lines.tolist()]
    tokens = [tokens[line] for line in lines.tolist()]
    deviation = np.array([float(row["deviation"]) for row in rows])

    split = _deal_documents(rows, owners, rating, fractions=fractions, split_seed=split_seed)
    is_train = split == 0
    vocabulary = build_vocabulary(
        [found for found, used in zip(tokens, is_train, strict=True) if used],
        size=vocabulary_size,
    )
    ids = {token: k for k, token in enumerate(vocabulary)}
    contested = deviation >= np.quantile(deviation[is_train], 2 / 3)
    parts = divide(
        split,
        agents=SENTIMENT_AGENTS,
        inputs=encode(tokens, ids, length=length),
        targets=(rating > 0).astype(np.int32),
        owners=owners,
        attributes={
            "rating": rating.astype(np.float32),
            "disagreement": deviation.astype(np.float32),
        },
        groups=dict(zip(SENTIMENT_GROUPS, (contested, ~contested), strict=True)),
        rows=lines,
    )
    return TextStudy(SENTIMENT_AGENTS, *parts, vocabulary, SENTIMENT_GROUPS)


def tokenise(text: str) -> list[str]:
    """The tokens of a text: words with their apostrophes, emoticons, "!" and "?"."""
    return _TOKEN.findall(unescape(text).lower())


def build_vocabulary(
    texts: Iterable[Sequence[str]], *, size: int, minimum: int = 2
) -> tuple[str, ...]:
    """The tokens of some texts by falling frequency, after padding and unknown.

    Args:
        texts: token lists, of training rows only.
        size: at most so many entries.
        minimum: how often a token must occur.

    Returns:
        The token of each id.
    """
    counts = Counter(token for text in texts for token in text)
    by_rank = sorted(counts, key=lambda token: (-counts[token], token))
    frequent = [token for token in by_rank if counts[token] >= minimum]
    return ("<padding>", "<unknown>", *frequent[: size - 2])


def encode(texts: Iterable[Sequence[str]], ids: Mapping[str, int], *, length: int) -> np.ndarray:
    """Token ids int32 [n, length], cut or filled up with `PADDING`.

    Args:
        texts: token lists.
        ids: the id of each token; any other is `UNKNOWN`.
        length: tokens a text.
    """
    rows = [[ids.get(token, UNKNOWN) for token in text[:length]] for text in texts]
    filled = [row + [PADDING] * (length - len(row)) for row in rows]
    return np.array(filled, np.int32).reshape(-1, length)


def _lines(file: str, kind: str) -> list[list[str]]:
    # Lines end in CR LF; a text may hold other characters at which Python would split.
    text = read_fetched("sentiment", f"{file}_{kind}.txt").decode("utf-8-sig")
    return [line.split("\t") for line in text.split("\r\n") if line]


def _deal_documents(
    rows: Sequence[Row],
    owners: np.ndarray,
    rating: np.ndarray,
    *,
    fractions: Sequence[float],
    split_seed: int,
) -> np.ndarray:
    """The split of every row, dealt out by whole documents."""
    documents = [f"{row['domain']} {row['document']}" for row in rows]
    _, first, document = np.unique(documents, return_index=True, return_inverse=True)
    positive = np.bincount(document, weights=rating) > 0
    by_document = deal(
        owners[first],
        positive.astype(np.int64),
        agents=SENTIMENT_AGENTS,
        fractions=fractions,
        split_seed=split_seed,
    )
    return by_document[document]
