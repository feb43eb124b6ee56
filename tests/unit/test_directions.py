"""Directions on features in superposition, whose vectors are known."""

import numpy as np
import pytest

from counterprobe import directions
from counterprobe.progress import UserError

FEATURES, WIDTH, TEXTS = 12, 64, 4000
MORE = ("surgical_pinv", "surgical_regressed", "leace", "gradient", "pc1", "pc3", "ica")


def planted(seed: int = 0, noise: float = 0.05):
    """Independent ±1 features on unit vectors that lean on one another: mean |cos| .53."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((FEATURES, WIDTH)) / np.sqrt(WIDTH) + 1.2 * rng.standard_normal(WIDTH) / np.sqrt(
        WIDTH
    )
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    signs = rng.choice([-1.0, 1.0], size=(TEXTS, FEATURES))
    x = signs @ vectors + noise * rng.standard_normal((TEXTS, WIDTH))
    return vectors, signs > 0, x


@pytest.fixture(scope="module")
def world():
    return planted()


def material(world, target=0, **changes):
    _, labels, x = world
    features = {f"f{i}": labels[:, i] for i in range(labels.shape[1])}
    given = {"x": x, "target": f"f{target}", "features": features, "penalty": 1e-4, "seed": 0}
    given |= {"pairs": np.zeros((0, 2), int)} | changes
    return directions.Material(**given)


def off_target(world, vector, target=0):
    """The largest movement of another feature's true coordinate, as a share of the steered one's."""
    vectors = world[0]
    moved = np.linalg.pinv(vectors).T @ vector
    return np.delete(np.abs(moved), target).max() / abs(moved[target])


def test_features_lean_on_one_another_as_in_the_simulation(world):
    cosines = world[0] @ world[0].T
    assert np.abs(cosines[~np.eye(FEATURES, dtype=bool)]).mean() == pytest.approx(0.53, abs=0.05)


def test_off_target_of_every_direction_is_what_algebra_says(world):
    found = {
        name: np.mean([off_target(world, directions.make(name, material(world, i)), i) for i in range(4)])
        for name in ("mass_mean", "surgical_regressed", "surgical_pinv", "logistic", "lda")
    }
    # In a sample the features are a little correlated; regressing the others out removes just that.
    assert found["surgical_regressed"] < 0.02
    assert found["surgical_regressed"] < found["mass_mean"] < 0.12
    assert found["logistic"] > 0.2
    assert found["lda"] > 0.2
    # The pseudo-inverse of PROBES is surgical as far as the probes are right.
    assert found["surgical_pinv"] < found["logistic"]


def test_the_optimal_probe_is_orthogonal_to_the_other_features_vectors(world):
    vectors = world[0]
    for name in ("lda", "logistic"):
        for i in range(3):
            along = vectors @ directions.make(name, material(world, i))
            assert np.delete(np.abs(along), i).mean() / abs(along[i]) < 0.05, name


def test_surgical_directions_are_the_features_own_vectors(world):
    vectors = world[0]
    for i in range(3):
        found = directions.make("surgical_regressed", material(world, i))
        assert found @ vectors[i] / np.linalg.norm(found) > 0.999
        # A least-norm solution stays in the span of the probes, which hold the vectors as far as they are right:
        # measured .08 to .17, where the probes themselves have .21 to .26.
        pinv, probe = (
            off_target(world, directions.make(name, material(world, i)), i) for name in ("surgical_pinv", "logistic")
        )
        assert pinv < 0.75 * probe


def test_a_correlated_feature_contaminates_the_means_and_not_the_regression(world):
    vectors, labels, _ = world
    rng = np.random.default_rng(1)
    tied = labels.copy()
    copied = rng.random(TEXTS) < 0.6
    tied[copied, 1] = tied[copied, 0]
    x = np.where(tied, 1.0, -1.0) @ vectors + 0.05 * rng.standard_normal((TEXTS, WIDTH))
    confounded = (vectors, tied, x)
    assert off_target(confounded, directions.make("mass_mean", material(confounded))) > 0.4
    assert off_target(confounded, directions.make("surgical_regressed", material(confounded))) < 0.05


def test_all_are_as_long_as_the_difference_of_the_means_and_point_to_true(world):
    labels = world[1]
    pairs = np.stack([np.flatnonzero(labels[:, 0])[:500], np.flatnonzero(~labels[:, 0])[:500]], axis=1)
    given = material(world, pairs=pairs, gradient=world[0][0], dictionary={"7": -world[0][0]})
    length = np.linalg.norm(directions.mass_mean(given))
    names = directions.names(
        ["diff_mean", "actadd_8_aligned", "actadd_8_misaligned", "mass_mean", "lda", "logistic", *MORE],
        given.dictionary,
    )
    assert names[-1] == "row_7"
    for name in names:
        found = directions.make(name, given)
        assert np.linalg.norm(found) == pytest.approx(length), name
        scores = world[2] @ found
        assert scores[labels[:, 0]].mean() > scores[~labels[:, 0]].mean(), name


def test_leace_erases_at_one_half_and_reflects_at_one(world):
    given = material(world)
    eraser = directions.leace(given)
    moved = (given.x - eraser.mean) @ eraser.projection.T
    erased, reflected = given.x - moved, given.x - 2 * moved
    gap = lambda x: x[given.labels].mean(axis=0) - x[~given.labels].mean(axis=0)  # noqa: E731
    assert np.abs(gap(erased)).max() < 1e-8
    assert np.allclose(gap(reflected), -gap(given.x), atol=1e-8)


def test_minimal_pairs_agree_in_everything_else():
    items = np.repeat([0, 1, 2], 4)
    features = {"a": np.tile([True, True, False, False], 3), "b": np.tile([True, False, True, False], 3)}
    pairs = directions.minimal_pairs(items, features, "a")
    assert len(pairs) == 6
    for one, other in pairs:
        assert items[one] == items[other]
        assert features["b"][one] == features["b"][other]
        assert features["a"][one]
        assert not features["a"][other]
    xor = features["a"] ^ features["b"]
    for one, other in directions.minimal_pairs(items, features, "a^b"):
        assert xor[one]
        assert not xor[other]
        assert features["a"][one] == features["a"][other]
    assert len(directions.minimal_pairs(items[:3], {k: v[:3] for k, v in features.items()}, "a")) == 1


def test_aligned_pairs_are_minimal_and_misaligned_ones_are_not(world):
    pairs = np.arange(40).reshape(20, 2)
    given = material(world, pairs=pairs)
    aligned = directions.chosen_pairs(given, 8, True)
    assert (aligned[:, 1] == aligned[:, 0] + 1).all()
    assert (directions.chosen_pairs(given, 8, False)[:, 1] != directions.chosen_pairs(given, 8, False)[:, 0] + 1).all()
    tokens = np.arange(2 * 2 * 3 * 4, dtype=float).reshape(2, 2, 3, 4)
    assert np.allclose(directions.front(tokens), -12)


@pytest.mark.parametrize(
    ("name", "changes", "reason"),
    [
        ("diff_mean", {}, "differ in this feature alone"),
        ("actadd_1_aligned", {}, "0 minimal pairs"),
        ("gradient", {}, "no read-out"),
        ("gradient", {"gradient": np.zeros(WIDTH)}, "norm zero"),
        ("pc65", {}, "64 principal components"),
        ("mass_mean", {"x": np.ones((TEXTS, WIDTH))}, "norm zero"),
        ("pc1", {"x": np.ones((TEXTS, WIDTH))}, "do not differ"),
    ],
)
def test_what_cannot_be_made_says_why(world, name, changes, reason):
    with pytest.raises(directions.Excluded, match=reason):
        directions.make(name, material(world, **changes))


def test_an_unknown_name_is_refused():
    with pytest.raises(UserError, match=r"steering\.directions.*'difmean'"):
        directions.names(["difmean"])
