"""config/gpt2-sae.yaml on a small GPT-2 and a small SAE, served over loopback under the names of the real ones."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import tokenizers
import torch
import yaml
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from counterprobe import pretrained, statements

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from loopback_hub import Hub

WIDTH, LATENTS, DEPTH = 32, 96, 8
CORPUS = {"topics": {"cities": 16, "animals": 16}, "classes": 4, "carriers": 4, "answer": "none", "seed": 0}
FIGURES = [f"results/gpt2-sae/figures/gpt2/statements/{name}.png" for name in ("dictionaries", "perturbations")]
SMALLER = {
    "corpora": {"full": CORPUS},
    "controls": {"seeds": 2, "embeddings": ["kept"]},
    "probes": {"kinds": ["logistic"], "penalties": [0.01, 0.1], "inner_folds": 2, "shuffles": 2, "control_tasks": 2},
    "statistics": {"resamples": 200, "sign_flips": 200},
    "dictionaries": {"steps": 60, "items": 6, "sites": 4, "directions": 8, "draws": 20},
}


def gpt2(folder: Path) -> None:
    """Random weights in GPT-2's shape, and a byte-level BPE that knows the statements' words."""
    world = statements.world(CORPUS, Path(__file__).parents[2] / "workflow/resources")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    end = "<|endoftext|>"
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=[end], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([f"{word} {word}" for word in statements.vocabulary(world)], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=len(wrapped), n_embd=WIDTH, n_layer=DEPTH, n_head=2, n_positions=128, bos_token_id=0, eos_token_id=0
    )
    GPT2LMHeadModel(shape).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def sae(folder: Path, hook: str) -> None:
    """As SAELens 2 wrote it: the hook point under its old name, no word on what is centred."""
    folder.mkdir(parents=True)
    draw = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (WIDTH, LATENTS), "b_enc": (LATENTS,), "W_dec": (LATENTS, WIDTH), "b_dec": (WIDTH,)}
    save_file({name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, folder / pretrained.WEIGHTS)
    about = {"hook_point": hook, "d_in": WIDTH, "d_sae": LATENTS, "normalize_activations": False}
    (folder / pretrained.CONFIG).write_text(json.dumps(about))


@pytest.mark.slow
def test_the_overlay_of_a_published_sae_runs_from_hub_to_figure(fresh_checkout, tmp_path):
    checkout = fresh_checkout()
    overlay = yaml.safe_load((checkout.root / "config/gpt2-sae.yaml").read_text())
    entry = overlay["dictionaries"]["pretrained"]["bloom"]
    repositories = tmp_path / "repositories"
    gpt2(repositories / overlay["models"]["gpt2"]["repo"] / "main")
    sae(repositories / entry["repo"] / "main" / entry["folder"], entry["folder"])
    for path in repositories.rglob("*.*"):
        path.chmod(0o644)
    (checkout.root / "smaller.yaml").write_text(yaml.safe_dump(SMALLER))
    with Hub(repositories) as hub:
        environment = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"}
        checkout.run("--configfile", "config/gpt2-sae.yaml", "smaller.yaml", "--", *FIGURES, **environment)
    table = pd.read_parquet(checkout.root / "results/gpt2-sae/tables/dictionaries.parquet")
    published = table[(table.dictionary == "pretrained:bloom") & (table.weights == "trained") & (table.score == "kl")]
    assert {"reconstruction", "norm_corrected", "norm_only", "isotropic", "theta"} <= set(published.kind)
    assert set(published.layer) == {6}
    assert published[["estimate", "random_dictionary", "random_model"]].notna().all(axis=None)
