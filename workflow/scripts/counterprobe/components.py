"""Heads and neurons of a decoder: what each adds to the residual stream, replaced at will, or frozen to another text.

A residual stream is a sum, so it splits exactly. After block L, at the read token,

    x_L = x_0 + Σ_{l<L} ( Σ_h z_{l,h} W_O[l,h] + b_O[l] + Σ_j a_{l,j} W_out[l,j] + b_out[l] )

with z_{l,h} the pattern-weighted values of head h and a_{l,j} the activation of neuron j after its non-linearity (after
the gate, where there is one). "A component" is a head or a neuron (Elhage et al. 2021, "A mathematical framework for
transformer circuits", https://transformer-circuits.pub/2021/framework/).

z and a are the INPUTS of the two matrices of a block that write into the stream, so both are read, and replaced, by
pre-hooks on those two modules: TransformerBridge's `attn.hook_z` and `mlp.hook_post`, without wrapping the model (a test
holds them together). Parallel (GPT-NeoX) and sequential blocks need no distinction. A pattern is frozen by giving a
sequence the queries and keys of another one of the same length in the same batch: whatever computes the softmax then
computes the other one's pattern.

Sequences are cut after the read token, equal ones are run once, and a batch holds equally long ones: no padding, and
the read token is the last. An intervention on late blocks resumes from what the clean run handed to the first of them.

Pitfall: a component is replaced at every token of a text, not at the read token alone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from counterprobe.activations import decoder_blocks
from counterprobe.progress import UserError
from counterprobe.tokenization import encode

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from counterprobe.designs import Design

HEADS, NEURONS = "heads", "neurons"
KINDS = (HEADS, NEURONS)


@dataclass(frozen=True)
class Names:
    """Modules of a block: what heads write through, the MLP, what neurons write through, what makes queries and keys."""

    heads_out: str
    mlp: str
    neurons_out: str
    queries_keys: tuple[str, ...]


_LLAMA = Names("self_attn.o_proj", "mlp", "mlp.down_proj", ("self_attn.q_proj", "self_attn.k_proj"))
FAMILIES: Mapping[str, Names] = {
    "gpt_neox": Names("attention.dense", "mlp", "mlp.dense_4h_to_h", ("attention.query_key_value",)),
    "gpt2": Names("attn.c_proj", "mlp", "mlp.c_proj", ("attn.c_attn",)),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


@dataclass(frozen=True)
class Block:
    """One decoder block. queries_keys: (module, which of its outputs are queries or keys)."""

    module: nn.Module
    heads_out: nn.Module
    mlp: nn.Module
    neurons_out: nn.Module
    queries_keys: tuple[tuple[nn.Module, Int[Tensor, " _"]], ...]
    n_heads: int

    def out(self, kind: str) -> nn.Module:
        return self.heads_out if kind == HEADS else self.neurons_out

    def count(self, kind: str) -> int:
        """Components of a kind in this block."""
        return self.n_heads if kind == HEADS else len(writes(self.neurons_out))

    def columns(self, kind: str, chosen: Sequence[int]) -> Int[Tensor, " columns"]:
        """Coordinates of z or a that belong to the chosen components."""
        width = len(writes(self.out(kind))) // self.count(kind)
        return (torch.as_tensor(chosen, dtype=torch.long)[:, None] * width + torch.arange(width)).flatten()


@dataclass(frozen=True)
class Sequences:
    """Distinct token sequences of a design, cut after the read token, in batches of equal length.

    of_text: sequence of each text; sequences are numbered through the batches. first_text: one text of each.
    """

    batches: tuple[Int[Tensor, "_ _"], ...]
    of_text: Int[np.ndarray, " texts"]
    first_text: Int[np.ndarray, " sequences"]

    def spans(self) -> Iterator[slice]:
        """Numbers of the sequences of each batch."""
        start = 0
        for ids in self.batches:
            yield slice(start, start + len(ids))
            start += len(ids)


@dataclass(frozen=True)
class Trace:
    """A clean run of one batch. entering[l] is what block l reads, entering[L] what the last block leaves.

    heads[l] and neurons[l] are z and a of block l. arguments[l]: what else block l was called with, to resume from it.
    """

    entering: tuple[Float[Tensor, "batch tokens d"], ...]
    heads: tuple[Float[Tensor, "batch tokens z"], ...]
    neurons: tuple[Float[Tensor, "batch tokens a"], ...]
    arguments: tuple[tuple[tuple[Any, ...], dict[str, Any]], ...]

    def of(self, kind: str) -> tuple[Float[Tensor, "batch tokens c"], ...]:
        return self.heads if kind == HEADS else self.neurons


@dataclass(frozen=True)
class Readings:
    """The read token of every sequence: residuals (layers 0 … L), and z and a of every block."""

    residuals: tuple[Float[Tensor, "sequences d"], ...]
    heads: tuple[Float[Tensor, "sequences z"], ...]
    neurons: tuple[Float[Tensor, "sequences a"], ...]


def blocks_of(model: PreTrainedModel) -> tuple[Block, ...]:
    """The decoder blocks taken apart. Raises UserError for an architecture without an entry in FAMILIES."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise UserError(
            f"heads and neurons are known for {', '.join(FAMILIES)}, not for {kind!r}; leave this model's mechanisms out "
            "(run.mechanisms: [])"
        )
    names, n_heads = FAMILIES[kind], model.config.num_attention_heads
    return tuple(
        Block(
            module=block,
            heads_out=block.get_submodule(names.heads_out),
            mlp=block.get_submodule(names.mlp),
            neurons_out=block.get_submodule(names.neurons_out),
            queries_keys=tuple(
                (block.get_submodule(name), _queries_and_keys(block.get_submodule(name), kind, n_heads))
                for name in names.queries_keys
            ),
            n_heads=n_heads,
        )
        for block in decoder_blocks(model)
    )


def writes(module: nn.Module) -> Float[Tensor, "inputs d"]:
    """The matrix of an output projection, a row for each input: what one unit of z or a adds to the stream."""
    weight = module.weight.detach()
    return weight if isinstance(module, Conv1D) else weight.T


def sequences(
    model: PreTrainedModel,
    tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast,
    design: Design,
    position: str,
    *,
    bos: bool,
    token_budget: int,
) -> Sequences:
    """Tokenise a design up to one read position. Raises UserError as `tokenization.encode` does, and for a position that
    the design does not have."""
    if position not in design.marks:
        raise UserError(f"design {design.name!r} has no read position {position!r}; it has {', '.join(design.marks)}")
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 31
    encoded = encode(tokenizer, design.texts, {position: design.marks[position]}, bos=bos, context=context)
    cut = [ids[: read + 1] for ids, read in zip(encoded.ids, encoded.positions[position], strict=True)]
    # A stable sort of the distinct ones, which a mapping keeps in order of appearance.
    distinct = sorted(dict.fromkeys(cut), key=len)
    number = {ids: index for index, ids in enumerate(distinct)}
    of_text = np.array([number[ids] for ids in cut])
    batches, start = [], 0
    while start < len(distinct):
        length = len(distinct[start])
        most = start + max(1, token_budget // length)
        stop = next((i for i in range(start, len(distinct)) if len(distinct[i]) != length or i == most), len(distinct))
        batches.append(torch.tensor(distinct[start:stop], device=model.device))
        start = stop
    return Sequences(tuple(batches), of_text, np.unique(of_text, return_index=True)[1])


def trace(
    model: PreTrainedModel, blocks: Sequence[Block], ids: Int[Tensor, "batch tokens"], *, read_only: bool
) -> Trace:
    """Run one batch. `read_only` keeps the last token of everything, and then the run cannot be resumed from."""
    kept = slice(-1, None) if read_only else slice(None)
    entering: list[Tensor] = []
    inputs: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def enter(module: nn.Module, args: tuple, keywords: dict) -> None:
        rest = {name: value for name, value in keywords.items() if name != "hidden_states"}
        entering.append((args[0] if args else keywords["hidden_states"])[:, kept])
        arguments.append((args[1:], rest))

    def collect(kind: str) -> Any:
        return lambda module, args: inputs[kind].append(args[0][:, kept])

    with torch.inference_mode(), contextlib.ExitStack() as stack:
        for block in blocks:
            handles = [block.module.register_forward_pre_hook(enter, with_kwargs=True)]
            handles += [block.out(kind).register_forward_pre_hook(collect(kind)) for kind in KINDS]
            for handle in handles:
                stack.callback(handle.remove)
        leave = blocks[-1].module.register_forward_hook(lambda m, a, output: entering.append(_hidden(output)[:, kept]))
        stack.callback(leave.remove)
        model.base_model(input_ids=ids, use_cache=False)
    return Trace(tuple(entering), tuple(inputs[HEADS]), tuple(inputs[NEURONS]), tuple(arguments))


def read(model: PreTrainedModel, blocks: Sequence[Block], texts: Sequences) -> Readings:
    """Residuals and component outputs at the read token of every sequence."""
    traces = [trace(model, blocks, ids, read_only=True) for ids in texts.batches]

    def join(parts: Iterable[Sequence[Tensor]]) -> tuple[Tensor, ...]:
        return tuple(torch.cat([part[:, -1] for part in level]) for level in zip(*parts, strict=True))

    return Readings(
        residuals=join(run.entering for run in traces),
        heads=join(run.heads for run in traces),
        neurons=join(run.neurons for run in traces),
    )


def resume(blocks: Sequence[Block], clean: Trace, start: int, stop: int) -> Float[Tensor, "batch d"]:
    """What block stop − 1 leaves at the read token when blocks start … stop − 1 run again, from a clean run that kept
    every token."""
    hidden = clean.entering[start]
    with torch.inference_mode():
        for block, (args, keywords) in zip(blocks[start:stop], clean.arguments[start:stop], strict=True):
            hidden = _hidden(block.module(hidden, *args, **keywords))
    return hidden[:, -1]


@contextlib.contextmanager
def replacing(
    blocks: Sequence[Block],
    values: Mapping[tuple[int, str], tuple[Int[Tensor, " _"], Float[Tensor, "*_"]]],
) -> Iterator[None]:
    """Give columns of z or a other values, by (block, kind), for as long as the context lasts."""
    with contextlib.ExitStack() as stack:
        for (layer, kind), (columns, given) in values.items():

            def put(module: nn.Module, args: tuple, columns: Tensor = columns, given: Tensor = given) -> tuple:
                changed = args[0].clone()
                changed[..., columns] = given.to(changed.dtype)
                return (changed, *args[1:])

            stack.callback(blocks[layer].out(kind).register_forward_pre_hook(put).remove)
        yield


def frozen(
    model: PreTrainedModel,
    blocks: Sequence[Block],
    ids: Int[Tensor, "batch tokens"],
    counterfactual: Int[Tensor, "batch tokens"],
) -> dict[frozenset[str], tuple[Float[Tensor, "batch d"], ...]]:
    """Residuals of the read token, layers 0 … L, with parts of the model taken from a run on the counterfactual texts.

    Keys: {"attention"} (every block's attention patterns), {"mlp"} (every block's MLP input, hence its output), and both.
    """
    n = len(ids)
    # Rows of the batch: the counterfactual itself, then one copy for each set of parts.
    sets = (frozenset({"attention"}), frozenset({"mlp"}), frozenset({"attention", "mlp"}))
    copies = {part: [i for i, chosen in enumerate(sets, start=1) if part in chosen] for part in ("attention", "mlp")}
    residuals: list[Tensor] = []

    def freeze(part: str, columns: Tensor | None) -> Any:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            changed = output.clone()
            for copy in copies[part]:
                rows = slice(copy * n, (copy + 1) * n)
                if columns is None:
                    changed[rows] = output[:n]
                else:
                    changed[rows, :, columns] = output[:n, :, columns]
            return changed

        return hook

    with torch.inference_mode(), contextlib.ExitStack() as stack:
        first = blocks[0].module.register_forward_pre_hook(
            lambda m, args, keywords: residuals.append((args[0] if args else keywords["hidden_states"])[:, -1]),
            with_kwargs=True,
        )
        stack.callback(first.remove)
        for block in blocks:
            for module, columns in block.queries_keys:
                stack.callback(module.register_forward_hook(freeze("attention", columns)).remove)
            stack.callback(block.mlp.register_forward_hook(freeze("mlp", None)).remove)
            keep = block.module.register_forward_hook(lambda m, a, output: residuals.append(_hidden(output)[:, -1]))
            stack.callback(keep.remove)
        model.base_model(input_ids=torch.cat([counterfactual, ids, ids, ids]), use_cache=False)
    return {
        chosen: tuple(residual[copy * n : (copy + 1) * n] for residual in residuals)
        for copy, chosen in enumerate(sets, start=1)
    }


def _queries_and_keys(module: nn.Module, kind: str, n_heads: int) -> Int[Tensor, " outputs"]:
    """Outputs of a projection that are queries or keys; GPT-NeoX and GPT-2 fuse them with the values."""
    n_outputs = writes(module).shape[1]
    outputs = torch.arange(n_outputs)
    if kind == "gpt_neox":
        # Rows are packed as [head, (query, key, value), dimension].
        return outputs.view(n_heads, 3, -1)[:, :2].flatten()
    if kind == "gpt2":
        return outputs[: 2 * n_outputs // 3]
    return outputs


def _hidden(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output
