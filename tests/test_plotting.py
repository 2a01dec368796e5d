"""Figures: what they draw is what the records say, and nothing global is touched."""

import functools
import math
import os

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from vcca_jax import plotting
from vcca_jax.plotting.parts import power_of_ten, signed, spread

UNTOUCHED = dict(matplotlib.rcParams)
SEEDS, EPOCHS = (3, 5, 8), 6
VALUES = ("women", "men", "sex probe")
NAMES = ("cleveland", "hungarian", "switzerland")


def loss(trainer: str, seed: int, epoch: int) -> float:
    shift = {"cooperative": 0.05, "unscreened": 1e-7 * epoch, "centralized": 0.0}[trainer]
    return 0.7 / (1 + epoch) + 0.01 * seed + shift


def value_loss(name: str, trainer: str, seed: int, epoch: int) -> float:
    slope = {"women": -0.1, "men": -0.2, "sex probe": 0.03}[name]
    return (
        0.7 + 0.001 * seed * (epoch + 1) + epoch * slope * (1 if trainer == "cooperative" else -1)
    )


METRICS = [
    {
        "epoch": epoch,
        "trainer": trainer,
        "seed": seed,
        "train_loss": None if epoch == 0 else loss(trainer, seed, epoch) - 0.02,
        "validation_loss": loss(trainer, seed, epoch),
        "validation_auc": 0.9,
        "value_losses": {name: value_loss(name, trainer, seed, epoch) for name in VALUES},
    }
    for seed in SEEDS
    for epoch in range(EPOCHS + 1)
    for trainer in ("cooperative", "unscreened", "centralized")
]
AGENTS = [
    {
        "epoch": epoch,
        "seed": seed,
        "agent": name,
        "samples": 100 * (k + 1),
        "steps": 4 + epoch,
        "admissible_steps": k,
        "dropped_steps": 0,
        # The last agent does not hold the last value.
        "conflicts": {value: k + j for j, value in enumerate(VALUES[: 3 if k < 2 else 2])},
        "removed": 0.1,
        "credit": (1 - k) * seed / epoch,
    }
    for seed in SEEDS
    for epoch in range(1, EPOCHS + 1)
    for k, name in enumerate(NAMES)
]
PAYOUTS = [
    {"period": period, "principal": name, "paid": paid, "balance": period * paid}
    for period in range(1, 5)
    for name, paid in (("cleveland", 12345), ("hungarian", 7655), ("reserve", 250))
]
DRAW = {
    "loss": lambda: plotting.loss_against_centralized(METRICS),
    "values": lambda: plotting.value_losses(METRICS, forbidden=("sex probe",)),
    "heatmap": lambda: plotting.admissibility_heatmap(AGENTS),
    "credit": lambda: plotting.cumulative_credit(AGENTS),
    "payout": lambda: plotting.cumulative_payout(PAYOUTS, "EUR", 100),
}


@functools.cache
def drawn(name: str) -> Figure:
    return DRAW[name]()


def lines(ax, label):
    (line,) = [line for line in ax.get_lines() if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def bands(ax, index):
    """Lowest and highest edge of the index-th band at each place on the horizontal axis."""
    vertices = ax.collections[index].get_paths()[0].vertices
    places = np.unique(vertices[:, 0])
    at = [vertices[vertices[:, 0] == place, 1] for place in places]
    return np.array([a.min() for a in at]), np.array([a.max() for a in at])


def title(figure: Figure) -> str:
    return " ".join(figure.get_suptitle().split())


@pytest.mark.parametrize("column", [0, 1])
def test_losses_are_means_over_seeds_with_a_band_from_lowest_to_highest(column):
    ax = drawn("loss").axes[column]
    labels = {
        "cooperative": "cooperative (screened)",
        "unscreened": "traversal, unscreened",
        "centralized": "centralized",
    }
    first, offset = (1, -0.02) if column == 0 else (0, 0.0)
    for trainer, label in labels.items():
        epochs, seen = lines(ax, label)
        assert epochs.tolist() == list(range(first, EPOCHS + 1))
        table = np.array([[loss(trainer, s, int(e)) + offset for e in epochs] for s in SEEDS])
        np.testing.assert_allclose(seen, table.mean(axis=0), rtol=1e-12)
    low, high = bands(ax, 1)  # the centralized band, then the cooperative one
    table = np.array([[loss("cooperative", s, int(e)) + offset for e in epochs] for s in SEEDS])
    np.testing.assert_allclose(low, table.min(axis=0), rtol=1e-12)
    np.testing.assert_allclose(high, table.max(axis=0), rtol=1e-12)


def test_the_unscreened_markers_lie_on_centralized_and_their_distance_is_drawn_and_told():
    figure = drawn("loss")
    training, validation, _, below = figure.axes
    assert [ax.get_title(loc="left") for ax in (training, validation)] == [
        "training loss",
        "validation loss",
    ]
    assert training.get_ylabel() == "mean loss (nats)"
    assert below.get_xlabel() == "epoch"
    epochs, differences = (np.asarray(d) for d in below.get_lines()[0].get_data())
    np.testing.assert_allclose(differences, 1e-7 * epochs, atol=1e-15)
    assert title(figure) == "Unscreened traversal lies on centralized training, within 6.0 × 10⁻⁷"


def test_the_title_says_so_when_the_unscreened_traversal_departs():
    apart = [
        {**r, "validation_loss": r["validation_loss"] + 0.25 * (r["trainer"] == "unscreened")}
        for r in METRICS
    ]
    figure = plotting.loss_against_centralized(apart)
    assert title(figure).startswith("Unscreened traversal departs from centralized training, by")
    assert "2.5 × 10⁻¹" in title(figure)


def test_value_losses_are_changes_from_the_same_seeds_start():
    figure = drawn("values")
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "women (protect)",
        "men (protect)",
        "sex probe (forbid)",
    ]
    for name, ax in zip(VALUES, figure.axes, strict=True):
        for trainer, label in (
            ("cooperative", "with screening"),
            ("unscreened", "without screening"),
        ):
            epochs, seen = lines(ax, label)
            table = np.array(
                [
                    [
                        value_loss(name, trainer, s, int(e)) - value_loss(name, trainer, s, 0)
                        for e in epochs
                    ]
                    for s in SEEDS
                ]
            )
            np.testing.assert_allclose(seen, table.mean(axis=0), atol=1e-12)
            low, high = bands(ax, 0 if trainer == "unscreened" else 1)
            np.testing.assert_allclose(low, table.min(axis=0), atol=1e-12)
            np.testing.assert_allclose(high, table.max(axis=0), atol=1e-12)


def test_the_value_title_counts_each_value_on_the_side_it_wants():
    # With screening: women and men fall, the probe's loss rises. Without, all the reverse.
    assert title(drawn("values")) == (
        "With screening 3 of 3 values end no worse than they began; without, 0"
    )
    assert title(plotting.value_losses(METRICS)).startswith("With screening 2 of 3")


def test_the_unwanted_side_is_shaded():
    for name, ax in zip(VALUES, drawn("values").axes, strict=True):
        (span,) = ax.patches
        bottom, top = span.get_y(), span.get_y() + span.get_height()
        if name == "sex probe":
            assert bottom < 0
            assert top == 0
        else:
            assert bottom == 0
            assert top > 0


def test_the_legend_of_the_values_lies_over_no_panel_and_no_title():
    figure = drawn("values")
    panels = figure.axes
    box = panels[1].get_legend().get_window_extent()
    taken = [ax.get_window_extent() for ax in panels]
    taken += [text.get_window_extent() for ax in panels for text in (ax.title, ax._left_title)]
    taken.append(figure._suptitle.get_window_extent())
    assert not any(box.overlaps(other) for other in taken if other.width)
    assert figure.bbox.x0 <= box.x0
    assert box.x1 <= figure.bbox.x1


def test_heatmap_cells_are_conflicts_over_visits_and_the_last_column_the_whole_profile():
    figure = drawn("heatmap")
    (ax,) = figure.axes
    visits = sum(4 + epoch for epoch in range(1, EPOCHS + 1))
    expected = [[(k + j) * EPOCHS / visits for j in range(3)] for k in range(3)]
    expected[2][2] = math.nan
    seen = ax.collections[0].get_array().reshape(3, 5)
    np.testing.assert_allclose(np.ma.filled(seen[:, :3], np.nan), expected)
    whole = [1 - k * EPOCHS / visits for k in range(3)]
    np.testing.assert_allclose(seen[:, 4], whole)
    cells = [text.get_text() for text in ax.texts]
    table = [[*row, last] for row, last in zip(expected, whole, strict=True)]
    assert cells == [
        "–" if math.isnan(share) else f"{100 * share:.0f} %" for row in table for share in row
    ]
    assert [t.get_text() for t in ax.get_xticklabels()] == [*VALUES, "any of these"]
    assert [t.get_text() for t in ax.get_yticklabels()][1] == "hungarian\n200 samples"
    # Hungary with the probe and Switzerland with men tie on 3: the first is told.
    assert "hungarian run against “sex probe” most often" in title(figure)


def test_an_agent_never_visited_is_a_row_of_dashes():
    records = [{**r, "steps": 0, "admissible_steps": 0} for r in AGENTS if r["agent"] == NAMES[0]]
    (ax,) = plotting.admissibility_heatmap([*records, *AGENTS[1:2]]).axes
    assert [text.get_text() for text in ax.texts][:4] == ["–"] * 4


def test_credit_accumulates_from_nought_within_each_seed():
    figure = drawn("credit")
    (ax,) = figure.axes
    finals = []
    for k, name in enumerate(NAMES):
        epochs, seen = lines(ax, name)
        assert epochs.tolist() == list(range(EPOCHS + 1))
        steps = np.array([[0, *((1 - k) * s / e for e in range(1, EPOCHS + 1))] for s in SEEDS])
        totals = steps.cumsum(axis=1)
        np.testing.assert_allclose(seen, totals.mean(axis=0), atol=1e-12)
        low, high = bands(ax, k)
        np.testing.assert_allclose(low, totals.min(axis=0), atol=1e-12)
        np.testing.assert_allclose(high, totals.max(axis=0), atol=1e-12)
        finals.append(seen[-1])
    texts = [text.get_text() for text in ax.texts]
    assert texts == [f"{n}  {signed(f)}" for n, f in zip(NAMES, finals, strict=True)]
    assert title(figure).startswith("Most credit goes to cleveland: +13.1")
    assert ax.get_xlabel() == "epoch"
    assert "(validation loss removed, nats)" in ax.get_ylabel()


def test_the_order_of_records_within_a_seed_does_not_matter():
    (ax,) = plotting.cumulative_credit(AGENTS[::-1]).axes
    for name in NAMES:
        np.testing.assert_array_equal(lines(ax, name)[1], lines(drawn("credit").axes[0], name)[1])


def test_payouts_are_stacked_steps_in_major_units():
    figure = drawn("payout")
    (ax,) = figure.axes
    paid = {"cleveland": 123.45, "hungarian": 76.55, "reserve": 2.5}
    floor = np.zeros(5)
    for line, amount in zip(ax.get_lines(), paid.values(), strict=True):
        floor = floor + amount * np.array([1, 2, 3, 4, 4])
        np.testing.assert_allclose(line.get_xdata(), [0.5, 1.5, 2.5, 3.5, 4.5])
        np.testing.assert_allclose(line.get_ydata(), floor)
        assert line.get_drawstyle() == "steps-post"
    assert [band.get_label() for band in ax.collections] == list(paid)
    assert [text.get_text() for text in ax.texts] == [
        "cleveland  493.80 EUR",
        "hungarian  306.20 EUR",
        "reserve  10.00 EUR",
    ]
    assert title(figure) == "800.00 EUR paid out in 4 periods, 10.00 EUR kept in reserve"
    assert ax.get_ylabel() == "cumulative payout (EUR)"
    assert ax.get_xticks().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("name", DRAW)
def test_the_same_figure_has_the_same_bytes_no_date_and_no_side_effect(name, tmp_path):
    figure = drawn(name)
    # Settled: saving does not lay it out anew.
    assert not isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine)
    plotting.save_figure(figure, tmp_path / "new" / "one.png")
    plotting.save_figure(figure, tmp_path / "new" / "two.png")
    plotting.save_figure(DRAW[name](), tmp_path / "three.png")
    assert dict(matplotlib.rcParams) == UNTOUCHED
    content = (tmp_path / "new" / "one.png").read_bytes()
    assert content == (tmp_path / "new" / "two.png").read_bytes()
    assert content == (tmp_path / "three.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    for chunk in (b"tEXt", b"iTXt", b"zTXt", b"tIME"):
        assert chunk not in content
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["one.png", "two.png"]


def test_saving_is_all_or_nothing(tmp_path, monkeypatch):
    target = tmp_path / "figure.png"
    target.write_bytes(b"old")

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        plotting.save_figure(Figure(), target)
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    with pytest.raises(ValueError, match=r"figure\.pdf.*must end in '\.png'"):
        plotting.save_figure(Figure(), tmp_path / "figure.pdf")


EMPTY = {
    "loss": lambda records: plotting.loss_against_centralized(records),
    "values": lambda records: plotting.value_losses(records),
    "heatmap": lambda records: plotting.admissibility_heatmap(records),
    "credit": lambda records: plotting.cumulative_credit(records),
    "payout": lambda records: plotting.cumulative_payout(records, "EUR", 100),
}


@pytest.mark.parametrize("name", EMPTY)
def test_no_records_and_records_of_another_kind_are_refused(name):
    with pytest.raises(ValueError, match="holds no records"):
        EMPTY[name]([])
    with pytest.raises(ValueError, match=r"\[0\] lacks"):
        EMPTY[name]([{"colour": "blue"}])


def test_absent_trainers_epochs_and_values_are_named():
    only = [record for record in METRICS if record["trainer"] == "cooperative"]
    with pytest.raises(ValueError, match=r"no record of trainer \['unscreened', 'centralized'\]"):
        plotting.loss_against_centralized(only)
    with pytest.raises(ValueError, match=r"no record of trainer \['unscreened'\]"):
        plotting.value_losses(only)
    with pytest.raises(ValueError, match=r"lacks epoch 0 .*seeds \[3\]"):
        plotting.value_losses([r for r in METRICS if (r["epoch"], r["seed"]) != (0, 3)])
    with pytest.raises(ValueError, match=r"\['rich'\] is not among"):
        plotting.value_losses(METRICS, forbidden=("rich",))
    others = [{**r, "seed": r["seed"] + 100 * (r["trainer"] == "centralized")} for r in METRICS]
    with pytest.raises(ValueError, match=r"share no \(epoch, seed\)"):
        plotting.loss_against_centralized(others)
    with pytest.raises(ValueError, match="scale=0"):
        plotting.cumulative_payout(PAYOUTS, "EUR", 0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=8), st.floats(0.01, 2))
def test_labels_are_spread_apart_in_order_and_kept_where_there_is_room(positions, gap):
    apart = spread(positions, gap)
    order = np.argsort(positions, kind="stable")
    assert np.all(np.diff(apart[order]) >= gap - 1e-9)
    # The nearest such positions keep the centre of gravity; with room, nothing moves.
    np.testing.assert_allclose(apart.mean(), np.mean(positions), atol=1e-9)
    roomy = np.array(positions)[order] + 2 * gap * np.arange(len(order))
    np.testing.assert_allclose(spread(list(roomy), gap), roomy, atol=1e-9)


def test_numbers_in_labels():
    assert power_of_ten(0.0) == "0"
    assert power_of_ten(1.24e-7) == "1.2\u00a0×\u00a010⁻⁷"
    assert power_of_ten(3.0e12) == "3.0\u00a0×\u00a010¹²"
    assert [signed(v) for v in (0.4263, -0.01774, 0.0)] == ["+0.426", "−0.0177", "+0"]
