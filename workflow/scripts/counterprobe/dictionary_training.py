"""Sparse autoencoders on a matrix of activations, many at once.

All sizes, sparsities and seeds see the same minibatches; those of one size are one stack of tensors [g, ...], so
that a step costs a few batched matrix products whatever the number of dictionaries. With x centred and scaled to mean
squared norm 1, z the k largest entries of x W_enc + b_enc, rectified (Gao et al. 2024, arXiv 2406.04093), and
e = z W_dec + b − x, the loss is the mean of ‖e‖² over n rows. Its gradients are written down, for they are shorter than what
automatic differentiation would keep:

    ∂W_dec = 2 zᵀe / n     ∂z = 2 e W_decᵀ [z > 0] / n     ∂W_enc = xᵀ ∂z

Of the five products of a step only the encoder's is dense: z and ∂z have k entries a row, and where k is small the other
four are sums over the rows of live latents.

Adam, unit decoder rows after every step, a rate that falls linearly over the last third. Latents that did not fire since
the last look are dead and start again along the residual of a row that is badly reconstructed, drawn by squared loss, in
the first two thirds of training (Bricken et al. 2023, https://transformer-circuits.pub/2023/monosemantic-features).
A `frozen` dictionary keeps its random decoder and learns the rest (Korznikov et al. 2026, arXiv 2602.14111).

Why a trainer of our own: eai-sparsify and SAELens train from a language model and its tokens, overcomplete and
dictionary-learning take a matrix but one dictionary at a time, through automatic differentiation.

Pitfalls: the scale is folded into the weights at the end, so b_enc and codes are in units of activation. Rows of
activations repeat (texts share beginnings), and dictionaries weigh them as often as they occur.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from counterprobe import progress
from counterprobe.dictionaries import Dictionary, unit_rows
from counterprobe.progress import UserError

DECAY_FROM = 2 / 3
# A latent is looked at this often in a run; fewer looks leave dead latents dead, more take rare ones for dead.
LOOKS = 12
CONSTANT = 1e-12
# From this many latents for each live one on, rows of the live ones cost less than products with all (measured: a third at
# 64, on one core). On a card the sums over rows would have no fixed order.
SPARSE = 16


@dataclass(frozen=True)
class Recipe:
    """One dictionary of `size` latents, k of them live at a time. frozen: the decoder stays random."""

    size: int
    k: int
    seed: int
    frozen: bool = False


@dataclass(frozen=True)
class Schedule:
    steps: int
    batch: int = 1024
    learning_rate: float = 0.003


@dataclass(frozen=True)
class Trained:
    """Dictionaries in the order of their recipes, with the mean loss of each over the last tenth of the steps (a share of the
    variance)."""

    dictionaries: tuple[Dictionary, ...]
    losses: tuple[float, ...]


def train(x: Float[Tensor, "n d"], recipes: Sequence[Recipe], schedule: Schedule, *, seed: int) -> Trained:
    """One dictionary a recipe, on the device of `x`; `seed` orders the minibatches, a recipe's own starts its weights.

    UserError for activations that are constant or not finite, a k beyond the size, and a loss that became NaN.
    """
    if not bool(torch.isfinite(x).all()):
        raise UserError("dictionaries: activations are not finite; look at the weights of the model")
    mean = x.mean(0)
    scale = float((x - mean).square().sum(1).mean().sqrt())
    if scale < CONSTANT:
        raise UserError("dictionaries: all activations are equal; there is nothing to learn")
    for recipe in recipes:
        if not 1 <= recipe.k <= recipe.size:
            raise UserError(f"dictionaries: k = {recipe.k} of {recipe.size} latents; k is 1 up to the size")
    order = sorted(range(len(recipes)), key=lambda i: recipes[i].size)
    stacks = [
        _Stack([recipes[i] for i in members], x.shape[1], x.device, schedule)
        for _, members in itertools.groupby(order, key=lambda i: recipes[i].size)
    ]
    generator = torch.Generator().manual_seed(seed)
    looks = {round(schedule.steps * DECAY_FROM * (i + 1) / LOOKS) for i in range(LOOKS)}
    for step, rows in enumerate(progress.bar(_rows(len(x), schedule, generator), schedule.steps, "dictionaries")):
        batch = (x[rows] - mean) / scale
        rate = schedule.learning_rate * min(1.0, (1 - step / schedule.steps) / (1 - DECAY_FROM))
        for stack in stacks:
            error = stack.step(batch, rate, last=step >= 0.9 * schedule.steps)
            if step + 1 in looks:
                stack.revive(batch, error, generator)
    made = dict(zip(order, itertools.chain.from_iterable(stack.finish(mean, scale) for stack in stacks), strict=True))
    for index, (_, loss) in made.items():
        if not loss == loss:
            raise UserError(f"dictionaries: the loss of {recipes[index]} became NaN; lower dictionaries.learning_rate")
    return Trained(*zip(*(made[index] for index in range(len(recipes))), strict=True))


def _rows(n: int, schedule: Schedule, generator: torch.Generator) -> Iterator[Tensor]:
    """Minibatches of a fresh permutation an epoch."""
    size = min(schedule.batch, n)
    batches: Iterator[Tensor] = iter(())
    for _ in range(schedule.steps):
        rows = next(batches, None)
        if rows is None:
            batches = iter(torch.randperm(n, generator=generator)[: n // size * size].split(size))
            rows = next(batches)
        yield rows


class _Stack:
    """Dictionaries of one size, trained side by side; encoder [g, h, d] by rows, as the decoder."""

    def __init__(self, recipes: Sequence[Recipe], width: int, device: torch.device, schedule: Schedule) -> None:
        self.recipes, self.device = recipes, device
        # Seeds of a decoder and of what is drawn later differ from those of a random dictionary with the same seed.
        rows = torch.stack([unit_rows(recipe.size, width, recipe.seed + 1_000_003) for recipe in recipes]).to(device)
        self.decoder, self.encoder = rows.clone(), rows.clone()
        self.encoder_bias = torch.zeros(len(recipes), 1, recipes[0].size, device=device)
        self.bias = torch.zeros(len(recipes), 1, width, device=device)
        self.frozen = torch.tensor([recipe.frozen for recipe in recipes], device=device)
        self.k = torch.tensor([recipe.k for recipe in recipes], device=device)[:, None, None]
        self.parameters = [self.encoder, self.encoder_bias, self.bias, self.decoder]
        self.adam = torch.optim.Adam(self.parameters, lr=schedule.learning_rate, fused=True)
        self.fired = torch.zeros(len(recipes), recipes[0].size, dtype=torch.bool, device=device)
        self.losses: list[Tensor] = []

    @torch.no_grad()
    def step(self, x: Float[Tensor, "n d"], rate: float, *, last: bool) -> Float[Tensor, "g n d"]:
        """One update; returns the residual e before it."""
        before = torch.baddbmm(self.encoder_bias, x.expand(len(self.recipes), *x.shape), self.encoder.transpose(1, 2))
        most = int(self.k.max())
        values, places = before.topk(most, dim=2, sorted=bool((self.k != most).any()))
        values = values.relu_().mul_(torch.arange(most, device=self.device) < self.k)
        sparse = self.device.type == "cpu" and most * SPARSE <= before.shape[2]
        error, live = (self._sparse if sparse else self._dense)(x, values, places)
        self.bias.grad = error.mean(1, keepdim=True).mul_(2)
        self.decoder.grad[self.frozen] = 0
        self.adam.param_groups[0]["lr"] = rate
        self.adam.step()
        self.decoder /= self.decoder.norm(dim=2, keepdim=True)
        self.fired |= live
        if last:
            self.losses.append(error.square().sum(2).mean(1))
        return error

    def _dense(
        self, x: Float[Tensor, "n d"], values: Float[Tensor, "g n k"], places: Int[Tensor, "g n k"]
    ) -> tuple[Float[Tensor, "g n d"], Bool[Tensor, "g h"]]:
        """The residual, and which latents fired; the gradients of all but the bias are set on the way."""
        codes = torch.zeros(*values.shape[:2], self.decoder.shape[1], device=self.device).scatter_(2, places, values)
        error = torch.baddbmm(self.bias, codes, self.decoder) - x
        live = codes > 0
        slope = torch.bmm(error, self.decoder.transpose(1, 2)).mul_(live).mul_(2 / len(x))
        self.encoder.grad = torch.matmul(slope.transpose(1, 2), x)
        self.encoder_bias.grad = slope.sum(1, keepdim=True)
        self.decoder.grad = torch.bmm(codes.transpose(1, 2), error).mul_(2 / len(x))
        return error, live.any(1)

    def _sparse(
        self, x: Float[Tensor, "n d"], values: Float[Tensor, "g n k"], places: Int[Tensor, "g n k"]
    ) -> tuple[Float[Tensor, "g n d"], Bool[Tensor, "g h"]]:
        """The same from the rows of live latents alone."""
        error = self.bias - x
        live = torch.zeros_like(self.fired)
        self.encoder.grad, self.decoder.grad = torch.zeros_like(self.encoder), torch.zeros_like(self.decoder)
        self.encoder_bias.grad = torch.zeros_like(self.encoder_bias)
        for g, (value, place) in enumerate(zip(values, places, strict=True)):
            flat = place.reshape(-1)
            rows = self.decoder[g].index_select(0, flat).view(*place.shape, -1)
            error[g] += functional.embedding_bag(place, self.decoder[g], per_sample_weights=value, mode="sum")
            slope = (rows * error[g, :, None]).sum(-1).mul_(value > 0).mul_(2 / len(x))
            self.encoder.grad[g].index_add_(0, flat, (slope[:, :, None] * x[:, None]).view(len(flat), -1))
            self.encoder_bias.grad[g, 0].index_add_(0, flat, slope.reshape(-1))
            weight = value * (2 / len(x))
            self.decoder.grad[g].index_add_(0, flat, (weight[:, :, None] * error[g, :, None]).view(len(flat), -1))
            live[g].index_fill_(0, flat[value.reshape(-1) > 0], True)
        return error, live

    @torch.no_grad()
    def revive(self, x: Float[Tensor, "n d"], error: Float[Tensor, "g n d"], generator: torch.Generator) -> None:
        """Latents that did not fire since the last look start again along what is badly reconstructed."""
        for place, dead in enumerate(~self.fired):
            latents = dead.nonzero()[:, 0]
            loss = error[place].square().sum(1).square().cpu()
            if not len(latents) or not bool(loss.sum() > 0):
                continue
            rows = torch.multinomial(loss, len(latents), replacement=True, generator=generator).to(self.device)
            along = -error[place, rows]
            along = along / along.norm(dim=1, keepdim=True).clamp(min=CONSTANT)
            self._restart(place, latents, along)
        self.fired.zero_()

    def _restart(self, place: int, latents: Tensor, along: Float[Tensor, "k d"]) -> None:
        if self.frozen[place]:
            along = self.decoder[place, latents]
        self.decoder[place, latents] = along
        self.encoder[place, latents] = along
        self.encoder_bias[place, 0, latents] = 0
        for name in ("exp_avg", "exp_avg_sq"):
            self.adam.state[self.decoder][name][place, latents] = 0
            self.adam.state[self.encoder][name][place, latents] = 0
            self.adam.state[self.encoder_bias][name][place, 0, latents] = 0

    def finish(self, mean: Float[Tensor, " d"], scale: float) -> Iterator[tuple[Dictionary, float]]:
        """Dictionaries in units of activation, each with its loss."""
        losses = torch.stack(self.losses).mean(0).tolist()
        for place, (recipe, loss) in enumerate(zip(self.recipes, losses, strict=True)):
            # Trained as encode(x) = σ(x W + b_enc); a dictionary subtracts its decoder's bias from the input.
            bias, encoder = self.bias[place, 0], self.encoder[place].T
            yield (
                Dictionary(
                    "frozen_decoder" if recipe.frozen else "sae",
                    encoder.contiguous(),
                    (self.encoder_bias[place, 0] + bias @ encoder) * scale,
                    self.decoder[place].clone(),
                    mean + bias * scale,
                    k=recipe.k,
                    seed=recipe.seed,
                ),
                loss,
            )


def recovered(
    decoder: Float[Tensor, "h d"], features: Float[Tensor, "m d"], threshold: float = 0.9
) -> Bool[Tensor, " m"]:
    """Which known features some decoder row points along: |cos| above the threshold."""
    return best_match(features, decoder) > threshold


def best_match(of: Float[Tensor, "m d"], among: Float[Tensor, "h d"]) -> Float[Tensor, " m"]:
    """For every row of one set, the largest |cosine| with a row of the other; rows of zeros match nothing.

    Its mean over two trainings is MMCS (Sharkey et al. 2022, https://www.lesswrong.com/posts/z6QQJbtpkEAX3Aojj).
    """
    first, second = (rows / rows.norm(dim=1, keepdim=True).clamp(min=CONSTANT) for rows in (of, among))
    return torch.cat([(part @ second.T).abs().amax(1) for part in first.split(4096)])
