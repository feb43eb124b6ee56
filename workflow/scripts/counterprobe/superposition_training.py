"""Train many small networks at once: stacked parameters, one Adam, one reason for every run that failed.

Every parameter is a tensor [networks, ...], the loss is one number a network, and what is minimised is the
sum of those numbers: no network sees another's gradient, so a stack is exactly as many separate runs, in as
many kernel launches as one run needs. With the tiny matrices of toy models the launches are nearly all of the
time.

    Adam (Kingma & Ba, arXiv 1412.6980), bias-corrected, learning rate falling linearly to a tenth in the
    second half.

Pitfalls. Networks of different sizes share a stack by zero padding: an all-zero unit gets a zero gradient
from a ReLU network (its input and its output weights multiply each other), so padding stays zero without a
mask, as long as the loss ignores padded outputs. A network whose loss stops being finite fills itself with
NaN and leaves its neighbours alone. Every network draws its weights and data from its own generator, keyed by
what it IS (seed, sizes) and not by its place in the stack, so it learns the same function alone or in
company, up to the order of floating-point sums.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

CHUNK = 32  # optimiser steps whose inputs are drawn at once: one call a network instead of one a network and step


@dataclass(frozen=True)
class TrainedStack:
    """Parameters after training, each [N, ...]; the loss at the first and last step [N]; why a run failed (''
    = fine).
    """

    parameters: dict[str, Tensor]
    first_loss: Float[Tensor, "N"]
    last_loss: Float[Tensor, "N"]
    reasons: tuple[str, ...]


def generator(*key: int) -> torch.Generator:
    """A generator that depends on the integers of `key` only."""
    state = np.random.SeedSequence([int(part) for part in key]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))


def train_stack(
    parameters: Mapping[str, Tensor],
    draw: Callable[[int], Tensor],
    loss: Callable[[Mapping[str, Tensor], Tensor], Float[Tensor, "N"]],
    *,
    steps: int,
    learning_rate: float | Float[Tensor, "N"],
    frozen: Mapping[str, Sequence[bool]] | None = None,
) -> TrainedStack:
    """Minimise the sum of the networks' losses with Adam.

    Args:
        parameters: initial values, each [N, ...]; not changed.
        draw: `draw(count)` gives the inputs of the next `count` steps, [count, N, ...].
        loss: loss of every network on one step's inputs, [N]; must not mix networks.
        learning_rate: one value, or one a network [N].
        frozen: parameter name -> for each network, whether that parameter stays at its initial value.

    A run is marked as diverged where its loss is not finite at some step, where a parameter is not finite after the
    last one, or where the loss ends above twice its first value
    (a run that starts at its optimum, such as the zero output of a collapsed loss, wavers a little above it).
    """
    weights = {name: value.detach().clone().requires_grad_(True) for name, value in parameters.items()}
    first_moment = {name: torch.zeros_like(value) for name, value in parameters.items()}
    second_moment = {name: torch.zeros_like(value) for name, value in parameters.items()}
    n_networks = next(iter(parameters.values())).shape[0]
    rate = torch.as_tensor(learning_rate, dtype=torch.float32).expand(n_networks)
    rates = {}
    for name, value in parameters.items():
        moving = torch.tensor([not held for held in (frozen or {}).get(name, [False] * n_networks)])
        rates[name] = (rate * moving).to(value.device).view(-1, *[1] * (value.ndim - 1))
    beta1, beta2, tiny = 0.9, 0.999, 1e-8
    first = last = torch.zeros(n_networks)
    failed_at = torch.full((n_networks,), -1, dtype=torch.int64)
    inputs: Tensor | None = None
    for step in range(steps):
        if step % CHUNK == 0:
            inputs = draw(min(CHUNK, steps - step))
        last = loss(weights, inputs[step % CHUNK])
        last.sum().backward()
        last = last.detach().cpu()
        if step == 0:
            first = last
        failed_at[(failed_at < 0) & ~torch.isfinite(last)] = step
        decay = min(1.0, 1.0 - 0.9 * (2 * step / steps - 1.0))
        correction = (1 - beta2 ** (step + 1)) ** 0.5
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = weight.grad
                first_moment[name].lerp_(gradient, 1 - beta1)
                second_moment[name].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                scale = second_moment[name].sqrt().div_(correction).add_(tiny)
                weight.sub_(first_moment[name].div(scale).mul_(rates[name] * (decay / (1 - beta1 ** (step + 1)))))
                weight.grad = None
    reasons = tuple(
        _reason(at, start, end, bool(finite))
        for at, start, end, finite in zip(failed_at, first, last, _finite(weights), strict=True)
    )
    return TrainedStack({name: weight.detach() for name, weight in weights.items()}, first, last, reasons)


def _finite(parameters: Mapping[str, Tensor]) -> Bool[Tensor, "N"]:
    """Of every network, whether all its parameters are finite: no loss sees what the last update made."""
    each = [torch.isfinite(value.detach()).flatten(1).all(dim=1) for value in parameters.values()]
    return torch.stack(each).all(dim=0).cpu()


def _reason(failed_at: Tensor, first: Tensor, last: Tensor, finite: bool) -> str:
    if failed_at >= 0:
        return f"diverged: the loss is not finite at step {int(failed_at)}"
    if not finite:
        return "diverged: a parameter is not finite after the last step"
    if last > 2 * first:
        return f"diverged: the loss rose from {float(first):.3g} to {float(last):.3g}"
    return ""
