"""Keys for layers that draw noise: one for each step and sample, whoever draws.

A layer such as dropout draws from the key of the sample at hand, never from one key a batch. So the
noise of a sample does not depend on who runs which part, in which order agents are visited, or what
else is in the batch: a stochastic model is trained losslessly too. With the project's own models it
does not depend on where they are cut either (``from_linen``, ``one_namespace``).
"""

from typing import Any, NamedTuple

import jax


class Keyed(NamedTuple):
    """Model inputs with a key for each example: what switches a stochastic layer on.

    A model called on plain inputs is deterministic; called on these, it draws its noise from them.

    Attributes:
        inputs: [n, ...], an array or a pytree of arrays.
        keys: [n], typed PRNG keys.
    """

    inputs: Any
    keys: jax.Array


def is_key(leaf: Any) -> bool:
    """Whether a leaf is typed PRNG keys, or the description of such."""
    return hasattr(leaf, "dtype") and bool(jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def sample_keys(key: jax.Array, owners: jax.Array, rows: jax.Array) -> jax.Array:
    """[n] keys, folded from each sample's owner [n] and its row [n] in the owner's shard.

    Keys stay what they are when agents join or leave. Fold the step into ``key`` before.
    """

    def one(owner: jax.Array, row: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(key, owner), row)

    return jax.vmap(one)(owners, rows)


def handed_on(inputs: Any, activations: Any) -> Any:
    """``activations`` with the keys of ``inputs``, if it has any: what the next part is given."""
    return Keyed(activations, inputs.keys) if isinstance(inputs, Keyed) else activations
