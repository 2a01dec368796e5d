"""Starts programs that use the ledger in processes of their own, to be killed or starved."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import vcca_jax

# The ledger needs nothing of JAX, and a process that does not import it starts ten times sooner.
_WITHOUT_JAX = f"""
import sys, types
package = types.ModuleType("vcca_jax")
package.__path__ = [{str(Path(vcca_jax.__file__).parent)!r}]
sys.modules["vcca_jax"] = package
"""


def start(program: str, *arguments: object, **options: Any) -> subprocess.Popen[str]:
    """Start a program; its standard output can be read as text."""
    command = [sys.executable, "-c", _WITHOUT_JAX + program, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def output(process: subprocess.Popen[str]) -> str:
    """Wait for a program to end without error and return what it printed."""
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 0
    return printed
