"""Cone pictures: what is drawn lies where float64 arithmetic says it lies."""

import itertools

import matplotlib
import numpy as np
import pytest
from matplotlib.patches import Polygon

from vcca_jax.plotting import save_figure
from vcca_jax.plotting.cones import clipped, cone_plane, cone_space, facet_of

UNTOUCHED = dict(matplotlib.rcParams)
PLANE = np.array([[1.0, 0.3], [-0.2, 1.0]])
SPACE = np.array([[1.0, 0.2, 0.1], [-0.3, 1.0, 0.2], [0.1, -0.2, 1.0]])
FLAT = np.array([[1.0, 1.0], [-1.0, 0.5], [0.3, -1.2], [-0.8, -0.9]])
DEEP = np.array([[1.0, 0.8, 0.9], [-1.0, 0.5, 0.4], [0.6, -0.9, -0.7], [-0.5, -0.6, -0.9]])
MARGINS = np.array([0.2, -0.1])


def nearest(g, normals, margins):
    """The projection by trying every set of binding rows, in float64."""
    best = None
    for count in range(len(normals) + 1):
        for rows in map(list, itertools.combinations(range(len(normals)), count)):
            u = g
            if rows:
                n = normals[rows]
                u = g + n.T @ np.linalg.solve(n @ n.T, margins[rows] - n @ g)
            admissible = (normals @ u >= margins - 1e-9).all()
            if admissible and (best is None or np.sum((u - g) ** 2) < np.sum((best - g) ** 2)):
                best = u
    return best


def ends(ax, label):
    """The far ends of the rays of one label, in the order of drawing."""
    rays = [line for line in ax.get_lines() if line.get_label() == label]
    data = [getattr(ray, "get_data_3d", ray.get_data)() for ray in rays]
    return np.array([[axis[-1] for axis in each] for each in data], float)


@pytest.mark.parametrize(
    ("draw", "normals", "updates", "margins"),
    [
        (cone_plane, PLANE, FLAT, MARGINS),
        (cone_plane, PLANE, FLAT, np.zeros(2)),
        (cone_space, SPACE, DEEP, np.zeros(3)),
        (cone_space, SPACE, DEEP, np.array([0.1, 0.0, -0.2])),
    ],
)
def test_projections_are_drawn_where_float64_puts_them(draw, normals, updates, margins):
    figure = draw(normals, updates, margins=margins)
    expected = np.array([nearest(g, normals, margins) for g in updates])
    changed = np.linalg.norm(expected - updates, axis=1) > 1e-6
    assert 0 < changed.sum() < len(updates)
    (ax,) = figure.axes
    np.testing.assert_array_equal(ends(ax, "update as it came"), updates)
    shown = ends(ax, "what screening makes of it")
    np.testing.assert_allclose(shown, expected[changed], atol=2e-6)
    assert f"{changed.sum()} of {len(updates)} updates" in figure.get_suptitle()
    removed = np.linalg.norm(expected - updates, axis=1).sum()
    share = 100 * removed / np.linalg.norm(updates, axis=1).sum()
    assert f"{share:.0f} %" in figure.get_suptitle()


def test_the_shaded_polygon_is_the_admissible_part_of_what_is_seen():
    (ax,) = cone_plane(PLANE, FLAT, margins=MARGINS).axes
    (region,) = [patch for patch in ax.patches if isinstance(patch, Polygon)]
    reach = ax.get_xlim()[1]
    points = np.random.default_rng(0).uniform(-reach, reach, (2000, 2))
    # The path closes with a repeated first point.
    inside = region.get_path().contains_points(points)
    np.testing.assert_array_equal(inside, (points @ PLANE.T >= MARGINS).all(axis=1))
    assert 0 < inside.sum() < len(points)


def test_facets_lie_on_their_boundary_and_within_all_others():
    margins = np.array([0.1, 0.0, -0.2])
    for k in range(3):
        facet = facet_of(SPACE, margins, k, 2.0)
        assert len(facet) >= 3
        np.testing.assert_allclose(facet @ SPACE[k], margins[k], atol=1e-12)
        assert (facet @ SPACE.T >= margins - 1e-9).all()
        assert np.abs(facet).max() <= 2.0 + 1e-9
        # It reaches the corner that the three boundaries share.
        corner = np.linalg.solve(SPACE, margins)
        assert np.linalg.norm(facet - corner, axis=1).min() < 1e-9


def test_what_excludes_itself_has_no_region():
    normals, margins = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([1.0, 1.0])
    square = np.array([[-2.0, -2.0], [2.0, -2.0], [2.0, 2.0], [-2.0, 2.0]])
    assert clipped(square, normals, margins).shape == (0, 2)


@pytest.mark.parametrize(
    ("draw", "normals", "updates"),
    [
        (cone_plane, PLANE, FLAT),
        (cone_space, SPACE, DEEP),
    ],
)
def test_the_file_is_written_and_nothing_global_touched(tmp_path, draw, normals, updates):
    figure = draw(normals, updates, names=[f"v{k}" for k in range(len(normals))])
    for name in ("once.png", "again.png"):
        save_figure(figure, tmp_path / name)
    once = (tmp_path / "once.png").read_bytes()
    assert once.startswith(b"\x89PNG")
    assert once == (tmp_path / "again.png").read_bytes()
    assert dict(matplotlib.rcParams) == UNTOUCHED
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "boundary of v0" in labels
    assert len(labels) == len(set(labels))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"normals": SPACE}, "normals"),
        ({"normals": np.zeros((2, 2))}, "zeros"),
        ({"updates": np.zeros((0, 2))}, "updates"),
        ({"margins": np.zeros(3)}, "margins"),
        ({"names": ["one"]}, "names"),
    ],
)
def test_what_does_not_fit_is_refused(given, named):
    with pytest.raises(ValueError, match=named):
        cone_plane(**({"normals": PLANE, "updates": FLAT} | given))
