"""The loopback hub against git, the standard library's client and huggingface_hub itself."""

import http.client
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RevisionNotFoundError

sys.path.insert(0, str(Path(__file__).parents[1]))
from loopback_hub import Blob, Hub

DATA = bytes(range(256)) * 40


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "hub" / "org" / "model" / "main"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(DATA)
    (folder / "config.json").write_text('{"model_type": "none"}')
    return tmp_path / "hub"


def request(hub, path, method="GET", **headers):
    connection = http.client.HTTPConnection(urlsplit(hub.endpoint).netloc, timeout=2)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    try:
        return response, response.read()
    finally:
        connection.close()


def test_checksums_are_gits(tmp_path):
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name, content in (("config.json", b'{"a": 1}\n'), ("empty.txt", b"")):
        (tmp_path / name).write_bytes(content)
        asked = subprocess.run(
            ["git", "hash-object", "--no-filters", name],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        assert Blob(name, content).oid == asked.stdout.strip()


def test_the_library_reads_revision_tree_and_file(root, tmp_path):
    with Hub(root) as hub:
        api = HfApi(endpoint=hub.endpoint)
        info = api.model_info("org/model", files_metadata=True)
        tree = {entry.path: entry for entry in api.list_repo_tree("org/model", recursive=True, revision=info.sha)}
        path = hf_hub_download("org/model", "model.safetensors", endpoint=hub.endpoint, cache_dir=tmp_path / "cache")
    assert info.sha == hub.commit("org/model", "main")
    assert {entry.rfilename: entry.blob_id for entry in info.siblings} == {
        name: entry.blob_id for name, entry in tree.items()
    }
    assert tree["model.safetensors"].lfs.sha256 == Blob("model.safetensors", DATA).sha256
    assert Path(path).read_bytes() == DATA


def test_ranges(root):
    with Hub(root) as hub:
        response, body = request(hub, "/org/model/resolve/main/model.safetensors", Range="bytes=100-")
        assert (response.status, body) == (206, DATA[100:])
        assert response.getheader("Content-Range") == f"bytes 100-{len(DATA) - 1}/{len(DATA)}"
        assert request(hub, "/org/model/resolve/main/model.safetensors", Range="bytes=99999-")[0].status == 416
    with Hub(root, ranges=False) as hub:
        response, body = request(hub, "/org/model/resolve/main/model.safetensors", Range="bytes=100-")
        assert (response.status, body) == (200, DATA)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/api/models/org/none/revision/main", "RepoNotFound"),
        ("/api/models/org/model/revision/none", "RevisionNotFound"),
        ("/org/model/resolve/main/none.txt", "EntryNotFound"),
    ],
)
def test_what_is_not_there(root, path, code):
    with Hub(root) as hub:
        response, _ = request(hub, path)
    assert (response.status, response.getheader("X-Error-Code")) == (404, code)


def test_the_library_tells_the_404s_apart(root, tmp_path):
    with Hub(root) as hub:
        with pytest.raises(RevisionNotFoundError):
            HfApi(endpoint=hub.endpoint).model_info("org/model", revision="none")
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download("org/model", "none.txt", endpoint=hub.endpoint, cache_dir=tmp_path)


def test_a_change_moves_the_revision_and_two_equal_revisions_are_two_commits(root):
    shutil.copytree(root / "org/model/main", root / "org/model/step1")
    with Hub(root) as hub:
        before = hub.commit("org/model", "main")
        assert before != hub.commit("org/model", "step1")
        (root / "org/model/main/config.json").write_text("{}")
        assert hub.commit("org/model", "main") != before


def test_a_token_is_asked_for(root):
    with Hub(root, token="secret") as hub:
        assert request(hub, "/api/models/org/model")[0].status == 401
        assert request(hub, "/api/models/org/model", Authorization="Bearer secret")[0].status == 200
        with pytest.raises(HfHubHTTPError):
            HfApi(endpoint=hub.endpoint, token=False).model_info("org/model")


class TestFaults:
    file = "/org/model/resolve/main/model.safetensors"

    def test_flip_changes_one_bit(self, root):
        with Hub(root) as hub:
            hub.inject("flip", "model.safetensors", after=5)
            _, body = request(hub, self.file)
        assert [index for index in range(len(DATA)) if body[index] != DATA[index]] == [5]

    @pytest.mark.parametrize("change", [-7, 7])
    def test_length_is_consistent_with_its_header(self, root, change):
        with Hub(root) as hub:
            hub.inject("length", "model.safetensors", change=change)
            response, body = request(hub, self.file)
        assert len(body) == len(DATA) + change == int(response.getheader("Content-Length"))

    def test_cut_ends_politely(self, root):
        with Hub(root) as hub:
            hub.inject("cut", "model.safetensors", after=100)
            with pytest.raises(http.client.IncompleteRead) as error:
                request(hub, self.file)
        assert error.value.partial == DATA[:100]

    def test_reset_does_not(self, root):
        with Hub(root) as hub:
            hub.inject("reset", "model.safetensors", after=100)
            with pytest.raises(ConnectionResetError):
                request(hub, self.file)

    def test_stall_sends_nothing_more(self, root):
        with Hub(root) as hub:
            hub.inject("stall", "model.safetensors", after=100)
            with urlopen(hub.endpoint + self.file, timeout=0.2) as response:
                assert response.read(100) == DATA[:100]
                with pytest.raises(TimeoutError):
                    response.read(1)

    def test_a_fault_strikes_as_often_as_asked_and_only_where(self, root):
        with Hub(root) as hub:
            hub.inject("status", "safetensors", times=2, status=503, headers={"Retry-After": "3"})
            assert request(hub, "/org/model/resolve/main/config.json")[0].status == 200
            first, second, third = (request(hub, self.file)[0] for _ in range(3))
            assert [first.status, second.status, third.status] == [503, 503, 200]
            assert first.getheader("Retry-After") == "3"
            assert hub.count("GET", "safetensors", status=503) == 2

    def test_an_unknown_fault_is_an_error(self, root):
        with Hub(root) as hub, pytest.raises(ValueError, match="cut, flip"):
            hub.inject("flood")


def test_large_files_can_lie_on_another_host(root):
    with Hub(root) as storage, Hub(root, storage=storage.endpoint) as hub:
        response, _ = request(hub, "/org/model/resolve/main/model.safetensors", "HEAD")
        assert response.status == 302
        assert response.getheader("X-Linked-Size") == str(len(DATA))
        with urlopen(response.getheader("Location")) as file:
            assert file.read() == DATA
        assert request(hub, "/org/model/resolve/main/config.json")[0].status == 200


def test_by_hand(root):
    command = [sys.executable, str(Path(__file__).parents[1] / "loopback_hub.py"), str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            endpoint = process.stdout.readline().strip()
            with urlopen(f"{endpoint}/org/model/resolve/main/config.json") as response:
                assert response.read() == b'{"model_type": "none"}'
        finally:
            process.terminate()
