"""FastICA on data that does not fit in memory, on any device.

Model: x = μ + A s with independent, non-Gaussian s. Whitening K (K Cov Kᵀ = 1) comes from a covariance that is accumulated
chunk by chunk in float64; then the symmetric fixed-point iteration with g = tanh (Hyvärinen 1999, IEEE Trans. Neural
Networks 10(3), 626; https://doi.org/10.1109/72.761722),

    W ← (1/n) Σ g(W K x) (K x)ᵀ − diag(mean g′(W K x)) W,     W ← (W Wᵀ)^(−1/2) W

is two matrix products a chunk, for K can be taken out of either: W K is one matrix, and Σ g xᵀ is multiplied by K once.
Nothing but the d × d sums is kept: memory O(d² + chunk), whatever the number of rows.

Results are in the data's own units: `unmixing` [m, d] reads (s = unmixing (x − μ), unit variance), `mixing` [d, m] holds what
a component writes. With m = d they are inverses; a component's direction in activation space is a mixing column.

Pitfalls: m ≤ rank, so ICA cannot represent an overcomplete dictionary, however much data there is. Directions of (almost)
no variance would be whitened to pure rounding: they are left out, and `rank` says how many remain. Gaussian components
have no fixed point of their own: `converged` is False and the last iterate is returned. Chunks must come out the same each
time they are iterated over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from counterprobe import progress
from counterprobe.progress import UserError

# An axis with less of the largest variance than this is rounding of float32 data.
NEGLIGIBLE = 1e-10

Chunks = Sequence[Float[Tensor, "_ d"]]


@dataclass(frozen=True)
class Moments:
    """Sums over all rows, in float64."""

    rows: int
    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]


@dataclass(frozen=True)
class Components:
    """See the module. moved: 1 − |cos| by which the component that moved most did so in the last iteration."""

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


def chunked(x: Float[Tensor, "n d"], size: int = 16384) -> Chunks:
    """Views of a matrix, or of a memory map made a tensor."""
    return x.split(size)


def moments(chunks: Iterable[Float[Tensor, "_ d"]]) -> Moments:
    """Mean and covariance (divided by n). Products in the data's precision per chunk, sums in float64.

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
    variances, axes = torch.linalg.eigh(measured.covariance)
    kept = variances > NEGLIGIBLE * variances[-1].clamp(min=0)
    kept &= variances > 0
    rank = int(kept.sum())
    if rank == 0:
        raise UserError("ICA: all rows are equal; there is nothing to separate")
    if components is not None and components > rank:
        raise UserError(f"ICA: {components} components of data of rank {rank}; ask for {rank} at most")
    wanted = components or rank
    scales, axes = variances.sqrt()[-wanted:], axes[:, -wanted:]
    whiten, colour = (axes / scales).T, axes * scales
    generator = torch.Generator().manual_seed(seed)
    turned = torch.randn(wanted, wanted, generator=generator, dtype=torch.float64).to(whiten.device)
    rotation = decorrelate(turned)
    done, moved = 0, float("inf")
    while done < iterations and moved > tolerance:
        updated = _update(chunks, measured.mean, whiten, rotation)
        moved = float((1 - (updated * rotation).sum(1).abs()).abs().max())
        rotation, done = updated, done + 1
    if not moved == moved:
        raise UserError("ICA: the iteration left the numbers (NaN); look at the activations")
    if moved > tolerance:
        progress.logger("ica").warning("no convergence in %d iterations, last moved by %.1e", done, moved)
    return Components(
        measured.mean.float(),
        (rotation @ whiten).float(),
        (colour @ rotation.T).float(),
        rank,
        done,
        moved <= tolerance,
        moved,
    )


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
