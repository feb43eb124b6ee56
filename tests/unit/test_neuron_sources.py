"""What feeds a neuron: contributions that sum, on every family; path patching against hooks; planted neurons."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import components, language_model, neuron_sources, statements, tables, tokenization
from counterprobe.language_model import Architecture
from counterprobe.neuron_sources import Neuron
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"
KINDS = ("gpt_neox", "gpt_neox_sequential", "llama", "gpt2")


@pytest.fixture(scope="module")
def world():
    return statements.world({"topics": {"cities": 8, "animals": 8}, "carriers": 4}, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("factorial", {"blocks": 2}, world)


@pytest.fixture(scope="module")
def tokenizer(world):
    from transformers import PreTrainedTokenizerFast

    made = tokenization.word_level_tokenizer(statements.vocabulary(world))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]", bos_token="[BOS]")


@pytest.fixture(scope="module", params=KINDS)
def model(request, tokenizer):
    import transformers

    torch.manual_seed(0)
    size = len(tokenizer)
    shape = {"vocab_size": size, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    if request.param == "llama":
        config = transformers.LlamaConfig(
            **shape, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64
        )
        made = transformers.LlamaForCausalLM(config)
    elif request.param == "gpt2":
        made = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=size, n_embd=32, n_layer=3, n_head=4, n_positions=64)
        )
    else:
        made = language_model.build(Architecture(layers=3, width=32, heads=4), size, 0)
        parallel = request.param == "gpt_neox"
        made.config.use_parallel_residual = parallel
        for block in made.gpt_neox.layers:
            block.use_parallel_residual = parallel
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        # Biases and gains away from 0 and 1, so that nothing is left out unnoticed.
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made.double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def opened(model, tokenizer, design):
    blocks = components.blocks_of(model)
    texts = components.sequences(model, tokenizer, design, "last", bos=False, token_budget=4096)
    return blocks, texts, components.read(model, blocks, texts)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_contributions_sum_to_the_pre_activation(model, opened, block):
    blocks, texts, readings = opened
    neurons = [Neuron(block, index) for index in (0, 7, 31)]
    own = neuron_sources.pre_activations(model, blocks, texts, neurons)
    for neuron, expected in zip(neurons, own.T, strict=True):
        parts = neuron_sources.take_apart(model, blocks, readings, neuron)
        assert np.abs(parts.whole.sum(axis=1) - expected).max() < 1e-5 * np.sqrt((expected**2).mean())
        mlps = [place for place, name in enumerate(parts.names) if name.endswith("MLP")]
        assert len(mlps) == block
        assert sum(name.startswith(f"L{block}H") for name in parts.names) == 4 * neuron_sources.sequential(model)
        for index, place in enumerate(mlps):
            inside = [i for i, name in enumerate(parts.single_names) if name.startswith(f"L{index}N")]
            bias = blocks[index].neurons_out.bias
            assert np.allclose(parts.single[:, inside].sum(axis=1), parts.whole[:, place])
            assert len(inside) == blocks[index].count("neurons")
            assert bias is None or "bias" in parts.names


def test_exchanging_every_output_gives_the_other_text_and_none_the_same(model, opened):
    blocks, texts, readings = opened
    neuron = Neuron(2, 5)
    how, x = neuron_sources.reader(model, blocks, neuron), neuron_sources.stream(model, blocks, readings, 2)
    own = neuron_sources.pre_activations(model, blocks, texts, [neuron])[:, 0]
    other = np.random.default_rng(0).permutation(len(own))
    names = [n for n in neuron_sources.take_apart(model, blocks, readings, neuron).names if n != "bias"]
    every = sum(neuron_sources.outputs(blocks, readings, names))
    assert np.allclose(neuron_sources.patched(how, neuron, x, every, other), own[other], atol=1e-6)
    assert np.allclose(neuron_sources.patched(how, neuron, x, 0 * every, other), own, atol=1e-6)


def test_a_patched_head_is_a_hook_on_what_the_block_normalises(model, opened):
    blocks, texts, readings = opened
    neuron, name = Neuron(2, 3), "L1H2"
    how, x = neuron_sources.reader(model, blocks, neuron), neuron_sources.stream(model, blocks, readings, 2)
    (head,) = neuron_sources.outputs(blocks, readings, [name])
    other = np.random.default_rng(1).permutation(len(x))
    change = (head[other] - head).split([len(ids) for ids in texts.batches])
    collected = []

    def shift(module, args):
        changed = args[0].clone()
        changed[:, -1] += change[len(collected)]
        return (changed, *args[1:])

    handles = [
        how.norm.register_forward_pre_hook(shift),
        how.into.register_forward_hook(lambda m, a, out: collected.append(out[:, -1, neuron.index])),
    ]
    with torch.inference_mode():
        for ids in texts.batches:
            model.base_model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    expected = torch.cat(collected).numpy()
    assert np.allclose(neuron_sources.patched(how, neuron, x, head, other), expected, atol=1e-6)


def test_a_neuron_that_writes_one_token_is_the_most_congruent(model, opened, tokenizer):
    blocks, *_ = opened
    towards = model.get_output_embeddings().weight[11] * neuron_sources.final_norm(model).weight
    out = blocks[1].neurons_out.weight
    column = out[4] if components.writes(blocks[1].neurons_out).shape == out.shape else out[:, 4]
    saved = column.clone()
    try:
        column.copy_(10 * (towards - towards.mean()))
        found = neuron_sources.congruence(model, blocks)
    finally:
        column.copy_(saved)
    assert int(found[1][4].argmax()) == 11
    rows = list(neuron_sources.congruence_rows(found, [(Neuron(1, 4), Neuron(1, 5))], tokenizer, 0.95, {}))
    assert rows[0]["note"].startswith(repr(tokenizer.decode([11])))
    assert [row["control"] for row in rows if row["score"] == "congruence"] == ["none", "random_neurons"]


class Forms:
    """A vocabulary in which every word has four forms, and one has none."""

    texts = ("an", " an", "An", " An", "the", " the", "The", " The", "x")

    def __len__(self):
        return len(self.texts) + 20

    def decode(self, ids):
        return self.texts[ids[0]] if ids[0] < len(self.texts) else f"word {ids[0]}"


def test_forms_of_a_token_are_counted_among_the_ten_and_none_where_there_are_none():
    congruent = torch.zeros(4, len(Forms()))
    congruent[0, [0, 1, 2, 3]] = torch.tensor([4.0, 3.0, 2.0, 1.0])
    congruent[1, 4], congruent[1, 9:20] = 2.0, 1.0
    congruent[2, 5], congruent[2, 6], congruent[2, 9:20] = 2.0, 1.5, 1.0
    congruent[3, 8] = 1.0
    pairs = [(Neuron(0, 0), Neuron(0, 1)), (Neuron(0, 2), Neuron(0, 1)), (Neuron(0, 0), Neuron(0, 3))]
    rows = list(neuron_sources.congruence_rows([congruent], pairs, Forms(), 0.95, {}))
    forms = [row for row in rows if row["score"] == "variants_in_top_10" and row["probe"] != "token_neurons"]
    share = [(row["control"], row["estimate"]) for row in forms]
    assert share == [("none", 1.0), ("random_neurons", 0.25), ("none", 0.5), ("random_neurons", 0.25), ("none", 1.0)]
    mean = {(row["score"], row.get("control")): row["estimate"] for row in rows if row["probe"] == "token_neurons"}
    assert mean == {
        ("variants_in_top_10", "none"): 0.75,
        ("variants_in_top_10", "random_neurons"): 0.25,
        ("variants_in_top_10_above_random", None): 0.5,
    }


def test_random_neurons_are_as_long_as_the_chosen_and_none_is_taken_twice(model, opened):
    blocks, *_ = opened
    congruent = neuron_sources.congruence(model, blocks)
    settings = {"chosen": ["L2N3"], "count": 4}
    pairs = neuron_sources.choose(model, blocks, congruent, settings, np.random.default_rng(0))
    assert pairs[0][0] == Neuron(2, 3)
    assert len(pairs) == 5
    assert len({neuron for pair in pairs for neuron in pair}) == 10
    for neuron, other in pairs:
        a, b = (neuron_sources.reader(model, blocks, n).reads.norm() for n in (neuron, other))
        assert neuron.block == other.block
        assert neuron.block > 0
        assert abs(float(a / b) - 1) < 0.35


def test_rows_of_a_design_have_their_controls(model, opened, design, tokenizer):
    blocks, texts, _ = opened
    pairs = [(Neuron(1, 0), Neuron(1, 1)), (Neuron(2, 4), Neuron(2, 5))]
    site = {
        **tables.NOT_APPLICABLE,
        **{"model": "m", "revision": "main", "step": -1, "weights": "trained", "design": "factorial"},
        **{"position": "last", "protocol": "items", "n_texts": len(design.texts)},
    }
    settings = {"seed": 0, "top": 3}
    rows = neuron_sources.position_rows(model, blocks, design, texts, pairs, settings, 0.95, site)
    table = tables.frame(rows)
    shares = table[table.score == "mass_of_top_5"]
    assert set(table[table.score == "effect"].control) == {"none", "random_neurons"}
    assert ((shares.estimate.dropna() > 0) & (shares.estimate.dropna() <= 1)).all()
    assert (table[table.score == "attribution_error"].estimate < 1e-5).all()


def test_a_neuron_the_model_does_not_have_is_named(opened):
    blocks, *_ = opened
    with pytest.raises(UserError, match=r"L3N0 does not exist.*3 blocks"):
        neuron_sources.named("L3N0", blocks)
    with pytest.raises(UserError, match="L31N892"):
        neuron_sources.named("31.892", blocks)


@pytest.mark.parametrize("name", ["babyllama-105", "stories260k"])
def test_contributions_sum_on_a_real_model(shared, name):
    folder = shared / "models" / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in shared/models")
    loaded = language_model.load(folder, dtype="float64")
    blocks = components.blocks_of(loaded)
    ids = torch.randint(5, loaded.config.vocab_size, (6, 12), generator=torch.Generator().manual_seed(0))
    texts = components.Sequences((ids,), np.arange(6), np.arange(6))
    readings = components.read(loaded, blocks, texts)
    neurons = [Neuron(block, index) for block in range(len(blocks)) for index in (0, 50)]
    own = neuron_sources.pre_activations(loaded, blocks, texts, neurons)
    for neuron, expected in zip(neurons, own.T, strict=True):
        total = neuron_sources.take_apart(loaded, blocks, readings, neuron).whole.sum(axis=1)
        assert np.abs(total - expected).max() < 1e-5 * np.sqrt((expected**2).mean())
