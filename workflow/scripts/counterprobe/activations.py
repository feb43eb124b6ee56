"""Residual streams at the read positions, from a model to memory-mapped matrices on disk.

What is kept, for every text, read position and choice of BOS: the residual stream that enters block 0 (layer
0) and the one that leaves block l (layer l = 1 … L, before the final norm). Two ways to get it, equal to 1e-4
in float32:

    fast    the Hugging Face decoder without its language-model head (at Pythia-70m's shape more than half of
            the arithmetic is the unembedding), hooks on its blocks, stopped after the last layer needed
    bridge  TransformerBridge's hook points (https://github.com/TransformerLensOrg/TransformerLens), the
            reference

One forward pass a text serves all positions and layers. The model is causal, so nothing after the deepest
read position matters: ids are cut there, and texts that are equal up to there are run once. Sequences are
sorted by length, longest first (the largest batch comes first, and memory fails at once or never), and dealt
to batches under a budget of padded tokens. They are padded on the right, where causality alone hides the
padding and no mask is needed.

A data-only baseline goes with them: `tokens`, the mean of the input-embedding rows of all tokens up to and
including the read one (BOS counted). It sees which words there are and nothing else.

Files: `{position}.{bos|nobos}.layer_{l:02d}.npy` and `{position}.{bos|nobos}.tokens.npy`, [n_texts, d], row =
text of the design. Weight controls have one folder a unit, `{kept|randomised}.seed{seed}/`. The names are the
index: a store is opened from the list of files in its manifest.

Pitfalls. The last hidden state that Hugging Face returns is after the final norm; hooks on the blocks are
not. The bridge changes the model it wraps (attention becomes eager, parameters are renamed), so it gets a
copy. Batches differ with the token budget, and float32 results with them in the last bits. Pages of a shared
map count as memory of the process until they are unmapped: maps are closed every few megabytes, or memory
would grow with the texts.
"""

from __future__ import annotations

import contextlib
import copy
import errno
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from counterprobe import manifest, progress
from counterprobe.progress import UserError
from counterprobe.tokenization import Encoded, encode, name_of

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from counterprobe.designs import Design

DTYPES = {"float32": torch.float32, "float16": torch.float16}

# Where each family keeps its blocks, and the modules beside them that tell it from families which
# store something else under that name: GPT-NeoX; Llama, Mistral, Qwen; GPT-2.
FAMILIES = (("layers", {"embed_in"}), ("layers", {"embed_tokens"}), ("h", {"wte", "wpe"}))

PARTIAL = ".partial"
ROWS_AT_A_TIME = 4096
BYTES_BETWEEN_RELEASES = 8 * 2**20

SHARD = re.compile(
    r"((?P<embeddings>kept|randomised)\.seed(?P<seed>\d+)/)?"
    r"(?P<position>[^/]+)\.(?P<bos>bos|nobos)\.(layer_(?P<layer>\d+)|tokens)\.npy"
)

# ids [batch, length], mask of real tokens, row and column of each token to keep -> [layers, kept, d].
Forward = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Store:
    """Activations on disk. Matrices are mapped, not read; row i is text i of the design.

    positions, bos, layers: what there is. units: (embeddings, seed) of each set of weights; ("kept", 0) alone
    for trained weights. files: one shard for each (embeddings, seed, position, bos, layer), layer None for
    `tokens`.
    """

    root: Path
    n_texts: int
    width: int
    positions: tuple[str, ...]
    bos: tuple[bool, ...]
    layers: tuple[int, ...]
    units: tuple[tuple[str, int], ...]
    files: Mapping[tuple[str, int, str, bool, int | None], str]

    def matrix(
        self, position: str, bos: bool, layer: int, embeddings: str = "kept", seed: int = 0
    ) -> Float[np.ndarray, "n_texts d"]:
        """Residual stream [n_texts, d] at a layer: 0 enters block 0, l leaves block l. Read-only memory
        map."""
        return self._shard((embeddings, seed, position, bos, layer))

    def token_embeddings(
        self, position: str, bos: bool, embeddings: str = "kept", seed: int = 0
    ) -> Float[np.ndarray, "n_texts d"]:
        """Mean input embedding [n_texts, d] of the tokens up to and including the read one."""
        return self._shard((embeddings, seed, position, bos, None))

    def _shard(self, key: tuple[str, int, str, bool, int | None]) -> np.memmap:
        if key not in self.files:
            embeddings, seed, position, bos, layer = key
            raise UserError(
                f"{self.root}: no activations at position {position!r}, bos {bos}, "
                f"{'token embeddings' if layer is None else f'layer {layer}'}, embeddings {embeddings}, "
                f"seed {seed}; there are positions {list(self.positions)}, bos {list(self.bos)}, "
                f"layers {list(self.layers)}, (embeddings, seed) {list(self.units)}"
            )
        return np.load(self.root / self.files[key], mmap_mode="r", allow_pickle=False)


def open_store(manifest_path: Path | str) -> Store:
    """The store that a manifest describes, after comparing every shard with the size and sha256 listed there.

    Raises UserError naming the file that is missing, truncated, changed or of another shape than the rest.
    """
    root = Path(manifest_path).parent
    listed = manifest.verify(manifest_path)["content"].get("files", {})
    files = {}
    for name in listed:
        found = SHARD.fullmatch(name)
        if found:
            layer = None if found["layer"] is None else int(found["layer"])
            unit = (found["embeddings"] or "kept", int(found["seed"] or 0))
            files[(*unit, found["position"], found["bos"] == "bos", layer)] = name
    if not files:
        raise UserError(f"{manifest_path}: lists no activations; delete the folder and run again")
    shapes = {name: np.load(root / name, mmap_mode="r", allow_pickle=False).shape for name in files.values()}
    expected = next(iter(shapes.values()))
    for name, shape in shapes.items():
        if len(shape) != 2 or shape != expected:
            raise UserError(
                f"{root / name}: shape {shape} where {next(iter(shapes))} has {expected}; "
                "delete the folder and run again"
            )
    _, _, positions, bos, layers = (set(values) for values in zip(*files, strict=True))
    return Store(
        root=root,
        n_texts=expected[0],
        width=expected[1],
        positions=tuple(sorted(positions)),
        bos=tuple(sorted(bos)),
        layers=tuple(sorted(layers - {None})),
        units=tuple(sorted({(embeddings, seed) for embeddings, seed, *_ in files})),
        files=files,
    )


def extract(
    model: PreTrainedModel,
    tokenizer: tokenizers.Tokenizer | PreTrainedTokenizerFast,
    design: Design,
    spec: Mapping[str, Any],
    out_dir: Path | str,
    *,
    backend: str,
    padding: Literal["right", "left"] = "right",
) -> None:
    """Write the residual stream of every text at every read position into `out_dir` (see the module for the
    names).

    backend: `fast` or `bridge`. spec: `positions` (names in `design.marks`), `bos` (list of booleans),
    `dtype` (float32 or float16), `token_budget` (padded tokens in a batch) and, optionally, `layers` (which
    of 0 … L; all of them where it is absent). `padding` exists for the tests that hold the back ends
    together; on the left it needs a mask and is slower.

    Shards of an earlier run in `out_dir` are removed first. New ones take their names when all are complete,
    so a run that stops half-way leaves none. Memory depends on the budget and the model, not on the number of
    texts.

    Raises UserError for an architecture that is not supported, a read position, layer or dtype that does not
    exist, what `tokenization.encode` refuses, ids beyond the model's vocabulary, a NaN or an infinity (layer,
    position and text are named), a magnitude beyond float16, and a full disk.
    """
    blocks = decoder_blocks(model)
    layers = _layers(spec.get("layers"), len(blocks))
    positions = _positions(spec["positions"], design)
    if spec["dtype"] not in DTYPES:
        raise UserError(f"activations.dtype: {spec['dtype']!r} is none of {', '.join(DTYPES)}")
    if backend not in BACKENDS:
        raise UserError(f"activations.backend: {backend!r} is none of {', '.join(BACKENDS)}")
    model.eval()
    embedding = model.get_input_embeddings().weight.detach().float()
    levels = [f"layer_{layer:02d}" for layer in layers] + ["tokens"]
    tags = {bos: "bos" if bos else "nobos" for bos in spec["bos"]}
    names = [f"{position}.{tag}.{level}.npy" for tag in tags.values() for position in positions for level in levels]
    forward = BACKENDS[backend](model, tokenizer, layers)
    clear(out_dir)
    with (
        torch.inference_mode(),
        _Shards(out_dir, names, (len(design.texts), embedding.shape[1]), spec["dtype"]) as shards,
    ):
        for bos, tag in tags.items():
            marks = {position: design.marks[position] for position in positions}
            encoded = encode(tokenizer, design.texts, marks, bos=bos, context=_context(model))
            _check_vocabulary(encoded, len(embedding))
            for batch in progress.bar(list(_batches(encoded, spec["token_budget"])), label=f"activations, {tag}"):
                ids, mask, rows, columns = (tensor.to(model.device) for tensor in batch.tensors())
                means = _mean_embeddings(embedding, ids, rows, columns)
                if padding == "left":
                    ids, mask, columns = _shifted(ids, mask, rows, columns)
                values = torch.cat([forward(ids, mask, rows, columns).float(), means[None]])
                kept = _storable(values, DTYPES[spec["dtype"]], levels, batch, positions, design)
                for level, matrix in zip(levels, kept, strict=True):
                    for position, source in zip(positions, batch.sources, strict=True):
                        shards.write(f"{position}.{tag}.{level}.npy", batch.texts, matrix, source)


def clear(folder: Path | str) -> None:
    """Remove the activations below a folder, finished or not: an older run's must not enter a new
    manifest."""
    folder = Path(folder)
    for partial in folder.rglob(PARTIAL):
        shutil.rmtree(partial)
    for shard in folder.rglob("*.npy"):
        shard.unlink()


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder blocks of a causal language model, in order.

    Families: GPT-NeoX, those built like Llama (Mistral, Qwen), GPT-2. Raises UserError naming any other
    model_type: where a family norms or scales between its blocks, a hook there would return something else
    than a residual stream.
    """
    for blocks, beside in FAMILIES:
        found = getattr(model.base_model, blocks, None)
        if isinstance(found, nn.ModuleList) and len(found) and all(hasattr(model.base_model, name) for name in beside):
            return found
    raise UserError(
        f"model_type {model.config.model_type!r}: where to read its residual stream is not known; supported "
        "are gpt_neox, what is built like llama (mistral, qwen) and gpt2: choose such a model"
    )


class _Done(Exception):
    """Raised in a hook once the last layer that is needed is there."""


def _fast(model: PreTrainedModel, tokenizer: Any, layers: Sequence[int]) -> Forward:
    blocks = decoder_blocks(model)

    def forward(
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        rows: Int[Tensor, " kept"],
        columns: Int[Tensor, " kept"],
    ) -> Float[Tensor, "layers kept d"]:
        residuals = {}

        def keep(layer: int, hidden: Tensor) -> None:
            residuals[layer] = hidden[rows, columns]
            if layer == layers[-1]:
                raise _Done

        def before(block: nn.Module, arguments: tuple, keywords: dict) -> None:
            keep(0, arguments[0] if arguments else keywords["hidden_states"])

        def after(layer: int) -> Callable[[nn.Module, tuple, Any], None]:
            def hook(block: nn.Module, arguments: tuple, output: Any) -> None:
                keep(layer, output[0] if isinstance(output, tuple) else output)

            return hook

        with contextlib.ExitStack() as stack:
            for layer in layers:
                handle = (
                    blocks[layer - 1].register_forward_hook(after(layer))
                    if layer
                    else blocks[0].register_forward_pre_hook(before, with_kwargs=True)
                )
                stack.callback(handle.remove)
            stack.enter_context(contextlib.suppress(_Done))
            model.base_model(input_ids=ids, use_cache=False, **_visibility(mask))
        return torch.stack([residuals[layer] for layer in layers])

    return forward


def _bridge(model: PreTrainedModel, tokenizer: Any, layers: Sequence[int]) -> Forward:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    # It never sees text; a tokenizer with a BOS it would read again, from a folder or a hub that may be gone.
    without_bos = PreTrainedTokenizerFast(tokenizer_object=getattr(tokenizer, "backend_tokenizer", tokenizer))
    bridge = TransformerBridge.boot_transformers(
        model.config.model_type,
        hf_model=copy.deepcopy(model),
        tokenizer=without_bos,
        device=str(model.device),
        dtype=model.dtype,
    )
    points = ["blocks.0.hook_in" if layer == 0 else f"blocks.{layer - 1}.hook_out" for layer in layers]

    def forward(
        ids: Int[Tensor, "batch length"],
        mask: Bool[Tensor, "batch length"],
        rows: Int[Tensor, " kept"],
        columns: Int[Tensor, " kept"],
    ) -> Float[Tensor, "layers kept d"]:
        # A callable filter: given a list of names, the cache holds each tensor a second time under its alias.
        _, cache = bridge.run_with_cache(
            ids, attention_mask=mask.long(), names_filter=lambda name: name in points, return_type=None
        )
        return torch.stack([cache[point][rows, columns] for point in points])

    return forward


BACKENDS: dict[str, Callable[[PreTrainedModel, Any, Sequence[int]], Forward]] = {
    "fast": _fast,
    "bridge": _bridge,
}


def _visibility(mask: Bool[Tensor, "batch length"]) -> dict[str, Tensor]:
    """Mask and positions for a decoder; nothing where padding stands on the right only.

    There no real token can see it, and without a mask scaled_dot_product_attention takes its causal path.
    """
    if bool(mask[:, 0].all()):
        return {}
    return {"attention_mask": mask.long(), "position_ids": (mask.long().cumsum(1) - 1).clamp(min=0)}


@dataclass(frozen=True)
class _Batch:
    """Sequences that are run together, and what is read from them for which texts.

    sequences: token ids. rows, columns: sequence and token of each residual to keep. texts: indices into the
    design. sources: for each read position, which of the kept residuals is the one of each text.
    """

    sequences: list[tuple[int, ...]]
    rows: Int[np.ndarray, " kept"]
    columns: Int[np.ndarray, " kept"]
    texts: Int[np.ndarray, " texts"]
    sources: Int[np.ndarray, "positions texts"]

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Ids padded on the right, the mask of real tokens, rows and columns."""
        lengths = torch.tensor([len(sequence) for sequence in self.sequences])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        ids = torch.zeros(mask.shape, dtype=torch.long)
        ids[mask] = torch.tensor([token for sequence in self.sequences for token in sequence])
        return ids, mask, torch.from_numpy(self.rows), torch.from_numpy(self.columns)


def _batches(encoded: Encoded, token_budget: int) -> Iterator[_Batch]:
    """Deal the distinct sequences, cut after the deepest read position, to batches; longest first, ties in
    order."""
    read = np.stack(list(encoded.positions.values()))
    index: dict[tuple[int, ...], int] = {}
    sequence_of_text = np.array(
        [
            index.setdefault(ids[: deepest + 1], len(index))
            for ids, deepest in zip(encoded.ids, read.max(0), strict=True)
        ]
    )
    sequences = list(index)
    order = np.argsort([-len(sequence) for sequence in sequences], kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    rank_of_text = rank[sequence_of_text]
    texts_by_rank = np.argsort(rank_of_text, kind="stable")
    start = 0
    while start < len(sequences):
        longest = len(sequences[order[start]])
        stop = min(start + max(1, token_budget // longest), len(sequences))
        texts = texts_by_rank[slice(*np.searchsorted(rank_of_text[texts_by_rank], [start, stop]))]
        wanted = (rank_of_text[texts] - start) * longest + read[:, texts]
        kept, sources = np.unique(wanted, return_inverse=True)
        yield _Batch(
            sequences=[sequences[place] for place in order[start:stop]],
            rows=kept // longest,
            columns=kept % longest,
            texts=texts,
            sources=sources.reshape(wanted.shape),
        )
        start = stop


def _shifted(
    ids: Int[Tensor, "batch length"],
    mask: Bool[Tensor, "batch length"],
    rows: Int[Tensor, " kept"],
    columns: Int[Tensor, " kept"],
) -> tuple[Int[Tensor, "batch length"], Bool[Tensor, "batch length"], Int[Tensor, " kept"]]:
    """The same batch with its padding on the left."""
    padding = (~mask).sum(1)
    take = (torch.arange(ids.shape[1], device=ids.device) - padding[:, None]) % ids.shape[1]
    return ids.gather(1, take), mask.gather(1, take), columns + padding[rows]


def _mean_embeddings(
    embedding: Float[Tensor, "vocabulary d"],
    ids: Int[Tensor, "batch length"],
    rows: Int[Tensor, " kept"],
    columns: Int[Tensor, " kept"],
) -> Float[Tensor, "kept d"]:
    """Mean input embedding of the tokens up to and including each kept one; padding stands on the right."""
    up_to = torch.arange(ids.shape[1], device=ids.device) <= columns[:, None]
    starts = torch.cumsum(columns + 1, 0) - (columns + 1)
    return nn.functional.embedding_bag(ids[rows][up_to], embedding, starts, mode="mean")


def _storable(
    values: Float[Tensor, "levels kept d"],
    dtype: torch.dtype,
    levels: Sequence[str],
    batch: _Batch,
    positions: Sequence[str],
    design: Design,
) -> np.ndarray:
    """The values in the dtype of the store. Raises UserError for the first that is not finite in it."""
    converted = values.to(dtype)
    if not bool(torch.isfinite(converted).all()):
        level, kept, unit = torch.nonzero(~torch.isfinite(converted))[0].tolist()
        position, text = np.argwhere(batch.sources == kept)[0]
        value = values[level, kept, unit].item()
        advice = "look at the weights" if not np.isfinite(value) else "set activations.dtype to float32"
        problem = f"is {value}" if not np.isfinite(value) else f"is {value:.3g}, beyond float16"
        raise UserError(
            f"activation {unit} of {levels[level]} at position {positions[position]!r} of "
            f"{name_of(int(batch.texts[text]), design.texts[batch.texts[text]])} {problem}; {advice}"
        )
    return converted.cpu().numpy()


class _Shards:
    """Preallocated .npy maps [n, d], filled row by row under temporary names and renamed when all is written.

    Used as a context manager; an exception inside removes them.
    """

    def __init__(self, folder: Path | str, names: Sequence[str], shape: tuple[int, int], dtype: str) -> None:
        self.folder = Path(folder)
        self.partial = self.folder / PARTIAL
        self.names = names
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self._maps: dict[str, np.memmap] = {}
        self._unreleased = 0

    def __enter__(self) -> _Shards:
        self.partial.mkdir(parents=True)
        try:
            self._allocate()
        except BaseException:
            shutil.rmtree(self.partial)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._maps.clear()
        if kind is None:
            for name in self.names:
                os.replace(self.partial / name, self.folder / name)
        shutil.rmtree(self.partial)

    def write(
        self,
        name: str,
        rows: Int[np.ndarray, " r"],
        values: Float[np.ndarray, "k d"],
        source: Int[np.ndarray, " r"],
    ) -> None:
        """Row rows[i] of a shard becomes values[source[i]]."""
        for start in range(0, len(rows), ROWS_AT_A_TIME):
            if name not in self._maps:
                self._maps[name] = np.lib.format.open_memmap(self.partial / name, mode="r+")
            chunk = slice(start, start + ROWS_AT_A_TIME)
            self._maps[name][rows[chunk]] = values[source[chunk]]
            self._unreleased += len(rows[chunk]) * self.shape[1] * self.dtype.itemsize
            if self._unreleased > BYTES_BETWEEN_RELEASES:
                self._maps.clear()
                self._unreleased = 0

    def _allocate(self) -> None:
        """Claim the disk space now: writing through a map to a full disk kills the process without a word."""
        needed = len(self.names) * self.shape[0] * self.shape[1] * self.dtype.itemsize
        free = shutil.disk_usage(self.partial).free
        full = (
            f"{self.folder}: activations take {needed:,} bytes and the disk has {free:,} left; free some and run again"
        )
        if needed > free:
            raise UserError(full)
        for name in self.names:
            try:
                np.lib.format.open_memmap(self.partial / name, mode="w+", dtype=self.dtype, shape=self.shape)
                _claim(self.partial / name)
            except OSError as error:
                if error.errno in manifest.FULL:
                    raise UserError(full) from error
                raise


def _claim(file: Path) -> None:
    # macOS has no posix_fallocate, and some file systems refuse it: there the free space was only looked at.
    if not hasattr(os, "posix_fallocate"):
        return
    with open(file, "rb+") as handle:
        try:
            os.posix_fallocate(handle.fileno(), 0, file.stat().st_size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise


def _layers(requested: Sequence[int] | None, n_blocks: int) -> list[int]:
    layers = list(range(n_blocks + 1)) if requested is None else sorted(set(requested))
    outside = [layer for layer in layers if not 0 <= layer <= n_blocks]
    if outside or not layers:
        raise UserError(
            f"activations.layers: {outside or 'none'}; choose from 0 (embedding) to {n_blocks} (last block)"
        )
    return layers


def _positions(requested: Sequence[str], design: Design) -> list[str]:
    for position in requested:
        if position not in design.marks:
            raise UserError(
                f"activations.positions: design {design.name!r} has no read position {position!r}; "
                f"it has {', '.join(design.marks)}"
            )
    if not requested:
        raise UserError("activations.positions: empty; name at least one read position")
    return list(requested)


def _context(model: PreTrainedModel) -> int:
    return getattr(model.config, "max_position_embeddings", None) or sys.maxsize


def _check_vocabulary(encoded: Encoded, n_rows: int) -> None:
    largest = max(max(ids) for ids in encoded.ids)
    if largest >= n_rows:
        raise UserError(
            f"the tokenizer gives id {largest} and the model's embedding has {n_rows} rows; "
            "this tokenizer belongs to another model"
        )
