"""Training, saving, loading and reading out the embedded model, against transformers' own loss and logits."""

import errno
import itertools
import json
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from counterprobe import language_model, tokenization
from counterprobe.language_model import Architecture, Batch, Training
from counterprobe.progress import UserError

SHARED_MODELS = Path(__file__).parents[2] / "../shared/models"
COLOURS = {"grass": "green", "snow": "white", "coal": "black", "blood": "red"}
TINY = Architecture(layers=2, width=32, heads=4, context=16)
QUICK = Training(steps=60, batch=16, learning_rate=1e-2, warmup=5)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenization.word_level_tokenizer(["The", "is", ".", "not", *COLOURS, *COLOURS.values()])


def colour_lines(seed=0):
    """Lines that need their third word to predict the last: "The grass is green." """
    rng = np.random.default_rng(seed)
    return lambda n: [f"The {noun} is {COLOURS[noun]}." for noun in rng.choice(list(COLOURS), n)]


def colour_batches(tokenizer, seed=0, batch=16):
    return language_model.batches(colour_lines(seed), tokenizer, batch=batch, context=16, seed=seed)


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    out_dir = tmp_path_factory.mktemp("trained")
    losses = language_model.train(colour_batches(tokenizer), tokenizer, TINY, QUICK, (0, 1, 60), out_dir)
    return out_dir, losses


def test_the_architecture_is_pythias():
    model = language_model.build(Architecture(), vocab_size=400, seed=0)
    config = model.config
    assert config.model_type == "gpt_neox"
    assert config.use_parallel_residual
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert not config.tie_word_embeddings
    assert model.gpt_neox.embed_in.weight.data_ptr() != model.lm_head.weight.data_ptr()
    # 12 d² weights, 9 d biases and 4 d of two normalisations a block; two tables; the last normalisation.
    assert model.num_parameters() == 4 * (12 * 128**2 + 13 * 128) + 2 * 400 * 128 + 2 * 128


def test_initial_weights_depend_on_the_seed_alone_and_leave_the_global_generator():
    torch.manual_seed(11)
    state = torch.get_rng_state()
    one = language_model.build(TINY, 20, seed=3).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(12)
    two, other = (language_model.build(TINY, 20, seed=seed).state_dict() for seed in (3, 4))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])


@pytest.mark.parametrize("width", [30, 16])
def test_a_width_that_heads_cannot_share_is_refused(width):
    with pytest.raises(UserError, match=f"width {width} over 4 heads"):
        language_model.build(Architecture(width=width, heads=4), 20, seed=0)


def test_half_of_every_batch_begins_with_bos(tokenizer):
    seen = []
    for batch in itertools.islice(colour_batches(tokenizer, batch=10), 5):
        first = batch.ids[:, 0] == tokenizer.token_to_id("[BOS]")
        assert int(first.sum()) == 5
        seen.append(tuple(first.tolist()))
        lengths = batch.mask.sum(dim=1)
        assert torch.equal(lengths, 5 + first.long())
        assert bool((batch.ids[~batch.mask] == tokenizer.token_to_id("[PAD]")).all())
        assert bool((batch.ids[batch.mask] != tokenizer.token_to_id("[PAD]")).all())
        assert bool((batch.mask[:, 1:] <= batch.mask[:, :-1]).all())
        texts = [tokenizer.decode(row[keep].tolist()) for row, keep in zip(batch.ids, batch.mask, strict=True)]
        assert all(text.split()[-2] == COLOURS[text.split()[1]] for text in texts)
    assert len(set(seen)) > 1


def test_batches_repeat_for_a_seed(tokenizer):
    runs = [list(itertools.islice(colour_batches(tokenizer, seed), 3)) for seed in (1, 1, 2)]
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(
        a.ids.shape == b.ids.shape and torch.equal(a.ids, b.ids) for a, b in zip(runs[0], runs[2], strict=True)
    )


@pytest.mark.parametrize(("line", "message"), [("The sky is green.", "sky"), ("The grass " * 8, "16 tokens")])
def test_a_line_the_model_cannot_read_is_refused(tokenizer, line, message):
    with pytest.raises(UserError, match=message):
        next(language_model.batches(lambda n: [line] * n, tokenizer, batch=2, context=16, seed=0))


def test_the_loss_is_transformers_loss(tokenizer):
    lines = [
        "The grass is not green.",
        "The snow is white.",
        "The coal is not not black.",
        "The blood is red.",
    ]
    batch = next(language_model.batches(lambda n: lines, tokenizer, batch=4, context=16, seed=0))
    model = language_model.build(TINY, tokenizer.get_vocab_size(), seed=0)
    labels = batch.ids.masked_fill(~batch.mask, -100)
    reference = model(batch.ids, attention_mask=batch.mask.long(), labels=labels).loss
    loss = language_model.next_token_loss(model, batch)
    assert abs(loss.item() - reference.item()) < 1e-5
    # A padded token is neither predicted nor read.
    changed = Batch(batch.ids.masked_fill(~batch.mask, 5), batch.mask)
    assert abs(language_model.next_token_loss(model, changed).item() - loss.item()) < 1e-6


def test_the_learning_rate_rises_once_stays_and_falls_to_its_final_share():
    recipe = Training(steps=100, learning_rate=1.0, warmup=10, plateau=0.6, final_share=0.1)
    rates = np.array([language_model.learning_rate(recipe, step) for step in range(100)])
    assert np.isclose(rates[0], 0.1)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(rates[10:61] == 1.0)
    assert np.all(np.diff(rates[60:]) < 0)
    assert np.isclose(rates[-1], 0.1)
    assert np.isclose(rates[60:].mean(), 0.55, atol=0.01)


def test_training_learns_a_mapping_and_writes_revisions_in_hub_layout(trained, tokenizer):
    out_dir, losses = trained
    assert losses.shape == (60,)
    assert losses[0] > 2
    assert losses[-1] < 0.7
    assert sorted(path.name for path in out_dir.iterdir()) == ["step0", "step1", "step60"]
    for revision in out_dir.iterdir():
        assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {
            path.name for path in revision.iterdir()
        }
        assert {stat.S_IMODE(path.stat().st_mode) for path in revision.iterdir()} == {0o644}
        assert stat.S_IMODE(revision.stat().st_mode) == 0o755
        assert AutoTokenizer.from_pretrained(revision)("The grass").input_ids == tokenizer.encode("The grass").ids
    prefixes = [f"The {noun} is" for noun in COLOURS]
    wrong = ["white", "black", "red", "green"]
    for bos in (False, True):
        early, late = (
            language_model.answers(
                language_model.load(out_dir / name),
                tokenizer,
                prefixes,
                list(COLOURS.values()),
                wrong,
                bos=bos,
            )
            for name in ("step0", "step60")
        )
        assert np.abs(early).max() < 1
        assert late.min() > 2


def test_step0_is_the_model_before_the_first_update(trained, tokenizer):
    out_dir, _ = trained
    fresh = language_model.build(TINY, tokenizer.get_vocab_size(), QUICK.seed).state_dict()
    for step, is_equal in ((0, True), (1, False)):
        saved = language_model.load(out_dir / f"step{step}").state_dict()
        assert torch.equal(saved["lm_head.weight"], fresh["lm_head.weight"]) == is_equal


def test_equal_runs_give_equal_bytes(trained, tokenizer, tmp_path):
    out_dir, losses = trained
    torch.manual_seed(99)
    again = language_model.train(colour_batches(tokenizer), tokenizer, TINY, QUICK, (0, 1, 60), tmp_path)
    assert np.array_equal(losses, again)
    for path in sorted(out_dir.rglob("*.*")):
        assert path.read_bytes() == (tmp_path / path.relative_to(out_dir)).read_bytes(), path
    other = language_model.train(
        colour_batches(tokenizer),
        tokenizer,
        TINY,
        Training(steps=2, batch=16, seed=1),
        (2,),
        tmp_path / "other",
    )
    assert not np.array_equal(other, losses[:2])


def test_a_run_that_was_killed_leaves_nothing_that_looks_finished(tokenizer, tmp_path):
    (tmp_path / ".unfinished-abc").mkdir()
    (tmp_path / "step1").mkdir()
    (tmp_path / "step1" / "model.safetensors").write_text("half")
    language_model.train(colour_batches(tokenizer), tokenizer, TINY, Training(steps=1, batch=16), (1,), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step1"]
    language_model.load(tmp_path / "step1")


def test_a_full_disk_is_one_clear_line_and_keeps_what_was_finished(tokenizer, tmp_path, monkeypatch):
    save = tokenization.save_tokenizer
    saves = []

    def full_at_the_second(written, directory):
        saves.append(directory)
        if len(saves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(written, directory)

    monkeypatch.setattr(tokenization, "save_tokenizer", full_at_the_second)
    with pytest.raises(UserError, match="step1: no disk space"):
        language_model.train(colour_batches(tokenizer), tokenizer, TINY, QUICK, (0, 1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step0"]


def test_a_diverged_run_names_the_learning_rate(tokenizer, tmp_path):
    recipe = Training(steps=30, batch=16, learning_rate=1e30, warmup=1)
    with pytest.raises(UserError, match=r"diverged.*learning_rate \(now 1e\+30\)"):
        language_model.train(colour_batches(tokenizer), tokenizer, TINY, recipe, (30,), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_revision_after_the_end_is_refused_before_training(tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"step61.*to step 60"):
        language_model.train(iter(()), tokenizer, TINY, QUICK, (0, 61), tmp_path)


def test_a_loaded_model_is_for_reading_only(trained):
    out_dir, _ = trained
    model = language_model.load(out_dir / "step60", attention="eager")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.dtype == torch.float32
    assert model.config._attn_implementation == "eager"
    assert language_model.load(out_dir / "step60", dtype="bfloat16").dtype == torch.bfloat16


def copy_revision(source, target, change=None):
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    if change:
        change(target)
    return target


def without_config(folder):
    (folder / "config.json").unlink()


def pickled(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def without_a_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.embed_in.weight"] = tensors["gpt_neox.embed_in.weight"][:-1]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def truncated(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def not_a_language_model(folder):
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "vit"
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_config, "no config.json"),
        (pickled, "no \\*.safetensors"),
        (without_a_tensor, "1 tensor.*dense_4h_to_h"),
        (with_another_shape, "embed_in"),
        (truncated, "not loadable"),
        (not_a_language_model, "not loadable as a causal language model"),
    ],
)
def test_a_broken_folder_is_one_clear_line(trained, tmp_path, change, message):
    folder = copy_revision(trained[0] / "step1", tmp_path / "broken", change)
    with pytest.raises(UserError, match=message) as raised:
        language_model.load(folder)
    assert "\n" not in str(raised.value)


def test_an_unknown_dtype_is_refused(trained):
    with pytest.raises(UserError, match="unknown dtype 'int8'"):
        language_model.load(trained[0] / "step1", dtype="int8")


@pytest.mark.parametrize("bos", [False, True])
def test_answers_are_differences_of_log_probabilities(trained, tokenizer, bos):
    model = language_model.load(trained[0] / "step60")
    prefixes = ["The grass is", "The snow is not", "The coal is not not", "The blood is", "The"]
    positive, negative = ["green", "white", ".", "not", "snow"], ["red", "green", "black", " green", "coal"]
    expected = []
    for prefix, right, wrong in zip(prefixes, positive, negative, strict=True):
        ids = [1] * bos + tokenizer.encode(prefix).ids
        logp = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        expected.append(float(logp[tokenizer.token_to_id(right)] - logp[tokenizer.token_to_id(wrong.strip())]))
    for budget in (1, 8, 10_000):
        got = language_model.answers(model, tokenizer, prefixes, positive, negative, bos=bos, batch_tokens=budget)
        assert got.dtype == np.float64
        assert np.allclose(got, expected, atol=1e-5)


def test_answers_also_read_models_of_another_family(tokenizer):
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=tokenizer.get_vocab_size(), n_embd=16, n_layer=1, n_head=2, n_positions=8)
    ).eval()
    got = language_model.answers(model, tokenizer, ["The grass"], ["is"], ["not"], bos=True)
    logits = model(torch.tensor([[1, *tokenizer.encode("The grass").ids]])).logits[0, -1].detach()
    assert np.isclose(got[0], float(logits[tokenizer.token_to_id("is")] - logits[tokenizer.token_to_id("not")]))
    with pytest.raises(UserError, match="at most 8"):
        language_model.answers(model, tokenizer, ["The grass is " * 3], ["is"], ["not"], bos=False)


def test_a_real_tokenizer_splits_candidates_as_the_text_would(tokenizer):
    directory = SHARED_MODELS / "stories260k"
    if not directory.is_dir():
        pytest.skip("../shared/models/stories260k is not on this machine")
    model, real = language_model.load(directory), AutoTokenizer.from_pretrained(directory)
    prefixes = ["Once upon a", "Lily and her"]
    got = language_model.answers(model, real, prefixes, ["time", "mom"], ["mom", "time"], bos=True)
    assert got[0] > 2
    expected = []
    for prefix, right, wrong in zip(prefixes, ["time", "mom"], ["mom", "time"], strict=True):
        ids = [[1, *real.encode(f"{prefix} {word}", add_special_tokens=False)] for word in (right, wrong)]
        assert ids[0][:-1] == ids[1][:-1]
        logits = model(torch.tensor([ids[0][:-1]])).logits[0, -1]
        expected.append(float(logits[ids[0][-1]] - logits[ids[1][-1]]))
    assert np.allclose(got, expected, atol=1e-4)
    with pytest.raises(UserError, match="'denied' after 'Once upon a' is not one token"):
        language_model.answers(model, real, ["Once upon a"], ["denied"], ["time"], bos=True)


def test_logits_that_overflow_are_an_error(trained, tokenizer):
    model = language_model.load(trained[0] / "step1")
    model.lm_head.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="not finite"):
        language_model.answers(model, tokenizer, ["The grass is"], ["green"], ["red"], bos=False)
