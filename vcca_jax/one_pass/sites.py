"""The sites of a loss: where parameters meet data in the program of one example.

A site is an operation F(h, w) of activations h and weights w. What depends on parameters alone is a
derived weight and no site: a reshaped leaf, or merged low-rank adapters. An operation that hides
its parameters, such as a loop over layers, is a site as a whole. Weights that were broadcast to
meet their data, a bias or a norm's scale, count as they were before.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Literal

from vcca_jax.example_losses import checked_losses
from vcca_jax.one_pass.site_views import VIEWS, MatrixView, ViewRule
from vcca_jax.programs import bind, has_forward, holds, inner_program, multiplications

# A leaf seen through these is the same numbers: inner products do not change.
_SAME_NUMBERS = {"reshape", "transpose", "squeeze", "expand_dims", "copy"}


class Site(NamedTuple):
    """Where parameters meet data.

    Attributes:
        apply: ``apply(activations, weights, settings) -> outputs``, lists of arrays of one
            example, of the outputs the floating ones.
        depends: places of the parameter leaves that its weights are made of.
        leaf: its weights are one parameter leaf, perhaps in another order.
        view: the site as a product of matrices, or None.
        multiplications: of its products of matrices.
    """

    apply: Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], list[Any]]
    depends: frozenset[int]
    leaf: bool
    view: MatrixView | None
    multiplications: int


class Met(NamedTuple):
    """What one run through a program met, site by site.

    Attributes:
        loss: scalar.
        sites: the same in every run.
        weights, activations, outputs: what stood at each site, a list each.
        settings: what stood there that is made of parameters and has no derivative, such as a
            comparison, an order or the number of a branch; a list each.
    """

    loss: Any
    sites: list[Site]
    weights: list[list[Any]]
    activations: list[list[Any]]
    outputs: list[list[Any]]
    settings: list[list[Any]]


class _Value(NamedTuple):
    """A value in the program.

    Attributes:
        value: the array.
        derived: it depends on no data.
        leaf: it holds the numbers of one parameter leaf, or did before it was broadcast.
        depends: places of the leaves that it is made of, if it is derived.
        narrow: what it was before it was broadcast, if it was.
        widening: the operations that broadcast it.
    """

    value: Any
    derived: bool = True
    leaf: bool = False
    depends: frozenset[int] = frozenset()
    narrow: Any = None
    widening: tuple[Any, ...] = ()


class SiteSize(NamedTuple):
    """What is known of a site without running it; counts are of one example.

    Attributes:
        shape: (positions, inputs, outputs) of its view, or None.
        alone: its weights are one leaf that meets data nowhere else.
        weights: numbers in its weights.
        activations: numbers in its activations.
        outputs: numbers in its outputs.
        multiplications: of its products of matrices.
    """

    shape: tuple[int, int, int] | None
    alone: bool
    weights: int
    activations: int
    outputs: int
    multiplications: int


class Survey(NamedTuple):
    """The program of one example's loss, seen by its shapes alone.

    Attributes:
        program: of (leaves, data) -> loss.
        sizes: of its sites.
        outputs: shapes of each site's outputs.
    """

    program: ClosedJaxpr
    sizes: list[SiteSize]
    outputs: list[list[jax.ShapeDtypeStruct]]


def loss_of_one(
    loss_fn: Callable[[Any, Any, Any], jax.Array], params: Any, example: Any
) -> Callable[[Sequence[Any], Sequence[Any]], jax.Array]:
    """A per-example loss as ``of_one(leaves, data) -> scalar``, of one example's leaves.

    Args:
        loss_fn: ``loss_fn(params, inputs, targets) -> [n]``.
        params: structure of the parameters.
        example: structure of ``(inputs, targets)``.

    Raises:
        ValueError: when called, a ``loss_fn`` that does not return one loss an example.
    """

    def of_one(leaves: Sequence[Any], data: Sequence[Any]) -> jax.Array:
        alone = jax.tree.unflatten(example, [leaf[None] for leaf in data])
        return checked_losses(loss_fn(jax.tree.unflatten(params, leaves), *alone), 1)[0]

    return of_one


def survey(
    of_one: Callable[[Sequence[Any], Sequence[Any]], jax.Array],
    leaves: Sequence[Any],
    data: Sequence[jax.ShapeDtypeStruct],
    views: Mapping[str, ViewRule] = VIEWS,
) -> Survey:
    """Trace ``of_one(leaves, data) -> scalar``, the loss of one example, and see its sites.

    Args:
        of_one: the loss.
        leaves: of the parameters.
        data: of the example.
        views: as for ``run``.
    """
    # Of bare shapes, so that the program knows no devices and runs on any part of them.
    bare = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]
    program = jax.make_jaxpr(of_one)(bare, data)
    noted: list[list[Site]] = []

    def standing(leaves: Sequence[Any], data: Sequence[Any]) -> Any:
        met = run(program, leaves, data, None, views)
        noted.append(met.sites)
        return met.weights, met.activations, met.outputs

    told = jax.eval_shape(standing, bare, data)
    sites = noted[0]
    sizes = []
    for i, (site, *shapes) in enumerate(zip(sites, *told, strict=True)):
        weights, activations, outputs = (sum(leaf.size for leaf in each) for each in shapes)
        others = [other.depends for j, other in enumerate(sites) if j != i]
        sizes.append(
            SiteSize(
                shape=None if site.view is None else site.view[:3],
                alone=site.leaf and not any(site.depends & depends for depends in others),
                weights=weights,
                activations=activations,
                outputs=outputs,
                multiplications=site.multiplications,
            )
        )
    return Survey(program, sizes, told[2])


def forward_rules(
    program: ClosedJaxpr,
    leaves: Sequence[Any],
    data: Sequence[jax.ShapeDtypeStruct],
    views: Mapping[str, ViewRule] = VIEWS,
) -> bool:
    """Whether what is made of parameters, and every site, has a derivative in forward mode.

    It is asked of where there is a ``jax.custom_vjp``; between sites one does no harm.

    Args:
        program: of (leaves, data) -> loss.
        leaves: of the parameters, or their shapes.
        data: of the example.
        views: as for ``run``.
    """
    if not holds(program.eqns, {"custom_vjp_call"}):
        return True

    def moved(leaves: Sequence[Any], along: Sequence[Any], data: Sequence[Any]) -> Any:
        def stood(at: Sequence[Any]) -> list[list[Any]]:
            return run(program, at, shapes, None, views).weights

        met = run(program, leaves, data, None, views)
        _, along_weights = jax.jvp(stood, (leaves,), (along,))
        return [
            jax.jvp(lambda w, site=site, h=h, s=s: site.apply(h, w, s), (w,), (t,))
            for site, w, h, s, t in zip(
                met.sites, met.weights, met.activations, met.settings, along_weights, strict=True
            )
        ]

    shapes = list(data)
    return has_forward(moved, leaves, leaves, data)


def run(
    program: ClosedJaxpr,
    leaves: Sequence[Any],
    data: Sequence[Any],
    probes: Sequence[Any] | None,
    views: Mapping[str, ViewRule] = VIEWS,
) -> Met:
    """Run the program of one example's loss.

    Args:
        program: of (leaves, data) -> loss.
        leaves: of the parameters.
        data: of the example; shapes alone tell what is made of parameters, and shapes of the rest.
        probes: what to add to the sites' outputs, in their order: zeros, whose derivatives are the
            outputs' cotangents. None adds nothing.
        views: how operations are seen as products of matrices, by their names.
    """
    met = Met(None, [], [], [], [], [])
    arguments = [
        *(_Value(leaf, True, True, frozenset([place])) for place, leaf in enumerate(leaves)),
        *(_Value(leaf, False) for leaf in data),
    ]
    added = None if probes is None else iter(probes)
    (loss,) = _follow(program, arguments, met, added, views)
    if loss.derived and loss.depends and _floating(loss.value):
        loss = _meet_nothing(loss, met, added)
    return met._replace(loss=loss.value)


def _follow(
    program: ClosedJaxpr,
    arguments: Sequence[_Value],
    met: Met,
    probes: Iterator[Any] | None,
    views: Mapping[str, ViewRule],
) -> list[_Value]:
    known = {
        variable: _Value(constant)
        for variable, constant in zip(program.jaxpr.constvars, program.consts, strict=True)
    }
    known |= dict(zip(program.jaxpr.invars, arguments, strict=True))

    def read(variables: Sequence[Any]) -> list[_Value]:
        return [_Value(v.val) if isinstance(v, Literal) else known[v] for v in variables]

    for equation in program.jaxpr.eqns:
        operands = read(equation.invars)
        derived = all(operand.derived for operand in operands)
        if derived:
            depends = frozenset[int]().union(*(operand.depends for operand in operands))
            told = bind(equation, [operand.value for operand in operands])
            results = [_derive(equation, operands, value, depends) for value in told]
        elif not any(map(_weighs, operands)):
            results = [_Value(value, False) for value in _told(equation, operands)]
        elif (inner := inner_program(equation)) is not None:
            results = _follow(inner, operands, met, probes, views)
        else:
            results = _meet(equation, operands, met, probes, views)
        known |= dict(zip(equation.outvars, results, strict=True))
    return read(program.jaxpr.outvars)


def _derive(
    equation: Any, operands: Sequence[_Value], value: Any, depends: frozenset[int]
) -> _Value:
    """A value made of parameters alone, with what is known of how."""
    if not operands:
        return _Value(value)
    first, name = operands[0], equation.primitive.name
    same = name in _SAME_NUMBERS or (
        name == "broadcast_in_dim" and value.size == jnp.size(first.value)
    )
    wider = name == "broadcast_in_dim" and value.size > jnp.size(first.value)
    if depends and len(operands) == 1 and (wider or (same and first.widening)):
        narrow = first.narrow if first.widening else first.value
        return _Value(value, True, first.leaf, depends, narrow, (*first.widening, equation))
    return _Value(value, True, same and first.leaf, depends)


def _weighs(operand: _Value) -> bool:
    """Whether a derivative in the parameters goes through it."""
    return bool(operand.depends) and _floating(operand.value)


def _told(equation: Any, operands: Sequence[_Value]) -> list[Any]:
    """The results of an operation that reads data, or their shapes where those are all there is."""
    values = [operand.value for operand in operands]
    if any(isinstance(value, jax.ShapeDtypeStruct) for value in values):
        shapes = [variable.aval for variable in equation.outvars]
        return [jax.ShapeDtypeStruct(shape.shape, shape.dtype) for shape in shapes]
    return bind(equation, values)


def _meet_nothing(loss: _Value, met: Met, probes: Iterator[Any] | None) -> _Value:
    """Note a site for a loss that is made of parameters alone: they meet no data before it."""

    def apply(h: Sequence[Any], w: Sequence[Any], settings: Sequence[Any]) -> list[Any]:
        del settings
        return [w[0] + h[0]]

    value = loss.value
    met.sites.append(Site(apply, loss.depends, False, None, 0))
    met.weights.append([value])
    met.activations.append([jnp.zeros_like(value)])
    met.outputs.append([value])
    met.settings.append([])
    return _Value(value if probes is None else value + next(probes), False)


def _meet(
    equation: Any,
    operands: Sequence[_Value],
    met: Met,
    probes: Iterator[Any] | None,
    views: Mapping[str, ViewRule],
) -> list[_Value]:
    """Note a site, and hand its outputs on with their probes."""
    weights = [i for i, operand in enumerate(operands) if _weighs(operand)]
    settings = [i for i, o in enumerate(operands) if o.depends and not _weighs(o)]
    data = [i for i, operand in enumerate(operands) if not operand.derived]
    values = [operand.value for operand in operands]
    others = (*weights, *settings, *data)
    constants = [None if i in others else value for i, value in enumerate(values)]

    def apply(h: Sequence[Any], w: Sequence[Any], s: Sequence[Any]) -> list[Any]:
        placed = list(constants)
        for i, value in zip((*data, *settings), (*h, *s), strict=True):
            placed[i] = value
        for i, value in zip(weights, w, strict=True):
            for widening in operands[i].widening:
                (value,) = bind(widening, [value])
            placed[i] = value
        return [out for out in bind(equation, placed) if _floating(out)]

    told = _told(equation, operands)
    if not any(map(_floating, told)):  # a comparison: nothing of it has a derivative
        return [_Value(out, False) for out in told]
    of_weights = [operands[i] for i in weights]
    rule = views.get(equation.primitive.name)
    seen = len(operands) == 2 and data == [0] and weights == [1] and not operands[1].widening
    met.sites.append(
        Site(
            apply,
            frozenset[int]().union(*(operand.depends for operand in of_weights)),
            all(operand.leaf for operand in of_weights) and len(of_weights) == 1,
            rule(equation.params, *values) if rule is not None and seen else None,
            multiplications([equation]),
        )
    )
    met.weights.append([o.narrow if o.widening else o.value for o in of_weights])
    met.activations.append([values[i] for i in data])
    met.outputs.append([out for out in told if _floating(out)])
    met.settings.append([values[i] for i in settings])
    if probes is not None:
        told = [out + next(probes) if _floating(out) else out for out in told]
    return [_Value(out, False) for out in told]


def _floating(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)
