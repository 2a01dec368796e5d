"""What does a cut cost: a step at every cut, an epoch against a Python loop, bytes by cut?

Three questions, each answered side by side in one run. (1) A traversal step at every cut of three
models, with dropout, against the centralized step of the same model; all agents' bodies at once
("together"), and visit by visit ("scanned"). (2) An epoch as one compiled scan against the same
protocol by hand: for each step and each visited agent a jitted body forward, one jitted head, a
jitted body backward for each agent, a jitted update. Each jitted function is compiled once, for one
shape, and nothing is copied to the host. (3) Bytes that cross in a step, by cut, against sending
the whole model there and back; the first row repeats the account that TL++ (arXiv:2606.25627)
publishes for CIFAR-10 (10 agents, B = 128).

    python -m experiments.benchmarks.cuts [--smoke] [--out cuts.json]

Predicted before measuring: "together" within 1.05 of centralized at every cut, since it is the same
program with one more name in it; "scanned" up to ten times slower and more at deeper cuts, where
more of the work is done in small pieces; the epoch more than 20 times faster than the loop from 64
agents on, where a step makes some 130 calls, and less with 8; the saving in bytes 13 at cut 1 and
falling below 2 at the last, where most parameters are in the body.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper
from vcca_jax.epochs import scan_steps
from vcca_jax.messages import message_log, message_sizes, whole_model_bytes
from vcca_jax.protocol import body_gradient, orchestrate

CRITERION = optax.softmax_cross_entropy_with_integer_labels
CLASSES, DROPOUT, KEY = 10, 0.25, jax.random.key(3)


def perceptron(cut: int, smoke: bool) -> vcca.SplitModel:
    return vcca.models.mlp(784, (8, 8) if smoke else (256, 128), CLASSES, cut=cut, dropout=DROPOUT)


def convolutional(cut: int, smoke: bool) -> vcca.SplitModel:
    sizes = ((2, 2, 2), 4) if smoke else ((16, 32, 64), 128)
    return vcca.models.vgg(
        (28, 28, 1), CLASSES, cut=cut, channels=sizes[0], hidden=sizes[1], dropout=DROPOUT
    )


def attentive(cut: int, smoke: bool) -> vcca.SplitModel:
    width = 8 if smoke else 64
    return vcca.models.transformer(
        4096, 32, CLASSES, cut=cut, width=width, heads=4, blocks=2, dropout=DROPOUT
    )


# Each with the number of its cuts.
MODELS = {
    "perceptron": (perceptron, 3),
    "convolutional": (convolutional, 5),
    "transformer": (attentive, 3),
}


def batch_of(name: str, agents: int, size: int) -> vcca.VirtualBatch:
    """Random inputs of the model's kind, dealt to the agents as evenly as it goes."""
    generator = np.random.default_rng(0)
    inputs = {
        "perceptron": lambda: generator.normal(size=(size, 784)).astype(np.float32),
        "convolutional": lambda: generator.normal(size=(size, 28, 28, 1)).astype(np.float32),
        "transformer": lambda: generator.integers(1, 4096, (size, 32)).astype(np.int32),
    }[name]()
    return vcca.VirtualBatch(
        inputs=jnp.asarray(inputs),
        targets=jnp.asarray(generator.integers(0, CLASSES, size), jnp.int32),
        owners=jnp.asarray(np.sort(np.arange(size) % agents), jnp.int32),
        rows=jnp.arange(size, dtype=jnp.int32),
        mask=jnp.ones(size, bool),
        active=jnp.ones(agents, bool),
    )


def step_by_cut(name: str, agents: int, size: int, count: int, smoke: bool) -> list[dict]:
    """Question 1 for one model; every cut has a centralized step of its own beside it."""
    make, cuts = MODELS[name]
    batch, optimizer, results = batch_of(name, agents, size), optax.adam(1e-3), []
    for cut in range(cuts):
        model = make(cut, smoke)
        params = jax.jit(model.init)(jax.random.key(0))
        trainers = {
            "centralized": vcca.centralized(vcca.model_loss(model, CRITERION), optimizer),
            "together": vcca.split_traversal(model, CRITERION, optimizer, method="together"),
            "scanned": vcca.split_traversal(model, CRITERION, optimizer),
        }
        calls = {
            label: stepper(vcca.noisy(trainer, KEY), params, batch)[0]
            for label, trainer in trainers.items()
        }
        seconds = rounds(calls, count)
        for label in calls:
            results.append(
                {
                    "model": name,
                    "agents": agents,
                    "cut": cut,
                    "candidate": label,
                    "milliseconds": 1e3 * float(np.median(seconds[label])),
                    "ratio": ratio(seconds, label, "centralized"),
                }
            )
            print(
                "{model:13s} cut {cut} {candidate:12s} {milliseconds:9.2f} ms {ratio:6.2f} x"
                " centralized".format(**results[-1]),
                flush=True,
            )
    return results


def loop_epoch(
    model: vcca.SplitModel, optimizer: optax.GradientTransformation, members: Any, plan: Any
) -> Callable[[Any], Any]:
    """The protocol by hand: Python walks over steps and agents, each call jitted."""
    width = max(
        int(np.bincount(owners[mask]).max())
        for owners, mask in zip(plan.owners, plan.mask, strict=True)
    )
    inputs, targets = (jnp.asarray(members.shards[i]) for i in (0, 1))
    forward = jax.jit(lambda body, agent, rows: model.body(body, inputs[agent][rows]))
    backward = jax.jit(
        lambda body, agent, rows, mask, cut: body_gradient(
            model, body, inputs[agent][rows], mask, cut
        )
    )
    head = jax.jit(lambda params, found, batch: orchestrate(model, CRITERION, params, found, batch))
    join = jax.jit(lambda parts: jnp.concatenate(parts))
    part_of = jax.jit(lambda cuts, start: jax.lax.dynamic_slice_in_dim(cuts, start, width))
    add = jax.jit(lambda one, other: jax.tree.map(jnp.add, one, other))

    @jax.jit
    def update(params: Any, state: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def visited(owners: np.ndarray, rows: np.ndarray, mask: np.ndarray) -> list[tuple]:
        made = []
        for agent in dict.fromkeys(owners[mask].tolist()):
            own = rows[mask & (owners == agent)]
            padded = np.resize(own, width).astype(np.int32)
            made.append((agent, own, padded, np.arange(width) < len(own)))
        return made

    visits = [visited(*step) for step in zip(plan.owners, plan.rows, plan.mask, strict=True)]
    most = max(len(step) for step in visits)

    def run(start: Any) -> Any:
        params, state = start
        for step in visits:
            found = [forward(params["body"], agent, rows) for agent, _, rows, _ in step]
            # Padded to one shape, so that the head is compiled once.
            found += [found[0]] * (most - len(found))
            owners = np.repeat([agent for agent, *_ in step], width)
            rows = np.concatenate([rows for _, _, rows, _ in step])
            mask = np.concatenate([mask for *_, mask in step])
            room = most * width - len(owners)
            owners, rows = (np.pad(array, (0, room)) for array in (owners, rows))
            batch = vcca.VirtualBatch(
                None,
                targets[owners, rows],
                owners,
                rows,
                np.pad(mask, (0, room)),
                members.shards.active,
            )
            _, of_head, cuts = head(params["head"], join(found), batch)
            of_body = None
            for place, (agent, _, rows, mask) in enumerate(step):
                part = backward(params["body"], agent, rows, mask, part_of(cuts, place * width))
                of_body = part if of_body is None else add(of_body, part)
            params, state = update(params, state, {"body": of_body, "head": of_head})
        return params, state

    return run


def epochs(sizes: list[int], samples: int, size: int, count: int, smoke: bool) -> list[dict]:
    """Question 2, on a perceptron without dropout."""
    generator, optimizer, results = np.random.default_rng(0), optax.sgd(0.1), []
    inputs = generator.normal(size=(samples, 784)).astype(np.float32)
    targets = generator.integers(0, CLASSES, samples).astype(np.int32)
    model = vcca.models.mlp(784, (8,) if smoke else (64, 32), CLASSES, cut=1)
    params = jax.jit(model.init)(jax.random.key(0))
    for agents in sizes:
        members = vcca.cooperative(vcca.partition.iid(inputs, targets, agents, seed=0))
        plan = vcca.virtual_batches(members, size, seed=0, epoch=0)
        shards = jax.device_put(members.shards)

        def compiled(method: str, shards: Any = shards, plan: Any = plan) -> Callable[[], Any]:
            trainer = vcca.split_traversal(model, CRITERION, optimizer, method=method)  # type: ignore[arg-type]
            run = jax.jit(lambda state: scan_steps(trainer, state, shards, plan)[0])
            state = trainer.init(params)
            return lambda: run(state).params

        by_hand = loop_epoch(model, optimizer, members, plan)
        calls = {
            "together": compiled("together"),
            "scanned": compiled("scanned"),
            "loop": lambda by_hand=by_hand: by_hand((params, optimizer.init(params)))[0],
        }
        ends = {label: call() for label, call in calls.items()}
        for label in ("scanned", "loop"):
            gaps = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), ends[label], ends["together"])
            assert max(map(float, jax.tree.leaves(gaps))) < 1e-5, "they must train alike"
        seconds = rounds(calls, count)
        for label in calls:
            results.append(
                {
                    "agents": agents,
                    "steps": len(plan.mask),
                    "candidate": label,
                    "milliseconds": 1e3 * float(np.median(seconds[label])),
                    "loop_over_this": ratio(seconds, "loop", label),
                }
            )
            print(
                "epoch of {steps} steps, A = {agents:4d} {candidate:9s} {milliseconds:9.2f} ms;"
                " the loop takes {loop_over_this:7.1f} x".format(**results[-1]),
                flush=True,
            )
    return results


def bytes_by_cut(smoke: bool) -> list[dict]:
    """Question 3: a step of 128 samples at ten agents, from shapes alone."""
    agents, size, results = 10, 128, []
    shape = (8, 8, 3) if smoke else (32, 32, 3)
    inputs = np.zeros((size, *shape), np.float32)
    targets = np.zeros(size, np.int32)
    members = vcca.cooperative(vcca.partition.iid(inputs, targets, agents, seed=0))
    plan = vcca.virtual_batches(members, size, seed=0, epoch=0)
    for cut in range(5):
        model = vcca.models.vgg(shape, CLASSES, cut=cut)
        params = jax.eval_shape(model.init, jax.random.key(0))
        sizes = message_sizes(model, params, inputs, targets)
        log = message_log(sizes, members, plan)
        whole = whole_model_bytes(params, agents)
        published = size * 2 * sizes.activations + agents * 2 * sizes.body_parameters
        results.append(
            {
                "cut": cut,
                "whole_model_bytes": whole,
                "published_account_bytes": published,
                "published_saving": whole / published,
                "logged_bytes": log.total,
                "logged_saving": whole / log.total,
                **log.by_kind,
            }
        )
        print(
            "cut {cut}: the whole model {whole_model_bytes:,} B; the published account"
            " {published_account_bytes:,} B, {published_saving:.1f} x less; the log"
            " {logged_bytes:,} B, {logged_saving:.1f} x less".format(**results[-1]),
            flush=True,
        )
    return results


def main() -> None:
    options = arguments(__doc__, rounds=15).parse_args()
    if options.smoke:
        crossed = bytes_by_cut(True)
        looped = epochs([2, 4], 16, 8, 1, True)
        stepped = [row for name in MODELS for row in step_by_cut(name, 2, 4, 1, True)]
    else:
        crossed = bytes_by_cut(False)
        looped = epochs([8, 64, 256], 2048, 256, 5, False)
        sizes = {"perceptron": 512, "convolutional": 64, "transformer": 64}
        stepped = [
            row
            for name, size in sizes.items()
            for row in step_by_cut(name, 16, size, options.rounds, False)
        ]
    keep(options.out, results=stepped, epochs=looped, bytes=crossed)


if __name__ == "__main__":
    main()
