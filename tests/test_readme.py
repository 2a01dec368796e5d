"""The README's example runs as it stands, and its words about files are true."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs_and_pays_everything_out(tmp_path, monkeypatch, capsys):
    code, profiles = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    exec(compile(profiles, "README.md", "exec"), {})
    lines = [line for line in code.splitlines() if line and not line.startswith(("import", "from"))]
    assert len(lines) <= 25
    monkeypatch.chdir(tmp_path)
    scope: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), scope)
    balances = eval(capsys.readouterr().out)
    assert set(balances) == {"ana", "ben", "cem", "dee", "eva"}
    assert sum(balances.values()) == 100_000
    assert min(balances.values()) >= 0


def test_every_file_it_names_exists():
    table = re.findall(r"`([a-z_]+(?:\.py|/))`", README)
    assert len(table) >= 10
    for name in table:
        assert (ROOT / "vcca_jax" / name).exists() or (ROOT / name).exists(), name
