"""Does the cost model choose the form that is fastest, and what does a wrong choice cost?

A whole step (values, screen, first-order credit) of models, batches and agents in each of the four
forms, with held-out losses that name their examples and with the same ones as plain functions. For
every cell: what ``vcca_jax.step_forms`` expects of each form over a plain step, what came, and the
chosen form's time over the fastest's. Candidates run in turn, round by round; ratios are medians
over rounds, compilation is left out.

    python -m experiments.benchmarks.forms [--smoke] [--out forms.json]

Predicted before measuring: one pass wins wherever losses name their examples. Without names, stacks
win for few agents on the perceptron, and elsewhere the cost model overrates them, since it does not
know that an agent's few samples fill no vector. The chosen form takes at most 1.3 times the fastest
in nine cells of ten. Expectations are within a factor of 1.5 for the perceptron and too high by
half for the others, whose elementwise work is not counted.
"""

from functools import partial

import numpy as np
import optax

import vcca_jax as vcca
from experiments.benchmarks.one_pass import Setting
from experiments.benchmarks.timing import arguments, keep, ratio, rounds, stepper
from vcca_jax.step_forms import cheapest_form, form_costs

FORMS = ("one_pass", "linearized", "scanned", "stacked")


def cell(name: str, batch_size: int, agents: int, named: bool, smoke: bool, count: int) -> dict:
    given = Setting(name, batch_size, agents, max(1, batch_size // 20), smoke)
    if not named:
        given.unname()
    descent = optax.sgd(0.1)
    trainers = {"plain": vcca.centralized(given.loss_fn, descent)}
    trainers |= {form: given.whole(form, descent, False) for form in FORMS}
    calls = {
        form: stepper(trainer, given.params, given.batch)[0] for form, trainer in trainers.items()
    }
    seconds = rounds(calls, count)
    measured = {form: ratio(seconds, form, "plain") for form in FORMS}
    asked = [*given.values.functions, given.validation]
    costs = form_costs(given.loss_fn, given.params, given.batch, asked)
    plain = form_costs(given.loss_fn, given.params, given.batch)["linearized"].multiplications
    chosen = cheapest_form(costs)
    fastest = min(FORMS, key=lambda form: float(np.median(seconds[form])))
    return {
        "model": name,
        "batch": batch_size,
        "agents": agents,
        "named": named,
        "expected": {form: costs[form].multiplications / plain for form in FORMS},
        "measured": measured,
        "chosen": chosen,
        "fastest": fastest,
        "regret": max(1.0, ratio(seconds, chosen, fastest)),
    }


def main() -> None:
    options = arguments(__doc__, rounds=9).parse_args()
    sizes = [
        ("perceptron", 512, 4),
        ("perceptron", 512, 64),
        ("perceptron", 128, 8),
        ("convolutional", 64, 4),
        ("convolutional", 64, 32),
        ("transformer", 64, 4),
        ("transformer", 64, 32),
    ]
    if options.smoke:
        sizes = [("perceptron", 16, 4)]
    measure = partial(cell, smoke=options.smoke, count=2 if options.smoke else options.rounds)
    results = []
    for size in sizes:
        for named in (True, False):
            results.append(measure(*size, named))
            print(results[-1], flush=True)
    worst = max(result["regret"] for result in results)
    right = sum(result["chosen"] == result["fastest"] for result in results)
    print(f"chosen was fastest in {right} of {len(results)}, at worst {worst:.2f} times as long")
    keep(options.out, results=results, worst_regret=worst, right=right)


if __name__ == "__main__":
    main()
