"""What a network says when the residual stream of one layer is replaced, by its reconstruction or by a control.

The stream x at a layer is replaced at every token (or from one token on), the blocks above run on, and the next-token
distributions are compared with those undisturbed, token by token:

    KL = Σ p (log p − log q)  in nats, from float64 logits, p undisturbed       loss: −log q(next token) + log p(next token)

With x̂ a reconstruction of x and e = x̂ − x (names of Gurnee 2024, SAE reconstruction errors are empirically pathological,
https://www.lesswrong.com/posts/rZPiuFxESMxCDHe4B, where this is his):

    reconstruction   x̂                              his "substitution"
    norm_corrected   x̂ ‖x‖ / ‖x̂‖
    norm_only        x ‖x̂‖ / ‖x‖                     "SAE-norm": does the shrinkage alone do it
    fitted_scales    codes rescaled latent by latent, by least squares (his second hypothesis)
    isotropic        x + ‖e‖ u                       u uniform on the sphere: ε-random
    covariance       x + ‖e‖ v                       v drawn from N(0, Cov x), then made unit
    mixture          x + ‖e‖ (m − x) / ‖m − x‖       towards m ~ N(mean, Cov): Lee and Heimersheim 2024, arXiv 2410.12555
    theta            same norm as x, same angle to it as x̂, otherwise random: θ-random
    places_restored  x̂ + the part of −e inside the span of the mean activations of token positions (dense features)
    mean, zero       the mean activation; nothing

Isotropic directions are the weak control: activations hardly vary along most of them.

The blocks below the layer do not run again: their part is the residual stream that was kept, and where the replacement
starts at a later token, keys and values of the tokens before it are kept as well. Undisturbed logits come from the same
code and the same shapes, so a replacement by x itself is 0 exactly, not nearly.

Pitfalls: only tokens of equal length are batched, without padding. The first token (BOS, or whatever stands there) has an
activation of its own kind, many times as long in most models; `first` says whether it is replaced and scored.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterprobe import activations, tokenization
from counterprobe.dictionaries import ROWS_AT_A_TIME, Dictionary
from counterprobe.progress import UserError
from counterprobe.streaming_ica import Moments

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from counterprobe.designs import Design

KINDS = (
    "reconstruction",
    "norm_corrected",
    "norm_only",
    "fitted_scales",
    "isotropic",
    "covariance",
    "mixture",
    "theta",
    "places_restored",
    "mean",
    "zero",
)
# float64 logits held at a time.
LOGITS_AT_A_TIME = 1 << 24
# Conjugate-gradient steps of the per-latent scales: far more than their accuracy here needs.
SCALE_STEPS = 50


@dataclass(frozen=True)
class Batch:
    """Texts of one length. texts: their places in the design."""

    ids: Int[Tensor, "b t"]
    texts: Int[np.ndarray, " b"]


@dataclass(frozen=True)
class Tokens:
    """Activations of every token of some texts at one layer, and which token of which text each is."""

    x: Float[Tensor, "n d"]
    ids: Int[np.ndarray, " n"]
    texts: Int[np.ndarray, " n"]
    places: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Said:
    """Per token: KL from the undisturbed distribution, and the increase of the loss (NaN at a text's last token); nats."""

    kl: Float[np.ndarray, " n"]
    loss: Float[np.ndarray, " n"]


def batches(
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    *,
    bos: bool,
    context: int,
    token_budget: int,
    shuffle: np.random.Generator | None = None,
) -> list[Batch]:
    """Texts by length, no more than `token_budget` tokens in a batch (one text at least).

    shuffle: each token is replaced by one drawn uniformly from all that occur (a text's BOS stays): sequences without any
    context, as long as the texts.
    """
    encoded = tokenization.encode(tokenizer, texts, {}, bos=bos, context=context)
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(encoded.ids):
        by_length.setdefault(len(ids), []).append(index)
    occurring = np.unique(np.concatenate([ids[bos:] for ids in encoded.ids]))
    made = []
    for length, members in sorted(by_length.items()):
        size = max(1, token_budget // length)
        for start in range(0, len(members), size):
            chosen = np.array(members[start : start + size])
            ids = np.array([encoded.ids[index] for index in chosen])
            if shuffle is not None:
                ids[:, bos:] = shuffle.choice(occurring, size=ids[:, bos:].shape)
            made.append(Batch(torch.from_numpy(ids), chosen))
    return made


class Continuation:
    """The part of a network above a layer, for one batch, from token `start` on.

    `residual` [b, t − start, d] is the undisturbed stream that it reads. Raises UserError for a layer that is not there.
    """

    def __init__(self, model: PreTrainedModel, ids: Int[Tensor, "b t"], layer: int, start: int = 0) -> None:
        self.model, self.layer, self.start = model, layer, start
        self.ids = ids.to(model.device)
        self.blocks = activations.decoder_blocks(model)
        if not 0 <= layer <= len(self.blocks):
            raise UserError(f"there is no layer {layer}; layers are 0 to {len(self.blocks)}")
        with torch.inference_mode():
            head = self.ids[:, :start]
            self.before = model.base_model(head, use_cache=True).past_key_values if start else None
            kept: list[Tensor] = []
            with self._reading(kept):
                model.base_model(self.ids[:, start:], past_key_values=self._cache(1), use_cache=start > 0)
        self.residual = kept[0]

    def logits(self, residual: Float[Tensor, "r t d"]) -> Float[Tensor, "r t v"]:
        """Next-token logits after every token from `start` on; `residual` holds whole copies of the batch, one after
        another."""
        copies = len(residual) // len(self.ids)
        with torch.inference_mode(), self._replaced(residual):
            return self.model(
                self.ids[:, self.start :].repeat(copies, 1),
                past_key_values=self._cache(copies),
                use_cache=self.start > 0,
            ).logits

    def _cache(self, copies: int) -> Any:
        if self.before is None:
            return None
        cache = copy.deepcopy(self.before)
        cache.batch_select_indices(torch.arange(len(self.ids), device=self.ids.device).repeat(copies))
        return cache

    @contextlib.contextmanager
    def _reading(self, kept: list[Tensor]) -> Iterator[None]:
        last = self.layer == len(self.blocks)

        def before(block: nn.Module, arguments: tuple, keywords: dict) -> None:
            kept.append((arguments[0] if arguments else keywords["hidden_states"]).clone())

        def after(block: nn.Module, arguments: tuple, output: Any) -> None:
            kept.append((output[0] if isinstance(output, tuple) else output).clone())

        handle = (
            self.blocks[-1].register_forward_hook(after)
            if last
            else self.blocks[self.layer].register_forward_pre_hook(before, with_kwargs=True)
        )
        try:
            yield
        finally:
            handle.remove()

    @contextlib.contextmanager
    def _replaced(self, residual: Float[Tensor, "r t d"]) -> Iterator[None]:
        """Blocks below the layer pass on what they get, the last of them what is put in its place."""

        def inserted(block: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
            if arguments:
                return (residual, *arguments[1:]), keywords
            return arguments, {**keywords, "hidden_states": residual}

        with contextlib.ExitStack() as stack:
            for index, block in enumerate(self.blocks[: self.layer]):
                block.forward = _giving(residual) if index == self.layer - 1 else _passing
                stack.callback(block.__dict__.pop, "forward")
            if self.layer == 0:
                stack.callback(self.blocks[0].register_forward_pre_hook(inserted, with_kwargs=True).remove)
            yield


def _passing(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _giving(residual: Tensor) -> Any:
    def forward(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return residual

    return forward


def kl(clean: Float[Tensor, "*n v"], moved: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """KL(clean ‖ moved) in nats, float64, from logits."""
    log_p, log_q = clean.double().log_softmax(-1), moved.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


def said(clean: Float[Tensor, "b t v"], moved: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], first: int) -> Said:
    """Both numbers of every token from `first` on, texts one after another."""
    n_vocabulary = clean.shape[-1]
    rows = max(1, LOGITS_AT_A_TIME // (n_vocabulary * clean.shape[1]))
    divergences, losses = [], []
    for p, q, of in zip(clean.split(rows), moved.split(rows), ids.split(rows), strict=True):
        divergences.append(kl(p[:, first:], q[:, first:]))
        following = of[:, 1:, None]
        likelihoods = [logits[:, :-1].double().log_softmax(-1).gather(2, following)[..., 0] for logits in (p, q)]
        increase = torch.full(of.shape, float("nan"), dtype=torch.float64, device=clean.device)
        increase[:, :-1] = likelihoods[0] - likelihoods[1]
        losses.append(increase[:, first:])
    return Said(torch.cat(divergences).reshape(-1).cpu().numpy(), torch.cat(losses).reshape(-1).cpu().numpy())


class Replacing:
    """Some texts at one layer of a model, undisturbed once, then replaced as often as one likes."""

    def __init__(self, model: PreTrainedModel, texts: Sequence[Batch], layer: int, *, first: int) -> None:
        self.layer, self.first = layer, first
        self.runs = [Continuation(model, batch.ids, layer) for batch in texts]
        self.clean = [run.logits(run.residual) for run in self.runs]
        self.tokens = _tokens([run.residual for run in self.runs], texts, first)

    def logits(self, replaced: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "_ _ v"]]:
        """Logits of every batch, with these in place of `tokens.x`, row by row."""
        start = 0
        for run in self.runs:
            b, t, d = run.residual.shape
            rows = b * (t - self.first)
            moved = run.residual.clone()
            moved[:, self.first :] = replaced[start : start + rows].reshape(b, -1, d)
            start += rows
            yield run.logits(moved)

    def said(self, replaced: Float[Tensor, "n d"], clean: Sequence[Float[Tensor, "_ _ v"]] | None = None) -> Said:
        """What the model says with these in place of `tokens.x`, beside what it says undisturbed (or beside `clean`)."""
        found = [
            said(before, after, run.ids, self.first)
            for run, before, after in zip(self.runs, clean or self.clean, self.logits(replaced), strict=True)
        ]
        return Said(np.concatenate([one.kl for one in found]), np.concatenate([one.loss for one in found]))


def read(model: PreTrainedModel, texts: Sequence[Batch], layer: int, *, first: int) -> Tokens:
    """Activations of all tokens from `first` on; no logits are made."""
    return _tokens([Continuation(model, batch.ids, layer).residual for batch in texts], texts, first)


def _tokens(residuals: Sequence[Float[Tensor, "_ _ d"]], texts: Sequence[Batch], first: int) -> Tokens:
    return Tokens(
        torch.cat([residual[:, first:].reshape(-1, residual.shape[-1]) for residual in residuals]),
        np.concatenate([batch.ids[:, first:].reshape(-1).numpy() for batch in texts]),
        np.concatenate([np.repeat(batch.texts, batch.ids.shape[1] - first) for batch in texts]),
        np.concatenate([np.tile(np.arange(first, batch.ids.shape[1]), len(batch.ids)) for batch in texts]),
    )


@dataclass(frozen=True)
class Surroundings:
    """What random replacements are drawn from: moments of the training tokens, and a basis of their mean by position."""

    mean: Float[Tensor, " d"]
    factor: Float[Tensor, "d d"]
    places: Float[Tensor, "p d"]


def surroundings(tokens: Tokens, measured: Moments) -> Surroundings:
    """`factor` is the symmetric square root of the covariance, `places` orthonormal rows."""
    values, vectors = torch.linalg.eigh(measured.covariance)
    factor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mean = measured.mean.to(tokens.x.dtype)
    means = torch.stack(
        [
            tokens.x[torch.from_numpy(np.flatnonzero(tokens.places == place)).to(tokens.x.device)].mean(0)
            for place in np.unique(tokens.places)
        ]
    )
    # Positions that few texts reach would add noise, not positions; singular values tell them apart.
    _, sizes, rows = torch.linalg.svd((means - mean).double(), full_matrices=False)
    kept = sizes > 1e-3 * sizes[0].clamp(min=torch.finfo(sizes.dtype).tiny)
    return Surroundings(mean, factor.to(tokens.x.dtype), rows[kept].to(tokens.x.dtype))


def replacements(
    x: Float[Tensor, "n d"],
    dictionary: Dictionary,
    around: Surroundings,
    scales: Float[Tensor, " h"] | None,
    generator: torch.Generator,
    kinds: Sequence[str] = KINDS,
) -> Iterator[tuple[str, Float[Tensor, "n d"]]]:
    """Each kind in turn, at the same distance from x where the module's formulas say so. See there for the names."""
    x = dictionary.input(x)
    made = dictionary.reconstruct(x)
    error = made - x
    distance = error.norm(dim=1, keepdim=True)
    norm, other = x.norm(dim=1, keepdim=True), made.norm(dim=1, keepdim=True)
    tiny = torch.finfo(x.dtype).tiny

    def gaussian() -> Float[Tensor, "n d"]:
        return torch.randn(x.shape, generator=generator).to(x)

    def unit(v: Tensor) -> Tensor:
        return v / v.norm(dim=1, keepdim=True).clamp(min=tiny)

    for kind in kinds:
        if kind == "reconstruction":
            value = made
        elif kind == "norm_corrected":
            value = made * (norm / other.clamp(min=tiny))
        elif kind == "norm_only":
            value = x * (other / norm.clamp(min=tiny))
        elif kind == "fitted_scales":
            if scales is None:
                continue
            parts = [dictionary.decode(dictionary.encode(part) * scales) for part in x.split(ROWS_AT_A_TIME)]
            value = torch.cat(parts)
        elif kind == "isotropic":
            value = x + distance * unit(gaussian())
        elif kind == "covariance":
            value = x + distance * unit(gaussian() @ around.factor)
        elif kind == "mixture":
            value = x + distance * unit(around.mean + gaussian() @ around.factor - x)
        elif kind == "theta":
            along = unit(x)
            across = gaussian()
            across = unit(across - (across * along).sum(1, keepdim=True) * along)
            cosine = ((made * along).sum(1, keepdim=True) / other.clamp(min=tiny)).clamp(-1, 1)
            value = norm * (cosine * along + (1 - cosine.square()).sqrt() * across)
        elif kind == "places_restored":
            value = made - error @ around.places.T @ around.places
        elif kind == "mean":
            value = around.mean.expand_as(x)
        elif kind == "zero":
            value = torch.zeros_like(x)
        else:
            raise ValueError(f"no replacement is called {kind!r}")
        yield kind, value


def fitted_scales(dictionary: Dictionary, x: Float[Tensor, "n d"]) -> Float[Tensor, " h"]:
    """Factors s, one a latent, that minimise Σ ‖x − decode(s ∘ encode(x))‖²; 1 for a latent that never fires.

    The normal equations, Σ z ∘ ((s ∘ z) W Wᵀ) = Σ z ∘ ((x − b) Wᵀ), by conjugate gradients from s = 1: the [h, h] matrix is
    never made.
    """
    decoder = dictionary.decoder
    parts = dictionary.input(x).split(ROWS_AT_A_TIME)
    codes = [dictionary.encode(part) for part in parts]

    def applied(s: Tensor) -> Tensor:
        return sum((z * (((z * s) @ decoder) @ decoder.T)).sum(0).double() for z in codes).to(decoder.dtype)

    wanted = sum(
        (z * ((part - dictionary.decoder_bias) @ decoder.T)).sum(0).double()
        for z, part in zip(codes, parts, strict=True)
    ).to(decoder.dtype)
    scales = torch.ones_like(wanted)
    residual = wanted - applied(scales)
    direction, size = residual.clone(), residual.double().square().sum()
    stop = 1e-8 * wanted.double().square().sum()
    for _ in range(SCALE_STEPS):
        if not bool(size > stop):
            break
        image = applied(direction)
        step = size / (direction.double() * image.double()).sum()
        scales = scales + step.to(scales.dtype) * direction
        residual = residual - step.to(scales.dtype) * image
        last, size = size, residual.double().square().sum()
        direction = residual + (size / last).to(scales.dtype) * direction
    return scales


def split_texts(design: Design, held_out: float, seed: int) -> np.ndarray:
    """True for texts that dictionaries are scored on: whole couples of items, about this share of them in every stratum."""
    rng = np.random.default_rng([seed, 2])
    scored = np.zeros(len(design.texts), dtype=bool)
    couples, first = np.unique(design.couples, return_index=True)
    for stratum in np.unique(design.strata[first]):
        members = rng.permutation(couples[design.strata[first] == stratum])
        chosen = members[: max(1, round(held_out * len(members)))]
        scored |= np.isin(design.couples, chosen)
    if scored.all():
        raise UserError(
            f"design '{design.name}': too few items to hold some out; dictionaries need two couples a topic"
        )
    return scored


def settings_of(spec: Mapping[str, Any]) -> tuple[bool, int]:
    """(bos, first token that is read) of the section `dictionaries`."""
    return bool(spec["activations"]["primary_bos"]), 0 if spec["dictionaries"]["first_token"] else 1
