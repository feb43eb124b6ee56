"""Interference: networks written by hand whose interaction comes from one known part, and slow oracles."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from counterprobe import attribution, components, designs, interference, statistics, tokenization
from counterprobe.designs import Design

FAR = 64.0  # of two coordinates that dwarf all others: what LayerNorm divides by is then the same for every text
A, B, OUT_A, OUT_B = 2, 3, 4, 5  # coordinates of the residual stream
WIDTH, ITEMS, NOISE = 16, 12, 0.1


@pytest.fixture(scope="module")
def design():
    """`{a word} {b word} x .`: each item has two words for A and two for B, which flip it token for token."""
    cells = [(item, a, b) for item in range(ITEMS) for a in (0, 1) for b in (0, 1)]
    texts = tuple(f"a{item}{'ny'[a]} b{item}{'ny'[b]} x ." for item, a, b in cells)
    item = np.array([cell[0] for cell in cells])
    nothing = np.zeros(len(texts), dtype=np.int64)
    return Design(
        name="planted",
        texts=texts,
        items=item,
        item_names=tuple(str(i) for i in range(ITEMS)),
        couples=item,
        strata=nothing,
        stratum_names=("all",),
        factors={"a": np.array([cell[1] == 1 for cell in cells]), "b": np.array([cell[2] == 1 for cell in cells])},
        carriers={},
        carrier_counts={},
        blocks=nothing - 1,
        rows=np.arange(len(texts)),
        files=nothing,
        marks={"period": np.array([len(text) - 1 for text in texts])},
        primary=("a", "b"),
        needed=(),
        aliases={},
        readouts={},
    )


@pytest.fixture(scope="module")
def tokenizer(design):
    return tokenization.word_level_tokenizer([word for text in design.texts for word in text.split()])


def network(tokenizer, *, compete=False, activation=None, bias=0.0):
    """Block 0 moves A and B to the read token. compete: its head looks at the B token the more, the more B there is.
    activation: a neuron of block 1 applies it to A + B + bias, and writes the result to another coordinate."""
    import transformers

    config = transformers.GPTNeoXConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=8,
        hidden_act=activation or "relu",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        use_parallel_residual=True,
    )
    model = transformers.GPTNeoXForCausalLM(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if not name.endswith("layernorm.weight"):
            parameter.zero_()
    draw = torch.Generator().manual_seed(0)
    embedding = model.gpt_neox.embed_in.weight
    embedding[:, 0], embedding[:, 1] = FAR, -FAR
    for word, index in tokenizer.get_vocab().items():
        if word[0] in "ab" and word[-1] in "ny":
            coordinate = A if word[0] == "a" else B
            embedding[index, coordinate] = (1 if word[-1] == "y" else -1) + NOISE * torch.randn((), generator=draw)
    for block in model.gpt_neox.layers:
        for norm in (block.input_layernorm, block.post_attention_layernorm):
            norm.weight.fill_(FAR * np.sqrt(2 / WIDTH))
    first, second = model.gpt_neox.layers
    fused = first.attention.query_key_value.weight.view(2, 3, 8, WIDTH)
    fused[0, 2, 0, A] = fused[1, 2, 0, B] = 4.0
    first.attention.dense.weight[OUT_A, 0] = first.attention.dense.weight[OUT_B, 8] = 1.0
    if compete:
        fused[0, 0, 7, 0] = np.sqrt(8) / FAR
        fused[0, 1, 7, B] = 2.0
    if activation:
        second.mlp.dense_h_to_4h.weight[0, OUT_A] = second.mlp.dense_h_to_4h.weight[0, OUT_B] = 1.0
        second.mlp.dense_h_to_4h.bias[0] = bias
        second.mlp.dense_4h_to_h.weight[7, 0] = 1.0
    return model


def shares(model, tokenizer, design, factor="b"):
    texts = components.sequences(model, tokenizer, design, "period", bos=False, token_budget=64)
    blocks = components.blocks_of(model)
    clean = [level.double().numpy()[texts.of_text] for level in components.read(model, blocks, texts).residuals]
    runs, usable = interference.freeze(model, blocks, design, texts, factor)
    assert usable.all()
    return interference.shares(clean, runs, design, ("a", "b"), factor), clean


def test_heads_that_compete_in_the_softmax_are_found_in_the_attention(tokenizer, design):
    found, clean = shares(network(tokenizer, compete=True), tokenizer, design)
    assert found.interaction["attention"].estimate[2] == pytest.approx(1, abs=1e-3)
    assert found.interaction["mlp"].estimate[2] == pytest.approx(0, abs=1e-3)
    assert found.interaction["shapley_attention"].estimate[2] == pytest.approx(1, abs=1e-3)
    # B itself travels in a value, with a pattern that does not depend on it: freezing patterns leaves it there.
    assert abs(found.effect["attention"].estimate[2]) < 0.2
    assert found.difference["shapley_attention"].lower[2] > 0.5
    assert np.linalg.norm(statistics.walsh_contrasts(clean[2], design, ["a^b"])[0].mean(axis=0)) > 0.1


@pytest.mark.parametrize(("activation", "bias"), [("relu", 0.0), ("tanh", 1.5)])
def test_a_neuron_that_saturates_is_found_in_the_mlp(tokenizer, design, activation, bias):
    found, _ = shares(network(tokenizer, activation=activation, bias=bias), tokenizer, design)
    assert found.interaction["shapley_mlp"].estimate[2] == pytest.approx(1, abs=1e-3)
    assert found.interaction["shapley_attention"].estimate[2] == pytest.approx(0, abs=1e-3)
    assert np.isnan(found.interaction["mlp"].estimate[1])  # before that block there is none


def test_both_parts_share_what_both_make(tokenizer, design):
    found, _ = shares(network(tokenizer, compete=True, activation="relu"), tokenizer, design)
    parts = [found.interaction[f"shapley_{part}"].estimate[2] for part in interference.PARTS]
    assert min(parts) > 0.05
    assert sum(parts) == pytest.approx(found.interaction["both"].estimate[2])
    assert found.interaction["both"].estimate[2] == pytest.approx(1, abs=1e-3)


def test_a_linear_network_has_nothing_to_share(tokenizer, design):
    found, _ = shares(network(tokenizer), tokenizer, design)
    assert all(np.isnan(interval.estimate).all() for interval in found.interaction.values())
    assert found.effect["attention"].estimate[2] == pytest.approx(0, abs=1e-3)


def test_pairs_that_cannot_be_flipped_token_for_token_are_said_so(tokenizer, design):
    labels = zip(design.texts, *design.factors.values(), strict=True)
    longer = designs.replace(
        design,
        texts=tuple(text.replace(" x", " x" * (1 + 2 * int(b) + int(a))) for text, a, b in labels),
    )
    longer = designs.replace(longer, marks={"period": np.array([len(text) - 1 for text in longer.texts])})
    model = network(tokenizer, compete=True)
    texts = components.sequences(model, tokenizer, longer, "period", bos=False, token_budget=64)
    blocks = components.blocks_of(model)
    runs = {name: interference.freeze(model, blocks, longer, texts, name) for name in "ab"}
    readings = components.read(model, blocks, texts)
    (row,) = interference.share_rows(("a", "b"), runs, readings, longer, texts, 0.95, {})
    assert np.isnan(row["estimate"])
    assert "token for token" in row["note"]


def test_counterfactuals_differ_in_one_factor_of_the_same_item(design):
    partner = interference.counterfactuals(design, "b")
    assert (design.items[partner] == design.items).all()
    assert (design.factors["a"][partner] == design.factors["a"]).all()
    assert (design.factors["b"][partner] != design.factors["b"]).all()
    assert (partner[partner] == np.arange(len(partner))).all()


# --- attribution profiles and their overlap ----------------------------------------------------------------


def measured_of(model, tokenizer, design):
    texts = components.sequences(model, tokenizer, design, "period", bos=False, token_budget=64)
    blocks = components.blocks_of(model)
    readings = components.read(model, blocks, texts)
    return attribution.contrasts(readings, design, texts, ["a", "b"]), blocks, readings, texts


def test_a_profile_is_what_each_component_adds_along_the_effect(tokenizer, design):
    measured, blocks, readings, texts = measured_of(
        network(tokenizer, compete=True, activation="relu"), tokenizer, design
    )
    profile = attribution.profile(measured, blocks, "a", 2, np.ones((1, ITEMS)))[0]
    x = readings.residuals[2].double().numpy()[texts.of_text]
    label = design.factors["a"]
    effect = x[label].mean(axis=0) - x[~label].mean(axis=0)
    unit = effect / np.linalg.norm(effect)
    slow = []
    for block, z, a in zip(blocks, readings.heads, readings.neurons, strict=True):
        for kind, level in ((components.HEADS, z), (components.NEURONS, a)):
            out = components.writes(block.out(kind)).double().numpy()
            for index in range(block.count(kind)):
                columns = block.columns(kind, [index]).numpy()
                written = level.double().numpy()[texts.of_text][:, columns] @ out[columns]
                slow.append((written[label].mean(axis=0) - written[~label].mean(axis=0)) @ unit)
    assert np.allclose(profile, slow)
    assert profile.sum() == pytest.approx(np.linalg.norm(effect))  # the embedding of the period knows nothing of A


def test_squared_lengths_leave_out_products_of_a_unit_with_itself():
    rng = np.random.default_rng(0)
    sums, sizes = rng.normal(size=(5, 3)), np.array([1.0, 2, 1, 1, 3])
    weights = np.stack([np.ones(5), rng.multinomial(4, np.full(5, 0.2))])
    for w, found in zip(weights, attribution.squared(sums, sizes, weights), strict=True):
        pairs = [(i, j) for i, j in itertools.product(range(5), repeat=2) if i != j]
        top = sum(w[i] * w[j] * sums[i] @ sums[j] for i, j in pairs)
        assert found == pytest.approx(top / sum(w[i] * w[j] * sizes[i] * sizes[j] for i, j in pairs))


def planted_contrasts(rng, related, layers=3, g=24, neurons=60):
    """Features whose neurons overlap more or less; ratios that follow the overlaps, or do not."""
    names = ("p", "q", "r", "s")
    pairs = tuple(itertools.combinations(names, 2))
    blocks, effects = [], []
    for _ in range(layers):
        out = torch.nn.Linear(neurons, 4, bias=False)
        out.weight.data.fill_(0.5)
        heads = torch.nn.Linear(4, 4, bias=False)
        heads.weight.data.zero_()
        blocks.append(components.Block(torch.nn.Identity(), heads, torch.nn.Identity(), out, (), 2))
        centre = dict(zip(names, rng.uniform(0, neurons, 4), strict=True))
        effects.append({n: np.exp(-(((np.arange(neurons) - c) / 12) ** 2)) for n, c in centre.items()})
    unit = np.ones(4) / 2

    def noisy(values):
        return values + 0.01 * rng.normal(size=(g, *values.shape))

    levels = [{**{n: noisy(e[n]) for n in names}, **{"^".join(p): noisy(0 * e["p"]) for p in pairs}} for e in effects]
    residuals = [{n: noisy(unit) for n in (*names, *map("^".join, pairs))}]
    for layer in range(1, layers + 1):
        together = {n: np.concatenate([e[n] for e in effects[:layer]]) for n in names}
        at = {n: noisy(3 * unit) for n in names}
        for a, b in pairs:
            x, y = together[a], together[b]
            size = x @ y / np.sqrt((x @ x) * (y @ y)) if related else rng.random()
            at[f"{a}^{b}"] = noisy(3 * np.sqrt(size) * unit)
        residuals.append(at)
    zeros = {n: np.zeros((g, 4)) for n in (*names, *map("^".join, pairs))}
    measured = attribution.Contrasts(
        names, pairs, tuple(residuals), (zeros,) * layers, tuple(levels), np.ones(g), np.zeros(g, dtype=np.int64)
    )
    return measured, blocks, rng.permutation(g) < g // 2


def test_a_planted_relation_of_overlap_and_interaction_is_found():
    measured, blocks, half = planted_contrasts(np.random.default_rng(0), related=True)
    found = interference.overlap(measured, blocks, half, 400, 200, np.random.default_rng(1))
    assert len(found.points) == 18
    assert found.spearman.estimate[0] > 0.95
    assert found.spearman.lower[0] > 0.8
    assert found.p < 0.01
    assert found.spearman.estimate[0] == pytest.approx(
        spearmanr(found.overlap.estimate, found.ratio.estimate).statistic, abs=0.05
    )


def test_without_a_relation_p_values_are_spread():
    p = []
    for seed in range(20):
        measured, blocks, half = planted_contrasts(np.random.default_rng(seed), related=False, layers=1)
        p.append(interference.overlap(measured, blocks, half, 100, 20, np.random.default_rng(seed)).p)
    assert np.mean(np.array(p) < 0.1) <= 0.25
    assert 0.25 < np.mean(p) < 0.75


def test_shuffled_profiles_keep_their_values_within_blocks():
    order = next(iter(interference._Shuffles([3, 5, 4], 50, np.random.default_rng(0))))
    assert (np.sort(order, axis=1) == np.arange(12)).all()
    for first, last in ((0, 3), (3, 8), (8, 12)):
        assert ((order[:, first:last] >= first) & (order[:, first:last] < last)).all()
    assert len(np.unique(order, axis=0)) > 40


# --- neurons -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "bias", "share"), [("relu", 0.0, 0.0), ("tanh", 1.5, 1.0)])
def test_convex_neurons_are_superadditive_and_saturating_ones_subadditive(tokenizer, design, activation, bias, share):
    model = network(tokenizer, activation=activation, bias=bias)
    mlp = model.gpt_neox.layers[1].mlp
    for neuron in range(1, 6):
        mlp.dense_h_to_4h.weight[neuron] = mlp.dense_h_to_4h.weight[0] * (0.5 + 0.2 * neuron)
        mlp.dense_h_to_4h.bias[neuron] = bias
        mlp.dense_4h_to_h.weight[7, neuron] = 1.0
    measured, blocks, readings, texts = measured_of(model, tokenizer, design)
    deviations = interference.within_cells(readings.neurons, design, texts)
    assert np.isnan(deviations[0]).all()  # at the period, which all texts share
    assert np.isfinite(deviations[1]).sum() == 6
    half = interference.halves(measured.strata, np.random.default_rng(0))
    found = interference.neuron_scores(measured, blocks, deviations, ("a", "b"), half)
    assert set(found) == {2, -1}
    level, interval = found[2]["subadditive_share"]
    assert (level, float(interval.estimate)) == (0.5, share)


def test_the_partial_rank_correlation_is_that_of_residuals():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 1, 50))
    x, y = x + z, y + z
    ranks = [interference._ranks(values) for values in (x, y, z)]
    left = [v[0] - np.polyval(np.polyfit(ranks[2][0], v[0], 1), ranks[2][0]) for v in ranks[:2]]
    assert interference._partial(*ranks)[0] == pytest.approx(np.corrcoef(*left)[0, 1])


def test_halves_are_even_in_every_stratum():
    strata = np.repeat([0, 1], [8, 6])
    half = interference.halves(strata, np.random.default_rng(0))
    assert [half[strata == s].sum() for s in (0, 1)] == [4, 3]
