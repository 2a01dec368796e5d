import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import constraint_examples
from tests.constraint_examples import NAMES, PARTS
from vcca_jax.constraints import (
    AngleCone,
    Freeze,
    HalfSpace,
    MaxNorm,
    TrustRegion,
    forbid,
    freeze,
    max_norm,
    preserve,
    protect,
    trust_region,
    within_angle,
)
from vcca_jax.profiles import leaf_paths, value_profiles

PARAMS = {
    "body": [{"kernel": np.zeros((2, 3)), "bias": np.zeros(3)}, np.zeros(4)],
    "head": {"bias": np.zeros(1)},
}
PATHS = ["body/0/bias", "body/0/kernel", "body/1", "head/bias"]


def rows_of(arrays, i):
    """One principal's half-spaces back from the arrays: (value, sign) -> (margin, price)."""
    price = np.full(arrays.margin.shape, np.inf) if arrays.price is None else arrays.price
    rows = {}
    for k in np.flatnonzero(arrays.mask[i]):
        key = NAMES[arrays.value[i, k]], float(arrays.sign[i, k])
        rows.setdefault(key, []).append((float(arrays.margin[i, k]), float(price[i, k])))
    return {key: sorted(each) for key, each in rows.items()}


def rows_meant(profile):
    """The same from the constraints, by their definitions."""
    rows = {}
    for c in profile:
        if isinstance(c, HalfSpace):
            sides = {
                "protect": [(1.0, c.margin)],
                "forbid": [(-1.0, c.margin)],
                "preserve": [(1.0, c.margin), (-1.0, -c.margin)],
            }
            for sign, margin in sides[c.kind]:
                rows.setdefault((c.value, sign), []).append((margin, c.price))
    return {key: sorted(each) for key, each in rows.items()}


def limits_of(limits, i):
    """One principal's limits back from the arrays."""
    if limits is None:
        return None, {}, {}
    cap = float(limits.max_norm[i])
    angles = {
        name: float(np.degrees(np.arccos(limits.cosine[i, m])))
        for m, name in enumerate(NAMES)
        if limits.cosine[i, m] >= 0
    }
    regions = {
        frozenset(np.array(NAMES)[region]): float(radius)
        for region, radius in zip(limits.region[i], limits.radius[i], strict=True)
        if region.any()
    }
    return (None if np.isinf(cap) else cap), angles, regions


def limits_meant(profile):
    caps = [c.limit for c in profile if isinstance(c, MaxNorm)]
    angles = {c.value: c.degrees for c in profile if isinstance(c, AngleCone)}
    regions = {frozenset(c.values): c.radius for c in profile if isinstance(c, TrustRegion)}
    return (caps[0] if caps else None), angles, regions


def frozen_of(frozen, i):
    if frozen is None:
        return set()
    leaves = jax.tree.leaves(frozen.leaves)
    return {p for p, leaf in zip(PATHS, leaves, strict=True) if leaf[frozen.pattern[i]]}


def frozen_meant(profile):
    parts = [c.part for c in profile if isinstance(c, Freeze)]
    return {p for p in PATHS if any(p == part or p.startswith(f"{part}/") for part in parts)}


@given(
    st.lists(constraint_examples.profiles(), min_size=1, max_size=4),
    st.integers(0, 2),
    st.integers(0, 2),
)
def test_profiles_are_written_whole_and_padding_says_nothing(stated, agents, slots):
    longest = max(sum(map(len, rows_meant(profile).values())) for profile in stated)
    capacity, width = len(stated) + agents, max(1, longest) + slots
    arrays = value_profiles(NAMES, stated, params=PARAMS, capacity=capacity, constraints=width)
    for i, profile in enumerate([*stated, *[[]] * agents]):
        assert rows_of(arrays, i) == rows_meant(profile)
        cap, angles, regions = limits_of(arrays.limits, i)
        meant = limits_meant(profile)
        assert cap == meant[0]
        assert angles == pytest.approx(meant[1], abs=2e-3)
        assert regions == meant[2]
        assert frozen_of(arrays.frozen, i) == frozen_meant(profile)
    kinds = {"value": np.int32, "sign": np.float32, "margin": np.float32, "mask": bool}
    for name, kind in kinds.items():
        field = getattr(arrays, name)
        assert field.shape == (capacity, width)
        assert field.dtype == kind
        assert not field[~arrays.mask].any()
    if arrays.price is not None:
        assert arrays.price.shape == (capacity, width)
        assert np.isinf(arrays.price[~arrays.mask]).all()
    priced = any(np.isfinite(c.price) for p in stated for c in p if isinstance(c, HalfSpace))
    assert (arrays.price is not None) == priced
    assert (np.abs(arrays.sign) == arrays.mask).all()


def test_capacities_are_by_default_what_is_needed():
    arrays = value_profiles(NAMES, [[], [protect("old"), forbid("old", 0.5)], [forbid("probe")]])
    np.testing.assert_array_equal(arrays.value, [[0, 0], [2, 2], [3, 0]])
    np.testing.assert_array_equal(arrays.sign, [[0, 0], [1, -1], [-1, 0]])
    np.testing.assert_array_equal(arrays.margin, [[0, 0], [0, 0.5], [0, 0]])
    np.testing.assert_array_equal(arrays.mask, [[0, 0], [1, 1], [1, 0]])
    assert arrays[4:8] == (None, None, None, None)
    assert arrays.names.names == NAMES
    assert value_profiles(NAMES, [[], []]).mask.shape == (2, 1)


def test_to_preserve_takes_two_rows_that_meet_in_a_hyperplane():
    arrays = value_profiles(NAMES, [[preserve("old", 0.25, price=3.0)]])
    np.testing.assert_array_equal(arrays.value, [[2, 2]])
    np.testing.assert_array_equal(arrays.sign, [[1, -1]])
    np.testing.assert_array_equal(arrays.margin, [[0.25, -0.25]])
    np.testing.assert_array_equal(arrays.price, [[3, 3]])
    product = np.array([0.2, 0.25, 0.3])
    met = [(s * product >= m) for s, m in zip(arrays.sign[0], arrays.margin[0], strict=True)]
    np.testing.assert_array_equal(met[0] & met[1], [False, True, False])


def test_leaves_are_named_by_their_paths():
    assert leaf_paths(PARAMS) == PATHS


def test_parts_are_frozen_by_path_or_by_predicate_and_equal_patterns_are_kept_once():
    stated = [
        [freeze("body/0")],
        [],
        [freeze(lambda path: path.endswith("bias"))],
        [freeze("body/0/bias"), freeze("body/0/kernel")],
    ]
    frozen = value_profiles(NAMES, stated, params=PARAMS, capacity=5).frozen
    assert frozen_of(frozen, 0) == {"body/0/bias", "body/0/kernel"}
    assert frozen_of(frozen, 1) == frozen_of(frozen, 4) == set()
    assert frozen_of(frozen, 2) == {"body/0/bias", "head/bias"}
    assert frozen.pattern[0] == frozen.pattern[3]
    assert all(leaf.shape == (3,) for leaf in jax.tree.leaves(frozen.leaves))
    assert jax.tree.structure(frozen.leaves) == jax.tree.structure(PARAMS)


def test_a_part_is_found_in_shapes_as_well_and_only_whole_names_count():
    shapes = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, {"body": 0.0, "bodyguard": 0.0}))
    frozen = value_profiles(NAMES, [[freeze("body")]], params=shapes).frozen
    assert [bool(leaf[0]) for leaf in jax.tree.leaves(frozen.leaves)] == [True, False]


def test_weights_are_padded_with_one():
    arrays = value_profiles(NAMES, [[], []], weights=[2.0, 0.5], capacity=3)
    np.testing.assert_array_equal(arrays.weight, np.array([2, 0.5, 1], np.float32))


def test_with_capacities_profiles_change_without_recompiling():
    traces = []

    @jax.jit
    def read(profiles):
        traces.append(1)
        return sum(leaf.sum() for leaf in jax.tree.leaves(profiles))

    every = [
        protect("old", price=2.0),
        preserve("men"),
        max_norm(1.0),
        within_angle("old", 30.0),
        trust_region(["old", "men"], 0.1),
        freeze("body"),
    ]
    for stated in ([[]], [every], [[], every], [[forbid("old")]]):
        arrays = value_profiles(
            NAMES,
            stated,
            params=PARAMS,
            weights=[1.0] * len(stated),
            capacity=2,
            constraints=3,
            regions=1,
            patterns=2,
            prices=True,
        )
        read(arrays)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ([[], [protect("young")]], r"profiles\[1\] names the value 'young'.*women"),
        ([[within_angle("young", 10)]], r"profiles\[0\] names the value 'young'"),
        ([[trust_region(["old", "young"], 1)]], r"profiles\[0\] names the value 'young'"),
        (
            [[forbid("old"), protect("old"), forbid("old", 1.0)]],
            r"profiles\[0\] states forbid\('old'\) twice",
        ),
        ([[max_norm(1), max_norm(2)]], r"states max_norm\(\) twice"),
        ([[within_angle("old", 1), within_angle("old", 2)]], r"within_angle\('old'\) twice"),
        (
            [[trust_region(["old", "men"], 1), trust_region(["men", "old"], 2)]],
            r"trust_region\('men', 'old'\) twice",
        ),
        ([[freeze("body"), freeze("body")]], r"freeze\('body'\) twice"),
        ([[HalfSpace("prevent", "old", 0.0)]], r"profiles\[0\] holds .*kind='prevent'"),
        ([[HalfSpace("protect", "old", math.nan)]], r"profiles\[0\] holds .*margin=nan"),
        ([[HalfSpace("protect", "old", 0.0, -1.0)]], r"price=-1.0 must be above zero"),
        ([[MaxNorm(-1.0)]], r"limit=-1.0 must be"),
        ([[], [AngleCone("old", 120.0)]], r"profiles\[1\] holds .*degrees=120.0 must be above 0"),
        ([[TrustRegion(("old", "old"), 1.0)]], r"at least one value, each once"),
        ([["protect"]], r"profiles\[0\] holds 'protect'; use protect\(\)"),
        ([[], [freeze("tail")]], r"profiles\[1\] freezes 'tail', which covers no.*body/0/bias"),
        ([[freeze("body/")]], r"freezes 'body/', which covers no"),
        ([[freeze(lambda path: False)]], "freezes .*lambda.* covers no parameter"),
    ],
)
def test_a_profile_that_makes_no_sense_is_refused_by_name(stated, message):
    with pytest.raises(ValueError, match=message):
        value_profiles(NAMES, stated, params=PARAMS)


@pytest.mark.parametrize(
    ("stated", "options", "message"),
    [
        ([[], []], {"capacity": 1}, "capacity=1 .* 2 profiles"),
        ([], {"capacity": 0}, "capacity=0"),
        ([[protect("old"), protect("men")]], {"constraints": 1}, "constraints=1 .* 2"),
        ([[preserve("old")]], {"constraints": 1}, "constraints=1 .* 2"),
        ([[]], {"constraints": 0}, "constraints=0"),
        ([[trust_region("old", 1.0)]], {"regions": 0}, "regions=0 .* 1"),
        ([[]], {"regions": -1}, "regions=-1"),
        ([[freeze("body")]], {"patterns": 1, "params": PARAMS}, "patterns=1 .* 2 patterns"),
        ([[]], {"patterns": 0, "params": PARAMS}, "patterns=0"),
        ([[freeze("body")]], {}, "params=None"),
        ([[]], {"patterns": 1}, "params=None"),
        ([[], []], {"weights": [1.0]}, "weights=.* 2 finite numbers"),
        ([[]], {"weights": [0.0]}, "above zero"),
        ([[]], {"weights": [float("nan")]}, "finite numbers"),
        ([[]], {"weights": [1e300]}, "finite numbers"),
    ],
)
def test_capacities_and_weights_that_do_not_fit_are_refused_by_name(stated, options, message):
    with pytest.raises(ValueError, match=message):
        value_profiles(NAMES, stated, **options)


def test_the_parts_of_the_examples_are_there():
    for part in PARTS:
        assert frozen_meant([freeze(part)])
