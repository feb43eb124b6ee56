"""Rare features against the number of rows: what a complete basis finds does not grow, what an SAE finds does."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt
from scipy import stats

from counterprobe import claims, ledger, rare_feature_plots, rare_features, streaming_ica
from counterprobe.rare_features import Setting

SETTING = Setting(features=96, width=32, often=0.1, rarely=0.001, size=160, steps=500, batch=256)
FEW, MANY = 1000, 16_000


@pytest.fixture(scope="module")
def shares():
    torch.set_num_threads(1)
    return rare_features.by_rarity(rare_features.recall(SETTING, [FEW, MANY], seed=0))


def test_more_rows_do_not_help_ica_to_rare_features_and_do_help_an_sae(shares):
    half = shares[[2, 3]].mean(axis=1)
    assert half["ica", FEW] == half["ica", MANY] == 0
    assert half["sae", MANY] > half["sae", FEW] + 0.3
    assert half["sae", MANY] > 0.5
    # Frequent features are found by both, so it is not the data that ICA fails on.
    assert shares.loc[("ica", MANY), 0] > 0.7
    assert shares.loc[("sae", MANY), 0] == 1
    assert (shares.loc["random"] < 0.05).all(axis=None)


def test_an_sae_misses_what_is_rarer_first(shares):
    assert (shares.loc["sae"].diff(axis=1).iloc[:, 1:] <= 0).all(axis=None)


def test_features_are_on_as_often_as_they_are_said_to_be():
    directions, x = rare_features.planted(Setting(features=8, width=8, often=0.4, rarely=0.01), 20_000, seed=3)
    sizes = np.linalg.solve(directions.numpy().T.astype(float), x.numpy().T.astype(float)).T
    on = sizes > 0.25
    expected = np.geomspace(0.4, 0.01, 8)
    # Five standard errors of a share of 20,000.
    assert (abs(on.mean(0) - expected) < 5 * np.sqrt(expected * (1 - expected) / 20_000)).all()
    assert sizes[on].min() > 0.49
    assert sizes[on].max() < 1.51
    fewer = rare_features.planted(Setting(features=8, width=8, often=0.4, rarely=0.01), 500, seed=3)[1]
    assert torch.equal(fewer, x[:500])


# --- the table -----------------------------------------------------------------------------------------------

FEATURES, ROWS, SEEDS = 32, (1000, 8000, 64_000), 3
SIZES = {"sae": 50, "ica": 16, "random": 50}
# Shares of the rarer half, the same under every seed but for one more feature of 16 under some.
EXPECTED = {"sae": (0.25, 0.5, 0.75), "ica": (0.0, 0.0, 0.0), "random": (0.0, 0.0, 0.0)}


def scattered(rng):
    """What `recall` says of several seeds, all of it chance."""
    parts = []
    for seed in range(SEEDS):
        for rows in ROWS:
            for name, size in SIZES.items():
                cosine = rng.uniform(0.7, 1, FEATURES)
                about = {"rows": rows, "dictionary": name, "size": size, "seed": seed, "note": ""}
                frequency = np.geomspace(0.1, 0.001, FEATURES)
                parts.append(pd.DataFrame({**about, "frequency": frequency, "cosine": cosine, "found": cosine > 0.9}))
    return pd.concat(parts, ignore_index=True)


def planted_recall(shares, jitter=0):
    """Of the rarer half exactly these shares are found by each dictionary at each number of rows, and all of the others;
    under every other seed `jitter` features more."""
    found = scattered(np.random.default_rng(0))
    for (name, rows, seed), part in found.groupby(["dictionary", "rows", "seed"]):
        count = round(16 * shares[name][ROWS.index(rows)]) + (jitter if seed % 2 else 0)
        found.loc[part.index, "found"] = np.arange(FEATURES) < 16 + count
    return found


def number(table, **where):
    rows = table[np.logical_and.reduce([table[column] == value for column, value in where.items()])]
    assert len(rows) == 1
    return rows.iloc[0]


def test_the_table_is_that_of_loops_over_features():
    found = scattered(np.random.default_rng(1))
    table = rare_features.summary(found.sample(frac=1, random_state=0, ignore_index=True), 0.9)
    ranks = {"quarter_1": range(8), "quarter_4": range(24, 32), "rare_half": range(16, 32)}
    order = np.geomspace(0.1, 0.001, FEATURES)

    def share(name, rows, seed, places, column="found"):
        own = found[(found.dictionary == name) & (found.rows == rows) & (found.seed == seed)]
        return np.mean([float(own.loc[own.frequency == order[place], column].iloc[0]) for place in places])

    def interval(values):
        half = stats.t.ppf(0.95, SEEDS - 1) * np.std(values, ddof=1) / np.sqrt(SEEDS)
        return pytest.approx([np.mean(values), np.mean(values) - half, np.mean(values) + half])

    for rarity, places in ranks.items():
        for name in SIZES:
            each = np.array([[share(name, rows, seed, places) for rows in ROWS] for seed in range(SEEDS)])
            about = {"rarity": rarity, "dictionary": name}
            one = number(table, **about, rows=8000, seed=2, score="recall")
            assert (one.estimate, one["size"], one.n_features, one.n_seeds) == (each[2, 1], SIZES[name], len(places), 1)
            assert (one.often, one.rarely) == (order[places[0]], order[places[-1]])
            whole = number(table, **about, rows=8000, seed=-1, score="recall")
            assert [whole.estimate, whole.lower, whole.upper] == interval(each[:, 1])
            cosines = [share(name, 8000, seed, places, "cosine") for seed in range(SEEDS)]
            whole = number(table, **about, rows=8000, seed=-1, score="mmcs")
            assert [whole.estimate, whole.lower, whole.upper] == interval(cosines)
            slopes = [stats.linregress(np.log10(ROWS), one).slope for one in each]
            assert number(table, **about, rows=-1, seed=1, score="recall_slope").estimate == pytest.approx(slopes[1])
            whole = number(table, **about, rows=-1, seed=-1, score="recall_slope")
            assert [whole.estimate, whole.lower, whole.upper] == interval(slopes)
            assert whole.n_seeds == SEEDS
        lost = [share("sae", 64_000, k, places) - share("ica", 64_000, k, places) for k in range(SEEDS)]
        whole = number(table, rarity=rarity, dictionary="sae-ica", rows=64_000, seed=-1, score="recall_gap")
        assert [whole.estimate, whole.lower, whole.upper] == interval(lost)
    assert not table.duplicated(["dictionary", "rows", "rarity", "seed", "score"]).any()
    assert set(table.dictionary) == {*SIZES, "sae-ica", "random-ica", "sae-random"}
    assert table.estimate.notna().all()


@pytest.mark.parametrize(
    ("changed", "jitter", "verdict"),
    [
        ({}, 0, "supported"),
        ({"ica": (0.25, 0.25, 0.25)}, 0, "supported"),
        ({"ica": (0.0, 0.25, 0.5)}, 0, "contradicted"),
        ({"sae": (0.0, 0.0, 0.125)}, 0, "contradicted"),
        ({"sae": (0.25, 0.25, 0.25)}, 2, "supported"),
        ({"ica": (0.0, 0.0625, 0.1875)}, 0, "contradicted"),
    ],
)
def test_the_claim_is_decided_by_both_legs(changed, jitter, verdict):
    table = rare_features.summary(planted_recall(EXPECTED | changed, jitter), 0.95)
    claim = {"C23": ledger.load()["C23"]}
    judged, legs = claims.judge(claim, {"rare_features": table}, {"model": "m", "design": "d"}, {})
    assert judged.verdict.tolist() == [verdict], legs[["holds", "estimate", "lower", "upper"]]
    assert legs.decides.tolist() == [True, True, False, False]
    assert set(legs.holds) <= {"yes", "no", "undecided"}


def test_the_claim_is_open_where_seeds_of_ica_differ():
    found = planted_recall(EXPECTED)
    lucky = (found.dictionary == "ica") & (found.rows == 64_000) & (found.seed == 0)
    found.loc[lucky, "found"] = np.arange(FEATURES) < 20
    claim = {"C23": ledger.load()["C23"]}
    table = rare_features.summary(found, 0.95)
    judged, legs = claims.judge(claim, {"rare_features": table}, {"model": "m", "design": "d"}, {})
    assert judged.verdict.tolist() == ["inconclusive"]
    assert legs.holds.tolist()[0] == "undecided"


# --- fits ----------------------------------------------------------------------------------------------------

LITTLE = {"features": 16, "width": 8, "often": 0.2, "rarely": 0.01, "size": 24, "steps": 20, "batch": 32, "seed": 0}


def measured(rows=(100, 400), names=rare_features.DICTIONARIES, seeds=3):
    settings = LITTLE | {"rows": list(rows), "seeds": seeds}
    spec = {"rare_features": settings, "run": {"rare_features": list(names)}, "statistics": {"confidence": 0.95}}
    return rare_features.measure(spec)


def test_every_number_stands_beside_that_of_the_random_dictionary():
    table = measured()
    assert list(table) == list(rare_features.COLUMNS)
    recall = table[table.score == "recall"].set_index(["rows", "rarity", "seed", "dictionary"]).estimate.unstack()
    assert list(recall) == ["ica", "random", "sae"]
    assert recall.notna().all(axis=None)
    assert len(recall) == 2 * 5 * (3 + 1)
    assert (
        dict(zip(table.dictionary, table["size"], strict=True)).items() >= {"ica": 8, "random": 24, "sae": 24}.items()
    )


def test_the_same_seed_finds_the_same():
    setting = Setting(**{key: value for key, value in LITTLE.items() if key != "seed"})
    first, again, other = (rare_features.recall(setting, [100], seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert not np.allclose(first.cosine, other.cosine)


def test_ica_that_does_not_converge_is_a_note_and_no_error(monkeypatch):
    fit = functools.partial(streaming_ica.fit, iterations=1, tolerance=1e-12)
    monkeypatch.setattr(rare_features.streaming_ica, "fit", fit)
    table = measured(names=["ica", "random"])
    with_ica = table.dictionary.isin(["ica", "random-ica"])
    assert table.note[with_ica].str.contains("ICA did not converge in 1 iterations").all()
    assert (table.note[~with_ica] == "").all()


def test_one_number_of_rows_has_no_slope_and_says_so():
    table = measured(rows=[100], names=["ica"])
    slopes = table[table.score == "recall_slope"]
    assert slopes.estimate.isna().all()
    assert (slopes.note == "a slope needs two numbers of rows").all()


def test_the_figure_has_a_panel_a_rarity_and_the_random_dictionary_in_each():
    figure = rare_feature_plots.draw(rare_features.summary(scattered(np.random.default_rng(0)), 0.95))
    assert list(rare_feature_plots.RARITIES) == list(rare_features.RARITIES)
    assert list(rare_feature_plots.DICTIONARIES) == list(rare_features.DICTIONARIES)
    for axis in figure.axes:
        assert axis.get_legend_handles_labels()[1] == ["SAE, 50 latents", "ICA, 16 components", "50 random directions"]
    plt.close(figure)
