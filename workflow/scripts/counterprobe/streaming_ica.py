"""FastICA on data that does not fit in memory, on any device.

Model: x = μ + A s with independent, non-Gaussian s. Whitening K (K Cov Kᵀ = 1) comes from a covariance that is accumulated
chunk by chunk in float64; then the symmetric fixed-point iteration with g = tanh (Hyvärinen 1999, IEEE Trans. Neural
Networks 10(3), 626; https://doi.org/10.1109/72.761722),

    W ← (1/n) Σ g(W K x) (K x)ᵀ − diag(mean g′(W K x)) W,     W ← (W Wᵀ)^(−1/2) W

is two matrix products a chunk, for K can be taken out of either: W K is one matrix, and Σ g xᵀ is multiplied by K once.
Nothing but the d × d sums is kept: memory O(d² + chunk), whatever the number of rows.

What costs is the number of passes over all rows, so most iterations see a random sample of SAMPLE rows a dimension (O(d²),
too) with a whitening of its own; its fixed point is off by about d / rows, from where the iteration, which converges
quadratically, needs two or three passes to that of all rows. The last iterations, their tolerance and the fixed point are
those of all rows. Where to start decides whether a sample will do: at random, a component's coordinate on a source is about
d^(−1/2), its pull towards that source the third power of this, and the pull's noise rows^(−1/2). Rows that lie far out are
more nearly one source each, so the sample's start there. Its noise is larger than the rounding of bfloat16, in which it is
iterated on where that is quicker.

Results are in the data's own units: `unmixing` [m, d] reads (s = unmixing (x − μ), unit variance), `mixing` [d, m] holds what
a component writes. With m = d they are inverses; a component's direction in activation space is a mixing column.

Pitfalls: m ≤ rank, so ICA cannot represent an overcomplete dictionary, however much data there is. Directions of (almost)
no variance would be whitened to pure rounding: they are left out, and `rank` says how many remain. Gaussian components
have no fixed point of their own: `converged` is False and the last iterate is returned. Chunks must come out the same each
time they are iterated over. A sample that were whitened by the covariance of all rows would not converge: what is left of
its correlations is larger than what holds the fixed point. Where there are several fixed points (data that no independent
components explain), another start may end in another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import scipy.linalg
import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import progress
from counterprobe.progress import UserError

# An axis with less of the largest variance than this is rounding of float32 data.
NEGLIGIBLE = 1e-10
# Rows of the sample in multiples of the width, from how many times as many rows on there is one, and where it is left: its
# own fixed point is off by about this.
SAMPLE, WORTH_SAMPLING, LEFT_AT = 128, 2, 1e-2
SAMPLE_CHUNK = 8192
# Rows far out from which the starting ones are chosen, in multiples of their number.
FAR_OUT = 4
# Data that have no fixed point should not spend long on finding none.
ITERATIONS_OF_SAMPLE = 40

Chunks = Sequence[Float[Tensor, "_ d"]]


@dataclass(frozen=True)
class Moments:
    """Sums over all rows, in float64."""

    rows: int
    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


@dataclass(frozen=True)
class Components:
    """See the module. iterations: over all rows. moved: 1 − |cos| by which the component that moved most did so in the last
    of them."""

    mean: Float[Tensor, " d"]
    unmixing: Float[Tensor, "m d"]
    mixing: Float[Tensor, "d m"]
    rank: int
    iterations: int
    converged: bool
    moved: float

    @property
    def note(self) -> str:
        """What a table has to say of it; empty where all is well."""
        said = [] if self.rank == len(self.mean) else [f"rank {self.rank} of {len(self.mean)}"]
        if not self.converged:
            said.append(f"ICA did not converge in {self.iterations} iterations, last moved by {self.moved:.1e}")
        return "; ".join(said)


def chunked(x: Float[Tensor, "n d"], size: int = 4096) -> Chunks:
    """Views of a matrix, or of a memory map made a tensor; of a size that stays in a processor's cache."""
    return x.split(size)


def moments(chunks: Iterable[Float[Tensor, "_ d"]]) -> Moments:
    """Mean and covariance (divided by n), in float64.

    Deviations are taken from the first chunk's mean, so that a large common mean cancels before it is squared. UserError
    for no rows and for entries that are not finite.
    """
    rows, shift, total, square = 0, None, None, None
    for chunk in chunks:
        if shift is None:
            shift = chunk.mean(0)
            total = torch.zeros(chunk.shape[1], dtype=torch.float64, device=chunk.device)
            square = torch.zeros(chunk.shape[1], chunk.shape[1], dtype=torch.float64, device=chunk.device)
        deviations = (chunk - shift).double()
        rows += len(chunk)
        total += deviations.sum(0)
        square += deviations.T @ deviations
    if not rows:
        raise UserError("moments: there are no rows")
    mean = total / rows
    covariance = square / rows - torch.outer(mean, mean)
    if not bool(torch.isfinite(covariance).all()):
        raise UserError("moments: activations are not finite; look at the weights of the model")
    return Moments(rows, shift.double() + mean, covariance)


def fit(
    chunks: Chunks,
    *,
    components: int | None = None,
    tolerance: float = 1e-4,
    iterations: int = 200,
    seed: int = 0,
) -> Components:
    """`components` of them (all that have variance by default: then a rank below d is no error, and is said).

    tolerance: largest 1 − |cos| between a component and itself an iteration before, as in scikit-learn. UserError for more
    components than the data have rank, data that do not vary, and no rows.
    """
    measured = moments(chunks)
    white = _whitening(measured)
    if white.rank == 0:
        raise UserError("ICA: all rows are equal; there is nothing to separate")
    if components is not None and components > white.rank:
        raise UserError(f"ICA: {components} components of data of rank {white.rank}; ask for {white.rank} at most")
    wanted = components or white.rank
    whiten, colour = white.whiten[-wanted:], white.colour[:, -wanted:]
    generator = torch.Generator().manual_seed(seed)
    turned = torch.randn(wanted, wanted, generator=generator, dtype=torch.float64).to(whiten.device)
    rotation = decorrelate(turned)
    rows = SAMPLE * len(measured.mean)
    if measured.rows >= WORTH_SAMPLING * rows:
        sample = _sample(chunks, rows / measured.rows, generator)
        tried = min(iterations, ITERATIONS_OF_SAMPLE)
        rotation = _of_sample(sample, colour, rotation, max(LEFT_AT, tolerance), tried)
    rotation, done, moved = _iterate(chunks, measured.mean, whiten, rotation, tolerance, iterations)
    if not moved == moved:
        raise UserError("ICA: the iteration left the numbers (NaN); look at the activations")
    if moved > tolerance:
        progress.logger("ica").warning("no convergence in %d iterations, last moved by %.1e", done, moved)
    return Components(
        measured.mean.float(),
        (rotation @ whiten).float(),
        (colour @ rotation.T).float(),
        white.rank,
        done,
        moved <= tolerance,
        moved,
    )


class _Whitening(NamedTuple):
    """Axes that vary, least first: whiten [rank, d] x is uncorrelated, and colour [d, rank] undoes it."""

    rank: int
    whiten: Float[Tensor, "r d"]
    colour: Float[Tensor, "d r"]


def _whitening(measured: Moments) -> _Whitening:
    variances, axes = torch.linalg.eigh(measured.covariance)
    kept = variances > NEGLIGIBLE * variances[-1].clamp(min=0)
    kept &= variances > 0
    scales, axes = variances[kept].sqrt(), axes[:, kept]
    return _Whitening(len(scales), (axes / scales).T, axes * scales)


def _sample(chunks: Chunks, share: float, generator: torch.Generator) -> Float[Tensor, "s d"]:
    """This share of the rows of every chunk, drawn without replacement: rows are rarely in a random order."""
    parts, seen, taken = [], 0, 0
    for chunk in chunks:
        seen += len(chunk)
        count = min(len(chunk), round(share * seen) - taken)
        rows = torch.randperm(len(chunk), generator=generator)[:count].sort().values
        parts.append(chunk[rows.to(chunk.device)])
        taken += count
    return torch.cat(parts)


def _of_sample(
    sample: Float[Tensor, "s d"],
    colour: Float[Tensor, "d m"],
    start: Float[Tensor, "m m"],
    tolerance: float,
    iterations: int,
) -> Float[Tensor, "m m"]:
    """The sample's fixed point as a rotation of the whitening of all rows; `start` where a direction is missing in it."""
    parts = sample.split(SAMPLE_CHUNK)
    measured = moments(parts)
    small = _whitening(measured)
    wanted = len(start)
    if small.rank < wanted:
        return start
    whiten = small.whiten[-wanted:]
    white = torch.cat([((part.double() - measured.mean) @ whiten.T).to(part.dtype) for part in parts])
    identity = torch.eye(wanted, dtype=torch.float64, device=sample.device)
    quick = white.to(_quick(white)).split(SAMPLE_CHUNK)
    found = _iterate(quick, torch.zeros_like(identity[0]), identity, _far_out(white, start), tolerance, iterations)
    return decorrelate(found.rotation @ whiten @ colour)


def _far_out(white: Float[Tensor, "n m"], otherwise: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """Whitened rows far from the mean, each far from the span of those before it, made orthogonal.

    Where rows repeat each other and there are not enough, rows of the orthogonal matrix `otherwise` take their places.
    """
    furthest = white.norm(dim=1).topk(min(len(white), FAR_OUT * len(otherwise))).indices
    candidates = torch.cat([white[furthest].double(), otherwise])
    _, order = scipy.linalg.qr(candidates.T.cpu().numpy(), mode="r", pivoting=True)
    chosen = candidates[torch.from_numpy(order[: len(otherwise)]).to(white.device)]
    return decorrelate(chosen / chosen.norm(dim=1, keepdim=True))


def _quick(x: Tensor) -> torch.dtype:
    """bfloat16 where products of it are the hardware's own, and as it is elsewhere."""
    if x.device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else x.dtype
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else x.dtype


class _Iterated(NamedTuple):
    rotation: Float[Tensor, "m m"]
    done: int
    moved: float


def _iterate(
    chunks: Chunks,
    mean: Float[Tensor, " d"],
    whiten: Float[Tensor, "m d"],
    rotation: Float[Tensor, "m m"],
    tolerance: float,
    iterations: int,
) -> _Iterated:
    """Until no component moves more than `tolerance`, or this often."""
    done, moved = 0, float("inf")
    while done < iterations and moved > tolerance:
        updated = _update(chunks, mean, whiten, rotation)
        moved = float((1 - (updated * rotation).sum(1).abs()).abs().max())
        rotation, done = updated, done + 1
    return _Iterated(rotation, done, moved)


def decorrelate(rotation: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """(W Wᵀ)^(−1/2) W: the nearest orthogonal matrix."""
    values, vectors = torch.linalg.eigh(rotation @ rotation.T)
    tiny = torch.finfo(values.dtype).tiny
    return (vectors * values.clamp(min=tiny).rsqrt()) @ vectors.T @ rotation


def _update(
    chunks: Chunks,
    mean: Float[Tensor, " d"],
    whiten: Float[Tensor, "m d"],
    rotation: Float[Tensor, "m m"],
) -> Float[Tensor, "m m"]:
    """One step of the fixed-point iteration over all rows of the chunks."""
    reader = rotation @ whiten
    offset = -reader @ mean
    outer = torch.zeros_like(reader)
    slopes, values, rows = torch.zeros_like(offset), torch.zeros_like(offset), 0
    for chunk in chunks:
        kind = chunk.dtype
        g = torch.addmm(offset.to(kind), chunk, reader.T.to(kind)).tanh_()
        outer += (g.T @ chunk).double()
        values += g.sum(0).double()
        # g′ = 1 − g².
        slopes += len(chunk) - g.square_().sum(0).double()
        rows += len(chunk)
    gradient = (outer - torch.outer(values, mean)) @ whiten.T
    return decorrelate(gradient / rows - (slopes / rows)[:, None] * rotation)
