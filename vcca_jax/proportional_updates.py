"""Optimizers whose update is proportional to the gradient, found by reading their program.

Gradient descent, with momentum, weight decay and any schedule of its rate, updates by

    u(g) = f g + r,    f a number, r free of g,

so what an update does to first order is told by inner products with the gradient itself. Adam's or
a clipped update is not of this kind.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from vcca_jax.programs import bind, inner_program
from vcca_jax.trainer import Params


class Proportion(NamedTuple):
    """u(g) = factor g + r.

    Attributes:
        factor: scalar f.
        rest: whether there may be an r: False only where none is ever added.
    """

    factor: jax.Array
    rest: bool


class _Free(NamedTuple):
    """A value that does not depend on the gradient; ``number`` is what all its entries are."""

    value: Any
    number: Any = None


class _Times(NamedTuple):
    """Leaf ``place`` of the gradient times the product of some numbers, plus perhaps a rest.

    Numbers are told apart by the object that holds them, so that equal factors are known as equal.
    """

    place: int
    numbers: tuple[Any, ...] = ()
    rest: bool = False


class _Foreign(Exception):
    """An operation that is none of those followed here."""


def proportion(update: Callable[[Params], Params], gradient: Params) -> Proportion | None:
    """Whether ``update(gradient)`` is f g + r with one number f for all of the gradient.

    Args:
        update: of the gradient to the update, all else bound.
        gradient: arrays, or their abstract shapes.

    Returns:
        f and whether there is an r; None where the program does more than that, or where it was not
        understood: it may be proportional all the same.
    """
    leaves, structure = jax.tree.flatten(gradient)
    if not leaves:
        return None

    def of_leaves(leaves: Sequence[Any]) -> list[Any]:
        return jax.tree.leaves(update(jax.tree.unflatten(structure, leaves)))

    program = jax.make_jaxpr(of_leaves)(leaves)
    try:
        results = _follow(program, [_Times(place) for place in range(len(leaves))])
    except _Foreign:
        return None
    kinds = []
    for place, result in enumerate(results):
        if not isinstance(result, _Times) or result.place != place:
            return None
        kinds.append(result)
    if len({_signature(each) for each in kinds}) != 1:
        return None
    factor = jnp.ones(())
    for number in kinds[0].numbers:
        factor = factor * number
    return Proportion(factor, any(each.rest for each in kinds))


def _signature(times: _Times) -> frozenset[Any]:
    """Of the numbers: constants by value, others by identity."""
    keys = (
        float(n) if isinstance(n, int | float | np.generic | np.ndarray) else id(n)
        for n in times.numbers
    )
    return frozenset(Counter(keys).items())


def _follow(program: ClosedJaxpr, arguments: Sequence[Any]) -> list[Any]:
    known = {
        variable: _free(constant)
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True)
    }
    known |= dict(zip(program.jaxpr.invars, arguments, strict=True))
    for equation in program.jaxpr.eqns:
        operands = [_free(v.val) if isinstance(v, Literal) else known[v] for v in equation.invars]
        if (inner := inner_program(equation)) is not None:
            results = _follow(inner, operands)
        elif all(isinstance(each, _Free) for each in operands):
            results = _free_results(equation, operands)
        else:
            results = [_proportional(equation.primitive.name, operands)]
        known |= dict(zip(equation.outvars, results, strict=True))
    return [_free(v.val) if isinstance(v, Literal) else known[v] for v in program.jaxpr.outvars]


def _free(value: Any) -> _Free:
    return _Free(value, value if jnp.ndim(value) == 0 else None)


def _free_results(equation: Any, operands: Sequence[_Free]) -> list[_Free]:
    told = bind(equation, [each.value for each in operands])
    # A number that is spread out or recast is the same number.
    same = equation.primitive.name in (
        "broadcast_in_dim",
        "convert_element_type",
        "reshape",
        "copy",
    )
    if same and operands[0].number is not None:
        return [_Free(told[0], operands[0].number)]
    return [_free(value) for value in told]


def _proportional(name: str, operands: Sequence[Any]) -> _Times:
    times = [each for each in operands if isinstance(each, _Times)]
    free = [each for each in operands if isinstance(each, _Free)]
    if name in ("convert_element_type", "copy", "stop_gradient") and len(operands) == 1:
        return times[0]
    if name == "neg":
        return times[0]._replace(numbers=(*times[0].numbers, -1.0))
    if name == "mul" and len(times) == 1 and free[0].number is not None:
        return times[0]._replace(numbers=(*times[0].numbers, free[0].number))
    if name in ("add", "add_any") and len(times) == 1:
        return times[0]._replace(rest=True)
    if name == "sub" and len(times) == 1 and isinstance(operands[0], _Times):
        return times[0]._replace(rest=True)
    raise _Foreign(name)
