"""Heads and neurons: the stream is their sum; replaced, resumed and frozen runs against slow and foreign ones."""

from pathlib import Path

import numpy as np
import pytest
import torch

from counterprobe import activations, components, designs, language_model, statements, tokenization
from counterprobe.language_model import Architecture
from counterprobe.progress import UserError

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"


@pytest.fixture(scope="module")
def world():
    return statements.world({"topics": {"cities": 4, "animals": 4}, "carriers": 4}, RESOURCES)


@pytest.fixture(scope="module")
def design(world):
    return statements.factorial("factorial", {"blocks": 2}, world)


@pytest.fixture(scope="module")
def tokenizer(world):
    return tokenization.word_level_tokenizer(statements.vocabulary(world))


def randomised(model):
    """Biases and gains away from 0 and 1, so that nothing is left out unnoticed."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def neox(tokenizer):
    return randomised(language_model.build(Architecture(layers=3, width=32, heads=4), tokenizer.get_vocab_size(), 0))


def small(kind, vocabulary):
    """Grouped queries, a gate, sequential blocks; or fused projections stored the other way round."""
    import transformers

    torch.manual_seed(0)
    shape = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "llama":
        config = transformers.LlamaConfig(
            **shape, num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64
        )
        return randomised(transformers.LlamaForCausalLM(config))
    config = transformers.GPT2Config(vocab_size=vocabulary, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return randomised(transformers.GPT2LMHeadModel(config))


@pytest.fixture(scope="module", params=["gpt_neox", "llama", "gpt2"])
def model(request, neox, tokenizer):
    return neox if request.param == "gpt_neox" else small(request.param, tokenizer.get_vocab_size())


def read(model, tokenizer, design, *, bos=False, position="period", budget=200):
    texts = components.sequences(model, tokenizer, design, position, bos=bos, token_budget=budget)
    return texts, components.blocks_of(model)


def decomposition(model, blocks, found, layer):
    """Embedding, heads, neurons and biases, one after the other."""
    total = found.residuals[0].double()
    for block, z, a in zip(blocks[:layer], found.heads, found.neurons, strict=False):
        for level, module, count in ((z, block.heads_out, block.n_heads), (a, block.neurons_out, None)):
            out = components.writes(module).double()
            parts = level.double().split(level.shape[1] // count, dim=1) if count else [level.double()]
            rows = out.split(len(out) // count) if count else [out]
            total = total + sum(part @ row for part, row in zip(parts, rows, strict=True))
            if module.bias is not None:
                total = total + module.bias.double()
    return total


def test_components_sum_to_the_residual_stream(model, tokenizer, design):
    texts, blocks = read(model, tokenizer, design)
    found = components.read(model, blocks, texts)
    for layer, residual in enumerate(found.residuals):
        apart = decomposition(model, blocks, found, layer)
        assert torch.linalg.norm(apart - residual) < 1e-4 * torch.linalg.norm(residual)


def test_components_sum_to_the_stream_of_a_published_model(shared):
    folder = shared / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("no stories260k among the shared models")
    model, tokenizer = language_model.load(folder), tokenization.load_tokenizer(folder)
    ids = torch.tensor([tokenizer("Once upon a time there was a dog named Tim.")["input_ids"]])
    blocks = components.blocks_of(model)
    one = components.Sequences((ids,), np.zeros(1, dtype=int), np.zeros(1, dtype=int))
    found = components.read(model, blocks, one)
    for layer, residual in enumerate(found.residuals):
        assert torch.linalg.norm(decomposition(model, blocks, found, layer) - residual) < 1e-4 * residual.norm()


@pytest.mark.parametrize("bos", [False, True])
def test_the_read_token_is_the_one_that_activations_keep(neox, tokenizer, design, tmp_path, bos):
    texts, blocks = read(neox, tokenizer, design, bos=bos)
    found = components.read(neox, blocks, texts)
    spec = {"positions": ["period"], "bos": [bos], "dtype": "float32", "token_budget": 512}
    activations.extract(neox, tokenizer, design, spec, tmp_path, backend="fast")
    for layer, residual in enumerate(found.residuals):
        stored = np.load(tmp_path / f"period.{'bos' if bos else 'nobos'}.layer_{layer:02d}.npy")
        assert np.allclose(residual.numpy()[texts.of_text], stored, atol=1e-5)


def test_equal_beginnings_are_one_sequence_and_batches_are_equally_long(neox, tokenizer, design):
    texts, _ = read(neox, tokenizer, design)
    assert len(texts.first_text) == len(design.texts) // 2  # the suffix comes after the period
    assert all(ids.numel() <= 200 for ids in texts.batches)
    assert [len(range(s.start, s.stop)) for s in texts.spans()] == [len(ids) for ids in texts.batches]
    assert (texts.of_text[texts.first_text] == np.arange(len(texts.first_text))).all()


def test_outputs_are_those_of_the_bridges_hook_points(neox, tokenizer, design):
    import copy

    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    texts, blocks = read(neox, tokenizer, design)
    clean = components.trace(neox, blocks, texts.batches[0], read_only=False)
    bridge = TransformerBridge.boot_transformers(
        "gpt_neox",
        hf_model=copy.deepcopy(neox),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=tokenizer),
        device="cpu",
    )
    with torch.inference_mode():
        _, cache = bridge.run_with_cache(texts.batches[0], names_filter=lambda name: True, return_type=None)
    for layer in range(3):
        assert torch.allclose(cache[f"blocks.{layer}.attn.hook_z"].flatten(2), clean.heads[layer], atol=1e-5)
        assert torch.allclose(cache[f"blocks.{layer}.mlp.hook_post"], clean.neurons[layer], atol=1e-5)


def test_a_resumed_run_is_the_run_itself_and_hooks_do_not_stay(model, tokenizer, design):
    texts, blocks = read(model, tokenizer, design)
    clean = components.trace(model, blocks, texts.batches[0], read_only=False)
    last = len(blocks)
    for start in range(last):
        assert torch.allclose(components.resume(blocks, clean, start, last), clean.entering[last][:, -1], atol=1e-6)
    with pytest.raises(RuntimeError), components.replacing(blocks, {(0, "heads"): (torch.arange(3), torch.zeros(4))}):
        components.resume(blocks, clean, 0, last)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("kind", components.KINDS)
def test_replacing_columns_is_editing_the_weights(model, tokenizer, design, kind):
    import copy

    texts, blocks = read(model, tokenizer, design)
    clean = components.trace(model, blocks, texts.batches[0], read_only=False)
    columns = blocks[1].columns(kind, [1, 3])
    assert len(columns) == 2 * (8 if kind == "heads" else 1)
    with components.replacing(blocks, {(1, kind): (columns, torch.zeros(len(columns)))}):
        ablated = components.resume(blocks, clean, 1, len(blocks))
    edited = copy.deepcopy(model)
    with torch.no_grad():
        components.writes(components.blocks_of(edited)[1].out(kind))[columns] = 0
    expected = components.trace(edited, components.blocks_of(edited), texts.batches[0], read_only=True)
    assert torch.allclose(ablated, expected.entering[-1][:, -1], atol=1e-5)
    assert not torch.allclose(ablated, clean.entering[-1][:, -1], atol=1e-3)


def test_freezing_to_the_text_itself_changes_nothing(model, tokenizer, design):
    texts, blocks = read(model, tokenizer, design)
    ids = texts.batches[0]
    clean = components.trace(model, blocks, ids, read_only=True)
    for levels in components.frozen(model, blocks, ids, ids).values():
        for level, residual in zip(levels, clean.entering, strict=True):
            assert torch.allclose(level, residual[:, -1], atol=1e-5)


def attention_patterns(model, ids):
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        patterns = model.base_model(input_ids=ids, use_cache=False, output_attentions=True).attentions
    model.set_attn_implementation("sdpa")
    return patterns


def test_frozen_parts_are_those_of_the_counterfactual(tokenizer, design):
    """Block by block: with one block, frozen attention is the other text's pattern on this text's values."""
    model = randomised(language_model.build(Architecture(layers=1, width=32, heads=4), tokenizer.get_vocab_size(), 1))
    texts, blocks = read(model, tokenizer, design)
    ids = texts.batches[0]
    other = ids.roll(1, dims=0)
    found = components.frozen(model, blocks, ids, other)
    assert set(found) == {frozenset({"attention"}), frozenset({"mlp"}), frozenset({"attention", "mlp"})}
    clean = components.trace(model, blocks, ids, read_only=False)
    theirs = components.trace(model, blocks, other, read_only=True)
    fused = model.base_model.layers[0].attention.query_key_value(
        model.base_model.layers[0].input_layernorm(clean.entering[0])
    )
    values = fused.view(*ids.shape, 4, 3, 8)[:, :, :, 2]
    mixed = torch.einsum("bhk,bkhd->bhd", attention_patterns(model, other)[0][:, :, -1], values).flatten(1)
    attention = model.base_model.layers[0].attention.dense(mixed)
    mlp = {
        name: run.neurons[0][:, -1] @ components.writes(blocks[0].neurons_out) + blocks[0].neurons_out.bias
        for name, run in (("own", clean), ("other", theirs))
    }
    own_attention = model.base_model.layers[0].attention.dense(clean.heads[0][:, -1])
    start = clean.entering[0][:, -1]
    for part, expected in (
        ({"attention"}, start + attention + mlp["own"]),
        ({"mlp"}, start + own_attention + mlp["other"]),
        ({"attention", "mlp"}, start + attention + mlp["other"]),
    ):
        assert torch.allclose(found[frozenset(part)][1], expected, atol=1e-5)


def test_an_unknown_architecture_is_named(neox):
    class Other:
        config = type("Config", (), {"model_type": "mamba"})

    with pytest.raises(UserError, match=r"mamba.*run\.mechanisms"):
        components.blocks_of(Other())


def test_an_unknown_position_is_named(neox, tokenizer, design):
    with pytest.raises(UserError, match="before_period"):
        read(neox, tokenizer, design, position="comma")


def test_a_thinned_design_keeps_couples_blocks_and_topics_even(world):
    design = statements.factorial("factorial", {"blocks": 2}, world)
    thin = designs.thinned(design, 4, np.random.default_rng(0))
    designs.check_balanced(thin)
    assert len(thin.item_names) == 4
    assert set(np.unique(thin.strata)) == {0, 1}
    assert designs.thinned(design, 99, np.random.default_rng(0)) is design
