"""Ablation: what is put in the place of a component, how components are ranked, and what is said of what is left."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import (
    ablation,
    components,
    designs,
    language_model,
    probe_grid,
    probes,
    splits,
    statements,
    statistics,
    tables,
    tokenization,
)
from counterprobe.language_model import Architecture
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
SPEC = {
    "ablation": {
        "items": 16,
        "layer": "last",
        "verified": 2,
        "k": [1, 0.5],
        "modes": ["mean"],
        "random_sets": 1,
        "seed": 0,
    },
    "probes": {"penalties": [0.01, 0.1], "outer_folds": 4, "inner_folds": 2, "seed": 0},
    "statistics": {"resamples": 200, "confidence": 0.95},
    "design": {"protocols": ["carriers", "items"]},
}
SITE = {
    **tables.NOT_APPLICABLE,
    "model": "m",
    "revision": "main",
    "step": -1,
    "weights": "trained",
    "design": "factorial",
    "position": "period",
    "layer": 2,
    "representation": "ablated",
}


@pytest.fixture(scope="module")
def world():
    return statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 8}, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("factorial", {"blocks": 4}, world)


@pytest.fixture(scope="module")
def tokenizer(world):
    return tokenization.word_level_tokenizer(statements.vocabulary(world))


@pytest.fixture(scope="module")
def subject(design, tokenizer):
    model = language_model.build(Architecture(layers=2, width=32, heads=4), tokenizer.get_vocab_size(), 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=draw))
    return subject_of(model.eval().requires_grad_(False), tokenizer, design)


def subject_of(model, tokenizer, design, layer="last"):
    texts = components.sequences(model, tokenizer, design, "period", bos=False, token_budget=400)
    return ablation.prepare(components.blocks_of(model), model, texts, layer)


def test_replacements_are_those_of_the_design_at_the_same_distance_from_the_read_token(subject):
    outputs = subject.outputs[1, "neurons"]
    length = subject.traces[0].entering[0].shape[1]
    longest = outputs.values.shape[1]
    columns, donors = torch.tensor([3, 5]), torch.tensor([7, 0, 2])
    generator = torch.Generator().manual_seed(0)

    def put(mode):
        return ablation._replacement(outputs, columns, mode, donors, length, generator)

    runs = [level for run in subject.traces for level in run.neurons[1]]
    by_distance = torch.stack(
        [torch.stack([run[-1 - back] for run in runs if len(run) > back]).mean(0) for back in range(length)]
    )
    assert torch.allclose(put("mean"), by_distance.flip(0)[:, columns], atol=1e-6)
    assert (put("zero") == 0).all()
    assert torch.equal(put("resample")[0], outputs.values[7][-length:][:, columns])
    assert torch.equal(outputs.values[7][longest - len(runs[7]) :], runs[7])
    drawn = torch.stack([put("max_entropy") for _ in range(3000)])
    assert torch.allclose(drawn.mean((0, 1)), put("mean"), atol=0.1 * float(outputs.sd.max()))
    expected = outputs.sd[-length:][:, columns]
    assert torch.allclose(drawn.std((0, 1)), expected, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("kind", components.KINDS)
def test_ablating_nothing_much_and_everything(subject, kind):
    """All heads by their own mean at every token leave a stream without any text in what attention writes."""
    every = [(block, i) for block in range(2) for i in range(subject.blocks[block].count(kind))]
    left = ablation.ablated(subject, kind, every, "mean", 0)
    assert left.shape == subject.residual().shape
    assert not torch.allclose(left, subject.residual(), atol=1e-3)
    if kind == "heads":
        # The read token is the same in all texts, and nothing is brought to it any more.
        assert (left - left[0]).abs().max() < 1e-4 * left.abs().max()
    again = ablation.ablated(subject, kind, every[:3], "max_entropy", 5)
    assert torch.equal(again, ablation.ablated(subject, kind, every[:3], "max_entropy", 5))
    assert not torch.equal(again, ablation.ablated(subject, kind, every[:3], "max_entropy", 6))


def test_a_component_that_brings_the_feature_comes_first(design, tokenizer):
    """One head of block 0 is given the name of the speaker to carry, ten times as strong as anything else."""
    model = language_model.build(Architecture(layers=2, width=32, heads=4), tokenizer.get_vocab_size(), 0)
    model = model.eval().requires_grad_(False)
    block = model.gpt_neox.layers[0].attention
    vocabulary = tokenizer.get_vocab()
    for text, woman in zip(design.texts, design.factors["speaker"], strict=True):
        model.gpt_neox.embed_in.weight[vocabulary[text.split(":")[0]], 7] = 3.0 if woman else -3.0
    fused = block.query_key_value.weight.view(4, 3, 8, 32)
    fused[2, 2, 0] = 0
    fused[2, 2, 0, 7] = 3.0
    block.dense.weight[9, 16] = 3.0
    ranks = ablation.rank(subject_of(model, tokenizer, design), design, "speaker", 3)
    assert ranks["heads"].order[0] == (0, 2)
    assert ranks["heads"].layer == 2
    assert ranks["neurons"].verified == 3
    assert sorted(ranks["heads"].order) == [(block, head) for block in range(2) for head in range(4)]
    planted = subject_of(model, tokenizer, design)
    probing = probing_of(planted, design)
    every = [(block, head) for block in range(2) for head in range(4)]
    after = ablation.probe_after(ablation.ablated(planted, "heads", every, "mean", 0), probing, ("speaker", "negated"))
    assert probing.correct[:, 0].mean() > 0.95
    assert after[:, 0].mean() == pytest.approx(0.5, abs=0.1)


def probing_of(subject, design):
    folds = splits.folds(design, "carriers", 2, n_folds=4, seed=0)
    return ablation.probe_before(subject, design, [("speaker", "negated")], folds, [0.01, 0.1])


def test_probing_again_without_ablation_finds_the_same(subject, design):
    probing = probing_of(subject, design)
    assert len(probing.labels) == len(design.texts) // 2
    again = ablation.probe_after(subject.residual(), probing, probing.targets)
    assert np.array_equal(again, probing.correct)
    # One fold after the other, standardised by its own training texts, which is what the grid of probes does.
    x, penalties = subject.residual(), probing.penalties
    for fold, penalty in zip(probing.folds, penalties, strict=True):
        fit = probe_grid.fit_probe(x[fold.train], torch.tensor(probing.labels[fold.train]), "logistic", penalty)
        slow = probes.score_texts(fit, x[fold.test], torch.tensor(probing.labels[fold.test])).correct.numpy()
        assert abs(slow - again[fold.test]).mean() < 0.08
    used = [set(fold.train) & set(fold.test) for fold in probing.folds]
    assert used == [set()] * 4


def test_the_positive_control_ablates_the_factor_outside_the_primary_pair(design):
    assert ablation.pairs_of(design, tuple(design.factors)) == (("speaker", "negated"), ("match", "negated"))
    assert ablation.pairs_of(design, ("negated", "match")) == (("match", "negated"),)
    plain = dataclasses.replace(design, needed=())
    assert ablation.pairs_of(plain, tuple(design.factors)) == (("speaker", "negated"),)


def test_the_sweep_in_numbers_and_shares():
    assert ablation.counts([1, 0.05, 0.5, 3, 100], 32) == (1, 2, 3, 16)
    assert ablation.counts([0.001], 10) == (1,)


def test_random_sets_have_the_kinds_and_blocks_of_the_chosen(subject):
    chosen = [(0, 3), (1, 9), (1, 2), (1, 100)]
    drawn = ablation.alike(chosen, "neurons", subject.blocks, np.random.default_rng(0))
    assert [block for block, _ in drawn] == [0, 1, 1, 1]
    assert len(set(drawn)) == 4
    assert all(index < 128 for _, index in drawn)


def test_the_linearised_ratio_has_the_mean_and_the_spread_of_the_ratio():
    rng = np.random.default_rng(0)
    n = 400
    before = (rng.random((n, 1)) < 0.9).astype(float)
    after = np.where(rng.random((n, 1)) < 0.7, before, rng.random((n, 1)) < 0.5)
    chance = np.array([0.5])
    linear = ablation.linearised(after, before, chance)
    ratio = (after.mean() - 0.5) / (before.mean() - 0.5)
    assert linear.mean() == pytest.approx(ratio)
    weights = statistics.two_way_weights(np.arange(n), None, 2000, rng)
    of_ratio = ((weights @ after) / n - 0.5) / ((weights @ before) / n - 0.5)
    of_mean = (weights @ linear) / n
    assert of_mean.std() == pytest.approx(of_ratio.std(), rel=0.05)


def test_the_table_says_what_was_kept_and_where_nothing_could_be(subject, design):
    found = tables.frame(ablation.subject_rows(subject, design, SPEC, SITE))
    assert set(found.representation) == {"ablated"}
    swept = found[found.score == "excess_kept_difference"]
    assert set(swept.control) == {"none", "random_components"}
    assert set(swept.probe.str.split(".").str[0]) == {"heads", "neurons"}
    kept = found[found.score == "excess_kept"]
    before = found[found.probe.str.startswith("none.")].set_index(["probe", "target"])
    for _, row in kept.iterrows():
        a = row.probe.split(".")[3]
        clean = before.loc[(f"none.none.0.{a}", row.target)]
        same = found[(found.probe == row.probe) & (found.target == row.target) & (found.control == row.control)]
        accuracy = same[same.score == "accuracy"].estimate.item()
        if clean.lower > clean.level:
            assert row.estimate == pytest.approx((accuracy - clean.level) / (clean.estimate - clean.level))
            assert row.lower <= row.estimate <= row.upper
        else:
            assert np.isnan(row.estimate)
            assert row.note == ablation.UNDEFINED


def test_a_layer_that_does_not_exist_is_named(subject, design, tokenizer):
    model = language_model.build(Architecture(layers=2, width=32, heads=4), tokenizer.get_vocab_size(), 0)
    with pytest.raises(UserError, match=r"ablation\.layer: 3.*1 to 2"):
        subject_of(model, tokenizer, design, layer=3)


def test_a_design_without_a_readable_pair_gives_an_empty_table(subject, design):
    blind = dataclasses.replace(design, primary=("suffix", "negated"), needed=())
    assert list(ablation.subject_rows(subject, blind, SPEC, SITE)) == []
    assert list(designs.targets(blind, 1)) == list(design.factors)
