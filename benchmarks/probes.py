"""Seconds a probe: counterprobe.probes.solve against scikit-learn's LogisticRegression, side by side.

    OMP_NUM_THREADS=1 python benchmarks/probes.py            n = 4000, d = 512, K = 300: two minutes
    OMP_NUM_THREADS=1 python benchmarks/probes.py --small    n = 1200, d = 128, K = 75: the default experiment

Same objective (C = 1); standardised float32 features with a power-law spectrum; labels from separable to
nearly random. scikit-learn runs as people run it (lbfgs, tol 1e-4, one fit a column) at its best setting, one
BLAS thread (two are 20 times slower); this solver with the threads in OMP_NUM_THREADS. Coefficients of both
are held against scikit-learn's newton-cholesky in float64 at tol 1e-12, on every sixth column, which are also
the ones that scikit-learn is timed on.

Repeats of the two alternate and the best of each counts, in wall and in processor time: on a busy machine
only the second means anything, and only with one thread. The rate of a float32 product is measured between
them, and the share of it that was reached counts the two products of each iteration and nothing else.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1] / "workflow" / "scripts"))

from counterprobe import probes

TOLERANCES = (1e-3, 1e-4, 1e-5)


def problem(n: int, d: int, n_columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features with variances 1/j in a random basis; labels the sign of a score plus 0 … 3 sd of noise."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    features = (rng.standard_normal((n, d)) / np.sqrt(np.arange(1, d + 1))) @ rotation
    features = (features - features.mean(0)) / features.std(0)
    scores = features @ rng.standard_normal((d, n_columns))
    noise = np.linspace(0, 3, n_columns) * scores.std(0)
    labels = scores + noise * rng.standard_normal(scores.shape) > 0
    return torch.tensor(features, dtype=torch.float32), torch.tensor(labels)


def timed(function: Callable) -> tuple[np.ndarray, object]:
    """Wall and processor seconds, and what came back."""
    before = np.array([time.perf_counter(), time.process_time()])
    result = function()
    return np.array([time.perf_counter(), time.process_time()]) - before, result


def product_seconds() -> np.ndarray:
    """Wall and processor seconds of a 1024³ float32 product, best of five."""
    square = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(0))
    return np.min([timed(lambda: square @ square)[0] for _ in range(5)], axis=0)


def sklearn_fits(features: np.ndarray, labels: np.ndarray, **settings) -> np.ndarray:
    with threadpool_limits(1, user_api="blas"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.stack([LogisticRegression(C=1, **settings).fit(features, y).coef_[0] for y in labels.T])


def error(coefficients: np.ndarray, reference: np.ndarray) -> str:
    difference = coefficients - reference
    relative = np.linalg.norm(difference, axis=1) / np.linalg.norm(reference, axis=1)
    return (
        f"    coefficient error: largest {np.abs(difference).max():.1e}, "
        f"relative norm {np.median(relative):.1e} (median) to {relative.max():.1e} (worst)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="n = 1200, d = 128, K = 75")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    n, d, n_columns = (1200, 128, 75) if arguments.small else (4000, 512, 300)
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(threads)
    features, labels = problem(n, d, n_columns)
    x, y = features.numpy(), labels.numpy()[:, ::6]
    reference = sklearn_fits(x.astype(float), y, solver="newton-cholesky", tol=1e-12)
    penalty = torch.full((n_columns,), 1 / n)

    products, peer, own = [], [], {tol: [] for tol in TOLERANCES}
    fits = {}
    for _ in range(arguments.repeats):
        seconds, peer_coefficients = timed(lambda: sklearn_fits(x, y))
        peer.append(seconds / len(reference))
        products.append(product_seconds())
        for tol in TOLERANCES:
            seconds, fits[tol] = timed(lambda tol=tol: probes.solve(features, labels, penalty, tol=tol))
            own[tol].append(seconds / n_columns)

    rates = 2e-9 * 1024**3 / np.min(products, axis=0)
    peer_best = np.min(peer, axis=0)
    print(f"n {n}, d {d}, K {n_columns}; {threads} thread(s); load average {os.getloadavg()[0]:.1f}")
    print(f"float32 product: {rates[0]:.0f} GFLOP/s wall, {rates[1]:.0f} processor")
    print(f"scikit-learn, lbfgs: {peer_best[0]:.5f} s a probe wall, {peer_best[1]:.5f} processor")
    print(error(peer_coefficients, reference))
    for tol in TOLERANCES:
        best = np.min(own[tol], axis=0)
        iterations = fits[tol].iterations
        share = 4e-9 * n * d * int(iterations.sum()) / (best * n_columns) / rates
        ratio = peer_best / best
        print(
            f"counterprobe, tol {tol:.0e}: {best[0]:.5f} s a probe wall, {best[1]:.5f} processor\n"
            f"    {ratio[0]:.1f} times faster wall, {ratio[1]:.1f} processor; "
            f"{share[0]:.0%} of the product rate wall, {share[1]:.0%} processor; "
            f"{iterations.double().mean():.1f} iterations, at most {iterations.max()}"
        )
        print(error(fits[tol].coefficients.T.numpy()[::6], reference))


if __name__ == "__main__":
    main()
