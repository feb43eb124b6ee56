"""Replacements against plain passes with the residual stream written by hand, on three architectures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from counterprobe import activations, dictionaries, dictionary_training, replacement, statements, streaming_ica
from counterprobe.progress import UserError
from counterprobe.replacement import Batch, Continuation, Replacing, Surroundings

RESOURCES = Path(__file__).parents[2] / "workflow" / "resources"


def neox():
    config = transformers.GPTNeoXConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5},
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=3, n_head=2, n_positions=16)
    )


def llama():
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


@pytest.fixture(scope="module", params=[neox, gpt2, llama])
def model(request):
    torch.manual_seed(0)
    made = request.param().eval().requires_grad_(False)
    for parameter in made.parameters():
        # Logits that differ from token to token.
        parameter.mul_(4 if parameter.ndim > 1 else 1)
    return made


@pytest.fixture
def ids():
    return torch.randint(50, (3, 7), generator=torch.Generator().manual_seed(1))


def by_hand(model, ids, layer, residual, start=0):
    """All blocks run; at the layer the stream is overwritten from token `start` on."""
    blocks = activations.decoder_blocks(model)

    def overwrite(hidden):
        changed = hidden.clone()
        changed[:, start:] = residual
        return changed

    def before(block, arguments, keywords):
        if arguments:
            return (overwrite(arguments[0]), *arguments[1:]), keywords
        return arguments, {**keywords, "hidden_states": overwrite(keywords["hidden_states"])}

    handle = (
        blocks[0].register_forward_pre_hook(before, with_kwargs=True)
        if layer == 0
        else blocks[layer - 1].register_forward_hook(lambda block, arguments, output: overwrite(output))
    )
    try:
        return model(ids).logits[:, start:]
    finally:
        handle.remove()


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("start", [0, 4])
def test_a_replacement_is_what_a_plain_pass_says(model, ids, layer, start):
    run = Continuation(model, ids, layer, start)
    moved = run.residual + torch.randn(run.residual.shape, generator=torch.Generator().manual_seed(2))
    twice = run.logits(torch.cat([run.residual, moved]))
    torch.testing.assert_close(twice[:3], model(ids).logits[:, start:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(twice[3:], by_hand(model, ids, layer, moved, start), rtol=1e-4, atol=1e-4)
    # The blocks are themselves again.
    assert not any("forward" in vars(block) for block in activations.decoder_blocks(model))
    assert torch.equal(Continuation(model, ids, layer, start).residual, run.residual)


def test_nothing_replaced_is_exactly_nothing_said(model, ids):
    texts = [Batch(ids, np.arange(3)), Batch(ids[:2, :5], np.array([3, 4]))]
    for layer in range(4):
        for first in (0, 1):
            whole = Replacing(model, texts, layer, first=first)
            said = whole.said(whole.tokens.x)
            assert len(said.kl) == 3 * (7 - first) + 2 * (5 - first)
            assert (said.kl == 0).all()
            assert (said.loss[np.isfinite(said.loss)] == 0).all()
            assert np.isnan(said.loss).sum() == 5


def test_the_first_token_stays_where_it_is_not_replaced(model, ids):
    whole = Replacing(model, [Batch(ids, np.arange(3))], 1, first=1)
    zeroed = next(whole.logits(torch.zeros_like(whole.tokens.x)))
    wanted = torch.zeros(3, 6, 16)
    torch.testing.assert_close(zeroed[:, 1:], by_hand(model, ids, 1, wanted, 1), rtol=1e-4, atol=1e-4)
    assert whole.tokens.places.tolist() == 3 * [1, 2, 3, 4, 5, 6]
    assert whole.tokens.ids.tolist() == ids[:, 1:].reshape(-1).tolist()


def test_a_layer_that_is_not_there_is_named(model, ids):
    with pytest.raises(UserError, match="no layer 4; layers are 0 to 3"):
        Continuation(model, ids, 4)


@given(st.integers(0, 2**31), st.floats(0.1, 30))
def test_kl_is_that_of_a_direct_computation(seed, spread):
    rng = np.random.default_rng(seed)
    p, q = spread * rng.standard_normal((2, 4, 30))
    found = replacement.kl(torch.from_numpy(p), torch.from_numpy(q)).numpy()
    for row in range(4):
        a, b = (np.exp(v[row] - v[row].max()) for v in (p, q))
        a, b = a / a.sum(), b / b.sum()
        direct = sum(x * (np.log(x) - np.log(y)) for x, y in zip(a, b, strict=True) if x > 0)
        assert found[row] == pytest.approx(direct, abs=1e-9, rel=1e-9)
    assert (replacement.kl(torch.from_numpy(p), torch.from_numpy(p)) == 0).all()


def test_the_loss_is_the_next_tokens(model, ids):
    clean, moved = (torch.randn(3, 7, 50, generator=torch.Generator().manual_seed(s)) for s in (3, 4))
    said = replacement.said(clean, moved, ids, 0)
    wanted = [
        torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, 50).double(), ids[:, 1:].reshape(-1), reduction="none")
        for logits in (clean, moved)
    ]  # fmt: skip
    np.testing.assert_allclose(said.loss.reshape(3, 7)[:, :-1].reshape(-1), wanted[1] - wanted[0], atol=1e-9)


@pytest.fixture(scope="module")
def replaced():
    """x [400, 12] of unequal variances, a dictionary of it, and what random replacements are drawn from."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 12, generator=draw) * torch.logspace(0, -2, 12) + torch.randn(12, generator=draw)
    places = np.arange(400) % 4
    tokens = replacement.Tokens(x, np.arange(400) % 7, np.arange(400) // 4, places)
    around = replacement.surroundings(tokens, streaming_ica.moments(streaming_ica.chunked(x)))
    recipe = dictionary_training.Recipe(24, 3, 0)
    made = dictionary_training.train(x, [recipe], dictionary_training.Schedule(60, 100), seed=0).dictionaries[0]
    scales = replacement.fitted_scales(made, x)
    kinds = dict(replacement.replacements(x, made, around, scales, torch.Generator().manual_seed(1)))
    return x, made, around, kinds


def test_replacements_are_as_far_as_they_should_be(replaced):
    x, made, _, kinds = replaced
    assert list(kinds) == list(replacement.KINDS)
    error = (kinds["reconstruction"] - x).norm(dim=1)
    for kind in ("isotropic", "covariance", "mixture"):
        torch.testing.assert_close((kinds[kind] - x).norm(dim=1), error, rtol=1e-4, atol=1e-5)
    for kind in ("norm_corrected", "theta"):
        torch.testing.assert_close(kinds[kind].norm(dim=1), x.norm(dim=1), rtol=1e-4, atol=1e-5)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(cosine(kinds["theta"], x), cosine(kinds["reconstruction"], x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cosine(kinds["norm_only"], x), torch.ones(400), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(kinds["norm_only"].norm(dim=1), made.reconstruct(x).norm(dim=1), rtol=1e-4, atol=1e-5)
    assert (kinds["zero"] == 0).all()


def test_random_errors_lie_where_their_name_says(replaced):
    x, _, around, kinds = replaced
    shares = {kind: (kinds[kind] - x).square().mean(0) for kind in ("isotropic", "covariance")}
    spread = x.var(0)
    # Isotropic errors know nothing of the variances; covariance-matched ones follow them.
    assert np.corrcoef(shares["covariance"], spread)[0, 1] > 0.9
    assert float(shares["isotropic"].max() / shares["isotropic"].min()) < 3
    assert float(shares["covariance"].max() / shares["covariance"].min()) > 100
    torch.testing.assert_close(around.factor @ around.factor, torch.cov(x.T, correction=0), rtol=1e-3, atol=1e-5)


def test_fitted_scales_are_least_squares(replaced):
    x, made, _, kinds = replaced
    codes = made.encode(x).double()
    columns = (codes[:, :, None] * made.decoder.double()).permute(0, 2, 1).reshape(-1, made.size)
    wanted, *_ = np.linalg.lstsq(columns.numpy(), (x - made.decoder_bias).double().reshape(-1).numpy(), rcond=None)
    best = columns.numpy() @ wanted + np.tile(made.decoder_bias.double().numpy(), 400)
    ours = float((kinds["fitted_scales"] - x).square().sum())
    assert ours == pytest.approx(float(((best.reshape(400, 12) - x.numpy()) ** 2).sum()), rel=1e-3)
    assert ours < float((kinds["reconstruction"] - x).square().sum())


def test_restored_positions_have_no_error_left_in_their_span(replaced):
    x, _, around, kinds = replaced
    assert float(((kinds["places_restored"] - x) @ around.places.T).abs().max()) < 1e-5
    assert float(((kinds["reconstruction"] - x) @ around.places.T).abs().max()) > 1e-3


def test_zero_activations_are_no_division_by_zero():
    mean = torch.zeros(4)
    around = Surroundings(mean, torch.eye(4), torch.eye(4)[:1])
    made = dictionaries.random_decoder(mean, 8, 2, seed=0)
    for _, value in replacement.replacements(
        torch.zeros(3, 4), made, around, torch.ones(8), torch.Generator().manual_seed(0)
    ):
        assert bool(torch.isfinite(value).all())


def test_texts_are_batched_by_length_and_random_tokens_keep_it():
    from counterprobe import tokenization

    texts = ["a b c", "b c", "c a b", "a b"]
    tokenizer = tokenization.word_level_tokenizer(["a", "b", "c"])
    found = replacement.batches(tokenizer, texts, bos=True, context=8, token_budget=8)
    assert [(batch.ids.shape[1], batch.texts.tolist()) for batch in found] == [(3, [1, 3]), (4, [0, 2])]
    shuffled = replacement.batches(
        tokenizer, texts * 50, bos=True, context=8, token_budget=800, shuffle=np.random.default_rng(0)
    )
    plain = replacement.batches(tokenizer, texts * 50, bos=True, context=8, token_budget=800)
    for random, batch in zip(shuffled, plain, strict=True):
        assert random.ids.shape == batch.ids.shape
        assert torch.equal(random.ids[:, 0], batch.ids[:, 0])
        assert set(random.ids[:, 1:].unique().tolist()) == set(batch.ids[:, 1:].unique().tolist())
        assert not torch.equal(random.ids, batch.ids)


def test_whole_couples_are_held_out():
    corpus = {"topics": {"cities": 8, "animals": 8}, "carriers": 8, "answer": "none"}
    design = statements.factorial("f", {"blocks": 4}, statements.world(corpus, RESOURCES))
    scored = replacement.split_texts(design, 0.25, 0)
    assert set(design.couples[scored]).isdisjoint(design.couples[~scored])
    assert set(design.strata[scored]) == set(design.strata)
    assert 0.1 < scored.mean() < 0.4
