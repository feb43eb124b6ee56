"""Residual streams against Hugging Face's own hidden states, one text at a time and without padding."""

import errno
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from counterprobe import activations, manifest, tokenization
from counterprobe.designs import Design
from counterprobe.progress import UserError

SHARED = Path(__file__).parents[2] / ".." / "shared"
TEXTS = (
    "Alice: The city of Paris is not in the country Italy. banana",
    "Bob: The city of Paris is in the country France. shed",
    "Bob: Rome is in Italy. shed",
    "Alice: The big old city of Rome is not in the old country France. banana banana",
    "Rome. shed",
)
SPEC = {
    "positions": ["period", "before_period", "last"],
    "bos": [False, True],
    "dtype": "float32",
    "token_budget": 30,
}
WIDTH, LAYERS, VOCABULARY = 32, 2, 40
FAMILIES = ("gpt_neox", "llama", "mistral", "qwen2", "gpt2")


def design_of(texts, name="tiny"):
    n = len(texts)
    zeros, each = np.zeros(n, dtype=np.int64), np.arange(n)
    period = np.array([text.index(".") for text in texts])
    return Design(
        name=name,
        texts=tuple(texts),
        items=each,
        item_names=tuple(map(str, each)),
        couples=each,
        strata=zeros,
        stratum_names=("all",),
        factors={"a": each % 2 == 0, "b": each % 3 == 0},
        carriers={},
        carrier_counts={},
        blocks=zeros - 1,
        rows=each,
        files=zeros,
        marks={
            "period": period,
            "before_period": period - 1,
            "last": np.array([len(text) - 1 for text in texts]),
        },
        primary=("a", "b"),
        needed=(),
        aliases={},
        readouts={},
    )


def tiny_model(family, seed=0):
    """Two blocks with random weights everywhere: fresh gains of 1 and biases of 0 would hide mistakes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 48,
    }
    if family != "gpt_neox":
        shape["num_key_value_heads"] = 2
    if family == "gpt2":
        shape = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": 4}
    special = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, max_position_embeddings=64, **shape, **special)
    generator = torch.Generator().manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model.eval()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    words = sorted({piece for text in TEXTS for piece in re.findall(r"\w+|[.:]", text)})
    tokenization.save_tokenizer(tokenization.word_level_tokenizer(words), folder)
    return tokenization.load_tokenizer(folder)


@pytest.fixture(scope="module")
def models():
    return {family: tiny_model(family) for family in FAMILIES}


def stored(root, **extra):
    manifest.write(root / "manifest.json", {"files": manifest.describe_files(root), **extra}, {})
    return activations.open_store(root / "manifest.json")


def run(model, tokenizer, design, spec, root, backend="fast", **options):
    activations.extract(model, tokenizer, design, spec, root, backend=backend, **options)
    return stored(root)


def relative(found, expected):
    """Largest error of a row relative to the norm of the row."""
    return (np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)).max()


def assert_equal_stores(found, expected, tolerance=1e-4):
    assert found.files.keys() == expected.files.keys()
    for embeddings, seed, position, bos, layer in found.files:
        key = (embeddings, seed, position, bos, layer)
        assert relative(found._shard(key), expected._shard(key)) < tolerance, key


@pytest.mark.parametrize("family", FAMILIES)
def test_fast_gives_the_hidden_states_of_each_text_run_alone(family, models, tokenizer, tmp_path):
    model, design = models[family], design_of(TEXTS)
    store = run(model, tokenizer, design, SPEC, tmp_path)
    assert (store.n_texts, store.width, store.layers) == (len(TEXTS), WIDTH, (0, 1, 2))
    norm = next(
        module for name, module in model.base_model.named_children() if name in ("final_layer_norm", "norm", "ln_f")
    )
    rows = model.get_input_embeddings().weight.detach().numpy()
    for bos in (False, True):
        encoded = tokenization.encode(tokenizer, TEXTS, design.marks, bos=bos, context=64)
        for text, ids in enumerate(encoded.ids):
            with torch.inference_mode():
                hidden = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
            for position, tokens in encoded.positions.items():
                for layer in (0, 1):
                    found = store.matrix(position, bos, layer)[text]
                    np.testing.assert_allclose(found, hidden[layer][0, tokens[text]], rtol=1e-4, atol=1e-5)
                # The last one Hugging Face returns is after the final norm, ours is before it.
                found = norm(torch.tensor(store.matrix(position, bos, 2)[text]))
                torch.testing.assert_close(found, hidden[2][0, tokens[text]], rtol=1e-4, atol=1e-4)
                mean = rows[list(ids[: tokens[text] + 1])].mean(0)
                np.testing.assert_allclose(store.token_embeddings(position, bos)[text], mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt_neox", "llama", "gpt2"])
def test_the_back_ends_agree_with_padding_on_either_side(family, models, tokenizer, tmp_path):
    model, design = models[family], design_of(TEXTS)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fast = run(model, tokenizer, design, SPEC, tmp_path / "fast")
    for backend, padding in (("fast", "left"), ("bridge", "right"), ("bridge", "left")):
        spec = {**SPEC, "token_budget": 200}  # all texts in one batch, so padding differs from row to row
        other = run(model, tokenizer, design, spec, tmp_path / backend / padding, backend, padding=padding)
        assert_equal_stores(other, fast)
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in weights.items())
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["stories260k", "babyllama-105"])
def test_the_back_ends_agree_on_pretrained_models(name, tmp_path):
    folder = SHARED / "models" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not here")
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    tokenizer = tokenization.load_tokenizer(folder)
    spec = {**SPEC, "token_budget": 400}
    fast = run(model, tokenizer, design_of(TEXTS), spec, tmp_path / "fast")
    assert fast.layers == (0, 1, 2, 3, 4, 5)
    for padding in ("right", "left"):
        bridge = run(model, tokenizer, design_of(TEXTS), spec, tmp_path / padding, "bridge", padding=padding)
        assert_equal_stores(bridge, fast)


def test_dropout_is_off(tokenizer, tmp_path):
    model = tiny_model("gpt2").train()
    first = run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path / "a")
    assert_equal_stores(run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path / "b"), first, tolerance=1e-9)


def test_two_runs_are_equal_to_the_bit_and_leave_no_hook(models, tokenizer, tmp_path):
    model = models["llama"]
    before = hooks(model)
    for folder in ("a", "b"):
        run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path / folder)
    for file in (tmp_path / "a").glob("*.npy"):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
    assert hooks(model) == before


def hooks(model):
    return [(*module._forward_hooks, *module._forward_pre_hooks) for module in model.modules()]


def test_files_have_the_names_that_other_stages_read(models, tokenizer, tmp_path):
    spec = {**SPEC, "positions": ["period"], "bos": [True], "layers": [2, 0]}
    run(models["gpt_neox"], tokenizer, design_of(TEXTS), spec, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "manifest.json",
        "period.bos.layer_00.npy",
        "period.bos.layer_02.npy",
        "period.bos.tokens.npy",
    }
    assert np.load(tmp_path / "period.bos.layer_00.npy").dtype == np.float32


@pytest.mark.parametrize(("layers", "blocks_run"), [([0], 0), ([1], 1), ([0, 1], 1), (None, 2)])
def test_nothing_runs_after_the_last_layer_needed(layers, blocks_run, models, tokenizer, tmp_path):
    model, calls = models["gpt_neox"], []
    watched = [*activations.decoder_blocks(model), model.gpt_neox.final_layer_norm, model.lm_head]
    for place, module in enumerate(watched):
        module.forward = counting(module.forward, calls, place)
    try:
        store = run(model, tokenizer, design_of(TEXTS[:1]), {**SPEC, "bos": [False], "layers": layers}, tmp_path)
    finally:
        for module in watched:
            del module.forward
    assert calls == list(range(blocks_run))
    assert store.layers == tuple(layers or (0, 1, 2))


def counting(forward, calls, place):
    def counted(*arguments, **keywords):
        calls.append(place)
        return forward(*arguments, **keywords)

    return counted


def test_texts_that_are_equal_up_to_the_deepest_read_position_run_once(models, tokenizer, tmp_path):
    model, tokens = models["llama"], []
    texts = [
        "Rome is in Italy. banana",
        "Rome is in Italy. shed shed",
        "Rome is in Italy.",
        "Paris is in Italy.",
    ] * 3
    handle = model.model.layers[0].register_forward_pre_hook(lambda _, arguments: tokens.append(arguments[0].shape[:2]))
    try:
        spec = {**SPEC, "positions": ["before_period", "period"], "bos": [False], "token_budget": 1000}
        store = run(model, tokenizer, design_of(texts), spec, tmp_path)
    finally:
        handle.remove()
    assert tokens == [(2, 5)]
    found = store.matrix("period", False, 2)
    assert (found[[1, 2, 4, 10]] == found[0]).all()
    assert not np.allclose(found[3], found[0])


@given(
    st.lists(
        st.lists(st.integers(0, 2), min_size=1, max_size=6).flatmap(
            lambda ids: st.tuples(st.just(ids), st.lists(st.integers(0, len(ids) - 1), min_size=2, max_size=2))
        ),
        min_size=1,
        max_size=25,
    ),
    st.integers(1, 20),
)
@settings(max_examples=150, deadline=None)
def test_batches_hold_every_text_once_and_keep_to_the_budget(drawn, budget):
    encoded = tokenization.Encoded(
        tuple(tuple(ids) for ids, _ in drawn),
        {name: np.array([read[place] for _, read in drawn]) for place, name in enumerate(("here", "there"))},
    )
    texts, sequences = [], []
    for batch in activations._batches(encoded, budget):
        ids, mask, rows, columns = (tensor.numpy() for tensor in batch.tensors())
        assert ids.size <= budget or len(ids) == 1
        assert mask.sum() == sum(map(len, batch.sequences))
        texts.extend(batch.texts)
        sequences.extend(batch.sequences)
        assert len(set(zip(rows, columns, strict=True))) == len(rows)
        for position, source in zip(encoded.positions, batch.sources, strict=True):
            for text, kept in zip(batch.texts, source, strict=True):
                last = encoded.positions[position][text]
                assert columns[kept] == last
                assert tuple(ids[rows[kept], : last + 1]) == encoded.ids[text][: last + 1]
    assert sorted(texts) == list(range(len(drawn)))
    assert len(set(sequences)) == len(sequences)
    assert [len(ids) for ids in sequences] == sorted((len(ids) for ids in sequences), reverse=True)


def test_weight_units_live_in_folders_of_their_own(tokenizer, tmp_path):
    spec = {**SPEC, "positions": ["period"], "bos": [False]}
    for embeddings in ("kept", "randomised"):
        for seed in (0, 10):
            folder = tmp_path / f"{embeddings}.seed{seed}"
            activations.extract(tiny_model("llama", seed), tokenizer, design_of(TEXTS), spec, folder, backend="fast")
    store = stored(tmp_path)
    assert store.units == (("kept", 0), ("kept", 10), ("randomised", 0), ("randomised", 10))
    one, other = (store.matrix("period", False, 1, embeddings="randomised", seed=seed) for seed in (0, 10))
    assert not np.allclose(one, other)
    assert np.array_equal(store.matrix("period", False, 1, "kept", 10), other)


def test_what_is_not_stored_is_named_with_what_is(models, tokenizer, tmp_path):
    store = run(models["llama"], tokenizer, design_of(TEXTS), {**SPEC, "bos": [False]}, tmp_path)
    with pytest.raises(UserError, match=r"no activations at position 'period', bos True, layer 1.*bos \[False\]"):
        store.matrix("period", True, 1)
    with pytest.raises(UserError, match=r"token embeddings, embeddings kept, seed 3"):
        store.token_embeddings("period", False, seed=3)


def test_matrices_are_read_only_maps(models, tokenizer, tmp_path):
    store = run(models["llama"], tokenizer, design_of(TEXTS), SPEC, tmp_path)
    matrix = store.matrix("last", True, 1)
    assert isinstance(matrix, np.memmap)
    with pytest.raises(ValueError, match=r"read-only"):
        matrix[0, 0] = 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "reshaped"])
def test_a_damaged_shard_is_named(damage, models, tokenizer, tmp_path):
    run(models["gpt_neox"], tokenizer, design_of(TEXTS), SPEC, tmp_path)
    shard = tmp_path / "period.bos.layer_01.npy"
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        shard.write_bytes(content[:-8])
        message = f"{len(content) - 8:,} bytes where the manifest says {len(content):,}"
    elif damage == "flipped":
        content[-3] ^= 1
        shard.write_bytes(content)
        message = "sha256"
    elif damage == "missing":
        shard.unlink()
        message = "missing"
    else:
        np.save(shard, np.zeros((3, 7), dtype=np.float32))
        manifest.write(tmp_path / "manifest.json", {"files": manifest.describe_files(tmp_path)}, {})
        message = r"shape \(3, 7\)"
    with pytest.raises(UserError, match=rf"period\.bos\.layer_01\.npy: .*{message}.*delete the folder"):
        activations.open_store(tmp_path / "manifest.json")


def test_a_manifest_without_activations_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"lists no activations"):
        stored(tmp_path)


def test_shards_of_an_earlier_run_go(models, tokenizer, tmp_path):
    run(models["llama"], tokenizer, design_of(TEXTS), SPEC, tmp_path)
    (tmp_path / ".partial").mkdir()
    (tmp_path / ".partial" / "last.bos.layer_00.npy").write_bytes(b"half")
    store = run(models["llama"], tokenizer, design_of(TEXTS), {**SPEC, "positions": ["last"]}, tmp_path)
    assert store.positions == ("last",)
    assert not list(tmp_path.rglob("*period*"))
    assert not (tmp_path / ".partial").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_left(value, tokenizer, tmp_path):
    model = tiny_model("llama")
    paris = tokenizer.convert_tokens_to_ids("Paris")
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[5] = value
    with pytest.raises(UserError, match=r"layer_02 at position '\w+' of text \d \('.*'\) is -?(nan|inf); look at"):
        activations.extract(model, tokenizer, design_of(TEXTS), SPEC, tmp_path, backend="fast")
    assert list(tmp_path.iterdir()) == []
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[paris, 3] = value
    texts = ["Rome is in Italy.", "Rome. Paris", "Paris is in Italy."]
    with pytest.raises(UserError, match=r"activation 3 of layer_00 at position 'last' of text 1 \('Rome\. Paris'\)"):
        activations.extract(model, tokenizer, design_of(texts[:2]), SPEC, tmp_path, backend="fast")


def test_float16_halves_the_store_and_overflow_is_an_error(tokenizer, tmp_path):
    model = tiny_model("gpt_neox")
    spec = {**SPEC, "dtype": "float16"}
    half = run(model, tokenizer, design_of(TEXTS), spec, tmp_path / "half")
    full = run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path / "full")
    assert half.matrix("last", True, 2).dtype == np.float16
    for key in full.files:
        assert np.array_equal(half._shard(key), full._shard(key).astype(np.float16))
    with torch.no_grad():
        model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias[0] = 1e5
    assert run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path / "full").matrix("last", True, 2).max() > 65504
    with pytest.raises(UserError, match=r"activation 0 of layer_02.* is 1e\+05, beyond float16; set activations.dtype"):
        activations.extract(model, tokenizer, design_of(TEXTS), spec, tmp_path / "half", backend="fast")


def test_half_precision_weights_are_stored_as_float32(tokenizer, tmp_path):
    model = tiny_model("llama").to(torch.bfloat16)
    store = run(model, tokenizer, design_of(TEXTS), SPEC, tmp_path)
    assert store.matrix("last", True, 2).dtype == np.float32
    row = model.model.embed_tokens.weight[tokenizer.convert_tokens_to_ids("Rome")].detach().float().numpy()
    np.testing.assert_array_equal(store.token_embeddings("before_period", False)[4], row)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"positions": ["comma"]},
            "design 'tiny' has no read position 'comma'; it has period, before_period, last",
        ),
        ({"positions": []}, "name at least one read position"),
        ({"layers": [0, 3]}, r"activations.layers: \[3\]"),
        ({"layers": []}, "activations.layers: none"),
        ({"dtype": "float64"}, "activations.dtype: 'float64' is none of float32, float16"),
    ],
)
def test_a_bad_spec_is_named(change, message, models, tokenizer, tmp_path):
    with pytest.raises(UserError, match=message):
        activations.extract(models["llama"], tokenizer, design_of(TEXTS), {**SPEC, **change}, tmp_path, backend="fast")


def test_an_unknown_back_end_is_named(models, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"activations.backend: 'quick' is none of fast, bridge"):
        activations.extract(models["llama"], tokenizer, design_of(TEXTS), SPEC, tmp_path, backend="quick")


def test_another_architecture_is_named(tokenizer, tmp_path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model("bloom", vocab_size=VOCABULARY, hidden_size=WIDTH, n_layer=1, n_head=2)
    with pytest.raises(UserError, match=r"model_type 'bloom'.*gpt_neox"):
        activations.extract(
            AutoModelForCausalLM.from_config(config),
            tokenizer,
            design_of(TEXTS),
            SPEC,
            tmp_path,
            backend="fast",
        )


def test_a_tokenizer_of_another_model_is_refused(models, tmp_path):
    big = tokenization.word_level_tokenizer([*map(str, range(50)), *re.findall(r"\w+|[.:]", " ".join(TEXTS))])
    with pytest.raises(UserError, match=rf"gives id \d+ and the model's embedding has {VOCABULARY} rows"):
        activations.extract(models["llama"], big, design_of(TEXTS), SPEC, tmp_path, backend="fast")


def test_a_text_beyond_the_context_is_refused(models, tokenizer, tmp_path):
    with pytest.raises(UserError, match=r"text 1.*71 tokens.*at most 64"):
        activations.extract(
            models["gpt2"],
            tokenizer,
            design_of(["Rome.", "Rome " * 70 + "."]),
            SPEC,
            tmp_path,
            backend="fast",
        )


@pytest.mark.parametrize("noticed", ["before", "while allocating"])
def test_a_full_disk_is_an_error_and_leaves_nothing(noticed, models, tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if noticed == "before":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(activations.os, "posix_fallocate", full, raising=False)
    with pytest.raises(UserError, match=r"bytes and the disk has .* left; free some"):
        activations.extract(models["llama"], tokenizer, design_of(TEXTS), SPEC, tmp_path, backend="fast")
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_what_is_written(tmp_path):
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("peak memory is read from /proc")

    def peak_megabytes():
        return int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1]) / 1024

    values = np.ones((64, 512), dtype=np.float32)
    rows = np.random.default_rng(0).permutation(100_000)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = peak_megabytes()
    with activations._Shards(tmp_path, ["a.npy"], (len(rows), 512), "float32") as shards:
        for start in range(0, len(rows), 1000):
            shards.write("a.npy", rows[start : start + 1000], values, np.arange(1000) % 64)
    assert (tmp_path / "a.npy").stat().st_size > 200e6
    assert peak_megabytes() - before < 60
    assert (np.load(tmp_path / "a.npy", mmap_mode="r")[::997] == 1).all()
