"""Thin adapters: two Flax modules, Linen or NNX, as the two parts of a split model.

The core knows no framework; a part is a pure function of plain nested dicts of parameters. Both
adapters switch stochastic layers on by ``Keyed`` inputs, and then run every example alone, as a
batch of one under ``jax.vmap``, with its own key: an example's noise depends on its key alone.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from vcca_jax.model import SplitModel
from vcca_jax.noise import Keyed, is_key
from vcca_jax.programs import reads
from vcca_jax.trainer import Params

PARTS = ("body", "head")


def from_linen(
    body: Any,
    head: Any,
    example: Any,
    *,
    noise: Sequence[str] = ("dropout",),
    one_namespace: bool = False,
) -> SplitModel:
    """Split model of two Flax Linen modules.

    On plain inputs a module is given no random stream; on ``Keyed`` inputs it is given the streams
    named in ``noise``, for each example alone. So a stochastic layer asks whether it may draw:

        nn.Dropout(rate, deterministic=not self.has_rng("dropout"))

    Stream j of part p (0 the body, 1 the head) starts from ``fold_in(key, 2 j + p)`` of the
    example's key, and Linen folds in the path of the layer: no two layers draw the same numbers.

    Modules with other collections than parameters (batch statistics, caches) are refused: batch
    normalisation makes one example's loss depend on the others in its batch, and agents' parts
    would no longer sum to the pooled gradient. Use LayerNorm or GroupNorm.

    Args:
        body: a module called on inputs.
        head: a module called on the body's activations.
        example: a batch of inputs, or its ``jax.ShapeDtypeStruct``; an array or a pytree of them.
        noise: names of the random streams that stochastic layers draw from.
        one_namespace: promise that no layer's name occurs in both parts. Then both start from the
            same keys (p = 0), and a layer gets the same initial parameters and the same noise on
            whichever side of the cut it stands.

    Returns:
        The model. Parameters are plain nested dicts, ``{"params": {...}}`` for each part, ``{}``
        for one without.

    Raises:
        ValueError: by ``init``, a module that holds more than parameters, or a promise of one
            namespace that does not hold.
    """
    folds = (0, 0) if one_namespace else (0, 1)

    def variables(number: int, module: Any, key: jax.Array, inputs: Any) -> Params:
        made = module.init(jax.random.fold_in(key, folds[number]), inputs)
        _refuse_state(PARTS[number], set(made) - {"params"})
        return made

    def init(key: jax.Array) -> Params:
        inputs = _zeros(example)
        of_body = variables(0, body, key, inputs)
        activations = _zeros(jax.eval_shape(body.apply, of_body, inputs))
        of_head = variables(1, head, key, activations)
        twice = sorted(set(of_body.get("params", {})) & set(of_head.get("params", {})))
        if one_namespace and twice:
            raise ValueError(
                f"one_namespace=True, but body and head both name layers {twice}; give every layer"
                " a name of its own"
            )
        return {"body": of_body, "head": of_head}

    def part(number: int, module: Any) -> Callable[[Params, Any], Any]:
        def run(params: Params, inputs: Any) -> Any:
            if not isinstance(inputs, Keyed):
                return module.apply(params, inputs)

            def alone(one: Any, key: jax.Array) -> Any:
                streams = {
                    name: jax.random.fold_in(key, 2 * j + folds[number])
                    for j, name in enumerate(noise)
                }
                return module.apply(params, one, rngs=streams)

            return _each_alone(alone, inputs)

        return run

    return SplitModel(init, part(0, body), part(1, head))


def from_nnx(make_body: Callable[[Any], Any], make_head: Callable[[Any], Any]) -> SplitModel:
    """Split model of two Flax NNX modules.

    On plain inputs a module runs as after ``module.eval()`` and must not draw; on ``Keyed`` inputs
    as after ``module.train()``, for each example alone. Stream j of part p (0 the body, 1 the head)
    then has the key ``fold_in(key, 2 j + p)`` of the example's key and the count 0; streams are
    numbered in the order of their paths, and the keys that the modules were made with are not used.

    Modules with other state (batch statistics, caches) are refused: batch normalisation makes one
    example's loss depend on the others in its batch, and agents' parts would no longer sum to the
    pooled gradient. Use LayerNorm or GroupNorm.

    Args:
        make_body: ``make_body(nnx.Rngs) -> nnx.Module``, called on inputs.
        make_head: ``make_head(nnx.Rngs) -> nnx.Module``, called on activations.

    Returns:
        The model. Parameters are plain nested dicts; a module holds nothing else but random
        streams, which are no parameters.

    Raises:
        ValueError: a module that holds more than parameters and random streams; by ``body`` and
            ``head``, one whose outputs on plain inputs depend on what it draws. What is drawn and
            not used, such as the key for a recurrent layer's carry of zeros, does no harm.
    """
    from flax import nnx

    makers = (make_body, make_head)

    def init(key: jax.Array) -> Params:
        def params_of(number: int) -> Any:
            rngs = nnx.Rngs(jax.random.fold_in(key, number))
            return nnx.to_pure_dict(nnx.state(makers[number](rngs), nnx.Param))

        return {"body": params_of(0), "head": params_of(1)}

    def part(number: int) -> Callable[[Params, Any], Any]:
        module = nnx.eval_shape(lambda: makers[number](nnx.Rngs(0)))
        state = nnx.to_flat_state(nnx.split(module)[1])
        known = (nnx.Param, nnx.RngState)
        _refuse_state(
            PARTS[number], {v.type.__name__ for _, v in state if not issubclass(v.type, known)}
        )
        module.eval()
        quiet, of_params, of_streams = nnx.split(module, *known)
        module.train()
        drawing = nnx.split(module, *known)[0]
        streams = nnx.to_pure_dict(of_streams)

        def filled(state: Any, values: Any) -> Any:
            copied = jax.tree.map(lambda leaf: leaf, state)
            nnx.replace_by_pure_dict(copied, values)
            return copied

        def run(params: Params, inputs: Any) -> Any:
            if isinstance(inputs, Keyed):

                def alone(one: Any, key: jax.Array) -> Any:
                    started = filled(of_streams, _started(streams, key, number))
                    return nnx.merge(drawing, filled(of_params, params), started)(one)

                return _each_alone(alone, inputs)

            def quietly(idle: Any, params: Params, inputs: Any) -> tuple[Any, Any]:
                called = nnx.merge(quiet, filled(of_params, params), filled(of_streams, idle))
                outputs = called(inputs)
                return outputs, nnx.to_pure_dict(nnx.state(called, nnx.RngCount))

            idle = _started(streams, jax.random.key(0), number)
            outputs, counts = quietly(idle, params, inputs)
            before = {id(leaf) for leaf in jax.tree.leaves(idle)}
            drawn = any(id(count) not in before for count in jax.tree.leaves(counts))
            noise = len(jax.tree.leaves(idle))
            if drawn and any(reads(lambda *at: quietly(*at)[0], idle, params, inputs)[:noise]):
                raise ValueError(
                    f"{PARTS[number]} draws noise on plain inputs, where it must be deterministic;"
                    " let its layers heed `deterministic`, which module.eval() sets, and hand"
                    " recurrent ones an initial_carry="
                )
            return outputs

        return run

    return SplitModel(init, part(0), part(1))


def _each_alone(run: Callable[[Any, jax.Array], Any], keyed: Keyed) -> Any:
    """``run(inputs [1, ...], key)`` for each example; leaves [n, ...]."""

    def one(inputs: Any, key: jax.Array) -> Any:
        outputs = run(jax.tree.map(lambda leaf: leaf[None], inputs), key)
        return jax.tree.map(lambda leaf: leaf[0], outputs)

    return jax.vmap(one)(keyed.inputs, keyed.keys)


def _started(streams: Any, key: jax.Array, number: int) -> Any:
    """Keys and counts of random streams, as an example's key starts them."""
    leaves, structure = jax.tree.flatten(streams)
    values, j = [], 0
    for leaf in leaves:
        if is_key(leaf):
            folded = jax.random.fold_in(key, 2 * j + number)
            values.append(jax.random.split(folded, leaf.shape) if leaf.shape else folded)
            j += 1
        else:
            values.append(jax.numpy.zeros(leaf.shape, leaf.dtype))
    return jax.tree.unflatten(structure, values)


def _zeros(example: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), example)


def _refuse_state(part: str, kinds: Iterable[str]) -> None:
    others = sorted(kinds)
    if others:
        raise ValueError(
            f"{part} holds {others} besides parameters: batch normalisation, and other state of a"
            " whole batch, makes one example's loss depend on the others in the batch, so agents'"
            " parts no longer sum to the pooled gradient; use LayerNorm or GroupNorm, and layers"
            " without state"
        )
