"""What does a screened and credited step cost against a plain one that knows its value gradients?

One virtual batch of B samples, four value losses of B / 10 held-out rows each, scope "everyone",
first-order credit on B / 10 validation rows. The reference is what nobody can do without: the
plain step on the pooled batch, and the gradients of the four value losses. Candidates run in turn,
round by round; ratios are medians over rounds, compilation is left out.

    python -m experiments.benchmarks.screening [--smoke] [--out screening.json]

Predicted before measuring: 2 to 3 times the reference, flat in A (growth below 1.1 from 8 to
2048): beside the reference the step pays for one linearisation, M + 1 forward-mode passes over the
batch (four products, one credit) and a few passes over held-out rows. The verified step adds one
forward pass of every value loss where the first attempt is accepted. Streamed rows cost two to
three times the stacked ones at this size: they trade time for memory that is not short here.

Added later, predicted from ``one_pass``, whose floor with pairs is 1.7 plain steps at these sizes:
the step in one pass, with first-order credit, 1.4 times the reference, flat in A.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper
from experiments.benchmarks.traversal import CLASSES, FEATURES, problem

RATE = 0.1
NAMES = tuple(f"value {m}" for m in range(4))


def candidates(given: dict[str, Any], agents: int, rows: int) -> dict[str, Any]:
    """Jitted steps by name, each with its own donated state."""
    loss_fn, generator = given["loss_fn"], np.random.default_rng(1)

    def held_out() -> Any:
        inputs = jnp.asarray(generator.normal(size=(rows, FEATURES)), jnp.float32)
        return vcca.group_loss(loss_fn, inputs, jnp.asarray(generator.integers(0, CLASSES, rows)))

    values = vcca.value_losses({name: held_out() for name in NAMES})
    validation = held_out()
    profiles = vcca.value_profiles(NAMES, [[vcca.protect(name) for name in NAMES]] * agents)
    plain = vcca.centralized(loss_fn, optax.sgd(RATE))

    def reference(state: Any, batch: Any) -> Any:
        losses, value_gradients = values.gradients(state.params, None)
        state, info = plain.step(state, batch)
        return state, (info, losses, value_gradients)

    def whole(
        optimizer: Any, worth: Any = lambda params: validation(params, None), **options: Any
    ) -> vcca.Trainer:
        trainer = vcca.cooperate(
            loss_fn,
            optimizer,
            worth,
            values,
            screen=vcca.screen("project", scope="everyone"),
            **({"method": "linearized", "estimator": vcca.influence} | options),
        )
        return vcca.Trainer(partial(trainer.init, profiles=profiles), trainer.step)

    admitted = vcca.keep_admissible(optax.sgd(RATE), values, learning_rate=RATE)
    return {
        "plain": plain,
        "reference": vcca.Trainer(plain.init, reference),
        "screened, credited": whole(optax.sgd(RATE)),
        "in one pass": whole(
            optax.sgd(RATE), validation, method="one_pass", estimator=vcca.first_order
        ),
        "and verified": whole(admitted),
        "streamed rows": whole(optax.sgd(RATE), stream_values=True),
    }


def measure(sizes: list[int], batch_size: int, hidden: tuple[int, ...], count: int) -> list[dict]:
    results = []
    for agents in sizes:
        given = problem(agents, batch_size, hidden)
        made = {
            name: stepper(trainer, given["params"], given["batch"])
            for name, trainer in candidates(given, agents, batch_size // 10).items()
        }
        seconds = rounds({name: call for name, (call, _) in made.items()}, count)
        for name, (_, temporaries) in made.items():
            results.append(
                {
                    "agents": agents,
                    "candidate": name,
                    "milliseconds": 1e3 * float(np.median(seconds[name])),
                    "ratio": ratio(seconds, name, "reference"),
                    "ratio_to_plain": ratio(seconds, name, "plain"),
                    "temporaries_mb": temporaries / 1e6,
                }
            )
            print(
                "A = {agents:5d}  {candidate:18s} {milliseconds:9.2f} ms {ratio:8.2f} x reference"
                " {ratio_to_plain:8.2f} x plain {temporaries_mb:9.1f} MB".format(**results[-1]),
                flush=True,
            )
    return results


def main() -> None:
    options = arguments(__doc__).parse_args()
    if options.smoke:
        results = measure([2, 4], 20, (8,), 2)
    else:
        results = measure([8, 64, 512, 2048], 512, (256, 128), 15)
    own = [r["ratio"] for r in results if r["candidate"] == "screened, credited"]
    print(f"growth from the smallest to the largest A: {own[-1] / own[0]:.2f}")
    keep(options.out, results=results, growth=own[-1] / own[0])


if __name__ == "__main__":
    main()
