"""What is done to the residual stream while a model runs, and a quick way to do much of it at once.

A residual vector x at a layer (0 enters block 0, l leaves block l) and a token becomes

    add            x + v
    project_out    x − ((x − m)·u) u              u the unit vector of a direction; nothing of it is left beyond m
    clamp          x + (a − x·u) u                its coordinate becomes a
    swap           x + ((x' − x)·u) u             its coordinate becomes that of another text, x'

at one layer or at each of a range, and at the tokens that `Places` names: all of them, or from some token on (what is
generated), or one token alone. Places are counted from the beginning of the text, never from the end of what is being
run: a rule such as "the last token of this pass" means one thing with a key-value cache and another without, and the two
then generate different texts.

`applied` puts hooks on the blocks of a transformers model, `applied_to_bridge` on the hook points of a TransformerBridge
(the reference). Both take their hooks off on exit whatever happens, refuse to start over another's hooks, and say so if
somebody took theirs off while they ran, as `reset_hooks` and some nested runs do: the texts after that were not steered.

`Resumed` is the quick way. Nothing below the steered layer, and no token before the first steered one, depends on the
intervention. So the model runs once; what enters each block is kept, with the keys and values of the tokens before; and
every direction and coefficient is a batch that starts from there.

Pitfall: float32 sums differ with the size of a batch in their last bits, and a greedy choice between two tokens that are
equally likely can turn on them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from counterprobe import activations
from counterprobe.progress import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# A residual stream [batch, tokens, d], or part of its tokens, and what it becomes.
Edit = Callable[[Tensor], Tensor]
# Final norms by the names that the supported families give them.
NORMS = ("final_layer_norm", "norm", "ln_f")


@dataclass(frozen=True)
class Places:
    """Tokens that are steered, numbered from the beginning of the text: first … last; to the end where last is None."""

    first: int = 0
    last: int | None = None

    def within(self, start: int, length: int) -> slice:
        """Columns of a pass that begins with token `start` of the text."""
        stop = length if self.last is None else min(length, self.last + 1 - start)
        return slice(max(0, self.first - start), max(0, stop))


def add(vector: Float[Tensor, "*_ d"]) -> Edit:
    """x + v."""
    return lambda x: x + vector.to(x.dtype)


def project_out(direction: Float[Tensor, " d"], about: Float[Tensor, " d"] | None = None) -> Edit:
    """x − ((x − m)·u) u; m is 0 where it is not given."""
    unit = _unit(direction)
    return clamp(direction, 0.0 if about is None else (about * unit).sum())


def clamp(direction: Float[Tensor, " d"], value: Float[Tensor, "*_"] | float) -> Edit:
    """x + (a − x·u) u, with a in units of the residual stream."""
    unit = _unit(direction)
    return lambda x: x + (torch.as_tensor(value, dtype=x.dtype) - x @ unit.to(x.dtype))[..., None] * unit.to(x.dtype)


def swap(direction: Float[Tensor, " d"], other: Float[Tensor, "*_ d"]) -> Edit:
    """x + ((x' − x)·u) u, with x' the residual vectors of the counterfactual texts."""
    unit = _unit(direction)
    return lambda x: x + ((other - x) @ unit.to(x.dtype))[..., None] * unit.to(x.dtype)


@contextlib.contextmanager
def applied(model: PreTrainedModel, edits: Mapping[int, Edit], places: Places) -> Iterator[None]:
    """Steer a transformers model at the given layers for as long as the context lasts.

    Raises UserError for a layer that does not exist, where somebody else's hooks are on these blocks, and on leaving where
    somebody took these hooks off.
    """
    blocks, base = activations.decoder_blocks(model), model.base_model
    _check_layers(edits, len(blocks))
    modules = [base, *(blocks[max(layer - 1, 0)] for layer in edits)]
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks:
            raise UserError(f"{type(module).__name__} already has hooks; leave the context that put them there first")
    start = 0

    def begin(module: nn.Module, arguments: tuple, keywords: dict) -> None:
        nonlocal start
        cache = keywords.get("past_key_values")
        start = 0 if cache is None else cache.get_seq_length()

    def edited(hidden: Tensor, edit: Edit) -> Tensor:
        columns = places.within(start, hidden.shape[1])
        changed = hidden.clone()
        changed[:, columns] = edit(hidden[:, columns])
        return changed

    def before(edit: Edit) -> Callable:
        def hook(block: nn.Module, arguments: tuple, keywords: dict) -> tuple[tuple, dict]:
            if arguments:
                return (edited(arguments[0], edit), *arguments[1:]), keywords
            return arguments, {**keywords, "hidden_states": edited(keywords["hidden_states"], edit)}

        return hook

    def after(edit: Edit) -> Callable:
        def hook(block: nn.Module, arguments: tuple, output: Any) -> Any:
            return (edited(output[0], edit), *output[1:]) if isinstance(output, tuple) else edited(output, edit)

        return hook

    handles = [(base._forward_pre_hooks, base.register_forward_pre_hook(begin, with_kwargs=True))]
    for layer, edit in edits.items():
        if layer:
            block = blocks[layer - 1]
            handles.append((block._forward_hooks, block.register_forward_hook(after(edit))))
        else:
            block = blocks[0]
            handles.append((block._forward_pre_hooks, block.register_forward_pre_hook(before(edit), with_kwargs=True)))
    try:
        yield
        _check_present(all(handle.id in held for held, handle in handles))
    finally:
        for _, handle in handles:
            handle.remove()


@contextlib.contextmanager
def applied_to_bridge(bridge: Any, edits: Mapping[int, Edit], places: Places) -> Iterator[None]:
    """As `applied`, for a TransformerBridge, whose passes must begin with the text's first token."""
    _check_layers(edits, bridge.cfg.n_layers)
    points = {
        layer: bridge.hook_dict["blocks.0.hook_in" if layer == 0 else f"blocks.{layer - 1}.hook_out"] for layer in edits
    }
    for layer, point in points.items():
        if point.fwd_hooks:
            raise UserError(f"the hook point of layer {layer} already has hooks; leave the context that put them there")

    def steer(edit: Edit) -> Callable:
        def hook(hidden: Tensor, *, hook: Any) -> Tensor:
            columns = places.within(0, hidden.shape[1])
            changed = hidden.clone()
            changed[:, columns] = edit(hidden[:, columns])
            return changed

        return hook

    held = []
    try:
        for layer, edit in edits.items():
            points[layer].add_hook(steer(edit))
            held.append((points[layer], points[layer].fwd_hooks[-1]))
        yield
        _check_present(all(handle in point.fwd_hooks for point, handle in held))
    finally:
        for point, handle in held:
            handle.hook.remove()
            if handle in point.fwd_hooks:
                point.fwd_hooks.remove(handle)


def generate(
    model: PreTrainedModel, ids: Int[Tensor, "b t"], n_tokens: int, *, use_cache: bool = True
) -> Int[Tensor, "b n"]:
    """Greedy continuations of equally long prompts, under whatever is applied to the model."""
    cache, tokens, given = None, ids, ids
    with torch.inference_mode():
        for _ in range(n_tokens):
            said = model(given, past_key_values=cache, use_cache=use_cache, logits_to_keep=1)
            tokens = torch.cat([tokens, said.logits[:, -1].argmax(-1, keepdim=True)], dim=1)
            cache, given = (said.past_key_values, tokens[:, -1:]) if use_cache else (None, tokens)
    return tokens[:, ids.shape[1] :]


def generate_checked(
    model: PreTrainedModel, ids: Int[Tensor, "b t"], n_tokens: int, edits: Mapping[int, Edit], places: Places
) -> Int[Tensor, "b n"]:
    """Steered continuations, generated with the key-value cache and without. UserError where the two differ."""
    with applied(model, edits, places):
        found, again = (generate(model, ids, n_tokens, use_cache=cached) for cached in (True, False))
    if not torch.equal(found, again):
        row = int((found != again).any(dim=1).nonzero()[0])
        raise UserError(
            f"steered text {row} is generated differently with and without the key-value cache; load the model in float32"
        )
    return found


class Resumed:
    """A batch of equally long sequences that was run once, to be run on from any layer and from token `first` on.

    entering[l] [b, t − first, d] is the undisturbed residual stream at layer l of tokens first … t − 1.
    """

    def __init__(self, model: PreTrainedModel, ids: Int[Tensor, "b t"], first: int) -> None:
        self.blocks = activations.decoder_blocks(model)
        self.norm = next(getattr(model.base_model, name) for name in NORMS if hasattr(model.base_model, name))
        self.head = model.get_output_embeddings()
        self.ids, self.first = ids, first
        self.entering: list[Float[Tensor, "b s d"]] = []
        self._arguments: list[tuple[tuple, dict]] = []

        def enter(block: nn.Module, arguments: tuple, keywords: dict) -> None:
            rest = {name: value for name, value in keywords.items() if name != "hidden_states"}
            self.entering.append(arguments[0] if arguments else keywords["hidden_states"])
            self._arguments.append((arguments[1:], rest))

        def leave(block: nn.Module, arguments: tuple, output: Any) -> None:
            self.entering.append(_hidden(output))

        # Not inference mode: what is kept here is differentiated through later.
        with torch.no_grad(), contextlib.ExitStack() as stack:
            self._before = model.base_model(ids[:, :first], use_cache=True).past_key_values if first else None
            for block in self.blocks:
                stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(self.blocks[-1].register_forward_hook(leave).remove)
            cache = copy.deepcopy(self._before)
            model.base_model(ids[:, first:], past_key_values=cache, use_cache=cache is not None)

    def run(self, edits: Mapping[int, Edit], repeats: int = 1) -> Float[Tensor, "D b s d"]:
        """What leaves the last block when the batch is run `repeats` times, from the first edited layer on.

        An edit is given the residual stream [D, b, s, d] and returns what it becomes.
        """
        start = min(edits)
        hidden = self.entering[start].expand(repeats, *self.entering[start].shape)
        cache = copy.deepcopy(self._before)
        if cache is not None:
            # Sequences of one repeat lie together, as in `hidden`.
            cache.batch_select_indices(torch.arange(len(self.ids), device=self.ids.device).repeat(repeats))
        for layer in range(start, len(self.blocks) + 1):
            if layer in edits:
                hidden = edits[layer](hidden)
            if layer < len(self.blocks):
                arguments, keywords = self._arguments[layer]
                given = {name: _for_repeats(value, cache) for name, value in keywords.items()}
                rest = tuple(_for_repeats(value, cache) for value in arguments)
                hidden = _hidden(self.blocks[layer](hidden.flatten(0, 1), *rest, **given)).unflatten(0, (repeats, -1))
        return hidden

    def logits(self, hidden: Float[Tensor, "*b s d"], columns: Sequence[int]) -> Float[Tensor, "*b c v"]:
        """Logits of the next token at columns of the text, from what leaves the last block."""
        kept = torch.as_tensor([column - self.first for column in columns], device=hidden.device)
        return self.head(self.norm(hidden.index_select(-2, kept))).float()


def _for_repeats(value: Any, cache: Any) -> Any:
    """An argument of a block for another batch: its own cache, and masks as of one of the equally long sequences."""
    if hasattr(value, "get_seq_length"):
        return cache
    if isinstance(value, Tensor) and value.ndim == 4:
        return value[:1]
    return value


def _check_layers(edits: Mapping[int, Edit], n_blocks: int) -> None:
    for layer in edits:
        if not 0 <= layer <= n_blocks:
            raise UserError(f"there is no layer {layer} to steer; there are 0 to {n_blocks}")


def _check_present(present: bool) -> None:
    if not present:
        raise UserError("steering hooks were removed while they were in use; the texts after that were not steered")


def _unit(direction: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    length = direction.norm()
    if not length > 0:
        raise UserError("a direction of norm zero cannot be steered along")
    return direction / length


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
