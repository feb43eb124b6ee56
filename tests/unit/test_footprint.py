"""What jobs ask of a cluster grows with the model and with every attempt, and the size of a model is found offline."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from counterprobe import footprint

sizes = st.integers(0, 20_000_000_000)


@given(sizes, sizes, st.sampled_from(sorted(footprint.WORK)), st.sampled_from(["cpu", "cuda"]))
def test_larger_models_and_later_attempts_never_ask_for_less(one, other, work, device):
    small, large = sorted((one, other))
    assert footprint.memory(work, small, 1) <= footprint.memory(work, large, 1)
    assert footprint.minutes(work, small, 1, device=device) <= footprint.minutes(work, large, 1, device=device)
    for first, second in itertools.pairwise((1, 2, 3)):
        assert footprint.memory(work, one, first) < footprint.memory(work, one, second)
        assert footprint.minutes(work, one, first, device=device) < footprint.minutes(work, one, second, device=device)


def test_weights_fit_with_a_randomised_copy_and_whole_numbers_are_asked_for():
    for parameters in (70_000_000, 1_400_000_000, 12_000_000_000):
        asked = footprint.memory("reading", parameters, 1)
        assert isinstance(asked, int)
        assert asked * 1e6 > 2 * 4 * parameters
    assert footprint.minutes("reading", 12_000_000_000, 1, device="cuda") < 24 * 60


@pytest.mark.parametrize(
    ("repo", "parameters"),
    [
        ("EleutherAI/pythia-70m-deduped", 70_000_000),
        ("EleutherAI/pythia-1.4b", 1_400_000_000),
        ("owner/Model-774M", 774_000_000),
        ("allenai/OLMo-2-0425-1B", 1_000_000_000),
        ("roneneldan/TinyStories-33M", 33_000_000),
        ("gpt2", None),
        ("openai-community/gpt2-medium", None),
        ("3b-lab/model", None),
        ("owner/v2.5beta", None),
        ("owner/llama3b", None),
    ],
)
def test_a_repositorys_name_tells_its_size(repo, parameters):
    assert footprint.parameters_by_name(repo) == parameters


def test_the_size_of_a_hub_model_can_be_said():
    assert footprint.parameters({"source": "hub", "repo": "owner/thing-1b", "parameters": 5}) == 5
    assert footprint.parameters({"source": "hub", "repo": "owner/thing-1b"}) == 1_000_000_000
    assert footprint.parameters({"source": "hub", "repo": "owner/thing"}) == footprint.ASSUMED_PARAMETERS


def test_a_trained_model_is_counted_by_its_shape():
    """Pythia-70m without its embeddings: 6 layers of width 512 are 18.9 million (Biderman et al. 2023, table 1)."""
    shape = {"layers": 6, "width": 512, "heads": 8}
    assert footprint.parameters({"source": "train", "architecture": shape}) == pytest.approx(18_915_328, rel=0.01)


def test_a_folder_is_counted_from_headers_alone(tmp_path):
    save_file(
        {"a": np.zeros((3, 4), np.float32), "b": np.zeros((), np.float16)}, tmp_path / "1.safetensors", {"a": "b"}
    )
    save_file({"c": np.zeros(7, np.int8)}, tmp_path / "2.safetensors")
    assert footprint.parameters({"source": "directory", "path": str(tmp_path)}) == 12 + 1 + 7
    assert footprint.stored_parameters(str(tmp_path / "missing")) == 0
