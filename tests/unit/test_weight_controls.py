"""What every rung keeps and destroys, on each family, by statistics computed here from their definitions."""

import copy
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from counterprobe import control_health, weight_controls
from counterprobe.progress import UserError
from counterprobe.weight_controls import CHAINS, PRESERVES, RUNGS

WIDTH, HEADS, HEAD_DIM, VOCAB = 32, 4, 8, 48
SHARED_MODELS = Path(__file__).parents[2] / "../shared/models"


def gpt_neox():
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            intermediate_size=4 * WIDTH,
            max_position_embeddings=32,
        )
    )


def llama(kind=LlamaForCausalLM, config=LlamaConfig, **options):
    return kind(
        config(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=HEADS,
            num_key_value_heads=2,
            intermediate_size=3 * WIDTH,
            max_position_embeddings=32,
            **{"tie_word_embeddings": True, **options},
        )
    )


def gpt2():
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=HEADS, n_positions=32))


MODELS = {
    "gpt_neox": gpt_neox,
    "llama": llama,
    "llama untied": lambda: llama(tie_word_embeddings=False),
    "gpt2": gpt2,
    "mistral": lambda: llama(MistralForCausalLM, MistralConfig, tie_word_embeddings=False),
    "qwen2": lambda: llama(Qwen2ForCausalLM, Qwen2Config),
}

# (matrix, the normalisation it reads or None, is it split into heads), all of them, per family.
_LLAMA_MATRICES = [
    ("self_attn.q_proj", "input_layernorm", True),
    ("self_attn.k_proj", "input_layernorm", True),
    ("self_attn.v_proj", "input_layernorm", True),
    ("self_attn.o_proj", None, False),
    ("mlp.gate_proj", "post_attention_layernorm", False),
    ("mlp.up_proj", "post_attention_layernorm", False),
    ("mlp.down_proj", None, False),
]
MATRICES = {
    "gpt_neox": [
        ("attention.query_key_value", "input_layernorm", True),
        ("attention.dense", None, False),
        ("mlp.dense_h_to_4h", "post_attention_layernorm", False),
        ("mlp.dense_4h_to_h", None, False),
    ],
    "gpt2": [
        ("attn.c_attn", "ln_1", True),
        ("attn.c_proj", None, False),
        ("mlp.c_fc", "ln_2", False),
        ("mlp.c_proj", None, False),
    ],
    "llama": _LLAMA_MATRICES,
    "mistral": _LLAMA_MATRICES,
    "qwen2": _LLAMA_MATRICES,
}


def planted(name):
    """A tiny model with steep spectra, a mean, gains and biases far from 1 and 0, as training leaves them."""
    generator = torch.Generator().manual_seed(0)
    model = MODELS[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 2:
                u, _, v = torch.linalg.svd(noise, full_matrices=False)
                values = 2.0 * 0.8 ** torch.arange(min(parameter.shape))
                parameter.copy_(u * values @ v + 0.02)
            else:
                is_gain = parameter_name.endswith("weight")
                parameter.copy_((1.0 if is_gain else 0.0) + 0.3 * noise)
    return model


def blocks(model):
    base = model.base_model
    return base.h if hasattr(base, "h") else base.layers


def is_conv1d(module):
    return type(module).__name__ == "Conv1D"


def oriented(module):
    """The weight as y = W x applies it."""
    weight = module.weight.detach().double()
    return weight.T if is_conv1d(module) else weight


def effective(model):
    """Every block matrix with the gain it reads multiplied in, and the number of rows of its parts."""
    found = {}
    for index, block in enumerate(blocks(model)):
        for name, norm, is_split in MATRICES[model.config.model_type]:
            matrix = oriented(block.get_submodule(name))
            if norm is not None:
                matrix = matrix @ torch.diag(block.get_submodule(norm).weight.detach().double())
            found[f"{index}.{name}"] = (matrix, HEAD_DIM if is_split else matrix.shape[0])
    return found


STATISTICS = {
    "mean_square": lambda part: part.square().mean(),
    "entries": lambda part: part.flatten().sort().values,
    "singular_values": torch.linalg.svdvals,
    "left_vectors": lambda part: part @ part.T,
    "right_vectors": lambda part: part.T @ part,
    "row_entries": lambda part: part.sort(dim=1).values,
}
# Of the whole matrix, not of its heads: entries move between heads under permuted_entries.
WHOLE = {"entries", "mean_square"}


def distance(statistic, before, after, rows):
    """Largest relative distance of a statistic over the parts of a matrix."""
    parts = [(before, after)]
    if statistic not in WHOLE:
        parts = list(zip(before.split(rows), after.split(rows), strict=True))
    compute = STATISTICS[statistic]
    return max(float((compute(a) - compute(b)).norm() / compute(a).norm()) for a, b in parts)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", MODELS)
def test_a_rung_keeps_what_it_promises_and_destroys_the_rest(name, rung):
    trained = planted(name)
    control = copy.deepcopy(trained)
    weight_controls.apply(control, rung, seed=3)
    before, after = effective(trained), effective(control)
    assert len(before) == len(after) >= 8
    for matrix, (original, rows) in before.items():
        drawn = after[matrix][0]
        for statistic in STATISTICS:
            gap = distance(statistic, original, drawn, rows)
            if statistic in PRESERVES[rung]:
                # A Gaussian redraw keeps the mean square on average: its relative spread is √(2 / entries).
                tolerance = 5 * math.sqrt(2 / original.numel()) if rung == "gaussian" else 1e-5
                assert gap < tolerance, (matrix, statistic, gap)
            elif statistic == "mean_square":
                assert gap > 0.1, (matrix, statistic, gap)
            else:
                assert gap > 0.02, (matrix, statistic, gap)


def test_every_rung_of_a_chain_keeps_all_that_the_one_before_keeps():
    assert {rung for chain in CHAINS for rung in chain} <= {*RUNGS, "trained"}
    for chain in CHAINS:
        rungs = [rung for rung in chain if rung != "trained"]
        for weaker, stronger in itertools.pairwise(rungs):
            assert PRESERVES[weaker] < PRESERVES[stronger], (weaker, stronger)
    assert PRESERVES["spectrum"] < PRESERVES["spectrum_right"]


def test_gaussian_matches_mean_and_variance_of_every_tensor():
    trained = planted("gpt_neox")
    control = copy.deepcopy(trained)
    weight_controls.apply(control, "gaussian", norms="untouched", embeddings="randomised")
    for (name, a), (_, b) in zip(trained.named_parameters(), control.named_parameters(), strict=True):
        if "norm" in name and "final" not in name:
            assert torch.equal(a, b), name
            continue
        assert not torch.equal(a, b) or "norm" in name, name
        if a.numel() >= 1000:
            spread = a.std() / math.sqrt(a.numel())
            assert abs(a.mean() - b.mean()) < 5 * spread, name
            assert abs(b.std() / a.std() - 1) < 5 / math.sqrt(2 * a.numel()), name
            excess = ((b - b.mean()) / b.std()).pow(4).mean() - 3
            assert abs(excess) < 6 * math.sqrt(24 / a.numel()), name


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", MODELS)
def test_equal_seeds_give_equal_weights_and_other_seeds_others(name, rung):
    state = planted(name).state_dict()
    drawn = []
    for seed in (0, 0, 1):
        model = MODELS[name]()
        model.load_state_dict(state)
        weight_controls.apply(model, rung, embeddings="randomised", seed=seed)
        drawn.append(model.state_dict())
    first, again, other = drawn
    assert all(torch.equal(first[key], again[key]) for key in first)
    for key, tensor in first.items():
        if tensor.ndim == 2:
            assert not torch.allclose(tensor, other[key], atol=1e-3), key


@pytest.mark.parametrize("rung", RUNGS)
def test_equal_tensors_of_two_layers_are_drawn_apart(rung):
    model = planted("llama")
    first, second = blocks(model)
    second.load_state_dict(first.state_dict())
    weight_controls.apply(model, rung)
    for name, _, _ in _LLAMA_MATRICES:
        a, b = oriented(first.get_submodule(name)), oriented(second.get_submodule(name))
        assert not torch.allclose(a, b, atol=1e-3), name


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", MODELS)
def test_kept_embeddings_are_untouched_and_change_no_other_draw(name, rung):
    trained = planted(name)
    kept, randomised = copy.deepcopy(trained), copy.deepcopy(trained)
    weight_controls.apply(kept, rung, embeddings="kept")
    weight_controls.apply(randomised, rung, embeddings="randomised")
    embeddings = {"embed_in", "embed_tokens", "wte", "wpe", "lm_head", "final_layer_norm", "ln_f"}
    before, with_kept, without = trained.state_dict(), kept.state_dict(), randomised.state_dict()
    seen = 0
    for key, tensor in before.items():
        is_embedding = bool(embeddings & set(key.split("."))) or key == "model.norm.weight"
        seen += is_embedding
        assert torch.equal(tensor, with_kept[key]) == is_embedding or tensor.ndim == 1, key
        if is_embedding:
            assert torch.equal(tensor, with_kept[key]), key
            assert tensor.ndim == 1 or not torch.allclose(tensor, without[key], atol=1e-3), key
        else:
            assert torch.equal(with_kept[key], without[key]), key
    assert seen >= 3


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tied_embeddings_stay_tied(name, rung):
    model = planted(name)
    weight_controls.apply(model, rung, embeddings="randomised")
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


@pytest.mark.parametrize("rung", ["spectrum_left", "permuted_columns"])
@pytest.mark.parametrize("name", MODELS)
def test_the_gram_matrix_of_the_tokens_survives_rotations_of_the_residual_stream(name, rung):
    model = planted(name)
    before = model.get_input_embeddings().weight.detach().clone()
    weight_controls.apply(model, rung, embeddings="randomised")
    after = model.get_input_embeddings().weight.detach()
    assert (before @ before.T - after @ after.T).norm() < 1e-5 * (before @ before.T).norm()
    assert not torch.allclose(before, after, atol=1e-2)


@pytest.mark.parametrize("name", MODELS)
def test_permuted_columns_without_folding_is_marks_reset_of_every_parameter(name):
    """Each parameter's columns are the trained ones in another order, one order a tensor."""
    trained = planted(name)
    control = copy.deepcopy(trained)
    weight_controls.apply(control, "permuted_columns", embeddings="randomised", norms="randomised", seed=5)
    conv1d = {f"{key}.weight" for key, module in trained.named_modules() if is_conv1d(module)}
    orders = set()
    for (key, a), (_, b) in zip(trained.named_parameters(), control.named_parameters(), strict=True):
        before, after = ((x.detach().T if key in conv1d else x.detach()) for x in (a, b))
        same = (before[..., :, None] == after[..., None, :]).reshape(-1, before.shape[-1], before.shape[-1]).all(dim=0)
        order = same.int().argmax(dim=0)
        assert torch.equal(before[..., order], after), key
        assert sorted(order.tolist()) == list(range(len(order))), key
        assert order.tolist() != list(range(len(order))), key
        orders.add(tuple(order.tolist()))
    assert len(orders) == len(list(trained.parameters()))


@pytest.mark.parametrize("name", MODELS)
def test_folding_the_normalisations_leaves_the_function_unchanged(name):
    model = planted(name)
    ids = torch.randint(0, VOCAB, (4, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(ids).logits
        family = weight_controls.FAMILIES[model.config.model_type]
        constant = weight_controls._fold_norms(model, family, set())
        after = model(ids).logits
    assert (before - after).abs().max() < 1e-4 * before.abs().max()
    for block in blocks(model):
        for _, norm, _ in MATRICES[model.config.model_type]:
            if norm is not None:
                assert torch.equal(block.get_submodule(norm).weight, torch.ones(WIDTH))
                assert id(block.get_submodule(norm).weight) in constant


def test_a_folded_bias_ends_in_the_bias_of_the_reader():
    trained = planted("gpt2")
    control = copy.deepcopy(trained)
    weight_controls.apply(control, "permuted_columns")
    for before, after in zip(blocks(trained), blocks(control), strict=True):
        expected = before.attn.c_attn.bias + oriented(before.attn.c_attn).float() @ before.ln_1.bias
        assert torch.allclose(after.attn.c_attn.bias.sort().values, expected.sort().values, atol=1e-5)
        assert torch.equal(after.ln_1.bias, torch.zeros(WIDTH))
        assert not torch.allclose(after.attn.c_attn.bias, expected, atol=1e-2)


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung not in ("init", "gaussian")])
def test_vectors_are_permuted_and_untouched_norms_stay(rung):
    trained = planted("gpt_neox")
    control = copy.deepcopy(trained)
    weight_controls.apply(control, rung, norms="untouched")
    for before, after in zip(blocks(trained), blocks(control), strict=True):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            for a, b in zip(
                before.get_submodule(norm).parameters(), after.get_submodule(norm).parameters(), strict=True
            ):
                assert torch.equal(a, b)
        a, b = before.mlp.dense_4h_to_h.bias, after.mlp.dense_4h_to_h.bias
        assert torch.equal(a.sort().values, b.sort().values)
        assert not torch.equal(a, b)


def test_a_norm_bias_without_a_place_to_go_is_not_folded():
    model = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            intermediate_size=WIDTH,
            attention_bias=False,
        )
    )
    with torch.no_grad():
        norm = model.gpt_neox.layers[0].input_layernorm
        norm.weight.copy_(torch.arange(WIDTH) / WIDTH)
        norm.bias.copy_(torch.arange(WIDTH) + 1.0)
    weight_controls.apply(model, "permuted_entries")
    assert torch.equal(norm.weight.sort().values, torch.arange(WIDTH) / WIDTH)
    assert torch.equal(norm.bias.sort().values, torch.arange(WIDTH) + 1.0)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("name", ["gpt_neox", "llama", "gpt2"])
def test_alignment_between_layers_is_destroyed(name, rung):
    """A matrix of block 1 is made to read exactly what a matrix of block 0 writes; no rung leaves that."""
    reader, writer = {
        "gpt_neox": ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        "llama": ("mlp.up_proj", "mlp.down_proj"),
        "gpt2": ("mlp.c_fc", "mlp.c_proj"),
    }[name]
    model = planted(name)
    first, second = (block.get_submodule(part) for block, part in zip(blocks(model), (writer, reader), strict=True))
    with torch.no_grad():
        target = oriented(first).T.float()
        second.weight.copy_(target.T if is_conv1d(second) else target)

    def alignment():
        read, written = oriented(second), oriented(first)
        return float((read @ written).norm() / (read.norm() * written.norm()))

    assert alignment() > 0.4
    weight_controls.apply(model, rung, norms="untouched", seed=1)
    assert alignment() < 0.32


@pytest.mark.parametrize("name", MODELS)
def test_init_is_the_architectures_own_initialisation(name):
    model = planted(name)
    state = torch.get_rng_state()
    weight_controls.apply(model, "init", embeddings="randomised", seed=2)
    assert torch.equal(state, torch.get_rng_state())
    std = model.config.initializer_range
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1:
            assert torch.equal(parameter, torch.full_like(parameter, float(key.endswith("weight")))), key
            continue
        # GPT-2 shrinks what writes into the residual stream by the root of the number of writers.
        expected = std / math.sqrt(2 * 2) if name == "gpt2" and "c_proj" in key else std
        assert abs(float(parameter.detach().std()) / expected - 1) < 5 / math.sqrt(2 * parameter.numel()), key
        assert abs(float(parameter.detach().mean())) < 5 * std / math.sqrt(parameter.numel()), key


def test_init_also_replaces_weights_that_were_loaded_from_a_file(tmp_path):
    planted("gpt2").save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    before = loaded.transformer.h[1].mlp.c_fc.weight.clone()
    weight_controls.apply(loaded, "init")
    assert abs(loaded.transformer.h[1].mlp.c_fc.weight.std() / loaded.config.initializer_range - 1) < 0.1
    assert not torch.equal(before, loaded.transformer.h[1].mlp.c_fc.weight)


@pytest.mark.parametrize("rung", RUNGS)
def test_half_precision_models_stay_in_half_precision(rung):
    model = planted("llama").to(torch.bfloat16)
    weight_controls.apply(model, rung, embeddings="randomised")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("rung", RUNGS)
def test_a_real_model_keeps_its_singular_values(rung):
    directory = SHARED_MODELS / "stories260k"
    if not directory.is_dir():
        pytest.skip("../shared/models/stories260k is not on this machine")
    trained = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    control = copy.deepcopy(trained)
    weight_controls.apply(control, rung, embeddings="randomised")
    head_dim = trained.config.head_dim
    keeps = "singular_values" in PRESERVES[rung]
    for before, after in zip(trained.model.layers, control.model.layers, strict=True):
        for name, norm, is_split in _LLAMA_MATRICES:
            gain = 1.0 if norm is None else before.get_submodule(norm).weight.detach().double()
            a, b = oriented(before.get_submodule(name)) * gain, oriented(after.get_submodule(name))
            gap = distance("singular_values", a, b, head_dim if is_split else len(a))
            assert (gap < 1e-5) == keeps, (name, gap)
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        assert bool(control(ids).logits.isfinite().all())
        assert not torch.allclose(control(ids).logits, trained(ids).logits, atol=0.1)


@settings(deadline=None, max_examples=40)
@given(
    out_features=st.integers(1, 12),
    in_features=st.integers(1, 12),
    rank=st.integers(0, 12),
    seed=st.integers(0, 2**31),
    keep=st.sampled_from(["neither", "left", "right"]),
)
def test_respectrum_keeps_singular_values_of_any_shape_and_rank(out_features, in_features, rank, seed, keep):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(out_features, rank, generator=generator, dtype=torch.float64)
    matrix = left @ torch.randn(rank, in_features, generator=generator, dtype=torch.float64)
    drawn = weight_controls.respectrum(matrix, generator, keep=keep)
    assert drawn.shape == matrix.shape
    scale = 1e-9 * (1 + float(matrix.norm()))
    assert torch.allclose(torch.linalg.svdvals(drawn), torch.linalg.svdvals(matrix), atol=scale)
    if keep == "left":
        assert torch.allclose(drawn @ drawn.T, matrix @ matrix.T, atol=scale * (1 + float(matrix.norm())))
    if keep == "right":
        assert torch.allclose(drawn.T @ drawn, matrix.T @ matrix, atol=scale * (1 + float(matrix.norm())))


def test_haar_frames_are_orthonormal_and_uniform():
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([weight_controls.haar_frame(2, 2, generator) for _ in range(4000)])
    assert torch.allclose(draws.transpose(1, 2) @ draws, torch.eye(2, dtype=torch.float64), atol=1e-12)
    # Under Haar measure on O(2) the first column is a uniform angle, the determinant a fair coin, the trace
    # mean 0.
    angle = torch.atan2(draws[:, 1, 0], draws[:, 0, 0])
    for low in (-math.pi, -math.pi / 2, 0.0, math.pi / 2):
        share = float(((angle >= low) & (angle < low + math.pi / 2)).double().mean())
        assert abs(share - 0.25) < 0.035
    assert abs(float((torch.linalg.det(draws) > 0).double().mean()) - 0.5) < 0.04
    assert abs(float(draws.diagonal(dim1=1, dim2=2).sum(1).mean())) < 0.08


def test_tensor_seeds_depend_on_rung_seed_and_name_alone():
    seeds = {
        weight_controls.tensor_seed(rung, seed, name)
        for rung in RUNGS
        for seed in range(5)
        for name in ("a.weight", "a.bias", "b.weight")
    }
    assert len(seeds) == len(RUNGS) * 5 * 3
    assert all(0 <= seed < 2**63 for seed in seeds)
    # Written down once: a change would silently redraw every published control.
    assert weight_controls.tensor_seed("spectrum", 0, "lm_head.weight") == 2368943542411589973


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rung": "spectrum_lef"}, "did you mean 'spectrum_left'"),
        ({"rung": "step0"}, "a revision"),
        ({"rung": "init", "embeddings": "keep"}, "did you mean 'kept'"),
        ({"rung": "init", "norms": "fold"}, "did you mean 'folded'"),
    ],
)
def test_a_wrong_name_is_one_clear_line(arguments, message):
    with pytest.raises(UserError, match=message):
        weight_controls.apply(planted("llama"), **arguments)


def test_an_unknown_architecture_is_refused_by_name():
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=VOCAB,
            hidden_size=WIDTH,
            word_embed_proj_dim=WIDTH,
            num_hidden_layers=1,
            num_attention_heads=HEADS,
            ffn_dim=WIDTH,
            max_position_embeddings=16,
        )
    )
    with pytest.raises(UserError, match="'opt'"):
        weight_controls.apply(model, "spectrum")


def test_a_wrapped_model_is_refused():
    model = torch.nn.Module()
    model._original_component = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="before TransformerBridge"):
        weight_controls.apply(model, "gaussian")


def cloud(rng, n_texts=200, d=16, dimensions=16, scale=1.0):
    return scale * rng.standard_normal((n_texts, dimensions)) @ np.eye(dimensions, d) + 0.5


def test_participation_ratio_counts_directions():
    rng = np.random.default_rng(0)
    many = 20000
    stream = [cloud(rng, many, dimensions=k) for k in (1, 4, 16)]
    measured = control_health.activation_statistics(stream)
    assert np.allclose(measured.participation_ratio, [1, 4, 16], rtol=0.02)
    same = control_health.activation_statistics([np.tile(rng.standard_normal(16), (50, 1))])
    assert same.participation_ratio == [0.0]
    # More directions than texts: the other Gram matrix, the same number.
    wide = rng.standard_normal((20, 64))
    covariance = np.cov(wide.T, bias=True)
    expected = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    assert np.allclose(control_health.activation_statistics([wide]).participation_ratio, expected)


def test_block_ratio_and_norm_are_means_over_texts():
    base = np.array([[3.0, 4.0], [0.0, 1.0]])
    measured = control_health.activation_statistics([base, 2 * base, 2 * base])
    assert np.allclose(measured.residual_norm, [3, 6, 6])
    assert np.isnan(measured.block_ratio[0])
    assert np.allclose(measured.block_ratio[1:], [1, 0])


def test_health_marks_a_layer_that_lost_its_variation_or_its_blocks_and_only_that():
    rng = np.random.default_rng(0)
    shared_token = np.tile(rng.standard_normal(16), (200, 1))
    trained = [shared_token, cloud(rng), cloud(rng), cloud(rng)]
    healthy = [shared_token, *(50 * cloud(rng) for _ in range(3))]
    line = rng.standard_normal((200, 1)) * np.ones(16)
    flat = [shared_token, cloud(rng), line, cloud(rng)]
    nearly_constant = 100 * shared_token
    idle = [nearly_constant, *(nearly_constant + step * cloud(rng) for step in (1e-2, 2e-2, 3e-2))]
    lazy_once = [shared_token, healthy[1], healthy[1] + cloud(rng, scale=0.5), healthy[3]]
    statistics = control_health.activation_statistics
    reference = statistics(trained)

    def collapsed(stream):
        return control_health.health(reference, statistics(stream))["collapsed"].tolist()

    assert collapsed(trained) == [False] * 4
    assert collapsed(healthy) == [False] * 4
    assert collapsed(flat) == [False, False, True, False]
    assert collapsed(idle) == [False, True, True, True]
    assert collapsed(lazy_once) == [False] * 4
    # A first block that writes a thousand times its tiny embedding is no measure for a control.
    loud = statistics([1e-3 * shared_token, *trained[1:]])
    assert not control_health.health(loud, statistics(healthy))["collapsed"].any()
    with np.errstate(invalid="ignore"):
        broken = [shared_token, cloud(rng), np.full((200, 16), np.inf), cloud(rng)]
        assert collapsed(broken)[2]
    frame = control_health.health(reference, statistics(healthy))
    assert np.allclose(frame["residual_norm"][1:] / frame["trained_residual_norm"][1:], 50, rtol=0.1)
    with pytest.raises(ValueError, match="4 trained layers but 2"):
        control_health.health(reference, statistics(flat[:2]))
