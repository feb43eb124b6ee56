"""Train the embedded language model, load any causal language model, ask it which of two tokens comes next.

The embedded model is GPT-NeoX, Pythia's architecture (parallel residual, rotary positions on a quarter of
each head, untied embeddings), small enough to be trained on a CPU in minutes. It is trained with the
next-token loss over every token of lines drawn without end from a generator, so no line is seen twice on
purpose and nothing can be overfitted; its revisions step0 (before the first update) ... stepN are written as
Hugging Face snapshots, so that everything downstream treats it like a model from the hub.

Half of the lines of every batch begin with BOS: the residual stream is probed with and without it, and a
model that had never seen one of the two would be probed out of distribution there.

Pitfalls. Weights depend on the number of threads in their last bits: set it before `train`. Revisions hold
float32 weights; transformers loads a checkpoint in the checkpoint's own dtype unless told otherwise, so
`load` always tells it. transformers fills tensors that a checkpoint lacks with random numbers and a warning:
here that is an error.
"""

import errno
import itertools
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

from counterprobe import tokenization
from counterprobe.progress import UserError, logger

# Bars for a file of one megabyte are noise in a log.
transformers_logging.disable_progress_bar()


@dataclass(frozen=True)
class Architecture:
    """Shape of the embedded model; head width is width / heads, the MLP is 4 × width as in Pythia."""

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 64  # lines of the corpus have about 27 tokens; twice that leaves room for longer prompts


@dataclass(frozen=True)
class Training:
    """Recipe of one training run. Defaults are for about 1M parameters on about 100 facts."""

    steps: int = 1024
    batch: int = 128
    learning_rate: float = 3e-3
    warmup: int = 64  # Adam's second moments are noise for the first 1 / (1 − β₂) = 50 steps
    plateau: float = 0.75  # share of the steps after which the rate starts to fall
    final_share: float = 0.1  # of the learning rate, at the last step: the late revisions stop jittering
    betas: tuple[float, float] = (0.9, 0.98)  # β₂ below 0.999, whose memory is as long as the whole run
    weight_decay: float = 0.01  # on matrices only; .1 delays the transition by a fifth
    clip: float = 1.0  # the transition from chance to knowing the facts has rare large gradients
    seed: int = 0


@dataclass(frozen=True)
class Batch:
    """Lines as ids, padded on the right; `mask` is True on real tokens (BOS counts as one)."""

    ids: Int[Tensor, "lines tokens"]
    mask: Bool[Tensor, "lines tokens"]


@dataclass(frozen=True)
class Embedding:
    """The token embedding: rows it starts from (drawn like all weights where None), whether they stay as they are, and
    whether the unembedding is the same matrix."""

    rows: Float[Tensor, "V d"] | None = None
    frozen: bool = False
    tied: bool = False


PYTHIAS = Embedding()


def build(architecture: Architecture, vocab_size: int, seed: int, embedding: Embedding = PYTHIAS) -> GPTNeoXForCausalLM:
    """A GPT-NeoX with transformers' own initialisation; equal weights for equal seeds.

    Token ids 0, 1, 2 are [PAD], [BOS], [UNK], as `tokenization.word_level_tokenizer` numbers them; the end of
    a line is not a token of its own, so generation stops at [BOS], as Pythia's does at its only special
    token. Raises UserError where the width is not a multiple of the heads or leaves a head too narrow for
    rotary positions.
    """
    if architecture.width % architecture.heads or architecture.width // architecture.heads % 8:
        raise UserError(
            f"architecture: width {architecture.width} over {architecture.heads} heads; each head needs a "
            "width that is a multiple of 8, since rotary positions turn a quarter of it in pairs"
        )
    config = GPTNeoXConfig(
        vocab_size=vocab_size,
        hidden_size=architecture.width,
        num_hidden_layers=architecture.layers,
        num_attention_heads=architecture.heads,
        intermediate_size=4 * architecture.width,
        max_position_embeddings=architecture.context,
        # Pythia's "small init" (Nguyen & Salazar 2019, arXiv 1910.05895). The constant 0.02 is right for
        # widths about 1000 only; at 128 it leaves the blocks' contributions lost beside the embedding for
        # hundreds of steps.
        initializer_range=initial_deviation(architecture.width),
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
        use_parallel_residual=True,
        tie_word_embeddings=embedding.tied,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        attn_implementation="sdpa",
    )
    # transformers initialises from torch's global generator, which stays as it was for everybody else.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GPTNeoXForCausalLM(config)
    matrix = model.get_input_embeddings().weight
    if embedding.rows is not None:
        with torch.no_grad():
            matrix.copy_(embedding.rows)
    matrix.requires_grad_(not embedding.frozen)
    return model


def initial_deviation(width: int) -> float:
    """Standard deviation of the entries of every matrix before training."""
    return math.sqrt(2 / (5 * width))


def batches(
    draw: Callable[[int], Sequence[str]],
    tokenizer: tokenizers.Tokenizer,
    *,
    batch: int,
    context: int,
    seed: int,
) -> Iterator[Batch]:
    """Endless batches of `batch` lines from `draw(n) -> n lines`, BOS before a random half of each batch.

    Raises UserError for a line that is longer than the context or holds a word the tokenizer does not know.
    """
    rng = np.random.default_rng(seed)
    bos = tokenizer.token_to_id(tokenization.BOS)
    pad = tokenizer.token_to_id(tokenization.PAD)
    while True:
        # One token is left free for BOS, so that a line's fate does not depend on the draw.
        encoded = tokenization.encode(tokenizer, draw(batch), {}, bos=False, context=context - 1)
        with_bos = rng.permutation(batch) < batch // 2
        lines = [(bos, *ids) if first else ids for ids, first in zip(encoded.ids, with_bos, strict=True)]
        length = max(map(len, lines))
        ids = torch.tensor([[*line, *[pad] * (length - len(line))] for line in lines])
        lengths = torch.tensor([len(line) for line in lines])
        yield Batch(ids, torch.arange(length) < lengths[:, None])


def next_token_loss(model: GPTNeoXForCausalLM, batch: Batch) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats of every real token after the first of its line.

    Right padding needs no attention mask: under causal attention no real token sees it. The unembedding is
    applied at the scored positions only.
    """
    hidden = model.gpt_neox(batch.ids[:, :-1], use_cache=False).last_hidden_state
    scored = batch.mask[:, 1:]
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[scored]), batch.ids[:, 1:][scored])


def learning_rate(training: Training, step: int) -> float:
    """Learning rate of the update that leads to revision step + 1: linear warm-up, a plateau, half a cosine.

    The plateau (Hu et al. 2024, arXiv 2404.06395, section 4) is for the transition from chance to knowing the facts,
    whose step differs between seeds: under a cosine from the start late ones happen at half the rate, or not at all.
    """
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    decay = max(training.warmup, round(training.plateau * training.steps))
    progress = max(0, step - decay) / max(1, training.steps - 1 - decay)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return training.learning_rate * (training.final_share + (1 - training.final_share) * cosine)


def train(
    lines: Iterator[Batch],
    tokenizer: tokenizers.Tokenizer,
    architecture: Architecture,
    training: Training,
    revisions: Sequence[int],
    out_dir: Path | str,
    *,
    device: str = "cpu",
    embedding: Embedding = PYTHIAS,
) -> Float[np.ndarray, " steps"]:
    """Train from scratch, write `out_dir`/step{N}/ for every N of `revisions`, return the loss of every step
    in nats.

    A revision appears under its name only when it is complete. Equal arguments, lines and thread count give
    equal bytes. Raises UserError where a revision lies outside 0..steps, where the loss stops being finite,
    and where the disk is full.
    """
    log = logger("language_model")
    out_dir = Path(out_dir)
    outside = sorted(step for step in revisions if not 0 <= step <= training.steps)
    if outside:
        raise UserError(
            f"revision step{outside[0]} is asked for, but training runs from step 0 to step "
            f"{training.steps}; change training.steps or the list of revisions"
        )
    model = build(architecture, tokenizer.get_vocab_size(), training.seed, embedding).to(device)
    model.train()
    optimizer = _optimizer(model, training)
    out_dir.mkdir(parents=True, exist_ok=True)
    for unfinished in out_dir.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(unfinished)
    losses = np.empty(training.steps)
    if 0 in revisions:
        save_revision(model, tokenizer, out_dir, 0)
    report_every = max(1, training.steps // 10)
    started = time.monotonic()
    for step in range(training.steps):
        batch = next(lines)
        if len(batch.ids) != training.batch:
            raise ValueError(f"a batch of {len(batch.ids)} lines where the recipe says {training.batch}")
        loss = next_token_loss(model, Batch(batch.ids.to(device), batch.mask.to(device)))
        losses[step] = loss.item()
        if not math.isfinite(losses[step]):
            raise UserError(
                f"training diverged: the loss of step {step} is {losses[step]}; lower training.learning_rate "
                f"(now {training.learning_rate:g}) or lengthen training.warmup (now {training.warmup})"
            )
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
        done = step + 1
        if done in revisions:
            save_revision(model, tokenizer, out_dir, done)
        if done % report_every == 0:
            recent = losses[max(0, done - report_every) : done].mean()
            seconds = (time.monotonic() - started) / done
            log.info("step %d of %d: loss %.3f nats, %.3f s a step", done, training.steps, recent, seconds)
    return losses


def finetune(model: PreTrainedModel, lines: Iterator[Batch], training: Training, steps: int) -> None:
    """This many more steps at the recipe's highest learning rate, in place, of all weights and with fresh moments."""
    model.train().requires_grad_(True)
    optimizer = _optimizer(model, training)
    for batch in itertools.islice(lines, steps):
        optimizer.zero_grad()
        next_token_loss(model, Batch(batch.ids.to(model.device), batch.mask.to(model.device))).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), training.clip)
        optimizer.step()
    model.eval().requires_grad_(False)


def _optimizer(model: PreTrainedModel, training: Training) -> torch.optim.AdamW:
    # Decay would shrink a frozen matrix that the optimiser was given.
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learned if parameter.ndim >= 2]
    vectors = [parameter for parameter in learned if parameter.ndim < 2]
    return torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": training.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        betas=training.betas,
        fused=True,
    )


_UNFINISHED = ".unfinished-"


def save_revision(model: PreTrainedModel, tokenizer: tokenizers.Tokenizer, out_dir: Path, step: int) -> Path:
    """Write one revision as a Hugging Face snapshot under `out_dir`/step{step}, complete or not at all.

    safetensors creates files that only their owner can read, useless to colleagues on a shared disk: modes
    are 0644.
    """
    target = out_dir / f"step{step}"
    unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=out_dir))
    try:
        model.save_pretrained(unfinished)
        tokenization.save_tokenizer(tokenizer, unfinished)
        for path in unfinished.iterdir():
            path.chmod(0o644)
        unfinished.chmod(0o755)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(f"{target}: no disk space left for this revision; free some and run again") from error
        raise
    return target


def load(
    checkpoint_dir: Path | str, *, dtype: str = "float32", device: str = "cpu", attention: str = "sdpa"
) -> PreTrainedModel:
    """A causal language model from a local Hugging Face folder that has been verified, ready to be read from.

    Evaluation mode, no gradients, safetensors only, no code from the folder, no network. `attention`: "sdpa"
    is fast; "eager" is what TransformerBridge uses, for comparisons bit by bit. Raises UserError for a folder
    without config.json or safetensors, an unknown dtype, an architecture that is not a causal language model,
    and weights that do not fit the architecture.
    """
    path = Path(checkpoint_dir)
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: no config.json; give a folder that holds a Hugging Face model")
    if not any(path.glob("*.safetensors")):
        raise UserError(f"{path}: no *.safetensors file; convert the weights to safetensors (pickles are not read)")
    number_type = getattr(torch, dtype, None)
    if not isinstance(number_type, torch.dtype) or not number_type.is_floating_point:
        raise UserError(f"unknown dtype {dtype!r}; choose float32, float16 or bfloat16")
    try:
        model, fit = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=number_type,
            attn_implementation=attention,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            # transformers' own error for these names no tensor; they are refused by name below.
            ignore_mismatched_sizes=True,
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: not loadable as a causal language model ({reason})") from error
    unfit = sorted({*fit["missing_keys"], *(name for name, *_ in fit["mismatched_keys"])})
    if unfit:
        raise UserError(
            f"{path}: {len(unfit)} tensor(s) that its config.json asks for are missing or of another "
            f"shape, the first is {unfit[0]}; the folder is not one complete causal language model"
        )
    return model.eval().requires_grad_(False).to(device)


def answers(
    model: PreTrainedModel,
    tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast,
    prefixes: Sequence[str],
    positive: Sequence[str],
    negative: Sequence[str],
    *,
    bos: bool,
    batch_tokens: int = 16384,
) -> Float[np.ndarray, " n"]:
    """log P(positive_i | prefix_i) − log P(negative_i | prefix_i) in nats, for the token right after each
    prefix.

    The normaliser cancels, so this is a difference of two logits. A model is causal, so a prefix of another
    prefix is answered in the other's pass; sequences of equal length share a batch of at most `batch_tokens`
    tokens, so nothing is padded. A candidate is a word; a space is put before it unless it, or the prefix,
    brings white space along. Raises UserError for a candidate that is not exactly one token after its prefix,
    a prefix longer than the model's context, and logits that are not finite.
    """
    context = model.config.max_position_embeddings
    encoded = tokenization.encode(tokenizer, prefixes, {}, bos=bos, context=context)
    tokens: dict[str, int] = {}
    for prefix, *pair in zip(prefixes, positive, negative, strict=True):
        for candidate in pair:
            if candidate not in tokens:
                tokens[candidate] = next_token(tokenizer, prefix, candidate)
    right = torch.tensor([tokens[candidate] for candidate in positive])
    wrong = torch.tensor([tokens[candidate] for candidate in negative])
    answered_in = longest_extensions(encoded.ids)
    by_length: dict[int, list[int]] = {}
    for host in answered_in:
        by_length.setdefault(len(encoded.ids[host]), []).append(host)
    difference = np.empty(len(prefixes))
    with torch.inference_mode():
        for length, hosts in by_length.items():
            size = max(1, batch_tokens // length)
            for start in range(0, len(hosts), size):
                batch = hosts[start : start + size]
                rows = np.repeat(np.arange(len(batch)), [len(answered_in[host]) for host in batch])
                members = np.concatenate([answered_in[host] for host in batch])
                last = np.array([len(encoded.ids[member]) - 1 for member in members])
                kept, columns = np.unique(last, return_inverse=True)
                ids = torch.tensor([encoded.ids[host] for host in batch], device=model.device)
                # The unembedding is the largest matrix: it is applied where an answer is asked for and nowhere else.
                positions = torch.as_tensor(kept, device=model.device)
                logits = model(ids, use_cache=False, logits_to_keep=positions).logits.to("cpu", torch.float64)
                there = logits[rows, columns]
                every = torch.arange(len(members))
                difference[members] = (there[every, right[members]] - there[every, wrong[members]]).numpy()
    broken = np.flatnonzero(~np.isfinite(difference))
    if len(broken):
        raise UserError(
            f"the model's logits after text {broken[0]} ({prefixes[broken[0]]!r}) are not finite; load it in float32"
        )
    return difference


def longest_extensions(
    sequences: Sequence[tuple[int, ...]], owners: Sequence[int] | None = None
) -> dict[int, list[int]]:
    """Every sequence under the index of one that begins with it and that no other extends, of the same owner."""
    under: dict[int, list[int]] = {}
    keys = [(0 if owners is None else owners[index], ids) for index, ids in enumerate(sequences)]
    host = -1
    # In alphabetical order what begins with a sequence follows it at once.
    for index in sorted(range(len(sequences)), key=keys.__getitem__, reverse=True):
        owner, ids = keys[index]
        if host < 0 or keys[host][0] != owner or sequences[host][: len(ids)] != ids:
            host = index
        under.setdefault(host, []).append(index)
    return under


def next_token(tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast, prefix: str, candidate: str) -> int:
    """The token a candidate is after its prefix: tokenised together, as a token often holds the space.

    Raises UserError for a candidate that is not exactly one token there.
    """
    joint = candidate if candidate[:1].isspace() or prefix[-1:].isspace() else f" {candidate}"
    alone, together = tokenization.encode(tokenizer, [prefix, prefix + joint], {}, bos=False, context=2**31).ids
    if together[: len(alone)] != alone or len(together) != len(alone) + 1:
        pieces = [tokenizer.decode([token]) for token in together[len(alone) :]]
        raise UserError(
            f"the answer {candidate!r} after {prefix!r} is not one token but {pieces}; choose an answer that "
            "this model's tokenizer keeps whole"
        )
    return together[-1]
