"""How much a model minds one token's activation being moved: by how far, and in which direction.

At one site (layer, read position) x becomes x + r u, with ‖u‖ = 1 and r in units of the root mean squared distance of the
site's activations from their mean; the response is the KL from what the model says undisturbed (`replacement.kl`), summed
over that token and all later ones. Kinds of directions u:

    decoder      a decoder row of a dictionary, of a latent that fires somewhere, its sign at random
    difference   towards the activation of another text
    diff_mean    difference of the class means of a factor          probe   LDA direction of the same factors
    isotropic    uniform on the sphere                              covariance   drawn from N(0, Cov), made unit

*Small sphere* (claim C39; J. Mendel's prediction that KL over a small sphere has spikes where features point): for each kind
the excess kurtosis of the response over its directions, and the share of directions whose response exceeds the
99th percentile of the isotropic ones of the same text, .01 if the kind is nothing special.

*Plateaus and sensitive directions* (Heimersheim and Mendel 2024, https://www.lesswrong.com/posts/LajDyGyiyX8DNNsuF): mean
response against r. `magnitude_ratio`: how many times farther an isotropic direction has to go for the response that it has
at r = 1, than the kind has to (da Silva and Heimersheim 2026, https://www.lesswrong.com/posts/QrPxNDprJwXiE73Py, found about
10 for differences of means, and SAE directions much like random ones). Log-log interpolation of the mean responses;
a kind that stays below is extrapolated along its last two distances.

*L0-preserving* (claim C40): codes z are jittered on their support, z' = max(z + c z η, 0+), η ~ N(0, 1), so that as many
latents are live; the same distance is gone isotropically, along the covariance, and along as many decoder rows off the
support. The response is per token here, all tokens moved, around x and around the reconstruction.

*Reconstruction among random errors* (claim C46): z-score of the reconstruction's response among isotropic moves of equal
length, text by text; and how often it exceeds their 97.5th percentile.

Pitfall: kinds are compared at equal length. A dictionary whose rows mostly point where activations vary little looks
insensitive whatever it has learned, and one fitted to other weights is no control: random rows are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy import stats
from torch import Tensor

from counterprobe import probes, replacement
from counterprobe.dictionaries import Dictionary
from counterprobe.replacement import Continuation, Replacing, Surroundings

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXTREME = 0.99
# Codes held at a time: published dictionaries have tens of thousands of latents.
CODES_AT_A_TIME = 1 << 24
# The smallest code that still counts as live.
BARELY = 1e-6


class Site:
    """Some texts, one token of each, at one layer. `x` [n, d] are its activations, in the order of `texts`.

    Texts are batched by length and place. Undisturbed logits are made in the shape of the disturbed ones, so that no move
    is exactly no response.
    """

    def __init__(
        self, model: PreTrainedModel, ids: Sequence[Sequence[int]], sites: Int[np.ndarray, " n"], layer: int
    ) -> None:
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, (of_text, site) in enumerate(zip(ids, sites, strict=True)):
            by_shape.setdefault((len(of_text), int(site)), []).append(index)
        self.groups: list[tuple[list[int], Continuation]] = []
        for (_, site), members in sorted(by_shape.items()):
            batch = torch.tensor([ids[index] for index in members])
            self.groups.append((members, Continuation(model, batch, layer, start=site)))
        # Undisturbed logits of as many copies as the last call took, by group.
        self._clean: dict[int, Tensor] = {}
        width = self.groups[0][1].residual.shape[-1]
        self.x = torch.empty(len(ids), width, device=model.device)
        for members, run in self.groups:
            self.x[members] = run.residual[:, 0]

    def response(self, moved: Float[Tensor, "r n d"]) -> Float[np.ndarray, "r n"]:
        """KL (nats) summed over the token and all later ones, with `moved` in place of `x`."""
        found = np.empty(moved.shape[:2])
        for group, (members, run) in enumerate(self.groups):
            b, t, d = run.residual.shape
            logits = b * t * run.model.config.vocab_size
            copies = max(1, min(len(moved), replacement.LOGITS_AT_A_TIME // logits))
            still = run.residual.repeat(copies, 1, 1)
            if group not in self._clean or len(self._clean[group]) != len(still):
                self._clean[group] = run.logits(still)
            clean = self._clean[group]
            for start in range(0, len(moved), copies):
                part = moved[start : start + copies, members]
                residual = still.clone()
                residual[: len(part) * b, 0] = part.reshape(-1, d)
                kl = replacement.kl(clean, run.logits(residual)).sum(1).reshape(copies, b)
                found[start : start + len(part), members] = kl[: len(part)].cpu().numpy()
        return found


def unit(v: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    return v / v.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def gaussian(shape: Sequence[int], x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator).to(x)


def decoder_directions(
    dictionary: Dictionary, x: Float[Tensor, "n d"], live: Int[Tensor, " l"], count: int, generator: torch.Generator
) -> Float[Tensor, "r n d"]:
    """`count` directions a text; `live` are latents that fire somewhere."""
    drawn = live[torch.randint(len(live), (count, len(x)), generator=generator)]
    signs = torch.randint(2, (count, len(x), 1), generator=generator).to(x) * 2 - 1
    return unit(dictionary.decoder[drawn.to(x.device)]) * signs


def random_directions(
    x: Float[Tensor, "n d"], around: Surroundings, count: int, generator: torch.Generator
) -> dict[str, Float[Tensor, "r n d"]]:
    """Directions that no dictionary and no label has a part in."""
    shape = (count, *x.shape)
    others = (torch.randint(1, len(x), (count, len(x)), generator=generator) + torch.arange(len(x))) % len(x)
    return {
        "isotropic": unit(gaussian(shape, x, generator)),
        "covariance": unit(gaussian(shape, x, generator) @ around.factor),
        "difference": unit(x[others.to(x.device)] - x),
    }


def labelled_directions(
    features: Float[Tensor, "m d"], labels: Mapping[str, np.ndarray], n_texts: int
) -> dict[str, Float[Tensor, "r n d"]]:
    """DiffMean and LDA directions of every factor, both signs, the same for all texts. features: of other texts."""
    y = torch.as_tensor(np.stack(list(labels.values()), axis=1), device=features.device)
    found = {}
    for name, fit in (("diff_mean", probes.mass_mean), ("probe", probes.lda)):
        along = unit(fit(features, y).directions.T.to(features.dtype))
        found[name] = torch.cat([along, -along])[:, None].expand(-1, n_texts, -1)
    return found


@dataclass(frozen=True)
class Sphere:
    """Responses on a small sphere: [r, n] by kind of direction."""

    responses: Mapping[str, Float[np.ndarray, "r n"]]

    def kurtosis(self, kind: str) -> Float[np.ndarray, " n"]:
        """Excess kurtosis over the kind's directions, a text each; 0 for a Gaussian."""
        return np.nan_to_num(stats.kurtosis(self.responses[kind], axis=0, bias=False))

    def beyond(self, kind: str) -> Float[np.ndarray, " n"]:
        """Share of the kind's directions above the 99th percentile of the isotropic ones, a text each."""
        bound = np.quantile(self.responses["isotropic"], EXTREME, axis=0)
        return (self.responses[kind] > bound).mean(0)


def curves(
    site: Site, directions: Mapping[str, Float[Tensor, "r n d"]], distances: Sequence[float], scale: float
) -> dict[str, Float[np.ndarray, "a r n"]]:
    """Responses by kind, at every distance (units of `scale`)."""
    return {
        kind: np.stack([site.response(site.x + distance * scale * along) for distance in distances])
        for kind, along in directions.items()
    }


def magnitude_ratio(
    kind: Float[np.ndarray, " a"], isotropic: Float[np.ndarray, " a"], distances: Sequence[float] | np.ndarray
) -> float:
    """Distance at which isotropic directions reach their response at r = 1, over that of the kind (see the module).

    NaN where a response is not positive. Below the smallest distance a response is taken to grow with its square.
    """
    if not ((kind > 0).all() and (isotropic > 0).all()):
        return float("nan")
    at, own, other = np.log(distances), np.log(kind), np.log(isotropic)
    wanted = np.interp(0.0, at, other)
    if wanted <= own[0]:
        reached = at[0] - (own[0] - wanted) / 2
    elif (own >= wanted).any():
        above = int(np.argmax(own >= wanted))
        reached = np.interp(wanted, own[above - 1 : above + 1], at[above - 1 : above + 1])
    else:
        slope = max((own[-1] - own[-2]) / (at[-1] - at[-2]), 0.1)
        reached = at[-1] + (wanted - own[-1]) / slope
    return float(np.exp(-reached))


def preserving_l0(
    whole: Replacing,
    dictionary: Dictionary,
    around: Surroundings,
    strength: float,
    generator: torch.Generator,
) -> Iterator[tuple[str, str, Float[np.ndarray, " n"]]]:
    """(centre, kind, KL of every token) for the jitter on the support and for moves as long as it."""
    x = dictionary.input(whole.tokens.x)
    parts = x.split(max(1, CODES_AT_A_TIME // dictionary.size))
    made, move, off = map(
        torch.cat, zip(*(jittered(dictionary, part, strength, generator) for part in parts), strict=True)
    )
    length = move.norm(dim=1, keepdim=True)
    moves = {
        "same_latents": move,
        "isotropic": length * unit(gaussian(x.shape, x, generator)),
        "covariance": length * unit(gaussian(x.shape, x, generator) @ around.factor),
        "other_latents": length * unit(off),
    }
    for centre, middle in (("activation", x), ("reconstruction", made)):
        clean = list(whole.logits(middle))
        for kind, by in moves.items():
            yield centre, kind, whole.said(middle + by, clean).kl


def jittered(
    dictionary: Dictionary, x: Float[Tensor, "n d"], strength: float, generator: torch.Generator
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d"], Float[Tensor, "n d"]]:
    """(reconstruction, what the jitter adds to it, what the same changes of as many latents off the support would add)."""
    codes = dictionary.encode(x)
    changed = torch.where(codes > 0, (codes * (1 + strength * gaussian(codes.shape, x, generator))), 0.0)
    changed = torch.where(codes > 0, changed.clamp(min=BARELY), 0.0)
    made = dictionary.decode(codes)
    order = torch.rand(codes.shape, generator=generator).to(x).masked_fill(codes > 0, -1.0)
    k = int((codes > 0).sum(1).max())
    elsewhere = torch.zeros_like(codes).scatter_(
        1, order.topk(k, dim=1).indices, (changed - codes).abs().topk(k, 1).values
    )
    return made, dictionary.decode(changed) - made, elsewhere @ dictionary.decoder


@dataclass(frozen=True)
class AmongErrors:
    """Of every text: z-score of the reconstruction's response, whether it exceeds 97.5% of the random ones, and the
    coefficient of variation of these."""

    z: Float[np.ndarray, " n"]
    beyond: Float[np.ndarray, " n"]
    variation: Float[np.ndarray, " n"]


def among_errors(site: Site, dictionary: Dictionary, draws: int, generator: torch.Generator) -> AmongErrors:
    """Reconstruction of the site's activations against isotropic moves of equal length."""
    made = dictionary.reconstruct(site.x)
    length = (made - dictionary.input(site.x)).norm(dim=1, keepdim=True)
    moved = site.x + length * unit(gaussian((draws, *site.x.shape), site.x, generator))
    responses = site.response(torch.cat([made[None], moved]))
    own, others = responses[0], responses[1:]
    mean, deviation = others.mean(0), others.std(0, ddof=1)
    tiny = np.finfo(np.float64).tiny
    return AmongErrors(
        (own - mean) / np.maximum(deviation, tiny),
        (own > np.quantile(others, 0.975, axis=0)).astype(float),
        deviation / np.maximum(mean, tiny),
    )
