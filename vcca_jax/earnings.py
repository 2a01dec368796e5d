"""What was earned since the last settlement: handed over once, so that nobody is paid on it twice.

A ledger adds credits up itself and takes those of one period; a trainer's state holds the sum since
it was made. Settling period after period on that sum would pay for the first period in each.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

State = TypeVar("State")


class Earned(NamedTuple):
    """What a period's settlement is asked with.

    Attributes:
        credits: [A], each agent's credit since the last time; ``members.named(credits)`` has them
            by name, without the free slots.
        carry_over: scalar, worth of the optimizer's memory since the last time, the reserve's
            credit; 0 where the state does not count it.
    """

    credits: jax.Array
    carry_over: jax.Array


def earned(state: State) -> tuple[Earned, State]:
    """Take what a state has counted, and give the state back with nothing counted.

    Settle right after, and before a slot changes hands, since the counts are by slot::

        earned, state = vcca.earned(state)
        ledger.settle("2026-01", members.named(earned.credits), revenue)

    Where a run may be stopped in between, keep the state of before until it is settled: settling
    the same period with the same credits again records nothing.

    | guarantee | holds |
    | --- | --- |
    | what is taken in all periods, and what is still counted, sum to all credit | to rounding |
    | taken twice without a step between: the second time nothing | exactly |
    | parameters, optimizer, profiles and the next step | as they were |
    | jit, scan and vmap (over seeds) | may be put around it |

    Args:
        state: Of ``cooperate``, or any NamedTuple with ``credits`` and perhaps ``carry_over``.

    Returns:
        What was earned, and the state to go on with.

    Raises:
        ValueError: If the state counts no credits.
    """
    fields = getattr(state, "_fields", ())
    if "credits" not in fields:
        raise ValueError(
            f"state is a {type(state).__name__}, which counts no credits; give the state of a"
            " trainer that credits, such as cooperate's"
        )
    whole: Any = state
    blank = {"credits": jnp.zeros_like(whole.credits)}
    carry_over = jnp.zeros((), whole.credits.dtype)
    if "carry_over" in fields:
        carry_over = whole.carry_over
        blank["carry_over"] = jnp.zeros_like(carry_over)
    return Earned(whole.credits, carry_over), whole._replace(**blank)
