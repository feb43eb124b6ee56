"""Streaming ICA against scikit-learn, and SAEs in one stack against peers; run by hand, with nothing else running.

    python benchmarks/dictionaries.py [--threads 1] [--rounds 3] [--rows 200000] [--width 256] [--only ica|memory|sae|rare]

ICA: Laplace sources, mixed; wall and processor time of both at scikit-learn's default tolerance, from `rounds` random starts,
and how far either is from the true mixing (smallest and median |cosine|). Memory: peak of the process at 1 and 16 times the
rows, read from a file.
SAE: the same tensor, sizes, k, batch and number of steps; tokens a second of six dictionaries in one stack, of one alone,
and of each peer that is installed (dictionary-learning, overcomplete), one after another; with the share of the
matrix-product rate of the same minute. Rare features: the share that ICA and an SAE find, by how often a feature occurs and
how many rows there are. Prints, writes nothing.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

WIDTH, SIZE, K, BATCH, STEPS, STACK = 128, 512, 8, 1024, 40, 6
CHUNK = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--only", choices=["ica", "memory", "sae", "rare"])
    parser.add_argument("--peak", help="internal: the rows of this file, peak memory printed")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    if options.peak:
        print(peak(options.peak, options.width))
        return
    if options.only in (None, "ica"):
        ica(options)
    if options.only in (None, "memory"):
        memory(options)
    if options.only in (None, "sae"):
        sae(options)
    if options.only in (None, "rare"):
        rare()


def ica(options: argparse.Namespace) -> None:
    import numpy as np
    import torch
    from sklearn.decomposition import FastICA
    from threadpoolctl import threadpool_limits

    from counterprobe import streaming_ica
    from counterprobe.dictionary_training import best_match

    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((options.width, options.width)).astype(np.float32)
    print(f"load {os.getloadavg()[0]:.1f} of {os.cpu_count()} cores, {product_rate(torch) / 1e9:.0f} GFLOP/s")
    x = rng.laplace(size=(options.rows, options.width)).astype(np.float32) @ mixing.T
    truth = torch.from_numpy(mixing.T.copy())
    chunks = streaming_ica.chunked(torch.from_numpy(x), CHUNK)

    def ours(start):
        found = streaming_ica.fit(chunks, seed=start)
        return found.mixing.T, found.iterations

    def theirs(start):
        with threadpool_limits(options.threads, user_api="blas"):
            found = FastICA(whiten="unit-variance", whiten_solver="eigh", random_state=start).fit(x)
        return torch.from_numpy(found.mixing_.T.astype(np.float32)), found.n_iter_

    print(f"ICA of {options.rows:,} x {options.width}, {options.threads} thread(s)")
    runs = {"scikit-learn": theirs, "streaming": ours}
    total = {name: [0.0, 0.0] for name in runs}
    for start in range(options.rounds):
        kept = {}
        for name, run in runs.items():
            (kept[name], iterations), wall, processor = timed(lambda run=run, start=start: run(start))
            total[name][0] += wall
            total[name][1] += processor
            cosines = best_match(kept[name], truth)
            print(
                f"  {name:<13}{wall:7.1f} s wall{processor:7.1f} s processor{iterations:5d} passes"
                f"   |cos| with the truth: least {cosines.min():.4f}, median {cosines.median():.4f}"
            )
        print(f"  least |cos| of the two with each other: {best_match(*kept.values()).min():.5f}")
    wall, processor = (total["scikit-learn"][of] / total["streaming"][of] for of in (0, 1))
    print(f"  all starts: {wall:.2f} x scikit-learn by wall, {processor:.2f} x by processor time")


def memory(options: argparse.Namespace) -> None:
    import numpy as np

    print(f"peak memory of streaming ICA, width {options.width}")
    with tempfile.TemporaryDirectory() as folder:
        for times in (1, 16):
            rows = 80_000 * times
            path = f"{folder}/{times}.npy"
            out = np.lib.format.open_memmap(path, "w+", np.float32, (rows, options.width))
            rng = np.random.default_rng(0)
            for start in range(0, rows, CHUNK):
                out[start : start + CHUNK] = rng.laplace(size=out[start : start + CHUNK].shape)
            del out
            command = [sys.executable, __file__, "--peak", path, "--width", str(options.width)]
            print(f"  {rows:>9,} rows: {subprocess.run(command, capture_output=True, text=True).stdout.strip()} MB")


def peak(path: str, width: int) -> float:
    """Anonymous memory, sampled after every chunk: pages of the file are the system's to drop."""
    import numpy as np
    import torch

    from counterprobe import streaming_ica

    most = 0.0

    class Chunks:
        rows = len(np.load(path, mmap_mode="r"))

        def __len__(self):
            return -(-self.rows // CHUNK)

        def __getitem__(self, index):
            if isinstance(index, slice):
                return [self[at] for at in range(*index.indices(len(self)))]
            if index >= len(self):
                raise IndexError(index)
            nonlocal most
            status = Path("/proc/self/status").read_text()
            most = max(most, float(status.split("RssAnon:")[1].split()[0]) / 1024)
            mapped = np.load(path, mmap_mode="r")
            return torch.from_numpy(np.array(mapped[index * CHUNK : (index + 1) * CHUNK]))

    streaming_ica.fit(Chunks(), components=width, iterations=4)
    return round(most)


def sae(options: argparse.Namespace) -> None:
    import torch

    from counterprobe.dictionary_training import Recipe, Schedule, train

    x = torch.randn(BATCH * STEPS, WIDTH, generator=torch.Generator().manual_seed(0))

    def stack(count):
        return lambda: train(x, [Recipe(SIZE, K, seed) for seed in range(count)], Schedule(STEPS, BATCH), seed=0)

    runs = {f"ours, {STACK} in one stack": (stack(STACK), STACK), "ours, one": (stack(1), 1)}
    runs |= {name: (run, 1) for name, run in peers(x).items()}
    # Encoder and decoder forwards, and three products backwards.
    operations = 5 * 2 * WIDTH * SIZE
    print(f"SAE of {SIZE} latents, k = {K}, width {WIDTH}, batches of {BATCH}: tokens a second and dictionary")
    best = dict.fromkeys(runs, 0.0)
    for _ in range(options.rounds):
        rate = product_rate(torch)
        for name, (run, count) in runs.items():
            _, _, seconds = timed(run)
            best[name] = max(best[name], count * len(x) / seconds)
    for name, speed in best.items():
        share = speed * operations / rate
        print(f"  {name:<26}{speed:10,.0f}   {share:4.0%} of {rate / 1e9:.0f} GFLOP/s")
    others = [speed for name, speed in best.items() if not name.startswith("ours")]
    if others:
        print(f"  one stack against the best peer: {best[f'ours, {STACK} in one stack'] / max(others):.2f} x")


def rare() -> None:
    from counterprobe import rare_features

    setting = rare_features.Setting()
    found = rare_features.recall(setting, [2_000, 8_000, 32_000, 128_000], seed=0)
    print(f"share of {setting.features} features in {setting.width} dimensions found, from frequent (0) to rare (3)")
    print(rare_features.by_rarity(found).round(2).to_string())


def peers(x) -> dict:
    """A function for each peer that is installed: one dictionary, the same steps on the same tensor."""
    import torch

    found = {}
    try:
        from dictionary_learning.trainers.top_k import TopKTrainer

        def learning():
            trainer = TopKTrainer(
                steps=STEPS, activation_dim=WIDTH, dict_size=SIZE, k=K, layer=0, lm_name="none", warmup_steps=1,
                seed=0, device="cpu",
            )  # fmt: skip
            for step, batch in enumerate(x.split(BATCH)):
                trainer.update(step, batch)

        found["dictionary-learning"] = learning
    except (ImportError, RuntimeError) as missing:
        print(f"  dictionary-learning: {missing}")
    try:
        from overcomplete.sae import TopKSAE, train_sae

        def overcomplete():
            model = TopKSAE(WIDTH, nb_concepts=SIZE, top_k=K, device="cpu")
            loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), batch_size=None, sampler=batches())
            optimizer = torch.optim.Adam(model.parameters(), lr=3e-4, fused=True)
            train_sae(
                model, loader, lambda x, x_hat, *_: (x - x_hat).square().mean(), optimizer, nb_epochs=1, monitoring=0
            )

        def batches():
            return [list(range(start, start + BATCH)) for start in range(0, len(x), BATCH)]

        found["overcomplete"] = overcomplete
    except (ImportError, RuntimeError) as missing:
        print(f"  overcomplete: {missing}")
    return found


def product_rate(torch) -> float:
    """Operations a second of a float32 matrix product, by processor time."""
    square = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timed(lambda: square @ square)[2] for _ in range(3))


def timed(run):
    wall, processor = time.perf_counter(), time.process_time()
    result = run()
    return result, time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
