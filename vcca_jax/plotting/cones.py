"""Admissible cones in two and three dimensions, with what projection makes of updates.

What is drawn is what the library computes: every projection is ``project_onto_cone``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection  # type: ignore[import-untyped]

from vcca_jax.cones.projection import project_onto_cone
from vcca_jax.plotting.parts import FAINT, INK, PALETTE, STYLE, set_note, set_title, settle

ADMISSIBLE = "#009E73"
BEFORE, AFTER = "#D55E00", "#0072B2"

# A picture is made on the host, and uncompiled the solver takes seconds.
_project = jax.jit(jax.vmap(project_onto_cone, in_axes=(0, None, None)))


def cone_plane(
    normals: Any,
    updates: Any,
    *,
    margins: Any = 0.0,
    names: Sequence[str] | None = None,
) -> Figure:
    """The updates of the plane that K half-spaces allow, and some updates before and after.

    Args:
        normals: [K, 2], signed value gradients n_k.
        updates: [n, 2], what is projected.
        margins: [K] or one for all: an update u is admissible if <n_k, u> >= m_k for all k.
        names: K labels of the boundaries; "value 1", ... by default.

    Returns:
        A figure of one axes. The admissible part of what is seen is one polygon, named
        "admissible"; line k is the boundary of constraint k.

    Raises:
        ValueError: arrays that do not fit each other, no constraint or no update.
    """
    normals, updates, margins, names = _checked(normals, updates, margins, names, 2)
    after = projected(normals, updates, margins)
    reach = 1.25 * float(max(np.abs(updates).max(), np.abs(after).max(), np.abs(margins).max()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.4), layout="constrained")
        ax = figure.subplots()
        ax.set_aspect("equal")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
        ax.set(xlabel="first coordinate of an update", ylabel="second coordinate")
        region = clipped(_square(reach), normals, margins)
        if len(region):
            ax.add_patch(
                Polygon(region, color=ADMISSIBLE, alpha=0.16, linewidth=0, label="admissible")
            )
        _boundaries(ax, normals, margins, names, reach)
        for before, onto in zip(updates, after, strict=True):
            _arrow(ax, before, BEFORE, "update as it came")
            if np.linalg.norm(onto - before) > 1e-6 * reach:
                ax.plot(*np.stack([before, onto]).T, color=FAINT, linestyle=":", linewidth=1.8)
                _arrow(ax, onto, AFTER, "what screening makes of it")
        _legend(figure, ax)
        set_title(figure, _told(updates, after))
        set_note(figure, "Green: admissible. Dotted: what the projection removes.")
        settle(figure)
    return figure


def cone_space(
    normals: Any,
    updates: Any,
    *,
    margins: Any = 0.0,
    names: Sequence[str] | None = None,
    elevation: float = 22.0,
    azimuth: float = 40.0,
) -> Figure:
    """The same in three dimensions: the cone's facets, each in its constraint's colour.

    Args:
        normals: [K, 3], signed value gradients.
        updates: [n, 3].
        margins, names: see ``cone_plane``.
        elevation, azimuth: where it is seen from, in degrees.

    Returns:
        A figure of one three-dimensional axes.

    Raises:
        ValueError: see ``cone_plane``.
    """
    normals, updates, margins, names = _checked(normals, updates, margins, names, 3)
    after = projected(normals, updates, margins)
    reach = 1.1 * float(max(np.abs(updates).max(), np.abs(after).max(), np.abs(margins).max()))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 6.6), layout="constrained")
        ax: Any = figure.add_subplot(projection="3d")
        for k, name in enumerate(names):
            facet = facet_of(normals, margins, k, reach)
            if len(facet):
                colour = PALETTE[(2, 4, 3, 1, 7)[k % 5]]
                ax.add_collection3d(
                    Poly3DCollection(
                        [facet],
                        facecolor=colour,
                        alpha=0.25,
                        edgecolor=colour,
                        linewidth=0.8,
                        label=f"boundary of {name}",
                    )
                )
        for before, onto in zip(updates, after, strict=True):
            _ray(ax, before, BEFORE, "update as it came")
            if np.linalg.norm(onto - before) > 1e-6 * reach:
                ax.plot(*np.stack([before, onto]).T, color=FAINT, linestyle=":", linewidth=1.8)
                _ray(ax, onto, AFTER, "what screening makes of it")
        ax.set(xlim=(-reach, reach), ylim=(-reach, reach), zlim=(-reach, reach))
        ax.set(xlabel="first", ylabel="second", zlabel="third coordinate")
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.set_major_locator(MaxNLocator(4))
        ax.view_init(elevation, azimuth)
        ax.set_box_aspect((1, 1, 1), zoom=0.9)
        _legend(figure, ax)
        set_title(figure, _told(updates, after))
        set_note(figure, "Admissible is what the facets enclose. Dotted: what is removed.")
        settle(figure)
    return figure


def projected(normals: np.ndarray, updates: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """[n, D], the nearest admissible updates, by ``project_onto_cone``."""
    arrays = (np.asarray(array, np.float32) for array in (updates, normals, margins))
    return np.asarray(_project(*arrays)[0], float)


def clipped(polygon: np.ndarray, normals: np.ndarray, margins: np.ndarray) -> np.ndarray:
    """[v, 2], the part of a convex polygon with <n_k, u> >= m_k for all k; empty if there is none.

    One half-plane after the other cuts it (Sutherland and Hodgman, 1974).
    """
    points = [np.asarray(point, float) for point in polygon]
    for normal, margin in zip(normals, margins, strict=True):
        kept: list[np.ndarray] = []
        for here, there in zip(points, points[1:] + points[:1], strict=True):
            a, b = normal @ here - margin, normal @ there - margin
            if a >= 0:
                kept.append(here)
            if (a >= 0) != (b >= 0):
                kept.append(here + a / (a - b) * (there - here))
        points = kept
    return np.array(points).reshape(-1, 2)


def facet_of(normals: np.ndarray, margins: np.ndarray, k: int, reach: float) -> np.ndarray:
    """[v, 3], the admissible part of boundary k within a cube of half-width ``reach``."""
    normal = normals[k]
    foot = margins[k] / (normal @ normal) * normal
    # Two directions of the plane, as rows.
    plane = np.linalg.svd(normal[None, :])[2][1:]
    others = np.delete(np.arange(len(normals)), k)
    cube = np.concatenate([np.eye(3), -np.eye(3)])
    sides = np.concatenate([normals[others], cube])
    limits = np.concatenate([margins[others], np.full(6, -reach)])
    flat = clipped(_square(4 * reach), sides @ plane.T, limits - sides @ foot)
    return foot + flat @ plane


def _checked(
    normals: Any, updates: Any, margins: Any, names: Sequence[str] | None, dimension: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Sequence[str]]:
    normals, updates = np.asarray(normals, float), np.asarray(updates, float)
    for name, array in (("normals", normals), ("updates", updates)):
        if array.ndim != 2 or array.shape[1] != dimension or len(array) == 0:
            raise ValueError(
                f"{name} has the shape {array.shape}; give at least one row of {dimension} numbers"
            )
    if not np.linalg.norm(normals, axis=1).all():
        raise ValueError("normals holds a row of zeros, which bounds nothing; leave it out")
    margins = np.asarray(margins, float)
    if margins.shape not in ((), (len(normals),)):
        raise ValueError(f"margins has the shape {margins.shape}; give one for each normal")
    names = [f"value {k + 1}" for k in range(len(normals))] if names is None else names
    if len(names) != len(normals):
        raise ValueError(f"names={list(names)} are not one for each of {len(normals)} normals")
    return normals, updates, np.broadcast_to(margins, len(normals)), names


def _square(reach: float) -> np.ndarray:
    return reach * np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


def _boundaries(
    ax: Axes, normals: np.ndarray, margins: np.ndarray, names: Sequence[str], reach: float
) -> None:
    for k, (normal, margin, name) in enumerate(zip(normals, margins, names, strict=True)):
        foot = margin / (normal @ normal) * normal
        along = np.array([-normal[1], normal[0]]) / np.linalg.norm(normal)
        ends = np.stack([foot - 4 * reach * along, foot + 4 * reach * along])
        colour = PALETTE[(3, 4, 7, 1, 6)[k % 5]]
        ax.plot(*ends.T, color=colour, linewidth=1.6, label=f"boundary of {name}")
        inward = foot + 0.16 * reach * normal / np.linalg.norm(normal)
        ax.annotate(
            "",
            tuple(inward.tolist()),
            tuple(foot.tolist()),
            arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.6},
        )


def _arrow(ax: Axes, to: np.ndarray, colour: str, label: str) -> None:
    # The line carries the numbers and the label, the head is decoration.
    ax.plot([0, to[0]], [0, to[1]], color=colour, label=label)
    x, y = map(float, to)
    if np.hypot(x, y) > 0:
        head = {"arrowstyle": "-|>", "color": colour, "shrinkB": 0}
        ax.annotate("", (x, y), (0, 0), arrowprops=head)


def _ray(ax: Any, to: np.ndarray, colour: str, label: str) -> None:
    ax.plot(*np.stack([np.zeros(3), to]).T, color=colour, label=label)
    ax.scatter(*to, color=colour, s=28, depthshade=False)


def _legend(figure: Figure, ax: Any) -> None:
    handles, labels = ax.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    # Beside the axes: anywhere within it would hide an update.
    figure.legend(
        list(once.values()),
        list(once),
        loc="outside right upper",
        fontsize=10,
        labelcolor=INK,
    )


def _told(updates: np.ndarray, after: np.ndarray) -> str:
    lengths = np.linalg.norm(updates, axis=1)
    removed = np.linalg.norm(after - updates, axis=1)
    changed = int((removed > 1e-6 * lengths).sum())
    share = 100 * removed.sum() / max(float(lengths.sum()), 1e-30)
    return f"{changed} of {len(updates)} updates are changed; {share:.0f} % of length is removed"
