"""Steering: what a model says against plain passes with hooks; the protocol; bands on planted directions; real models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import (
    checkpoints,
    designs,
    detection,
    dictionaries,
    directions,
    held_out_probes,
    interventions,
    language_model,
    manifest,
    statements,
    steering,
    tables,
    tokenization,
)
from counterprobe.interventions import Places
from counterprobe.progress import UserError
from counterprobe.steering import Move

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
CELL = {"model": "m", "revision": "step0", "weights": "trained", "design": "factorial"}
WIDTH = 32
SETTINGS = {
    "directions": ["diff_mean", "logistic", "surgical_regressed", "leace", "actadd_1_aligned", "pc99"],
    "coefficients": [1, 4],
    "layers": [1],
    "positions": ["answer", "front"],
    "choose_items": 2,
    "report_items": 2,
    "penalty": 0.01,
    "nulls": 39,
    "gradient_texts": 16,
    "jacobian": 4,
    "gallery": 1,
    "generated": 3,
    "seed": 0,
}
SPEC = {
    "steering": SETTINGS,
    "activations": {"primary_bos": False},
    "probes": {"outer_folds": 4, "seed": 0},
    "statistics": {"resamples": 100, "confidence": 0.95},
    "design": {"protocols": ["carriers", "items"], "unreadable": "error"},
}


@pytest.fixture(scope="module")
def world():
    return statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("factorial", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def checkpoint(world, tmp_path_factory):
    """A model of random weights, large enough for its answers to differ from text to text."""
    root = tmp_path_factory.mktemp("model")
    tokenizer = tokenization.word_level_tokenizer(statements.vocabulary(world))
    shape = language_model.Architecture(layers=2, width=WIDTH, heads=2)
    model = language_model.build(shape, tokenizer.get_vocab_size(), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    folder = language_model.save_revision(model, tokenizer, root, 0)
    manifest.write(root / "manifest.json", checkpoints.folder_content(folder, source="train"), {})
    return root / "manifest.json"


@pytest.fixture(scope="module")
def loaded(checkpoint):
    source = checkpoints.open_checkpoint(checkpoint)
    return language_model.load(source), tokenization.load_tokenizer(source)


@pytest.fixture(scope="module")
def table(checkpoint, design):
    return steering.measure(checkpoint, design, SPEC, CELL, device="cpu")


@pytest.mark.parametrize("position", ["answer", "generated", "all", "front"])
@pytest.mark.parametrize("bos", [False, True])
def test_what_is_said_is_what_plain_passes_with_hooks_say(loaded, design, position, bos):
    model, tokenizer = loaded
    chosen = np.array([0, 5, 17, 40])
    sample = steering.Sample(model, tokenizer, design, chosen, [], bos=bos)
    rng = np.random.default_rng(0)
    along = rng.standard_normal((3, WIDTH) if position == "front" else WIDTH)
    moves = [Move(along, 0.0), Move(along, 0.7)]
    readout, layer = 1, 1
    found = sample.outcome(readout, position, [layer], moves)
    targets = list(design.readouts)
    for place, text in enumerate(chosen):
        last = design.readouts[targets[-1]]
        encode = lambda string: tokenization.encode(tokenizer, [string], {}, bos=bos, context=64).ids[0]  # noqa: E731
        ids = torch.tensor([encode(max((r.prefixes[text] for r in design.readouts.values()), key=len))])
        assert len(ids[0]) >= len(encode(last.prefixes[text]))
        own, end = (len(encode(s)) - 1 for s in (design.readouts[targets[readout]].prefixes[text], design.texts[text]))
        places = {"answer": Places(own, own), "generated": Places(end), "all": Places(), "front": Places(0, 2)}[
            position
        ]
        sign = 1.0 if designs.parity(design, targets[readout])[text] else -1.0
        edit = interventions.add(torch.tensor(-sign * 0.7 * along, dtype=torch.float32))
        with torch.no_grad(), interventions.applied(model, {layer: edit}, places):
            logits = model(ids).logits[0].double()
        with torch.no_grad():
            plain = model(ids).logits[0].double()
        lost = []
        asked = {len(encode(r.prefixes[text])) - 1 for r in design.readouts.values()}
        for column in range(max(places.first, end), ids.shape[1] - 1):
            if column not in asked:
                before, after = (said[column].log_softmax(-1)[ids[0, column + 1]] for said in (plain, logits))
                lost.append(float(before - after))
        assert found.delta_nll[1, place] == pytest.approx(np.mean(lost), abs=2e-4)
        assert found.delta_nll[0, place] == pytest.approx(0, abs=2e-4)
        for r, target in enumerate(targets):
            said = design.readouts[target]
            column = len(encode(said.prefixes[text])) - 1
            right, wrong = (
                language_model.next_token(tokenizer, said.prefixes[text], side[text])
                for side in (said.positive, said.negative)
            )
            if column < places.first:
                assert np.isnan(found.log_odds[:, r, place]).all()
            else:
                expected = float(logits[column, right] - logits[column, wrong])
                assert found.log_odds[1, r, place] == pytest.approx(expected, abs=2e-4)
                assert found.log_odds[0, r, place] == pytest.approx(
                    float(plain[column, right] - plain[column, wrong]), abs=2e-4
                )


@pytest.mark.parametrize("position", ["answer", "generated", "all"])
def test_what_probes_read_is_what_plain_passes_with_hooks_hold(loaded, design, position):
    model, tokenizer = loaded
    fold_of = np.arange(len(design.texts)) % 2
    rng = np.random.default_rng(0)
    shape = (2, WIDTH, 3)
    reader = held_out_probes.HeldOutProbes(
        tuple("abc"), rng.standard_normal(shape), rng.standard_normal((2, 3)), fold_of, {}, {}
    )
    readout, layer, chosen = 1, 1, np.array([0, 5, 17, 40])
    target = list(design.readouts)[readout]
    sample = steering.Sample(model, tokenizer, design, chosen, [], [reader] * len(design.readouts), bos=False)
    along = rng.standard_normal(WIDTH)
    found = sample.outcome(readout, position, [layer], [Move(along, 0.0), Move(along, 0.7)]).read
    kept = []
    handle = model.base_model.layers[-1].register_forward_hook(
        lambda block, arguments, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    for place, text in enumerate(chosen):
        encode = lambda string: tokenization.encode(tokenizer, [string], {}, bos=False, context=64).ids[0]  # noqa: E731
        ids = torch.tensor([encode(design.readouts[target].prefixes[text])])
        own, end = ids.shape[1] - 1, len(encode(design.texts[text])) - 1
        places = {"answer": Places(own, own), "generated": Places(end), "all": Places()}[position]
        sign = 1.0 if designs.parity(design, target)[text] else -1.0
        for move, coefficient in enumerate((0.0, 0.7)):
            edit = interventions.add(torch.tensor(-sign * coefficient * along, dtype=torch.float32))
            with torch.no_grad(), interventions.applied(model, {layer: edit}, places):
                model(ids)
            x = kept[-1][0, own].double().numpy()
            expected = x @ reader.directions[fold_of[text]] + reader.intercepts[fold_of[text]]
            assert found[move, :, place] == pytest.approx(expected, abs=2e-3)
    handle.remove()
    assert not np.allclose(found[0], found[1], atol=0.1)


def test_probes_read_every_feature_where_the_read_outs_are_given(checkpoint, design):
    given = {"factorial": {"match": {"prompt": " So that is", "positive": "true", "negative": "false"}}}
    settings = SETTINGS | {"directions": ["diff_mean", "logistic"], "positions": ["answer"], "continuations": given}
    settings |= {"nulls": 1, "jacobian": 0, "gallery": 0}
    found = steering.measure(checkpoint, design, SPEC | {"steering": settings}, CELL, device="cpu")
    assert set(design.factors) | set(design.readouts) <= set(found.target)
    for target in found.target.unique():
        own = found[found.target == target]
        for name in {*design.factors, *design.readouts}:
            score = "probe_flip" if name == target else f"probe_flip_on_{name}"
            rows = own[own.score == score]
            excluded = rows[rows.probe == "none"]
            measured = rows[rows.probe.str.startswith("diff_mean:")]
            assert len(excluded) == 1 or {"diff_mean:1", "diff_mean:4", "diff_mean:chosen"} <= set(measured.probe)
            assert len(excluded) == 0 or (excluded.note.str.contains("probe").all() and not len(measured))
    read = found[found.score.str.startswith("probe_flip") & found.estimate.notna()]
    assert read.note.str.contains("held-out probe, right on (?:0.[7-9]|1)", regex=True).all()
    assert read.estimate.between(0, 1).all()
    # What is said has its own scores beside them, and no probe is read where the design brings its own read-outs.
    assert (found.score == "flip").any()


def test_rows_of_dictionaries_are_directions_where_there_are_any(checkpoint, design, tmp_path):
    for kind in ("sae", "ica"):
        learned = dictionaries.random_decoder(torch.zeros(WIDTH), 16, 4, seed=3)
        folder = tmp_path / f"layer_1.design.{kind}.size16.k4.seed0"
        dictionaries.write(replace(learned, name=kind, seed=0), folder, model="m", layer=1, bos=False)
    path = tmp_path / manifest.NAME
    manifest.write(path, {"files": manifest.describe_files(tmp_path)}, {})
    settings = SETTINGS | {
        "directions": ["diff_mean"],
        "positions": ["generated"],
        "jacobian": 0,
        "gallery": 0,
        "nulls": 20,
    }
    found = steering.measure(checkpoint, design, SPEC | {"steering": settings}, CELL, path, device="cpu")
    measured = found[found.estimate.notna()]
    assert {"row_sae:1", "row_ica:chosen", "row_sae:detect"} <= set(measured.probe)
    # At equal price beside directions that mean nothing, or why not; of the first feature of the pair alone.
    price = found[found.probe.str.startswith("row_sae") & found.probe.str.endswith(":divergence")]
    assert len(price)
    assert set(price.target) == {design.primary[0]}
    compared = price[price.probe == "row_sae-null:divergence"]
    excluded = found[found.probe.str.endswith(":divergence") & found.estimate.isna()]
    assert len(compared) + len(excluded) == 1
    assert set(compared.control) <= {"within_cell"}


def test_leace_reflects_what_the_stream_holds(loaded, design):
    model, tokenizer = loaded
    chosen = np.arange(64)
    sample = steering.Sample(model, tokenizer, design, chosen, [], bos=False)
    x = sample.residuals([1])[0, 0]
    labels = designs.parity(design, next(iter(design.readouts)))[chosen]
    material = directions.Material(x, "f", {"f": labels}, np.zeros((0, 2), int), 0.01, 0)
    affine = directions.leace(material)
    reflected = x - 2 * (x - affine.mean) @ affine.projection.T
    hidden = torch.tensor(x, dtype=torch.float32)[None, :, None]
    moved = steering._moved(hidden, moves=[Move(affine, 1.0)], signs=np.ones(64), places=Places(0))
    assert np.allclose(moved[0, :, 0], reflected, atol=1e-4)


def test_the_gradient_is_that_of_finite_differences(loaded, design):
    model, tokenizer = loaded
    sample = steering.Sample(model, tokenizer, design, np.arange(4), [], bos=False)
    gradient = sample.gradient(0, 1, 4)
    for seed in range(3):
        step = 1e-2 * np.random.default_rng(seed).standard_normal(WIDTH)
        # Moved to the counterfactual by sign; the same step for all texts is what the gradient is of.
        sample.signs[0], kept = -np.ones(4), sample.signs[0].copy()
        there, back = sample.outcome(0, "answer", [1], [Move(step, 1.0), Move(step, -1.0)]).log_odds[:, 0]
        sample.signs[0] = kept
        assert (there - back).mean() / 2 == pytest.approx(float(step @ gradient), rel=0.05, abs=1e-3)
    jacobian = sample.jacobian(0, 2, 4)
    assert np.allclose(jacobian, np.eye(WIDTH), atol=1e-5)


def test_the_table_says_what_was_measured_and_what_could_not_be(table, design):
    targets = set(design.readouts)
    flips = table[(table.score == "flip") & table.estimate.notna()]
    assert set(flips.target) == targets
    assert {"diff_mean:1", "diff_mean:4", "diff_mean:chosen"} <= set(flips.probe)
    assert ((flips.lower <= flips.estimate) & (flips.estimate <= flips.upper)).mean() > 0.9
    reasons = table[table.estimate.isna()].set_index(["target", "probe"]).note
    assert reasons.str.startswith("excluded: ").all()
    assert "no read-out" in reasons["match", "none"]
    assert "32 principal components" in reasons["speaker", "pc99:none"]
    early = table[
        (table.target == "speaker") & (table.score == "flip_on_negated^match") & (table.probe == "diff_mean:chosen")
    ]
    if (early.position == "answer").all():
        assert early.note.str.contains("before the first steered token").all()
    bands = table[(table.probe == "band:equal") & table.lower.notna()]
    assert set(bands.control) == {"within_cell", "isotropic", "dichotomy"}
    nulls = table[(table.probe == "null:equal") & (table.target == "speaker")]
    assert nulls.groupby("control").size().eq(39).all()
    assert {"nie_false_true", "nie_true_false", "auroc", "effect", "repetition", "jacobian_share"} <= set(table.score)
    generated = table[table.score == "repetition"]
    assert generated.note.str.contains(" | ", regex=False).all()
    # At a coefficient of 1 every direction moves the stream equally far: what is said is another matter.
    assert set(table[table.probe == "logistic-diff_mean:equal"].score) == {"off_target"}
    # These texts bring their own read-outs: what is measured of them is what is said.
    assert not table.score.str.startswith("probe_").any()


def test_nothing_is_left_on_the_model(loaded, design):
    model, tokenizer = loaded
    sample = steering.Sample(model, tokenizer, design, np.arange(8), [], bos=False)
    sample.outcome(0, "answer", [1], [Move(np.ones(WIDTH), 1.0)])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_without_doses_detection_alone(checkpoint, design):
    settings = {key: SETTINGS[key] for key in ("layers", "report_items", "penalty", "gradient_texts", "seed")}
    settings["directions"] = ["diff_mean", "lda"]
    found = steering.measure(checkpoint, design, SPEC | {"steering": settings}, CELL, device="cpu")
    measured = found[found.estimate.notna()]
    assert set(measured.score) == {"auroc", "effect", "reads_others"}
    assert len(measured) == 3 * 2 * len(design.readouts)


@pytest.mark.parametrize(
    ("flips", "off", "nll", "expected"),
    [
        ([0.5, 0.96, 1.0], [[0], [0.05], [0.3]], [0, 0, 0], (1, True)),
        ([0.5, 0.99, 1.0], [[0], [0.09], [0.01]], [0, 0, 0], (2, True)),
        ([0.5, 0.96, 1.0], [[0], [0.05], [0.0]], [0, 0.3, 0.2], (0, False)),
        ([0.9, 0.96], [[0.3], [0.2]], [0, 0], (1, False)),
        ([0.2, 0.7], [[np.nan], [np.nan]], [np.nan, np.nan], (1, False)),
        ([0.2, 1.0], [[np.nan], [np.nan]], [np.nan, np.nan], (1, True)),
    ],
)
def test_the_setting_that_flips_most_within_the_limits(flips, off, nll, expected):
    found = steering.choose(np.array(flips), np.array(off, dtype=float), np.array(nll, dtype=float))
    assert found == expected


def test_samples_are_whole_couples_balanced_in_every_feature(design):
    _, first, second = steering.halved(design, SPEC)
    assert not ((first >= 0) & (second >= 0)).any()
    for fold_of in (first, second):
        chosen = steering.whole_couples(design, fold_of, 2, 0)
        assert np.isin(design.couples, np.unique(design.couples[chosen])).sum() == len(chosen)
        assert set(fold_of[chosen]) == set(fold_of[fold_of >= 0])
        for target in design.readouts:
            assert designs.parity(design, target)[chosen].mean() == 0.5
    shared = np.intersect1d(design.carriers["speaker"][first >= 0], design.carriers["speaker"][second >= 0])
    assert not len(shared)


def test_layers():
    assert steering.layers_of("inner", 4) == [1, 2, 3]
    assert steering.layers_of("inner", 1) == [1]
    with pytest.raises(UserError, match="no layer 5; there are 0 to 4"):
        steering.layers_of([5], 4)


def test_what_a_coordinate_says_of_other_features():
    rng = np.random.default_rng(0)
    features = {name: rng.random(400) < 0.5 for name in "abc"}
    a, b = (np.where(features[name], 1.0, -1.0) for name in "ab")
    assert steering.reads_others(2 * a - b + 5, features, "a") == pytest.approx(0.25)
    assert steering.reads_others(a, features, "a") == pytest.approx(0, abs=1e-12)


def test_repetition():
    assert steering.repetition([1, 2, 3, 4]) == 0
    assert steering.repetition([1, 2, 1, 2, 1]) == pytest.approx(0.5)
    assert steering.repetition([1]) == 0


def test_the_band_of_39_is_exact_and_fewer_make_none():
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((4000, 40))
    outside = [
        not lower <= own <= upper for *_, own, (lower, upper) in ((row[-1], steering.band(row[:-1])) for row in draws)
    ]
    assert np.mean(outside) == pytest.approx(0.05, abs=0.012)
    with pytest.raises(UserError, match="38 null directions"):
        steering.band(np.zeros(38))


def planted_table(slope: float):
    rng = np.random.default_rng(0)
    rows = []
    for index, name in enumerate("abcdefgh"):
        for layer in (1, 2):
            for step in (1, 2):
                auroc = 0.5 + 0.06 * index + 0.01 * layer
                shared = {**tables.NOT_APPLICABLE, **CELL, "revision": f"step{step}", "step": step, "layer": layer}
                shared |= {"target": "speaker", "probe": f"{name}:detect", "n_texts": 9, "n_groups": 4}
                rows.append({**shared, "score": "auroc", "estimate": auroc})
                rows.append({**shared, "score": "effect", "estimate": slope * auroc + 0.01 * rng.standard_normal()})
    return tables.frame(rows)


@pytest.mark.parametrize(("slope", "low", "high"), [(1.0, 0.9, 1.0), (-1.0, -1.0, -0.9), (0.0, -0.5, 0.5)])
def test_detection_against_steering(slope, low, high):
    (row,) = detection.correlations(planted_table(slope))
    assert low <= row["estimate"] <= high
    assert row["lower"] - 0.01 <= row["estimate"] <= row["upper"] + 0.01
    assert row["n_groups"] == 8
    assert row["revision"] == "step2"


def test_equal_values_share_their_rank():
    assert detection.ranks(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1, 3.5, 2]
    scores, labels = np.array([0.1, 0.4, 0.4, 0.9]), np.array([False, True, False, True])
    assert detection.auroc(scores, labels) == pytest.approx(3.5 / 4)


def test_the_figure_is_drawn_from_the_table(table, design):
    from matplotlib import pyplot as plt

    from counterprobe import steering_plots

    rows = steering_plots.rows(table, "m", design)
    assert set(rows[rows.setting == "4"].direction) >= {"diff_mean", "leace"}
    figure = steering_plots.draw(rows, design)
    words = [text.get_text() for part in figure.subfigs for axis in part.axes for text in axis.texts]
    assert any("steered:" in word for word in words)
    nothing = steering_plots.draw(rows[rows.target == "match"], design)
    assert "nothing could be steered" in nothing.axes[0].texts[0].get_text()
    plt.close("all")


def csv_design(shared, name: str, group: str | dict) -> designs.Design:
    data = shared / "data" / "truth_is_universal"
    if not (data / f"{name}.csv").is_file():
        pytest.skip(f"no {name}.csv among the shared data")
    spec = {
        "files": [
            {"path": str(data / f"{name}.csv"), "set": {"negated": "false"}},
            {"path": str(data / f"neg_{name}.csv"), "set": {"negated": "true"}},
        ],
        "text": "statement",
        "group": group,
        "features": {"truth": "label", "negated": "negated"},
        "derive": {"match": "truth ^ negated"},
        "primary": ["truth", "negated"],
        "unbalanced": "reweight",
    }
    return designs.from_csv(name, spec, "/")


@pytest.mark.parametrize(
    ("model", "data", "group", "prompt", "words"),
    [
        ("stories260k", "cities", "city", " It was", ("a", "the")),
        # This one reads and writes letters.
        ("babyllama-105", "animal_class", {"regex": "The ([a-z ]+?) is"}, " It was ", ("a", "t")),
    ],
)
def test_a_csv_design_with_continuations(shared, tmp_path, model, data, group, prompt, words):
    folder = shared / "models" / model
    if not folder.is_dir():
        pytest.skip(f"no {model} among the shared models")
    design = csv_design(shared, data, group)
    keep = np.random.default_rng(0).permutation(len(design.item_names))[:12]
    design = designs.without(design, np.flatnonzero(~np.isin(design.items, keep)).tolist())
    path = tmp_path / "manifest.json"
    content = checkpoints.folder_content(folder, source="directory")
    manifest.write(path, content, {})
    settings = SETTINGS | {
        "directions": ["diff_mean", "logistic", "leace", "gradient"],
        "choose_items": 4,
        "report_items": 4,
    }
    settings |= {"positions": ["answer", "generated"], "layers": [3], "gallery": 1, "jacobian": 0}
    settings["continuations"] = {
        data: {
            "truth": {"prompt": prompt, "positive": words[0], "negative": words[1]},
            "negated": {"prompt": prompt, "positive": words[0], "negative": "unquestionably"},
        }
    }
    settings["neutral"] = {data: ["Once upon a time there was a little girl.", "The sun was up and the sky was blue."]}
    spec = SPEC | {"steering": settings, "design": {"protocols": ["items"], "unreadable": "drop"}}
    found = steering.measure(path, design, spec, CELL | {"design": data}, device="cpu")
    reasons = found[found.estimate.isna()].set_index("target").note
    assert "not one token" in str(reasons["negated"])
    flips = found[(found.target == "truth") & (found.score == "flip") & found.estimate.notna()]
    assert {"diff_mean:1", "leace:4", "gradient:chosen"} <= set(flips.probe)
    # Nothing that is said depends on negation alone: a probe reads it, or the table says why none can.
    read = found[(found.target == "truth") & (found.score == "probe_flip_on_negated")]
    assert {"diff_mean:1", "leace:4", "gradient:chosen"} <= set(read.probe) or "probe" in str(read.note.iloc[0])
    truth = found[(found.target == "truth") & (found.score == "probe_flip")]
    assert (truth.note.str.contains("probe") & (truth.estimate.isna() | truth.estimate.between(0, 1))).all()
    assert len(read)
    assert len(truth)
    costs = found[(found.target == "truth") & (found.score == "delta_nll") & found.estimate.notna()]
    assert (costs.n_texts == 2).all()
    # However little this model knows of truth, what it says is moved, and one unit moves less than four.
    moved = found[(found.target == "truth") & (found.score == "divergence") & found.estimate.notna()].set_index("probe")
    assert (moved.estimate[["diff_mean:1", "diff_mean:4"]] > 0).all()
    assert moved.estimate["diff_mean:1"].max() < moved.estimate["diff_mean:4"].max()
