"""Execute notebooks: ``python -m experiments.notebooks [--smoke] [--out FOLDER] [NAME ...]``.

    python -m experiments.notebooks 02_cuts_and_bytes           # one, at full size, in place
    python -m experiments.notebooks --smoke                     # all, small, into a folder in /tmp
    python -m experiments.notebooks --prose 02_cuts_and_bytes   # its text has changed, no code

A notebook is edited as text, ``notebooks/NAME.py`` (jupytext's percent format), and executed from
top to bottom into ``notebooks/NAME.ipynb`` beside it. What differs from one run to the next without
a result having changed (times, versions, random names of cells) is left out.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from vcca_jax.runs.records import write_text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
SECONDS = 900
"""What a cell may take."""


class OwnKernel(AsyncKernelManager):
    """A kernel of the interpreter that runs this, whatever kernels are installed for the user."""

    sockets = ""
    """Folder of the sockets that are spoken over; a subclass names one.

    In the file system nobody else can listen, and in a folder of their own kernels that start at
    the same moment do not take the same ones, as they would by the default's names.
    """

    def __init__(self, **terms: Any) -> None:
        """Speak over them where the system has them."""
        if os.name == "posix":
            terms |= {"transport": "ipc", "ip": f"{self.sockets}/kernel"}
        super().__init__(**terms)

    @property
    def kernel_spec(self) -> KernelSpec:
        """The only kernel there is."""
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")


def names(folder: Path = FOLDER) -> list[str]:
    """The notebooks that a folder holds, in order."""
    return sorted(path.stem for path in folder.glob("[0-9]*.py"))


def read_text(source: Path) -> Any:
    """A notebook from its text, with names of cells that depend on the cells alone."""
    notebook = jupytext.read(source, fmt="py:percent")
    seen: Counter[str] = Counter()
    for cell in notebook.cells:
        digest = hashlib.sha256(cell.source.encode()).hexdigest()[:10]
        cell["id"] = f"{digest}-{seen[digest]}"
        seen[digest] += 1
    notebook["nbformat"], notebook["nbformat_minor"] = 4, 5
    return notebook


def executed(source: Path, *, smoke: bool = False, environment: Mapping[str, str] = {}) -> Any:
    """Run a notebook's text from top to bottom in the repository's root.

    Args:
        source: the percent script.
        smoke: whether live cells are small (``VCCA_SMOKE``).
        environment: variables beside this process's own.

    Returns:
        The notebook with its outputs, without what varies by the run.

    Raises:
        CellExecutionError: a cell failed; the message shows it.
    """
    notebook = read_text(source)
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {
        **os.environ,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "PYTHONPATH": os.pathsep.join(paths),
        "VCCA_SMOKE": "1" if smoke else "0",
        **environment,
    }
    with tempfile.TemporaryDirectory(prefix="vcca-") as sockets:
        client = NotebookClient(
            notebook,
            kernel_manager_class=type("PlacedKernel", (OwnKernel,), {"sockets": sockets}),
            timeout=SECONDS,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(ROOT)}},
        )
        client.execute(env=variables)
    return stripped(notebook)


def stripped(notebook: Any) -> Any:
    """Leave out what varies by the run or by the machine; what a cell shows stays."""
    held = notebook.metadata.get("jupytext", {})
    notebook["metadata"] = nbformat.from_dict(
        {
            "jupytext": {"formats": held.get("formats", "ipynb,py:percent")},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for cell in notebook.cells:
        cell.metadata.pop("lines_to_next_cell", None)
    nbformat.validate(notebook)
    return notebook


def reworded(source: Path, held: Any) -> Any:
    """A notebook of the text's prose and of the outputs that ``held`` has for the same code.

    Raises:
        ValueError: the code is no longer the one that was executed.
    """
    notebook = read_text(source)
    ours, theirs = (
        [cell for cell in each.cells if cell.cell_type == "code"] for each in (notebook, held)
    )
    if [cell.source for cell in ours] != [cell.source for cell in theirs]:
        raise ValueError(f"the code of {source.name} has changed; execute it instead")
    for cell, before in zip(ours, theirs, strict=True):
        cell["outputs"], cell["execution_count"] = before.outputs, before.execution_count
    return stripped(notebook)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, execute and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebooks; all by default")
    parser.add_argument("--smoke", action="store_true", help="small live cells; never in place")
    parser.add_argument("--out", type=Path, help="folder to write to; by default notebooks/")
    parser.add_argument("--prose", action="store_true", help="take over prose, execute nothing")
    given = parser.parse_args(arguments)
    asked = [Path(name).stem for name in given.names] or names()
    if unknown := sorted(set(asked) - set(names())):
        parser.error(f"no notebook {', '.join(unknown)}; there are {', '.join(names())}")
    if given.smoke and given.out is not None and given.out.resolve() == FOLDER:
        parser.error("--smoke must not replace notebooks of full size; name another --out")
    target = given.out or (Path(tempfile.mkdtemp(prefix="notebooks-")) if given.smoke else FOLDER)
    target.mkdir(parents=True, exist_ok=True)
    for name in asked:
        begun = time.perf_counter()
        source, path = FOLDER / f"{name}.py", target / f"{name}.ipynb"
        if given.prose:
            notebook = reworded(source, nbformat.read(FOLDER / path.name, as_version=4))
        else:
            notebook = executed(source, smoke=given.smoke)
        write_text(path, nbformat.writes(notebook) + "\n")
        took, size = time.perf_counter() - begun, path.stat().st_size
        print(f"{name}: {took:.0f} s, {size / 1000:.0f} kB, {path}", flush=True)


if __name__ == "__main__":
    main()
