"""Dictionaries of directions: what reads a sparse code from an activation, and what writes it back.

Every dictionary here, learned or not, is one pair of affine maps with a threshold in between,

    z = σ((x − b_dec) W_enc + b_enc)      x̂ = z W_dec + b_dec      W_enc [d, h]   W_dec [h, d]

with σ one of

    topk      ReLU of the k largest entries, 0 elsewhere (Gao et al. 2024, arXiv 2406.04093)
    relu      ReLU (the "standard" SAE)
    jumprelu  the entries above a threshold of each latent's own (Rajamanoharan et al. 2024, arXiv 2407.14435)

so that all are compared at one L0 by the same code. Bases with a sign (principal and independent components, neurons) are
split into two latents a direction, +u and −u, as Cunningham et al. 2023 (arXiv 2309.08600) did for ICA: the k largest of
2m rectified entries are the k largest of m in absolute value.

    sae             trained                                             (module `dictionary_training`)
    frozen_decoder  trained encoder, decoder of random unit rows        Korznikov et al. 2026, arXiv 2602.14111
    random          random unit rows, encoder their transpose, nothing trained
    pca, ica        principal axes; mixing columns, read by the un-mixing rows
    neurons         the coordinates themselves

A decoder direction of ICA is a MIXING column: the un-mixing row is its dual, what a probe would read, and points elsewhere
unless the columns are orthogonal.

Files are SAELens's (https://github.com/jbloomAus/SAELens, version 6): a folder with sae_weights.safetensors and cfg.json.
Reading folds what a file may leave to run time into the four tensors: an encoder input without b_dec
(`apply_b_dec_to_input: false`), activations rescaled by decoder norms, and models whose writing weights were centred
(`center_writing_weights`), where x loses its mean over coordinates first (a model with LayerNorms does not see it).

Pitfalls: top-k of a split basis is exact only while no direction has both signs among the k, which ReLU guarantees. A file
that normalises activations at run time (layer_norm, constant_norm_rescale) is no affine map, and is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import checksum, manifest
from counterprobe.pretrained import CONFIG, WEIGHTS
from counterprobe.progress import UserError

ARCHITECTURES = {"topk": "topk", "standard": "relu", "jumprelu": "jumprelu"}
# Codes made at a time: [rows, h] floats.
ROWS_AT_A_TIME = 4096


@dataclass(frozen=True)
class Dictionary:
    """See the module. `k` is the number of live latents under topk, and means nothing to the others, whose number varies (0,
    or what was counted); `threshold` is None where σ is not jumprelu.

    name: kind of dictionary. centred: x loses its mean over coordinates first. note: what a reader must know.
    """

    name: str
    encoder: Float[Tensor, "d h"]
    encoder_bias: Float[Tensor, " h"]
    decoder: Float[Tensor, "h d"]
    decoder_bias: Float[Tensor, " d"]
    activation: str = "topk"
    k: int = 0
    threshold: Float[Tensor, " h"] | None = None
    centred: bool = False
    seed: int = 0
    note: str = ""

    @property
    def size(self) -> int:
        return self.decoder.shape[0]

    @property
    def width(self) -> int:
        return self.decoder.shape[1]

    def input(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """What the dictionary reconstructs: x, or x without its mean over coordinates."""
        return x - x.mean(-1, keepdim=True) if self.centred else x

    def encode(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... h"]:
        """Codes, dense. For many rows see `reconstruct`."""
        before = (self.input(x) - self.decoder_bias) @ self.encoder + self.encoder_bias
        if self.activation == "topk":
            values, places = before.topk(self.k, dim=-1)
            return torch.zeros_like(before).scatter_(-1, places, values.relu())
        if self.threshold is not None:
            return torch.where(before > self.threshold, before.relu(), 0.0)
        return before.relu()

    def decode(self, codes: Float[Tensor, "... h"]) -> Float[Tensor, "... d"]:
        return codes @ self.decoder + self.decoder_bias

    def reconstruct(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """decode(encode(x)), a few rows at a time: codes of all rows at once would not fit for large h."""
        rows = x.reshape(-1, x.shape[-1])
        parts = [self.decode(self.encode(part)) for part in rows.split(ROWS_AT_A_TIME)]
        return torch.cat(parts).reshape(x.shape)

    def to(self, device: str | torch.device) -> Dictionary:
        moved = {name: getattr(self, name).to(device) for name in self._tensors()}
        return replace(self, **moved)

    def _tensors(self) -> list[str]:
        names = ["encoder", "encoder_bias", "decoder", "decoder_bias"]
        return [*names, "threshold"] if self.threshold is not None else names


# --- dictionaries that nobody trains ----------------------------------------------------------------------------


def random_decoder(mean: Float[Tensor, " d"], size: int, k: int, *, seed: int) -> Dictionary:
    """Unit rows in random directions, read by themselves."""
    rows = unit_rows(size, len(mean), seed)
    return Dictionary("random", rows.T.clone(), torch.zeros(size), rows, mean, k=k, seed=seed)


def unit_rows(size: int, width: int, seed: int) -> Float[Tensor, "h d"]:
    """Independent and uniform on the sphere."""
    rows = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def neuron_basis(mean: Float[Tensor, " d"], k: int) -> Dictionary:
    identity = torch.eye(len(mean))
    return from_basis("neurons", identity, identity, mean, k)


def principal_components(mean: Float[Tensor, " d"], covariance: Float[Tensor, "d d"], k: int) -> Dictionary:
    """Every principal axis, largest variance first."""
    axes = torch.linalg.eigh(covariance.double()).eigenvectors.flip(1).to(torch.float32)
    return from_basis("pca", axes.T, axes.T, mean, k)


def from_basis(
    name: str,
    read: Float[Tensor, "m d"],
    write: Float[Tensor, "m d"],
    mean: Float[Tensor, " d"],
    k: int,
    *,
    seed: int = 0,
    note: str = "",
) -> Dictionary:
    """x − mean = Σ (readᵢ · (x − mean)) writeᵢ, split into signs; the decoder gets unit rows and the encoder their lengths.

    Reading along the longer row then gives a code in units of activation, and k picks what contributes most.
    """
    lengths = write.norm(dim=1, keepdim=True)
    rows, readers = write / lengths, read * lengths
    decoder, encoder = torch.cat([rows, -rows]), torch.cat([readers, -readers]).T.clone()
    return Dictionary(
        name, encoder, torch.zeros(len(decoder)), decoder, mean, k=min(k, len(rows)), seed=seed, note=note
    )


# --- files ------------------------------------------------------------------------------------------------------


def write(dictionary: Dictionary, folder: str | Path, *, model: str, layer: int, bos: bool) -> None:
    """A folder that SAELens reads. Layer l is the residual stream after block l, 0 what enters block 0."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "W_enc": dictionary.encoder,
        "b_enc": dictionary.encoder_bias,
        "W_dec": dictionary.decoder,
        "b_dec": dictionary.decoder_bias,
    }
    if dictionary.threshold is not None:
        tensors["threshold"] = dictionary.threshold
    named = {sigma: name for name, sigma in ARCHITECTURES.items()}
    settings: dict[str, Any] = {
        "architecture": named[dictionary.activation],
        "d_in": dictionary.width,
        "d_sae": dictionary.size,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "model_name": model,
            "hook_name": hook_name(layer),
            "prepend_bos": bos,
            "model_from_pretrained_kwargs": {"center_writing_weights": True} if dictionary.centred else {},
            "kind": dictionary.name,
            "seed": dictionary.seed,
            "note": dictionary.note,
        },
    }
    if dictionary.activation == "topk":
        settings |= {"k": dictionary.k, "rescale_acts_by_decoder_norm": False}
    with manifest.atomic(folder / WEIGHTS) as path:
        path.write_bytes(checksum.safetensors(tensors))
    with manifest.atomic(folder / CONFIG) as path:
        path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def hook_name(layer: int) -> str:
    return "blocks.0.hook_resid_pre" if layer == 0 else f"blocks.{layer - 1}.hook_resid_post"


def layer_of(hook: str) -> int | None:
    """The layer of a residual hook point, None for any other."""
    parts = hook.split(".")
    if len(parts) != 3 or not parts[1].isdecimal() or parts[2] not in ("hook_resid_pre", "hook_resid_post"):
        return None
    return int(parts[1]) + (parts[2] == "hook_resid_post")


def read(folder: str | Path, *, width: int | None = None, layer: int | None = None) -> Dictionary:
    """A dictionary in SAELens's layout, ours or published; ours are checked against their own checksum.

    `width` and `layer` are the model's: UserError where either differs, and for files that are missing, damaged, not finite,
    of an architecture or a normalisation that no affine map with a threshold can say.
    """
    folder = Path(folder)
    settings = _settings(folder)
    architecture = settings.get("architecture") or "standard"
    if architecture not in ARCHITECTURES:
        raise UserError(f"{folder}: architecture {architecture!r} is none of {', '.join(ARCHITECTURES)}")
    if settings.get("normalize_activations") not in (None, False, "none"):
        raise UserError(
            f"{folder}: activations are normalised at run time ({settings['normalize_activations']}); fold it into the "
            "weights first (SAELens: fold_activation_norm_scaling_factor)"
        )
    about = {**settings, **settings.get("metadata", {})}
    hook = _hook(settings)
    if layer is not None and layer_of(hook) != layer:
        raise UserError(f"{folder}: made for {hook or 'no hook point'}, and layer {layer} is {hook_name(layer)}")
    tensors = _tensors(folder)
    encoder, bias, decoder, offset = (tensors[name].float() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    if width is not None and decoder.shape[1] != width:
        raise UserError(f"{folder}: made for width {decoder.shape[1]}, and the model's is {width}")
    threshold = tensors["threshold"].float() if architecture == "jumprelu" else None
    if settings.get("apply_b_dec_to_input") is False:
        bias = bias + offset @ encoder
    if settings.get("rescale_acts_by_decoder_norm"):
        norms = decoder.norm(dim=1)
        encoder, bias, decoder = encoder * norms, bias * norms, decoder / norms[:, None]
    kwargs = about.get("model_from_pretrained_kwargs") or {}
    return Dictionary(
        about.get("kind", "pretrained"),
        encoder,
        bias,
        decoder,
        offset,
        ARCHITECTURES[architecture],
        int(settings.get("k", 0)),
        threshold,
        bool(kwargs.get("center_writing_weights", False)),
        int(about.get("seed", 0)),
        about.get("note", ""),
    )


def layer_in(folder: str | Path, depth: int) -> int:
    """The layer that a published dictionary says it is for, in a model of `depth` blocks.

    UserError for another hook point than the residual stream, and for a block that the model does not have.
    """
    hook = _hook(_settings(Path(folder)))
    layer = layer_of(hook)
    if layer is None:
        raise UserError(
            f"{folder}: made for {hook or 'no hook point'}; only the residual stream is read (blocks.L.hook_resid_pre, "
            "blocks.L.hook_resid_post)"
        )
    if layer > depth:
        raise UserError(f"{folder}: made for {hook}, and the model has {depth} blocks; check `model`")
    return layer


def _hook(settings: Mapping[str, Any]) -> str:
    about = {**settings, **settings.get("metadata", {})}
    return about.get("hook_name") or about.get("hook_point") or ""


def _settings(folder: Path) -> Mapping[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder}: no {CONFIG}; give a folder in SAELens's layout") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / CONFIG}: not valid JSON ({error})") from None
    if not isinstance(settings, dict):
        raise UserError(f"{folder / CONFIG}: a mapping was expected")
    return settings


def _tensors(folder: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"{folder}: no {WEIGHTS}; give a folder in SAELens's layout")
    try:
        with safe_open(path, "pt") as file:
            ours = checksum.KEY in (file.metadata() or {})
        tensors = checksum.read_safetensors(path) if ours else load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or no safetensors file ({error})") from None
    missing = {"W_enc", "b_enc", "W_dec", "b_dec"} - set(tensors)
    if missing:
        raise UserError(f"{path}: has no {', '.join(sorted(missing))}")
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{path}: {name} has entries that are not finite; train it again")
    if tensors["W_enc"].shape != tensors["W_dec"].shape[::-1]:
        raise UserError(
            f"{path}: W_enc {tuple(tensors['W_enc'].shape)} and W_dec {tuple(tensors['W_dec'].shape)} differ"
        )
    return tensors
