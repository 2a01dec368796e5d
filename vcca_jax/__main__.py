"""``python -m vcca_jax``, the same as ``vcca-jax``."""

from vcca_jax.cli.commands import main

main()
