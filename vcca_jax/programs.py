"""Traced programs, operation by operation: shared by all that reads or rewrites one."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters import partial_eval

# Operations that only run an inner program, and where they keep it; ``custom`` ones have a
# derivative of their own beside it.
_WRAPPERS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
}
_CUSTOM = {
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def inner_program(equation: Any, *, custom: bool = False) -> ClosedJaxpr | None:
    """The program that an operation runs and is nothing but, or None.

    Args:
        equation: of a traced program.
        custom: count an operation with a derivative rule of its own too, for who only reads values.
    """
    wrappers = {**_WRAPPERS, **_CUSTOM} if custom else _WRAPPERS
    inner = equation.params.get(wrappers.get(equation.primitive.name, ""))
    if inner is None or isinstance(inner, ClosedJaxpr):
        return inner
    return ClosedJaxpr(inner, ())


def bind(equation: Any, values: Sequence[Any]) -> list[jax.Array]:
    """The results of one operation on these operands."""
    primitive = equation.primitive
    told = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(told) if primitive.multiple_results else [told]


def holds(equations: Sequence[Any], names: Collection[str]) -> bool:
    """Whether a program has an operation of one of these names, in an inner program perhaps."""
    return any(
        equation.primitive.name in names
        or any(holds(inner.eqns, names) for inner in _inner_programs(equation.params))
        for equation in equations
    )


def has_forward(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether a function that takes derivatives in forward mode can be run.

    A ``jax.custom_vjp`` has none, which JAX says when the function is vectorized, compiled or run,
    but not yet when it is traced.
    """
    try:
        program = jax.make_jaxpr(function)(*arguments)
    except TypeError as error:
        if "custom_vjp" in str(error):
            return False
        raise
    return not holds(program.eqns, {"custom_lin"})


def check_forward(method: str, function: Callable[..., Any], *arguments: Any) -> None:
    """Refuse a form of the gradients that would ask a ``jax.custom_vjp`` for what it has not.

    Raises:
        ValueError: unless ``has_forward``.
    """
    if not has_forward(function, *arguments):
        raise ValueError(
            f"method={method!r} takes products by forward mode, for which a jax.custom_vjp in"
            " loss_fn has no rule; use method='scanned' or 'stacked', or write it as a"
            " jax.custom_jvp"
        )


def reads(function: Callable[..., Any], *arguments: Any) -> list[bool]:
    """For every leaf of the arguments, whether what the function returns depends on it."""
    program = jax.make_jaxpr(function)(*arguments).jaxpr
    return list(partial_eval.dce_jaxpr(program, [True] * len(program.outvars))[1])


def multiplications(equations: Sequence[Any]) -> int:
    """How many numbers the products of matrices and the convolutions in a program multiply.

    A loop of known length counts all its turns, one of unknown length a single turn, and a choice
    its dearest branch; what works element by element counts nothing.
    """
    return sum(_multiplications(equation) for equation in equations)


def _multiplications(equation: Any) -> int:
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        left, right = (operand.aval.shape for operand in equation.invars[:2])
        (_, contracted), (_, batch) = parameters["dimension_numbers"]
        free = [size for axis, size in enumerate(right) if axis not in (*contracted, *batch)]
        return math.prod(left) * math.prod(free)
    if name == "conv_general_dilated":
        window = equation.invars[1].aval.shape
        features = window[parameters["dimension_numbers"].rhs_spec[0]]
        return math.prod(equation.outvars[0].aval.shape) * math.prod(window) // features
    inner = [multiplications(program.eqns) for program in _inner_programs(parameters)]
    if name == "cond":
        return max(inner)
    return parameters.get("length", 1) * sum(inner) if name == "scan" else sum(inner)


def _inner_programs(parameters: dict[str, Any]) -> Iterator[Jaxpr]:
    for value in parameters.values():
        for each in value if isinstance(value, list | tuple) else (value,):
            if isinstance(each, ClosedJaxpr):
                yield each.jaxpr
            elif isinstance(each, Jaxpr):
                yield each
