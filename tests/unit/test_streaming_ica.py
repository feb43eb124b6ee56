"""Streaming FastICA against scikit-learn, and on data it must refuse or own up to."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from sklearn.decomposition import FastICA
from threadpoolctl import threadpool_limits

from counterprobe import streaming_ica
from counterprobe.dictionary_training import best_match
from counterprobe.progress import UserError


def mixed(rows, width, seed=0):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((width, width))
    return mixing, (rng.laplace(size=(rows, width)) @ mixing.T + 5 * rng.standard_normal(width)).astype(np.float32)


def test_components_are_those_of_scikit_learn():
    mixing, x = mixed(8000, 8)
    ours = streaming_ica.fit(streaming_ica.chunked(torch.from_numpy(x), 500), tolerance=1e-6)
    with threadpool_limits(1):
        theirs = FastICA(whiten="unit-variance", tol=1e-6, max_iter=500, random_state=0).fit(x.astype(np.float64))
    assert ours.converged
    assert ours.note == ""
    columns = torch.from_numpy(theirs.mixing_.T.astype(np.float32))
    assert float(best_match(ours.mixing.T, columns).min()) >= 0.99
    assert float(best_match(ours.mixing.T, torch.from_numpy(mixing.T.astype(np.float32))).min()) >= 0.99
    # Both are inverses of each other, and sources have unit variance.
    torch.testing.assert_close(ours.unmixing @ ours.mixing, torch.eye(8), rtol=0, atol=1e-4)
    sources = (torch.from_numpy(x) - ours.mean) @ ours.unmixing.T
    torch.testing.assert_close(sources.std(0), torch.ones(8), rtol=0.01, atol=0.01)


def test_the_size_of_the_chunks_changes_nothing_but_rounding():
    x = torch.from_numpy(mixed(3000, 5)[1])
    one, many = (streaming_ica.fit(streaming_ica.chunked(x, size), tolerance=1e-7) for size in (3000, 170))
    assert float(best_match(one.mixing.T, many.mixing.T).min()) > 1 - 1e-4
    exact = np.cov(x.double().numpy().T, bias=True)
    measured = streaming_ica.moments(streaming_ica.chunked(x, 170))
    np.testing.assert_allclose(measured.covariance.numpy(), exact, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(measured.mean.numpy(), x.double().mean(0).numpy(), rtol=1e-6)


def test_a_large_common_mean_does_not_cost_precision():
    x = torch.from_numpy(mixed(2000, 4)[1]).double() + 1e6
    np.testing.assert_allclose(
        streaming_ica.moments(streaming_ica.chunked(x, 100)).covariance.numpy(),
        np.cov(x.numpy().T, bias=True),
        rtol=1e-7,
        atol=1e-6,
    )


def test_data_of_lower_rank_are_said_to_be():
    _, x = mixed(4000, 4)
    flat = torch.from_numpy(np.concatenate([x, x[:, :2]], axis=1))
    found = streaming_ica.fit(streaming_ica.chunked(flat, 1000))
    assert found.rank == 4
    assert "rank 4 of 6" in found.note
    assert found.mixing.shape == (6, 4)
    with pytest.raises(UserError, match="5 components of data of rank 4; ask for 4"):
        streaming_ica.fit(streaming_ica.chunked(flat, 1000), components=5)


def test_gaussian_data_do_not_converge_and_say_so():
    x = torch.randn(2000, 12, generator=torch.Generator().manual_seed(0))
    found = streaming_ica.fit(streaming_ica.chunked(x, 500), iterations=5, tolerance=1e-9)
    assert not found.converged
    assert "did not converge in 5 iterations" in found.note


def test_what_is_no_data_is_refused():
    with pytest.raises(UserError, match="all rows are equal"):
        streaming_ica.fit(streaming_ica.chunked(torch.ones(100, 3)))
    with pytest.raises(UserError, match="not finite"):
        streaming_ica.fit(streaming_ica.chunked(torch.tensor([[1.0, float("nan")], [0.0, 1.0]])))


def test_a_start_from_a_sample_ends_where_all_rows_end_in_fewer_passes(monkeypatch):
    mixing, x = mixed(24_000, 16, seed=2)
    # Sorted by a component, as tokens are by their text: the first rows are no sample.
    x = torch.from_numpy(x[np.argsort(x[:, 0])])
    chunks = streaming_ica.chunked(x, 3000)
    sampled = streaming_ica.fit(chunks)
    monkeypatch.setattr(streaming_ica, "WORTH_SAMPLING", np.inf)
    whole = streaming_ica.fit(chunks)
    assert sampled.converged
    assert sampled.iterations <= 4 < whole.iterations
    assert float(best_match(sampled.mixing.T, whole.mixing.T).min()) > 0.9999
    truth = torch.from_numpy(mixing.T.astype(np.float32))
    assert float(best_match(sampled.mixing.T, truth).min()) > 0.99


@pytest.mark.parametrize("different", [1, 3, 40])
def test_a_start_far_out_is_orthogonal_however_often_rows_repeat(different):
    generator = torch.Generator().manual_seed(0)
    rows = 3 * torch.randn(different, 8, generator=generator)
    otherwise = streaming_ica.decorrelate(torch.randn(8, 8, generator=generator, dtype=torch.float64))
    start = streaming_ica._far_out(rows.repeat(30, 1), otherwise)
    assert torch.allclose(start @ start.T, torch.eye(8, dtype=torch.float64), atol=1e-9)


def test_rows_far_out_find_what_a_random_start_does_not():
    mixing, x = mixed(160_000, 192, seed=3)
    found = streaming_ica.fit(streaming_ica.chunked(torch.from_numpy(x)))
    assert found.converged
    assert found.iterations <= 4
    truth = torch.from_numpy(mixing.T.astype(np.float32))
    assert float(best_match(found.mixing.T, truth).min()) > 0.99


def test_a_direction_that_a_sample_may_miss_is_not_lost():
    x = torch.from_numpy(mixed(20_000, 4)[1])
    rare = torch.zeros(20_000, 1)
    rare[7] = 100.0
    found = streaming_ica.fit(streaming_ica.chunked(torch.cat([x, rare], 1), 2000))
    assert found.rank == 5
    assert float(found.mixing[4].abs().max()) > 0.5


class Drawn(Sequence):
    """Chunks that exist only while they are read."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, wanted):
        if isinstance(wanted, slice):
            return [self[index] for index in range(*wanted.indices(self.count))]
        if wanted >= self.count:
            raise IndexError(wanted)
        return torch.from_numpy(np.random.default_rng(wanted).laplace(size=(1000, 16)).astype(np.float32))


def test_memory_does_not_grow_with_the_rows():
    peaks = []
    for count in (2, 32):
        tracemalloc.start()
        found = streaming_ica.fit(Drawn(count), iterations=3)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.rank == 16
    # numpy's chunks are traced, torch's sums are not: what is alive at once is a chunk or two, whatever their number.
    assert peaks[1] < 2 * peaks[0]
