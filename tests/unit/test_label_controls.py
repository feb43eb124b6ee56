import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import designs, label_controls, statements
from counterprobe.progress import UserError


@pytest.fixture(scope="module")
def factorial():
    world = statements.World(
        items={
            topic: tuple((f"{topic}{i}", f"{topic}class{i % 4}") for i in range(8)) for topic in ("cities", "animals")
        },
        name_pairs=tuple((f"Ann{i}", f"Bob{i}") for i in range(4)),
        suffix_pairs=tuple((f"plum{i}", f"barn{i}") for i in range(4)),
    )
    return statements.factorial("factorial", {"blocks": 2}, world)


def rng(seed=0):
    return np.random.default_rng(seed)


def correlation(labels, parity):
    """Written with XOR and counting, not with signs and products."""
    odd = [bool(sum(cell >> i & 1 for i in parity) % 2) for cell in range(len(labels))]
    return np.mean([label == o for label, o in zip(labels, odd, strict=True)]) - 0.5


def everything(n_factors, forbidden):
    n = 2**n_factors
    kept = []
    for true in itertools.combinations(range(1, n), n // 2):
        labels = np.isin(np.arange(n), true)
        if all(correlation(labels, p) == 0 for p in forbidden):
            kept.append(labels.tobytes())
    return set(kept)


def named(parity):
    return "^".join("abcdef"[i] for i in parity)


@settings(max_examples=20, deadline=None)
@given(
    st.integers(2, 6),
    st.sets(st.frozensets(st.integers(0, 5), min_size=1), min_size=1, max_size=6),
    st.integers(0, 1000),
)
def test_dichotomies_are_balanced_orthogonal_and_different(n_factors, forbidden, seed):
    forbidden = [p for p in forbidden if max(p) < n_factors]
    try:
        drawn = label_controls.dichotomies("abcdef"[:n_factors], map(named, forbidden), 12, rng(seed))
    except UserError:
        assert n_factors < 5
        return
    assert drawn.shape == (12, 2**n_factors)
    assert (drawn.sum(axis=1) == 2 ** (n_factors - 1)).all()
    assert not drawn[:, 0].any()
    assert len({row.tobytes() for row in drawn}) == 12
    for row in drawn:
        assert all(correlation(row, p) == 0 for p in forbidden)


def test_all_of_them_and_no_more_are_found():
    forbidden = [(0,), (1,), (2,), (1, 2), (0, 1)]
    expected = everything(3, forbidden)
    with pytest.raises(UserError, match=f" {len(expected)} balanced.*16 are needed"):
        label_controls.dichotomies("abc", map(named, forbidden), 64, rng())
    drawn = label_controls.dichotomies("abc", map(named, forbidden), 64, rng(), at_least=1)
    assert {row.tobytes() for row in drawn} == expected


@pytest.mark.parametrize(("target", "count"), [("truth", 74), ("speaker^negated", 49), ("speaker^suffix", 45)])
def test_as_many_as_exist_are_taken_for_every_kind_of_target(factorial, target, count):
    assert label_controls.dichotomy_labels(factorial, target, 1000, rng()).shape[1] == count
    forbidden = [
        [list(factorial.factors).index(f) for f in name.split("^")]
        for name in {*factorial.factors, "negated^match", designs.canonical(factorial, target)}
    ]
    assert len(everything(4, forbidden)) == count


def test_four_factors_have_enough_for_every_target(factorial):
    for target in designs.targets(factorial):
        labels = label_controls.dichotomy_labels(factorial, target, 32, rng())
        assert labels.shape == (len(factorial.texts), 32)
        for name in (*factorial.factors, "truth", target):
            signs = np.where(designs.parity(factorial, name), 1, -1)
            assert (signs @ np.where(labels, 1, -1) == 0).all()
        for item in range(3):
            assert (labels[factorial.items == item].sum(axis=0) == 8).all()


def test_six_factors_are_walked_to_and_differ_by_seed():
    forbidden = [(i,) for i in range(6)] + [(0, 1), (2, 3), (0, 1, 2)]
    first, again, other = (
        label_controls.dichotomies("abcdef", map(named, forbidden), 64, rng(seed)) for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert not {row.tobytes() for row in first} & {row.tobytes() for row in other}


def test_an_impossible_walk_ends_with_a_message():
    every = [p for size in range(1, 6) for p in itertools.combinations(range(5), size)]
    with pytest.raises(UserError, match="were found"):
        label_controls.dichotomies("abcde", map(named, every), 64, rng())


def test_listed_dichotomies_are_drawn_evenly():
    n = len(everything(3, [(0,), (1,), (2,)]))
    hits = np.zeros(256)
    for seed in range(400):
        for row in label_controls.dichotomies("abc", "abc", 1, rng(seed)):
            hits[int(np.packbits(row)[0])] += 1
    assert (hits > 0).sum() == n
    assert hits.max() < 400 / n + 5 * np.sqrt(400 / n)


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_shuffling_keeps_what_each_item_has(seed):
    items = rng(seed).integers(0, 6, 60)
    labels = rng(seed + 1).random((60, 3)) < 0.2
    mixed = label_controls.shuffled_within_items(labels, items, rng(seed))
    for item in range(6):
        np.testing.assert_array_equal(mixed[items == item].sum(axis=0), labels[items == item].sum(axis=0))


def test_shuffling_moves_labels_and_every_column_differently(factorial):
    truth = designs.parity(factorial, "truth")
    one = label_controls.shuffled_within_items(truth, factorial.items, rng())
    assert one.shape == truth.shape
    assert abs((one == truth).mean() - 0.5) < 0.1
    many = label_controls.shuffled_within_items(np.stack([truth] * 40, axis=1), factorial.items, rng())
    assert len(np.unique(many, axis=1).T) == 40
    # Every text of an item is True equally often.
    assert abs(many.mean(axis=1) - 0.5).max() < 5 * 0.5 / np.sqrt(40)


def test_a_control_task_is_one_label_per_token(factorial):
    tokens = label_controls.carrier_tokens(factorial, "speaker")
    names = np.array([text.split(":")[0] for text in factorial.texts])
    draw = rng()
    labels = np.stack([label_controls.control_task(factorial, "speaker", draw) for _ in range(20)], axis=1)
    for name in np.unique(names):
        assert len(np.unique(tokens[names == name])) == 1
        assert len(np.unique(labels[names == name], axis=0)) == 1
    assert len(np.unique(names)) == len(np.unique(tokens)) == 8
    per_name = np.stack([labels[names == name][0] for name in np.unique(names)])
    assert (per_name.sum(axis=0) == 4).all()
    assert len(np.unique(per_name, axis=1).T) > 10


def test_control_task_keeps_a_prior_and_refuses_what_cannot_be(factorial):
    rare = label_controls.control_task(factorial, "suffix", rng(), prior=0.1)
    assert len(np.unique(label_controls.carrier_tokens(factorial, "suffix")[rare])) == 1
    with pytest.raises(UserError, match=r"'match' has no declared carriers.*speaker, suffix"):
        label_controls.control_task(factorial, "match", rng())
