"""Figures of a run, drawn from its tidy records (host only: NumPy and Matplotlib).

Every figure is a pure function from a list of records (mappings, one a measurement) to a
`matplotlib.figure.Figure`. Nothing global is touched: no pyplot, no change of rcParams that
outlives a call. Where a run has several seeds a line is the mean over seeds and the band
around it reaches from the lowest to the highest seed.

Titles say what is seen and are computed from the records, so they change with them.
"""

from vcca_jax.plotting.agents import admissibility_heatmap, cumulative_credit, cumulative_payout
from vcca_jax.plotting.losses import loss_against_centralized, value_losses
from vcca_jax.plotting.parts import save_figure

__all__ = [
    "admissibility_heatmap",
    "cumulative_credit",
    "cumulative_payout",
    "loss_against_centralized",
    "save_figure",
    "value_losses",
]
