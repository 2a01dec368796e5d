"""What do screening and credit cost on top of plain training, all in one pass?

The whole step (traversal, 4 value gradients and the validation gradient, projection of every
agent's update, first-order credit by agent and by sample, and the measured change of every held-out
loss) over a plain jitted step on the pooled batch, by model, by how many held-out rows there are
beside the batch, by the number of agents, and by how layers hold their gradients.

    python -m experiments.benchmarks.one_pass [--smoke] [--out one_pass.json]

The floor is (B + (M + 1) n_v) / B, as if all rows were trained on, plus the pairs of the
perceptron: [B + n, n] products of inputs and of cotangents at each layer, in units of its three
products a step.

Predicted before measuring, from operation counts: perceptron at B = 128 and n = B/4 1.45, at B =
512 1.7, since pairs grow with the square of the rows; convolutions and transformer 1.4 and 1.8 at
B/4 and B/2, since their layers' gradients are small beside their activations and stacking them
replaces the product that combines them; directions instead of stacks 1.6 more; linearized 4; no
growth in A; Adam a third of a plain step more, since its credit follows a direction that no pair
tells. First-order credit alone, with n_v rows and nothing else: 1.1, of which published engines
need 1.08 in wide language models.
Norms of every agent's gradient were added later, after a first look: nothing was predicted.
"""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper

CLASSES, VALUES, TOKENS = 10, 4, 32


def perceptron(smoke: bool) -> tuple[vcca.SplitModel, Any]:
    hidden = (8,) if smoke else (256, 128)
    return vcca.mlp(784, hidden, CLASSES, cut=1), lambda g, n: g.normal(size=(n, 784))


def convolutional(smoke: bool) -> tuple[vcca.SplitModel, Any]:
    channels, hidden = ((2, 2, 2), 4) if smoke else ((16, 32, 64), 128)
    model = vcca.models.vgg(
        (28, 28, 1), CLASSES, cut=1, channels=channels, hidden=hidden, dropout=0.0
    )
    return model, lambda g, n: g.normal(size=(n, 28, 28, 1))


def attentive(smoke: bool) -> tuple[vcca.SplitModel, Any]:
    width = 8 if smoke else 64
    model = vcca.models.transformer(
        1000, TOKENS, CLASSES, cut=1, width=width, heads=4, blocks=2, dropout=0.0
    )
    return model, lambda g, n: g.integers(1, 1000, (n, TOKENS))


MODELS = {"perceptron": perceptron, "convolutional": convolutional, "transformer": attentive}


class Setting:
    """A model, a batch dealt to A agents, and M + 1 held-out losses of n_v rows each."""

    def __init__(self, name: str, batch_size: int, agents: int, rows: int, smoke: bool) -> None:
        self.model, draw = MODELS[name](smoke)
        self.loss_fn = vcca.model_loss(self.model, optax.softmax_cross_entropy_with_integer_labels)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        generator = np.random.default_rng(0)

        def examples(count: int) -> tuple[jax.Array, jax.Array]:
            inputs = jnp.asarray(draw(generator, count))
            kind = jnp.int32 if jnp.issubdtype(inputs.dtype, jnp.integer) else jnp.float32
            labels = jnp.asarray(generator.integers(0, CLASSES, count), jnp.int32)
            return inputs.astype(kind), labels

        owners = np.sort(np.arange(batch_size) % agents).astype(np.int32)
        self.batch = vcca.VirtualBatch(
            *examples(batch_size),
            owners=jnp.asarray(owners),
            rows=jnp.zeros(batch_size, jnp.int32),
            mask=jnp.ones(batch_size, bool),
            active=jnp.ones(agents, bool),
        )
        self.values = vcca.value_losses(
            {f"value {m}": vcca.group_loss(self.loss_fn, *examples(rows)) for m in range(VALUES)}
        )
        self.validation = vcca.group_loss(self.loss_fn, *examples(rows))
        stated = [[vcca.protect(name) for name in self.values.names]] * agents
        self.profiles = jax.tree.map(jnp.asarray, vcca.value_profiles(self.values.names, stated))

    def unname(self) -> None:
        """The same held-out losses as functions of the parameters that tell no examples."""

        def hidden(loss: Any) -> Any:
            return lambda params, context=None: loss(params, context)

        functions = zip(self.values.names, self.values.functions, strict=True)
        self.values = vcca.value_losses({name: hidden(loss) for name, loss in functions})
        self.validation = hidden(self.validation)

    def whole(
        self, method: Any, optimizer: optax.GradientTransformation, by_sample: bool
    ) -> vcca.Trainer:
        trainer = vcca.cooperate(
            self.loss_fn,
            optimizer,
            self.validation,
            self.values,
            screen=vcca.screen("project", scope="own"),
            estimator=vcca.first_order,
            method=method,
            credit_examples=by_sample,
        )
        return vcca.Trainer(partial(trainer.init, profiles=self.profiles), trainer.step)

    def in_run(self, optimizer: optax.GradientTransformation) -> vcca.Trainer:
        """Traversal with first-order credit alone: no values, no screen, nothing measured after."""

        def init(params: Any) -> Any:
            return params, optimizer.init(params), jnp.zeros(self.batch.active.shape)

        def step(state: Any, batch: vcca.VirtualBatch) -> tuple[Any, Any]:
            params, memory, credits = state
            seen = vcca.shared_pass(self.loss_fn, params, batch, [self.validation])
            utility = vcca.one_step_utility(
                params,
                memory,
                seen.gradients,
                optimizer,
                self.validation,
                validation_row=seen.rows,
            )
            weights = jnp.ones_like(credits)
            updates, memory = optimizer.update(seen.gradients.sum(weights), memory, params)
            credits = credits + vcca.first_order(utility, weights)
            return (optax.apply_updates(params, updates), memory, credits), seen.losses

        return vcca.Trainer(init, step)

    def timed(self, trainers: dict[str, vcca.Trainer], count: int) -> dict[str, dict[str, float]]:
        """Milliseconds, ratio to the plain step, and the compiler's temporaries."""
        calls, memory = {}, {}
        for name, trainer in trainers.items():
            calls[name], memory[name] = stepper(trainer, self.params, self.batch)
        seconds = rounds(calls, count)
        return {
            name: {
                "milliseconds": 1e3 * float(np.median(seconds[name])),
                "ratio": ratio(seconds, name, "plain"),
                "temporaries_mb": memory[name] / 1e6,
            }
            for name in calls
        }


def perceptron_floor(batch_size: int, held: int) -> float:
    """(B + n) / B and the pairs, with the first layer sparing its input's cotangent."""
    layers = [(784, 256), (256, 128), (128, 10)]
    plain = sum((2 if i == 0 else 3) * a * b for i, (a, b) in enumerate(layers)) * batch_size
    pairs = (batch_size + held) * held * sum(a + b for a, b in layers)
    return (batch_size + held) / batch_size + pairs / plain


def by_model(smoke: bool, count: int) -> list[dict[str, Any]]:
    sizes = [("perceptron", 128), ("perceptron", 512), ("convolutional", 64), ("transformer", 64)]
    results = []
    for name, batch_size in [(n, 16) for n in MODELS] if smoke else sizes:
        for share in (0.25, 0.5):
            rows = max(1, int(share * batch_size) // (VALUES + 1))
            given = Setting(name, batch_size, 4 if smoke else 64, rows, smoke)
            descent = optax.sgd(0.1, momentum=0.9)
            candidates = {
                "plain": vcca.centralized(given.loss_fn, descent),
                "credit alone": given.in_run(descent),
                "one pass": given.whole("one_pass", descent, True),
                "directions": given.whole(vcca.OnePass(form="directions"), descent, True),
                "linearized": given.whole("linearized", descent, False),
            }
            if share == 0.25:
                candidates["plain, Adam"] = vcca.centralized(given.loss_fn, optax.adam(1e-3))
                candidates["one pass, Adam"] = given.whole("one_pass", optax.adam(1e-3), False)
            held = rows * (VALUES + 1)
            floor = (batch_size + held) / batch_size
            if name == "perceptron" and not smoke:
                floor = perceptron_floor(batch_size, held)
            told = given.timed(candidates, count)
            results.append(
                {"model": name, "batch": batch_size, "held_out": held, "floor": floor, **told}
            )
            ratios = {key: round(value["ratio"], 2) for key, value in told.items()}
            print(name, batch_size, held, f"floor {floor:.2f}", ratios, flush=True)
    return results


def by_agents(smoke: bool, count: int) -> list[dict[str, Any]]:
    results = []
    for agents in (2, 8) if smoke else (8, 64, 512, 4096):
        given = Setting("perceptron", 16 if smoke else 512, agents, 2 if smoke else 25, smoke)
        descent = optax.sgd(0.1)
        candidates = {
            "plain": vcca.centralized(given.loss_fn, descent),
            "one pass": given.whole("one_pass", descent, True),
        }
        if agents <= 512:
            candidates["stacked"] = given.whole("stacked", descent, False)
        told = given.timed(candidates, count)
        results.append({"agents": agents, **told})
        print(agents, {key: round(value["ratio"], 2) for key, value in told.items()}, flush=True)
    return results


def by_norms(smoke: bool, count: int) -> list[dict[str, Any]]:
    """The batch's gradient and every agent's norm, which limits on norms and angles ask for."""
    sizes = [("perceptron", 512, 8), ("perceptron", 512, 64), ("perceptron", 512, 512)]
    sizes += [("convolutional", 64, 16), ("transformer", 64, 16)]
    results = []
    for name, batch_size, agents in [("perceptron", 16, 4)] if smoke else sizes:
        given = Setting(name, batch_size, agents, 2, smoke)

        def actions(method: Any, loss_fn: Any = given.loss_fn) -> Any:
            def act(params: Any, batch: Any) -> Any:
                gradients = vcca.agent_gradients(loss_fn, params, batch, method=method)
                return gradients.sum(), gradients.squared_norms()

            return jax.jit(act)

        def pooled(params: Any, batch: Any, loss_fn: Any = given.loss_fn) -> Any:
            return jax.grad(lambda at: loss_fn(at, batch.inputs, batch.targets).mean())(params)

        functions = {
            "plain": jax.jit(pooled),
            "one pass": actions("one_pass"),
            "linearized": actions("linearized"),
        }
        calls = {key: partial(f, given.params, given.batch) for key, f in functions.items()}
        seconds = rounds(calls, count)
        ratios = {key: ratio(seconds, key, "plain") for key in calls}
        results.append({"model": name, "batch": batch_size, "agents": agents, **ratios})
        print(results[-1], flush=True)
    return results


def main() -> None:
    parser = arguments(__doc__, rounds=15)
    parser.add_argument(
        "--only",
        choices=("agents", "models", "norms"),
        help="measure one part anew; the others stay in the file as they are",
    )
    options = parser.parse_args()
    count = 2 if options.smoke else options.rounds
    parts = {"agents": by_agents, "models": by_model, "norms": by_norms}
    results: dict[str, Any] = {}
    if options.only and options.out and options.out.exists():
        results = json.loads(options.out.read_text())["results"]
    for name, part in parts.items():
        if options.only in (None, name):
            results[name] = part(options.smoke, count)
    if "agents" in results:
        first, last = (results["agents"][place]["one pass"] for place in (0, -1))
        for what in ("ratio", "temporaries_mb"):
            print(f"{what}, most agents over fewest: {last[what] / first[what]:.2f}")
    keep(options.out, results=results)


if __name__ == "__main__":
    main()
