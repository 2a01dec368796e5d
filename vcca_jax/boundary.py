"""Does a split model keep what traversal learning promises? Asked before training."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from vcca_jax.model import SplitModel
from vcca_jax.programs import inner_program
from vcca_jax.trainer import Params

# Moving a number, or joining it with others, leaves it readable.
_MOVES = {
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "device_put",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "optimization_barrier",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "split",
    "squeeze",
    "transpose",
}
# What writes updates into an operand, at indices: whatever is not written over stays.
_WRITES = {"scatter"}
_WRITES_ONTO = {"scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max"}
# A comparison tells a bit of a number, not the number.
_TELLS_A_BIT = {"eq", "ne", "lt", "le", "gt", "ge", "is_finite"}


def check_boundary(model: SplitModel, params: Params, inputs: Any) -> None:
    """Refuse a split model that traversal learning cannot train exactly, or would undress.

    Two things are checked. No activation may be a raw input, moved, joined to others, or changed
    by a function without parameters; this is read off the traced program of the body, for any
    input. And no example's output may depend on another example of its batch, as batch
    normalisation makes it: agents' parts would no longer sum to the pooled gradient; this is
    tried on ``inputs``, by exchanging one of them.

    Args:
        model: body and head.
        params: ``{"body": ..., "head": ...}``.
        inputs: [n, ...], n >= 2 examples, of which the first and the last differ.

    Raises:
        ValueError: which promise is broken, and what to do; or the two examples are equal, so that
            to exchange them shows nothing.
    """
    leaves = jax.tree.leaves(inputs)
    if not leaves or min(len(leaf) for leaf in leaves) < 2:
        shapes = [np.shape(leaf) for leaf in leaves]
        raise ValueError(f"inputs have shapes {shapes}; give a batch of at least two examples")
    if raw := _raw_activations(model, params["body"], inputs):
        raise ValueError(
            f"body hands on raw inputs as its activations{raw[0]}: nothing with parameters stands"
            " between; move at least the first layer's products into the body"
        )
    if not any(bool((leaf[0] != leaf[-1]).any()) for leaf in map(jax.numpy.asarray, leaves)):
        raise ValueError(
            f"inputs have an equal first and last example of {len(leaves[0])}; give two that differ"
        )
    outputs = model.apply(params, inputs)
    swapped = jax.tree.map(lambda leaf: jax.numpy.asarray(leaf).at[0].set(leaf[-1]), inputs)
    for before, after in zip(
        jax.tree.leaves(outputs), jax.tree.leaves(model.apply(params, swapped)), strict=True
    ):
        scale = float(np.abs(before).max()) or 1.0
        change = float(np.abs(np.asarray(after)[1:] - np.asarray(before)[1:]).max())
        if not change <= 1e-5 * scale:
            raise ValueError(
                f"outputs of the model change by {change:.3g} when another example of the batch is"
                " exchanged; an example's loss must be its own: replace batch normalisation by"
                " layer or group normalisation"
            )


def _raw_activations(model: SplitModel, body_params: Params, inputs: Any) -> list[str]:
    """Paths of the activations that are raw inputs."""
    traced = jax.make_jaxpr(model.body)(body_params, inputs)
    count = len(jax.tree.leaves(body_params))
    total = len(traced.jaxpr.invars)
    raw, _ = _follow(
        traced.jaxpr, [i >= count for i in range(total)], [i < count for i in range(total)]
    )
    shapes = jax.eval_shape(model.body, body_params, inputs)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    return [jax.tree_util.keystr(p) for p, is_raw in zip(paths, raw, strict=True) if is_raw]


def _follow(
    program: Any, raw: Sequence[bool], learned: Sequence[bool]
) -> tuple[list[bool], list[bool]]:
    """Which outputs of a program are raw, and which depend on a parameter.

    Raw is what came by moves alone, or by functions of raw values that no parameter entered.
    """
    is_raw = dict(zip(program.invars, raw, strict=True))
    is_learned = dict(zip(program.invars, learned, strict=True))

    def known(variables: Any, table: dict) -> list[bool]:
        # Literals are no keys of a table, and neither raw nor learned.
        return [not hasattr(v, "val") and table.get(v, False) for v in variables]

    for equation in program.eqns:
        ins_raw, ins_learned = (known(equation.invars, t) for t in (is_raw, is_learned))
        inner = inner_program(equation, custom=True)
        name = equation.primitive.name
        if inner is not None:
            outs_raw, outs_learned = _follow(inner.jaxpr, ins_raw, ins_learned)
        else:
            if name in _TELLS_A_BIT:
                answer = False
            elif name in _MOVES:
                answer = any(ins_raw)
            elif name == "gather":
                answer = ins_raw[0]  # a table looked up by an input is another number
            else:
                answer = any(ins_raw) and not any(ins_learned)
            if name in _WRITES:
                answer |= ins_raw[0] or ins_raw[2]
            if name in _WRITES_ONTO:
                answer |= ins_raw[0] or (ins_raw[2] and not ins_learned[0])
            outs_raw = [answer] * len(equation.outvars)
            outs_learned = [any(ins_learned)] * len(equation.outvars)
        is_raw.update(zip(equation.outvars, outs_raw, strict=True))
        is_learned.update(zip(equation.outvars, outs_learned, strict=True))
    return known(program.outvars, is_raw), known(program.outvars, is_learned)
