"""The main job's configuration at smoke size, and a run's bytes, for the tests of runs."""

import hashlib
import tomllib
from pathlib import Path

from vcca_jax.runs import RunConfig

CONFIG = Path(__file__).parent.parent / "experiments" / "heart" / "config.toml"


def smoke(**training) -> RunConfig:
    content = tomllib.loads(CONFIG.read_text())
    content["model"] = {"hidden": [4], "cut": 1}
    content["training"] = {"epochs": 3, "seeds": 2, "batch_size": 128, **training}
    return RunConfig.model_validate(content)


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the checkpoints, whose library stores the time in them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts
    }


def edit_payout(path):
    """Change a digit of a stored payout, as a thief would; return what the file holds then."""
    content = bytearray(path.read_bytes())
    place = content.index(b'"postings"')
    place = next(i for i in range(place, len(content)) if chr(content[i]) in "123456789")
    content[place] ^= 1
    path.write_bytes(bytes(content))
    return bytes(content)
