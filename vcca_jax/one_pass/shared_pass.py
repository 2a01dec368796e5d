"""One pass for a step's batch and for all its held-out examples.

Value gradients and the validation gradient are combinations of example gradients too,

    grad V_m = sum_r c_mr grad l_r,    c_mr = dphi_m/dl_r,

so their examples join the virtual batch in one forward and one backward pass (``tape``), and all
that screening and first-order credit ask for are products of the examples' gradients. A loss that
does not name its examples (``held_out``), or reads another ``loss_fn`` or examples of another form,
is differentiated on its own and its gradient met with the same pass.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vcca_jax.example_losses import checked_losses, example_count
from vcca_jax.gradients import AgentGradients, from_tape
from vcca_jax.held_out import HeldOutLoss
from vcca_jax.one_pass.placement import same_loss
from vcca_jax.one_pass.site_forms import Form
from vcca_jax.one_pass.site_views import VIEWS, ViewRule
from vcca_jax.one_pass.tape import Tape, record_segments
from vcca_jax.rows import (
    Rows,
    named_rows,
    rows_combination,
    rows_dot,
    scalar_weights,
    weighted,
)
from vcca_jax.trainer import ExampleLoss, Params, sample_shares
from vcca_jax.virtual_batch import VirtualBatch

HeldOut = Callable[[Params, Any], jax.Array]


class OnePass(NamedTuple):
    """The one-pass form with its options spelled out.

    Attributes:
        form: how every layer holds its gradients; "auto" lets the cost model choose
            (``site_forms``).
        views: rules that see an operation as a product of matrices, by the operation's name;
            ``{**site_views.VIEWS, "name": rule}`` has one's own beside them.
    """

    form: Form = "auto"
    views: Mapping[str, ViewRule] = VIEWS


AUTOMATIC = OnePass()


class SharedPass(NamedTuple):
    """What one pass tells.

    Attributes:
        gradients: (g_1, ..., g_A).
        losses: [M], the held-out losses.
        rows: their M gradients.
    """

    gradients: AgentGradients
    losses: jax.Array
    rows: Rows


def shared_pass(
    loss_fn: ExampleLoss,
    params: Params,
    batch: VirtualBatch,
    held_out: Sequence[HeldOut],
    context: Any = None,
    *,
    options: OnePass = AUTOMATIC,
    named: jax.Array | None = None,
) -> SharedPass:
    """Run a batch and the examples of held-out losses forward and backward once.

    Args:
        loss_fn: per-example loss.
        params: pytree of D numbers.
        batch: B samples of A agents.
        held_out: M losses ``loss(params, context) -> scalar``: value losses, and a validation loss.
        context: theirs.
        options: of the form.
        named: [M], the losses that somebody asks for; what is not finite in another's slope counts
            as 0. All by default.
    """
    joined = {
        m: loss
        for m, loss in enumerate(held_out)
        if isinstance(loss, HeldOutLoss) and _joins(loss, loss_fn, batch)
    }
    own = [m for m in range(len(held_out)) if m not in joined]
    # Read once, so that all that is said of a draw is said of the same one.
    read = {m: loss.groups(context) for m, loss in joined.items()}
    segments = [(batch.inputs, batch.targets), *itertools.chain(*read.values())]
    counts = {m: [example_count(group) for group in groups] for m, groups in read.items()}
    sizes = [sum(each) for each in counts.values()]
    tape = record_segments(
        loss_fn, params, segments, blocks=sizes, form=options.form, views=options.views
    )
    gradients = from_tape(tape, loss_fn, params, batch)

    losses: dict[int, jax.Array] = {}
    coefficients = []
    lines = _cut(tape.losses[batch.mask.shape[0] :], sizes)
    for (m, loss), line in zip(joined.items(), lines, strict=True):
        losses[m], slopes = jax.value_and_grad(_of_line)(line, loss, counts[m])
        if named is not None:
            slopes = jnp.where(named[m] | jnp.isfinite(slopes), slopes, 0)
        coefficients.append(slopes)
    formed = None
    if own:
        pairs = [jax.value_and_grad(held_out[m])(params, context) for m in own]
        losses |= {m: loss for m, (loss, _) in zip(own, pairs, strict=True)}
        formed = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(row for _, row in pairs))
        formed = formed if named is None else named_rows(formed, named[jnp.asarray(own)])
    known = _Pass(tape, gradients.dot, batch, list(joined), own, coefficients, formed)
    # Here, in the pass's own trace: a screen may ask from within a loop, which could not keep it.
    known = replace(known, plain=known.table_in(None))
    every = tuple(range(len(held_out)))
    return SharedPass(gradients, jnp.stack([losses[m] for m in every]), _rows(known, every))


def losses_at(
    loss_fn: ExampleLoss, params: Params, held_out: Sequence[HeldOut], context: Any = None
) -> jax.Array:
    """[M], held-out losses at other parameters, those that read ``loss_fn`` in one batch."""
    read = [
        loss
        for loss in held_out
        if isinstance(loss, HeldOutLoss) and same_loss(loss.loss_fn, loss_fn)
    ]
    taken = {id(loss): loss.groups(context) for loss in read}
    counts = {key: [example_count(group) for group in groups] for key, groups in taken.items()}
    groups = [group for loss in read for group in taken[id(loss)]]
    forms = [_form(group) for group in groups]
    if not groups or any(form != forms[0] for form in forms):
        return jnp.stack([loss(params, context) for loss in held_out])
    examples = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *groups)
    whole = checked_losses(loss_fn(params, *examples), example_count(examples))
    lines = iter(_cut(whole, [sum(counts[id(loss)]) for loss in read]))
    return jnp.stack(
        [
            _of_line(next(lines), loss, counts[id(loss)])
            if isinstance(loss, HeldOutLoss) and id(loss) in counts
            else loss(params, context)
            for loss in held_out
        ]
    )


def take(rows: Rows, columns: Sequence[int]) -> Rows:
    """Some of a pass's rows, which still share it."""
    assert isinstance(rows.shared, _Columns)
    return _rows(rows.shared.known, tuple(rows.shared.columns[c] for c in columns))


def joined_rows(
    loss_fn: ExampleLoss, batch: VirtualBatch, held_out: Sequence[HeldOut], context: Any = None
) -> list[int]:
    """How many rows each held-out loss brings to a pass, of those that join it."""
    return [
        sum(map(example_count, loss.groups(context)))
        for loss in held_out
        if isinstance(loss, HeldOutLoss) and _joins(loss, loss_fn, batch)
    ]


def _joins(loss: HeldOutLoss, loss_fn: ExampleLoss, batch: VirtualBatch) -> bool:
    """Whether a loss's examples can stand in one batch with the training samples."""
    mine = _form((batch.inputs, batch.targets))
    return same_loss(loss.loss_fn, loss_fn) and all(_form(group) == mine for group in loss.examples)


def _form(examples: tuple[Any, Any]) -> Any:
    """Structure and, at the places of its leaves, shape and type of one example."""
    return jax.tree.map(lambda leaf: (leaf.shape[1:], leaf.dtype), examples)


def _cut(line: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Pieces of these sizes, one after the other."""
    return jnp.split(line, list(itertools.accumulate(sizes))[:-1]) if sizes else []


def _of_line(line: jax.Array, loss: HeldOutLoss, counts: Sequence[int]) -> jax.Array:
    """phi of its groups' losses, given one after the other."""
    return loss.of_losses(_cut(line, counts))


@dataclass(frozen=True, eq=False)
class _Pass:
    """A tape with what its last rows stand for."""

    tape: Tape
    dot: Callable[[Params], jax.Array]
    batch: VirtualBatch
    taped: list[int]  # columns whose examples are on the tape
    own: list[int]  # columns whose gradients are formed
    coefficients: list[jax.Array]  # of the taped columns
    formed: Params | None  # of the others, leading [len(own)]
    plain: tuple[jax.Array, jax.Array] | None = None  # the table without weights

    def gradient(self, column: int) -> Params:
        if column in self.own:
            return jax.tree.map(lambda leaf: leaf[self.own.index(column)], self.formed)
        place = self.taped.index(column)
        return self.tape.combination(self.coefficients[place], self.block(place))

    def combination(
        self, chosen: Mapping[int, jax.Array], share: jax.Array | None = None
    ) -> Params:
        """sum_c chosen_c V_c over columns, with ``share`` [B] and sum_s share_s grad l_s."""
        total: Params = None
        if self.taped or share is not None:
            lines = [
                chosen[column] * mine if column in chosen else jnp.zeros_like(mine)
                for column, mine in zip(self.taped, self.coefficients, strict=True)
            ]
            first = [] if share is None else [share.astype(self.tape.losses.dtype)]
            rows = slice(self.batch.mask.shape[0] if share is None else 0, None)
            total = self.tape.combination(jnp.concatenate([*first, *lines]), rows)
        if self.own:
            line = jnp.stack([chosen.get(column, jnp.zeros(())) for column in self.own])
            added = rows_combination(self.formed, line)
            total = added if total is None else jax.tree.map(jnp.add, total, added)
        return total

    def block(self, place: int) -> slice:
        start = self.batch.mask.shape[0] + sum(len(c) for c in self.coefficients[:place])
        return slice(start, start + len(self.coefficients[place]))

    def table(self, weights: Params | None) -> tuple[jax.Array, jax.Array]:
        """[R, M] products of every example with every column, and [M, M] the columns' own."""
        if weights is None and self.plain is not None:
            return self.plain
        return self.table_in(weights)

    def table_in(self, weights: Params | None) -> tuple[jax.Array, jax.Array]:
        tape = self.tape
        examples = jnp.zeros((len(tape.losses), len(self.taped) + len(self.own)))
        if self.taped:
            if scalar_weights(weights):
                mine = tape.products(self.coefficients, weights)
            else:
                directions = [weighted(self.gradient(column), weights) for column in self.taped]
                mine = jnp.stack([tape.dot(direction) for direction in directions], axis=1)
            examples = examples.at[:, jnp.asarray(self.taped)].set(mine) if self.own else mine
        if self.own:
            formed = jax.vmap(lambda row: weighted(row, weights))(self.formed)
            met = jax.vmap(tape.dot)(formed)
            examples = examples.at[:, jnp.asarray(self.own)].set(met.T)
        gram = jnp.zeros((examples.shape[1],) * 2)
        for place, column in enumerate(self.taped):
            line = self.coefficients[place] @ examples[self.block(place)]
            gram = gram.at[column].set(line).at[:, column].set(line)
        if self.own:
            places = jnp.asarray(self.own)
            gram = gram.at[places[:, None], places[None, :]].set(
                jax.vmap(lambda row: rows_dot(self.formed, row))(formed)
            )
        return examples, gram

    def shares(self, weights: Params | None) -> jax.Array:
        """[B, K], what each sample brings to its agent's products."""
        share = sample_shares(self.batch)
        return share[:, None] * self.table(weights)[0][: len(share)]


@dataclass(frozen=True, eq=False)
class _Columns:
    """Some columns of a pass; see ``SharedRows``."""

    known: _Pass
    columns: tuple[int, ...]

    def by_example(
        self, dot: Callable[[Params], jax.Array], weights: Params | None
    ) -> jax.Array | None:
        if dot is not self.known.dot:
            return None
        return self.known.shares(weights)[:, list(self.columns)]

    def products(
        self, dot: Callable[[Params], jax.Array], weights: Params | None
    ) -> jax.Array | None:
        shares = self.by_example(dot, weights)
        if shares is None:
            return None
        batch = self.known.batch
        return jax.ops.segment_sum(shares, batch.owners, num_segments=batch.active.shape[0])

    def gram(self, others: Any, weights: Params | None) -> jax.Array | None:
        if not isinstance(others, _Columns) or others.known is not self.known:
            return None
        return self.known.table(weights)[1][
            jnp.ix_(*map(jnp.asarray, (self.columns, others.columns)))
        ]

    def total(
        self, dot: Callable[[Params], jax.Array], weights: jax.Array, coefficients: jax.Array
    ) -> Params | None:
        if dot is not self.known.dot:
            return None
        batch = self.known.batch
        chosen = dict(zip(self.columns, coefficients, strict=True))
        return self.known.combination(chosen, sample_shares(batch) * weights[batch.owners])


def _rows(known: _Pass, columns: tuple[int, ...]) -> Rows:
    """The gradients of some columns, formed only where someone looks at them."""
    taped = [known.taped.index(c) for c in columns if c in known.taped]
    own = [known.own.index(c) for c in columns if c in known.own]

    def dot(direction: Params) -> jax.Array:
        told: dict[int, jax.Array] = {}
        if taped:
            examples = known.tape.dot(direction)
            for place in taped:
                told[known.taped[place]] = known.coefficients[place] @ examples[known.block(place)]
        if own:
            met = rows_dot(known.formed, direction)
            told |= {known.own[place]: met[place] for place in own}
        return jnp.stack([told[c] for c in columns])

    def combination(coefficients: jax.Array) -> Params:
        return known.combination(dict(zip(columns, coefficients, strict=True)))

    def each(function: Callable[[Params], Any]) -> Any:
        results = [function(known.gradient(column)) for column in columns]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *results)

    return Rows(len(columns), dot, combination, each, _Columns(known, columns))
