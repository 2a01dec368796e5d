"""The command line, ``vcca-jax`` or ``python -m vcca_jax``.

| module | what it holds |
| --- | --- |
| ``commands`` | run, resume, report, verify; where it begins |
| ``ledger`` | verify, replay, statement, export of a ledger |
| ``profiles`` | value profiles read to a person |
| ``console`` | what all of them share: exit codes, where they print, how they fail |
"""
