"""Textbook cooperative games with closed forms, smooth games, and oracles that share no code.

A textbook game sees membership only (an agent is in where its weight exceeds one half); for
estimators that differentiate, `multilinear` extends a game's table of values to the cube.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Game(NamedTuple):
    name: str
    agents: int
    utility: Callable[[jax.Array], jax.Array]
    shapley: np.ndarray
    banzhaf: np.ndarray | None = None


def inside(w):
    return w > 0.5


def airport(costs):
    """A runway must serve the largest plane: v(S) = max cost in S. Littlechild & Owen 1973."""
    costs = np.sort(np.asarray(costs, dtype=np.float64))
    steps = np.diff(costs, prepend=0.0) / np.arange(len(costs), 0, -1)
    wanted = jnp.asarray(costs)
    return Game(
        "airport",
        len(costs),
        lambda w: jnp.max(jnp.where(inside(w), wanted, 0.0)),
        np.cumsum(steps),
    )


def gloves(right):
    """One left glove, several right ones: v(S) = pairs in S."""
    agents = right + 1
    return Game(
        "gloves",
        agents,
        lambda w: jnp.minimum(inside(w)[0], jnp.sum(inside(w)[1:])).astype(float),
        np.array([right / agents] + [1 / (right * agents)] * right),
        np.array([1 - 0.5**right] + [0.5**right] * right),
    )


def majority(agents):
    """Strict majority of equals."""
    pivotal = math.comb(agents - 1, agents // 2) / 2 ** (agents - 1)
    return Game(
        "majority",
        agents,
        lambda w: (2 * jnp.sum(inside(w)) > agents).astype(float),
        np.full(agents, 1 / agents),
        np.full(agents, pivotal),
    )


def weighted_voting():
    """[51; 50, 49, 1]: the last two are equally strong."""
    votes = jnp.array([50, 49, 1])
    return Game(
        "weighted_voting",
        3,
        lambda w: (jnp.sum(jnp.where(inside(w), votes, 0)) >= 51).astype(float),
        np.array([2, 0.5, 0.5]) / 3,
        np.array([3, 1, 1]) / 4,
    )


def security_council():
    """[39; 7 five times, 1 ten times]: the United Nations Security Council, whose indices are
    tabulated (Straffin 1983): 421/2145 and 4/2145; 848 and 84 swings of 2**14."""
    votes = jnp.array([7] * 5 + [1] * 10)
    return Game(
        "security_council",
        15,
        lambda w: (jnp.sum(jnp.where(inside(w), votes, 0)) >= 39).astype(float),
        np.array([421] * 5 + [4] * 10) / 2145,
        np.array([848] * 5 + [84] * 10) / 2**14,
    )


def apex(agents):
    """The apex wins with any other; the others win all together."""
    minor = agents - 1

    def utility(w):
        others = jnp.sum(inside(w)[1:])
        return ((inside(w)[0] & (others > 0)) | (others == minor)).astype(float)

    return Game(
        "apex",
        agents,
        utility,
        np.array([(agents - 2) / agents] + [2 / (agents * minor)] * minor),
        np.array([1 - 2 * 0.5**minor] + [2 * 0.5**minor] * minor),
    )


def additive(worths):
    worths = np.asarray(worths, dtype=np.float64)
    own = jnp.asarray(worths)
    return Game(
        "additive",
        len(worths),
        lambda w: jnp.sum(jnp.where(inside(w), own, 0.0)),
        worths,
        worths,
    )


def unanimity(agents, carriers):
    """v(S) = 1 if S holds all carriers."""
    held = np.isin(np.arange(agents), carriers)
    needed = jnp.asarray(held)
    return Game(
        "unanimity",
        agents,
        lambda w: jnp.all(inside(w) | ~needed).astype(float),
        held / len(carriers),
        held * 0.5 ** (len(carriers) - 1),
    )


def pairwise(couplings):
    """The graph game: v(S) = sum of the weights of edges inside S. Deng & Papadimitriou 1994."""
    couplings = np.triu(np.asarray(couplings, dtype=np.float64), k=1)
    edges = jnp.asarray(couplings)
    halves = (couplings.sum(axis=0) + couplings.sum(axis=1)) / 2
    return Game(
        "pairwise",
        len(couplings),
        lambda w: jnp.sum(edges * jnp.outer(inside(w), inside(w))),
        halves,
        halves,
    )


def bankruptcy():
    """Claims 1/2, 1, 3/2 on an estate of 1: v(S) = what others' claims leave. O'Neill 1982."""
    claims = jnp.array([0.5, 1.0, 1.5])
    return Game(
        "bankruptcy",
        3,
        lambda w: jnp.maximum(0.0, 1.0 - jnp.sum(jnp.where(inside(w), 0.0, claims))),
        np.array([2, 5, 5]) / 12,
    )


def textbook_games():
    couplings = np.array([[0, 0.5, -0.2, 0.1], [0, 0, 0.3, 0], [0, 0, 0, 0.7], [0, 0, 0, 0]])
    return [
        airport([0.1, 0.25, 0.25, 0.6, 1.0]),
        gloves(4),
        majority(7),
        weighted_voting(),
        apex(5),
        additive([0.3, 0.2, -0.1, 0.0]),
        unanimity(6, [0, 2, 5]),
        pairwise(couplings),
        bankruptcy(),
    ]


def table_of(game):
    """All 2**A values in float64, agent i being bit i, without any of the package's code."""
    rows = [[(code >> i) & 1 for i in range(game.agents)] for code in range(2**game.agents)]
    return np.array([float(game.utility(jnp.array(row, dtype=float))) for row in rows])


def of_table(table):
    """The game with these 2**A values: weights are rounded to membership."""
    places = jnp.asarray(2 ** np.arange(int(math.log2(table.shape[0]))))
    return lambda w: jnp.asarray(table)[jnp.sum(jnp.where(inside(w), places, 0))]


def multilinear(table):
    """The multilinear extension of the game with these 2**A values."""
    agents = int(math.log2(table.shape[0]))

    def utility(w):
        values = jnp.asarray(table)
        for agent in reversed(range(agents)):
            half = 2**agent
            values = (1 - w[agent]) * values[:half] + w[agent] * values[half:]
        return values[0]

    return utility


def learning(parts, curvature=1.0):
    """One step of learning: a smooth loss after the sum of the agents' parts `[A, D]`."""
    start = jnp.linspace(-0.5, 0.5, parts.shape[1])

    def utility(w):
        moved = start + jnp.sum(w[:, None] * parts, axis=0)
        mixed = jnp.tanh(curvature * moved) * jnp.roll(moved, 1)
        return -jnp.mean((moved - 1.0) ** 2) + jnp.mean(jnp.sin(mixed))

    return utility


def shapley_by_orders(table):
    """The Shapley value as the mean over all A! orders of arrival (A <= 7)."""
    agents = int(math.log2(len(table)))
    total = np.zeros(agents)
    for order in itertools.permutations(range(agents)):
        code = 0
        for agent in order:
            total[agent] += table[code | 1 << agent] - table[code]
            code |= 1 << agent
    return total / math.factorial(agents)


def semivalue_by_subsets(table, by_size):
    """The semivalue with these weights of sizes, one marginal contribution after another."""
    agents = int(math.log2(len(table)))
    total = np.zeros(agents)
    for agent in range(agents):
        for code in range(len(table)):
            if not code >> agent & 1:
                gain = table[code | 1 << agent] - table[code]
                total[agent] += by_size[code.bit_count()] * gain
    return total
