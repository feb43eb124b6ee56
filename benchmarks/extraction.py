"""How fast `fast` extraction is, beside what else could be used; run by hand, with nothing else running.

    python benchmarks/extraction.py [--threads 2] [--rounds 7]

Pythia-70m's shape with random weights (6 blocks, d = 512, vocabulary 50,304), 32 texts of 64 tokens, float32.
All ways are measured side by side: a round runs every one of them once, and the best of all rounds counts,
so what else the machine does hits all alike. Beside each stands its share of the matrix-product throughput
(2048³, float32) of the same rounds.

    bare            the decoder without its language-model head, nothing captured
    fast            activations.extract, tokenization and files included: all layers, one read position
    run_with_cache  TransformerBridge, the output of every block
    hidden_states   Hugging Face's output_hidden_states

Then the peak memory of `fast` in a process of its own, for 128, 512 and 2,048 texts. Prints one table and
writes temporary files only.
"""

import argparse
import copy
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

BLOCKS, WIDTH, VOCABULARY, TEXTS, TOKENS = 6, 512, 50304, 32, 64
BACKBONE_FLOP = TEXTS * TOKENS * BLOCKS * (24 * WIDTH**2 + 4 * TOKENS * WIDTH)
HEAD_FLOP = TEXTS * TOKENS * 2 * WIDTH * VOCABULARY
GEMM = 2048
MEMORY_TEXTS = (128, 4 * 128, 16 * 128)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def parts(n_texts):
    """A random model, a tokenizer of 1,000 words, and different texts of 64 words, read at the last."""
    import numpy as np
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    from counterprobe import tokenization
    from counterprobe.designs import Design

    config = GPTNeoXConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=BLOCKS,
        num_attention_heads=8,
        intermediate_size=4 * WIDTH,
        max_position_embeddings=2048,
    )
    model = GPTNeoXForCausalLM._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    words = [f"word{index}" for index in range(1000)]
    tokenizer = tokenization.word_level_tokenizer(words)
    rng = np.random.default_rng(0)
    texts = tuple(" ".join(words[word] for word in rng.integers(0, 1000, TOKENS)) for _ in range(n_texts))
    each, zeros = np.arange(n_texts), np.zeros(n_texts, dtype=np.int64)
    design = Design(
        name="benchmark",
        texts=texts,
        items=each,
        item_names=tuple(map(str, each)),
        couples=each,
        strata=zeros,
        stratum_names=("all",),
        factors={"a": each % 2 == 0, "b": each % 3 == 0},
        carriers={},
        carrier_counts={},
        blocks=zeros - 1,
        rows=each,
        files=zeros,
        marks={"last": np.array([len(text) - 1 for text in texts])},
        primary=("a", "b"),
        needed=(),
        aliases={},
        readouts={},
    )
    return model, tokenizer, design


def extract(model, tokenizer, design, folder):
    from counterprobe import activations

    spec = {"positions": ["last"], "bos": [False], "dtype": "float32", "token_budget": TEXTS * TOKENS}
    activations.extract(model, tokenizer, design, spec, folder, backend="fast")


def seconds(rounds, ways):
    """The best time of each way; every round runs all of them."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def compare(rounds, threads, folder):
    import torch
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerFast

    from counterprobe import tokenization

    torch.set_num_threads(threads)
    model, tokenizer, design = parts(TEXTS)
    ids = torch.tensor(tokenization.encode(tokenizer, design.texts, {}, bos=False, context=2048).ids)
    assert ids.shape == (TEXTS, TOKENS)
    without_bos = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    bridge = TransformerBridge.boot_transformers(
        "gpt_neox", hf_model=copy.deepcopy(model), tokenizer=without_bos, device="cpu"
    )
    points = {f"blocks.{block}.hook_out" for block in range(BLOCKS)}
    square = torch.randn(GEMM, GEMM)
    ways = {
        "matrix product": lambda: square @ square,
        "bare": lambda: model.base_model(ids, use_cache=False),
        "fast": lambda: extract(model, tokenizer, design, folder),
        "run_with_cache": lambda: bridge.run_with_cache(
            ids, names_filter=lambda name: name in points, return_type=None
        ),
        "hidden_states": lambda: model(ids, output_hidden_states=True, use_cache=False),
    }
    with torch.inference_mode():
        seconds(1, ways)
        return seconds(rounds, ways)


def peak_megabytes(n_texts, threads):
    """Of a process that does nothing but extract so many texts."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak-of", str(n_texts)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def print_peak(n_texts, threads):
    import resource

    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        extract(*parts(n_texts), Path(folder))
    unit = 2**20 if sys.platform == "darwin" else 2**10
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)


def main():
    options = arguments()
    if options.peak_of:
        print_peak(options.peak_of, options.threads)
        return
    # Before torch is imported here: a process starts with the peak of the one that it was started from.
    peaks = {n_texts: peak_megabytes(n_texts, options.threads) for n_texts in MEMORY_TEXTS}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        best = compare(options.rounds, options.threads, Path(folder))
    gemm = 2 * GEMM**3 / best.pop("matrix product")
    flop = dict.fromkeys(best, BACKBONE_FLOP + HEAD_FLOP) | dict.fromkeys(("bare", "fast"), BACKBONE_FLOP)
    print(
        f"{options.threads} threads, load {load:.1f} before and {os.getloadavg()[0]:.1f} after, "
        f"matrix product {gemm / 1e9:.0f} GFLOP/s\n\n"
        f"{'way':<16}{'seconds':>9}{'tokens/s':>10}{'of matrix product':>19}{'fast is':>9}"
    )
    for way, time_ in best.items():
        share = flop[way] / time_ / gemm
        throughput = TEXTS * TOKENS / time_
        print(f"{way:<16}{time_:>9.3f}{throughput:>10.0f}{share:>19.0%}{time_ / best['fast']:>8.2f}x")
    print()
    for n_texts, peak in peaks.items():
        written = n_texts * WIDTH * 4 * (BLOCKS + 2) / 2**20
        print(f"{n_texts:>6} texts: peak memory {peak:.0f} MB, {written:.0f} MB written")


if __name__ == "__main__":
    main()
