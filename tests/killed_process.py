"""A run in small, in the order of ``runs.run``, to be killed: ``python -m tests.killed_process``.

Its state after epoch n is n everywhere, so that what a kill leaves behind can be told.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from vcca_jax.checkpoint import checkpoints
from vcca_jax.ledger import Ledger

SIZE = 300_000
PRINCIPALS = ("ada", "bob")


def state_after(epoch: int) -> dict:
    return {"w": jnp.full(SIZE, float(epoch)), "v": jnp.full(SIZE, -float(epoch))}


def run(folder: Path, epochs: int) -> None:
    """Go on from the last checkpoint to the last epoch."""
    train = jax.jit(lambda s: {"w": s["w"] + 1, "v": s["v"] - 1}, donate_argnums=0)
    with (
        checkpoints(folder / "checkpoints") as saved,
        Ledger.open(folder / "ledger.sqlite", principals=PRINCIPALS) as ledger,
    ):
        done = saved.latest or 0
        state = state_after(0)
        if done:
            state, note = saved.restore(done, state)
            ledger.verify(head=note["head"])
        for epoch in range(done + 1, epochs + 1):
            state = train(state)
            saved.wait()
            ledger.settle(epoch, {"ada": 0.5 * epoch, "bob": 0.25}, 1000, gain=1.0)
            saved.save(epoch, state, {"head": ledger.head()})
            print(epoch, flush=True)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]))
