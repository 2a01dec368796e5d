"""Which form of the agent gradients does a batch that is spread over devices want?

The whole step (traversal, four value gradients and the validation gradient, projection, first-order
credit, the measured change of every held-out loss) linearized and in one pass, on 1, 2, 4 and 8 CPU
devices of one machine, in both orders of sums. Virtual devices share the machine's cores, so times
are compared between forms on the same devices, and nothing is learnt of how a form grows with
devices.

    python -m experiments.distributed.forms [--smoke] [--out DIR/forms.json]

Predicted before measuring: on one device as unspread, 0.45 of linearized (2.0 to 4.2 plain steps at
25 held-out rows a loss); on eight about the same, since both send one gradient for the update, and
the one pass less besides: no gradient a value where layers are held in pairs. In a fixed order 0.6:
linearized gathers a gradient a block for each value, the pass one for the update.
"""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import arguments, keep, ratio, rounds
from vcca_jax.plan import TraversalPlan
from vcca_jax.sharding.batch import shard_cooperative, sharded_gather, sharded_plan
from vcca_jax.sharding.losses import sharded_loss, spread_loss
from vcca_jax.sharding.mesh import agent_mesh, sharded

AGENTS, CLASSES, VALUES, BLOCKS, DEVICES = 64, 10, 4, 16, (1, 2, 4, 8)


class Problem:
    """A perceptron, agents with as many samples each, and held-out groups; drawn at random."""

    def __init__(self, smoke: bool) -> None:
        self.features = 16 if smoke else 784
        self.model = vcca.mlp(self.features, (8,) if smoke else (256, 128), CLASSES, cut=1)
        self.loss_fn = vcca.model_loss(self.model, optax.softmax_cross_entropy_with_integer_labels)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        generator = np.random.default_rng(0)

        def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
            inputs = generator.normal(size=(count, self.features)).astype(np.float32)
            return inputs, generator.integers(0, CLASSES, count, dtype=np.int32)

        each = 1 if smoke else 8
        self.members = vcca.cooperative([examples(each) for _ in range(AGENTS)], classes=CLASSES)
        self.plan = vcca.virtual_batches(self.members, AGENTS * each, seed=0, epoch=0)
        self.held = [examples(3 if smoke else 25) for _ in range(VALUES + 1)]

    def trainer(self, method: str, loss: Any, group: Any) -> vcca.Trainer:
        *groups, worth = [group(*rows) for rows in self.held]
        values = vcca.value_losses({f"value {m}": each for m, each in enumerate(groups)})
        made = vcca.cooperate(
            loss,
            optax.sgd(0.05),
            worth,
            values,
            estimator=vcca.first_order,
            method=method,
        )
        stated = [[vcca.protect(name) for name in values.names]] * AGENTS
        profiles = vcca.value_profiles(values.names, stated)
        return vcca.Trainer(partial(made.init, profiles=profiles), made.step)

    def unspread(self, method: str) -> Any:
        """A step on one device that knows no mesh."""
        trainer = self.trainer(method, self.loss_fn, partial(vcca.group_loss, self.loss_fn))
        at = TraversalPlan(*(field[0] for field in self.plan))
        batch = jax.jit(vcca.gather)(self.members.shards, at)
        return partial(jax.jit(trainer.step), jax.jit(trainer.init)(self.params), batch)

    def spread(self, method: str, devices: int, blocks: int | None) -> Any:
        mesh = agent_mesh(jax.devices()[:devices])
        made = self.trainer(
            method,
            sharded_loss(self.loss_fn, mesh, blocks=blocks),
            partial(spread_loss, self.loss_fn, mesh=mesh, blocks=blocks),
        )
        trainer = sharded(made, mesh, gathered=blocks is not None)
        own = shard_cooperative(self.members, mesh)
        plan = sharded_plan(self.plan, own, blocks or mesh.size)
        at = TraversalPlan(*(field[0] for field in plan))
        step = jax.jit(lambda state, held: trainer.step(state, sharded_gather(held, at, mesh)))
        return partial(step, jax.jit(trainer.init)(self.params), own.shards)


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    problem = Problem(options.smoke)
    count = 2 if options.smoke else options.rounds
    forms = ("linearized", "one_pass")
    seconds = rounds({form: problem.unspread(form) for form in forms}, count)
    results = [{"devices": 0, "order": "unspread", "ratio": ratio(seconds, "one_pass", forms[0])}]
    for order, blocks in (("free", None), ("fixed", BLOCKS)):
        for devices in (1, 2) if options.smoke else DEVICES:
            calls = {form: problem.spread(form, devices, blocks) for form in forms}
            seconds = rounds(calls, count)
            told = ratio(seconds, "one_pass", "linearized")
            medians = {form: 1e3 * float(np.median(seconds[form])) for form in forms}
            results.append({"devices": devices, "order": order, "ratio": told, **medians})
            print(results[-1], flush=True)
    print(results[0])
    keep(options.out, results=results)


if __name__ == "__main__":
    main()
