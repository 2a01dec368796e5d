"""What users may rely on: a change of any public name or parameter shows up as a change of a file.

``tests/public_names.txt`` is rewritten by ``python -m tests.test_public_names``; what goes away or
changes its meaning needs a line in the changelog (see the deprecation policy in ``docs``).
"""

import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import vcca_jax
from vcca_jax import (
    baselines,
    conformance,
    contribution,
    corruption,
    models,
    partition,
    share_rules,
)
from vcca_jax.contribution import federated

SNAPSHOT = Path(__file__).with_name("public_names.txt")
MODULES = (
    vcca_jax,
    baselines,
    conformance,
    contribution,
    federated,
    corruption,
    models,
    partition,
    share_rules,
)


def described(value: object) -> str:
    """Parameters, fields or methods; types are left out, which may become wider."""
    if isinstance(value, ModuleType):
        return " module"
    if isinstance(value, type):
        if issubclass(value, Exception):
            return " exception"
        fields = getattr(value, "_fields", None) or getattr(value, "__dataclass_fields__", None)
        if fields:
            return f"({', '.join(fields)})"
        names = (name for name in vars(value) if not name.startswith("_"))
        return f": {', '.join(sorted(names))}"
    if inspect.isroutine(value):
        parameters = inspect.signature(value).parameters.values()
        words, keyword_only = [], False
        for each in parameters:
            if each.kind is each.KEYWORD_ONLY and not keyword_only:
                words, keyword_only = [*words, "*"], True
            default = "" if each.default is each.empty else "="
            words.append(f"{'*' * (each.kind is each.VAR_POSITIONAL)}{each.name}{default}")
        return f"({', '.join(words)})"
    return f" {type(value).__name__}"


def snapshot() -> str:
    lines = []
    for module in MODULES:
        names = getattr(module, "__all__", None)
        if names is None:
            names = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_")
                and getattr(value, "__module__", None) == module.__name__
            ]
        lines += [f"{module.__name__}.{n}{described(getattr(module, n))}" for n in sorted(names)]
    return "\n".join(lines) + "\n"


def test_public_names_are_those_that_were_recorded():
    assert snapshot() == SNAPSHOT.read_text(encoding="utf-8"), (
        "public names or parameters changed; if that is meant, run `python -m"
        " tests.test_public_names` and say it in CHANGELOG.md"
    )


def test_importing_has_no_side_effects_and_stays_light():
    code = (
        "import os, sys, jax; before = dict(jax.config.values);"
        "import vcca_jax; assert dict(jax.config.values) == before;"
        "from jax._src import xla_bridge; assert not xla_bridge._backends, 'a device was started';"
        "heavy = {'matplotlib', 'pandas', 'orbax', 'sklearn', 'pydantic', 'typer', 'tensorboard'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


if __name__ == "__main__":
    SNAPSHOT.write_text(snapshot(), encoding="utf-8")
