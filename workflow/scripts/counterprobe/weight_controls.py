"""The ladder of randomised weights: what a probe finds in a network that kept only part of its training.

A rung is a recipe applied in memory to a loaded transformers model, one tensor at a time; it is never a file.
From weak to strong, with what each rung shares with the trained model (`PRESERVES`):

    init              nothing but the shapes: a fresh initialisation, as transformers does it
    gaussian          mean and variance of every tensor (Heap et al. 2025, arXiv 2501.17727)
    permuted_entries  the multiset of entries of every tensor
    spectrum          the singular values of every matrix W = U S Vᵀ, with U and V drawn from the Haar measure
    spectrum_left     U S Hᵀ, H Haar: singular values and LEFT singular vectors, so where a matrix writes
    spectrum_right    H S Vᵀ, H Haar: singular values and RIGHT singular vectors, so what a matrix reads
    permuted_columns  a permutation of the last axis of every tensor, each its own: singular values, left
                      singular vectors (that is W Wᵀ) and every row's multiset; of the embedding, the Gram
                      matrix of the tokens. The "reset network" of S. Marks
                      (github.com/saprmarks/geometry-of-truth, branch rax).

A column permutation is one particular rotation of the input side, W P = U S (Pᵀ V)ᵀ. So it keeps what
`spectrum_left` keeps and more, which puts the rungs in the partial order `CHAINS`: along a chain every rung
keeps all the statistics of the one before it, and what a probe finds should grow. `spectrum_right` is
comparable with `spectrum` only.

Conventions
- Matrices are randomised in [out, in] orientation (y = W x); GPT-2's Conv1D is transposed first. Embedding
  tables are taken as stored, [token, width], so that columns are coordinates of the residual stream.
- Query, key and value projections are split into heads for the spectrum rungs, fused or not: a head's softmax
  sees its own singular values, and one spectrum drawn over all heads would give every head the same strength.
- `norms="folded"`: the gain of a normalisation multiplies the columns of each matrix that reads it, its bias
  goes into their biases, then it is set to 1 and 0; the model's function is unchanged and the rung acts on
  the matrices the network really applies. `"untouched"` leaves normalisations as trained; `"randomised"`
  treats their gains and biases like any other vector, which with `permuted_columns` and randomised embeddings
  is Marks' procedure to the letter. A normalisation bias whose reader has no bias cannot be folded: that
  normalisation is randomised as vectors.
- Vectors (biases, unfolded gains): gaussian redraws them with their mean and variance, init resets them,
  every other rung permutes their entries.
- `embeddings="kept"` leaves token and position embeddings, the unembedding and the normalisation it reads
  untouched; `"randomised"` applies the same rung to them. Tied embeddings are one tensor and stay tied; the
  final normalisation is then treated as vectors, for folding it would change the input embedding too.

Pitfalls: apply before TransformerBridge wraps the model (wrapping renames the tensors, and names seed the
draws). QR is not bit-equal between machines: compare singular values, never hashes. Each tensor has its own
generator, seeded by sha256 of (rung, seed, name): keeping the embeddings changes no other tensor's draw.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from counterprobe.progress import UserError, nearest

EMBEDDINGS = ("kept", "randomised")
NORMS = ("folded", "untouched", "randomised")

# Exact for every tensor, but for the mean square under gaussian, which holds in expectation. gaussian and the
# permutations also keep the mean; the spectrum rungs do not, and it is small beside the root mean square.
PRESERVES: Mapping[str, frozenset[str]] = {
    "init": frozenset(),
    "gaussian": frozenset({"mean_square"}),
    "permuted_entries": frozenset({"mean_square", "entries"}),
    "spectrum": frozenset({"mean_square", "singular_values"}),
    "spectrum_left": frozenset({"mean_square", "singular_values", "left_vectors"}),
    "spectrum_right": frozenset({"mean_square", "singular_values", "right_vectors"}),
    "permuted_columns": frozenset({"mean_square", "entries", "singular_values", "left_vectors", "row_entries"}),
}
RUNGS: tuple[str, ...] = tuple(PRESERVES)
CHAINS: tuple[tuple[str, ...], ...] = (
    ("init", "gaussian", "spectrum", "spectrum_left", "permuted_columns", "trained"),
    ("gaussian", "permuted_entries", "permuted_columns"),
)


@dataclass(frozen=True)
class Family:
    """Where an architecture keeps what the rungs treat specially, by names in the headless model."""

    blocks: str
    readers: Mapping[str, tuple[str, ...]]  # normalisation of a block -> the matrices of that block that read it
    per_head: frozenset[str]  # matrices of a block whose output rows are heads, each a run of head_dim rows
    final_norm: str


# GPT-NeoX packs rows as [head, (q, k, v), head_dim] and GPT-2 as [(q, k, v), head, head_dim]; either way one
# head's q, k or v is a run of head_dim consecutive rows, which is all that splitting needs to know.
_LLAMA = Family(
    blocks="layers",
    readers={
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    },
    per_head=frozenset({"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}),
    final_norm="norm",
)
FAMILIES: Mapping[str, Family] = {
    "gpt_neox": Family(
        blocks="layers",
        readers={
            "input_layernorm": ("attention.query_key_value",),
            "post_attention_layernorm": ("mlp.dense_h_to_4h",),
        },
        per_head=frozenset({"attention.query_key_value"}),
        final_norm="final_layer_norm",
    ),
    "gpt2": Family(
        blocks="h",
        readers={"ln_1": ("attn.c_attn",), "ln_2": ("mlp.c_fc",)},
        per_head=frozenset({"attn.c_attn"}),
        final_norm="ln_f",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


@torch.no_grad()
def apply(model: nn.Module, rung: str, *, embeddings: str = "kept", seed: int = 0, norms: str = "folded") -> None:
    """Replace the weights of a loaded transformers causal language model, in place, by one rung of the
    ladder.

    `rung` is one of `RUNGS`, `embeddings` of `EMBEDDINGS`, `norms` of `NORMS`; equal (rung, seed, embeddings,
    norms) on equal weights give equal weights. The model must hold its trained weights: to draw several
    seeds, load or copy the trained state back between them. Raises UserError for an unknown rung or option
    and for an architecture without an entry in `FAMILIES`.
    """
    _check_choice("weight control", rung, RUNGS)
    _check_choice("embeddings", embeddings, EMBEDDINGS)
    _check_choice("norms", norms, NORMS)
    names = [name for name, _ in model.named_parameters()]
    if any("_original_component" in name for name in names):
        raise ValueError("weight controls must be applied before TransformerBridge wraps the model")
    family = _family(model)
    untouched = {id(p) for module in _embedding_side(model, family) for p in module.parameters()}
    if embeddings == "randomised":
        untouched = set()
    if norms == "untouched":
        untouched |= {id(p) for norm, _ in _norms(model, family) for p in norm.parameters()}
    if rung == "init":
        _initialise(model, seed, untouched)
        return
    if norms == "folded":
        untouched |= _fold_norms(model, family, untouched)
    transposed = {id(module.weight) for module in model.modules() if isinstance(module, Conv1D)}
    heads = _per_head(model, family)
    for name, parameter in model.named_parameters():
        if id(parameter) in untouched:
            continue
        generator = torch.Generator().manual_seed(tensor_seed(rung, seed, name))
        values = parameter.detach().to("cpu", torch.float64)
        if values.ndim == 1:
            drawn = _vector(values, rung, generator)
        elif values.ndim == 2:
            matrix = values.T if id(parameter) in transposed else values
            rows = heads.get(id(parameter), matrix.shape[0])
            drawn = _matrix(matrix, rung, rows, generator)
            drawn = drawn.T if id(parameter) in transposed else drawn
        else:
            raise UserError(
                f"weight control {rung}: {name} has {values.ndim} axes, and only matrices and vectors can be "
                "randomised; remove this model from the controls"
            )
        parameter.copy_(drawn)


def tensor_seed(rung: str, seed: int, name: str) -> int:
    """Seed of one tensor's generator: 63 bits of sha256 over (rung, seed, name), equal on every machine."""
    digest = hashlib.sha256(f"{rung}\n{seed}\n{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def haar_frame(rows: int, columns: int, generator: torch.Generator) -> Float[Tensor, "rows columns"]:
    """Orthonormal columns drawn from the Haar measure: Q of a Gaussian matrix, with the signs of R's
    diagonal.

    Without the signs Q is not uniform: LAPACK's convention ties them to the draw (Mezzadri 2007,
    arXiv math-ph/0609050). Needs rows ≥ columns.
    """
    q, r = torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float64))
    return q * torch.sign(torch.diagonal(r))


def respectrum(
    matrix: Float[Tensor, "out in"], generator: torch.Generator, *, keep: Literal["neither", "left", "right"]
) -> Float[Tensor, "out in"]:
    """A matrix with the same singular values whose singular vectors are Haar, or kept on one side.

    No singular value decomposition is needed: a wide matrix is written as C Qᵀ with C square by one QR
    factorisation, which is cheaper, as exact, and free of the sign ambiguity of singular vectors; Q is
    replaced and C, which holds the singular values and the left singular vectors, stays. A tall matrix is
    turned by a Haar rotation directly.
    """
    out_features, in_features = matrix.shape
    if keep == "right" or (keep == "neither" and out_features > in_features):
        return respectrum(matrix.T, generator, keep="left" if keep == "right" else keep).T
    if out_features <= in_features:
        core = torch.linalg.qr(matrix.T, mode="r").R.T
        turned = core @ haar_frame(in_features, out_features, generator).T
    else:
        turned = matrix @ haar_frame(in_features, in_features, generator)
    if keep == "neither":
        return haar_frame(out_features, out_features, generator) @ turned
    return turned


def _check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value in allowed:
        return
    hint = nearest(value, allowed) or f"; choose one of {', '.join(allowed)}"
    if value == "step0":
        hint = "; step0 is a revision of the model, not a randomisation: list it under revisions"
    raise UserError(f"unknown {what} {value!r}{hint}")


def _family(model: nn.Module) -> Family:
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise UserError(
            f"weight controls know the architectures {', '.join(FAMILIES)}, not {kind!r}; take this model's "
            "controls out of the configuration, or add a line for it to FAMILIES in weight_controls.py"
        )
    return FAMILIES[kind]


def _blocks(model: nn.Module, family: Family) -> Iterable[nn.Module]:
    return model.base_model.get_submodule(family.blocks)


def _norms(model: nn.Module, family: Family) -> list[tuple[nn.Module, list[nn.Module]]]:
    """Every normalisation with the matrices that read it; the unembedding reads the final one."""
    norms = [
        (block.get_submodule(norm), [block.get_submodule(reader) for reader in readers])
        for block in _blocks(model, family)
        for norm, readers in family.readers.items()
    ]
    unembedding = model.get_output_embeddings()
    final_readers = [] if unembedding is None else [unembedding]
    return [*norms, (model.base_model.get_submodule(family.final_norm), final_readers)]


def _embedding_side(model: nn.Module, family: Family) -> list[nn.Module]:
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    unembedding = model.get_output_embeddings()
    heads = [] if unembedding is None else [unembedding]
    return [*tables, *heads, model.base_model.get_submodule(family.final_norm)]


def _per_head(model: nn.Module, family: Family) -> dict[int, int]:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return {
        id(block.get_submodule(name).weight): head_dim for block in _blocks(model, family) for name in family.per_head
    }


def _fold_norms(model: nn.Module, family: Family, untouched: set[int]) -> set[int]:
    """Move gains and biases of normalisations into their readers; returns the ids of what is now constant."""
    tied = model.get_input_embeddings().weight
    folded = set()
    for norm, readers in _norms(model, family):
        gain, bias = norm.weight, getattr(norm, "bias", None)
        closed = any(id(reader.weight) in untouched or reader.weight is tied for reader in readers)
        biasless = bias is not None and any(reader.bias is None for reader in readers)
        if not readers or closed or (biasless and bool(bias.any())):
            continue
        for reader in readers:
            weight = reader.weight.to(torch.float64)
            oriented = weight if not isinstance(reader, Conv1D) else weight.T
            if bias is not None and reader.bias is not None:
                reader.bias.copy_(reader.bias.to(torch.float64) + oriented @ bias.to(torch.float64))
            scaled = oriented * gain.to(torch.float64)
            reader.weight.copy_(scaled if not isinstance(reader, Conv1D) else scaled.T)
        gain.fill_(1.0)
        folded.add(id(gain))
        if bias is not None:
            bias.zero_()
            folded.add(id(bias))
    return folded


def _initialise(model: nn.Module, seed: int, untouched: set[int]) -> None:
    """Fresh weights from the model's own initialiser, module by module, children before parents.

    transformers draws from torch's global generator, so each module gets a forked one under its own seed;
    parents come last because GPT-2 rescales its output projections from the parent. transformers marks loaded
    tensors so that its initialiser passes over them: the marks are removed.
    """
    for parameter in model.parameters():
        parameter._is_hf_initialized = False
    for name, module in reversed(list(model.named_modules())):
        own = [id(parameter) for parameter in module.parameters(recurse=False)]
        if any(identity in untouched for identity in own):
            continue
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(tensor_seed("init", seed, name))
            model._init_weights(module)


def _vector(values: Float[Tensor, " n"], rung: str, generator: torch.Generator) -> Float[Tensor, " n"]:
    if rung == "gaussian":
        return _moment_matched(values, generator)
    return values[torch.randperm(len(values), generator=generator)]


def _matrix(
    matrix: Float[Tensor, "out in"], rung: str, rows: int, generator: torch.Generator
) -> Float[Tensor, "out in"]:
    if rung == "gaussian":
        return _moment_matched(matrix, generator)
    if rung == "permuted_entries":
        return matrix.reshape(-1)[torch.randperm(matrix.numel(), generator=generator)].view_as(matrix)
    if rung == "permuted_columns":
        return matrix[:, torch.randperm(matrix.shape[1], generator=generator)]
    keep = {"spectrum": "neither", "spectrum_left": "left", "spectrum_right": "right"}[rung]
    return torch.cat([respectrum(part, generator, keep=keep) for part in matrix.split(rows)])


def _moment_matched(values: Float[Tensor, "*shape"], generator: torch.Generator) -> Float[Tensor, "*shape"]:
    noise = torch.randn(values.shape, generator=generator, dtype=torch.float64)
    return values.mean() + values.std(correction=0) * noise
