"""A manifest is whole or absent, its digest is its content's, and no damage of a listed file goes unseen."""

import errno
import hashlib
import json
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from counterprobe import manifest
from counterprobe.progress import UserError

RUN = {"host": "a", "seconds": 1.5}


@pytest.fixture
def artefact(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "layer_00.npy").write_bytes(bytes(range(256)) * 4)
    (tmp_path / "deep" / "layer_01.npy").write_bytes(b"abc")
    path = tmp_path / "manifest.json"
    manifest.write(path, {"seed": 0, "files": manifest.describe_files(tmp_path)}, RUN)
    return path


def test_what_is_written_is_read(artefact):
    document = manifest.read(artefact)
    assert document["run"] == RUN
    assert document["content"]["files"] == {
        "deep/layer_01.npy": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        "layer_00.npy": {"size": 1024, "sha256": hashlib.sha256(bytes(range(256)) * 4).hexdigest()},
    }
    assert manifest.verify(artefact) == document


def test_equal_manifests_are_equal_bytes(tmp_path):
    manifest.write(tmp_path / "a.json", {"b": 1, "a": 2}, RUN)
    manifest.write(tmp_path / "b.json", {"a": 2, "b": 1}, RUN)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_the_digest_is_of_the_content_alone(tmp_path):
    for name, content, run in (("a", {"x": 1}, RUN), ("b", {"x": 1}, {"host": "b"}), ("c", {"x": 2}, RUN)):
        manifest.write(tmp_path / name, content, run)
    assert manifest.digest(tmp_path / "a") == manifest.digest(tmp_path / "b")
    assert manifest.digest(tmp_path / "a") != manifest.digest(tmp_path / "c")
    assert manifest.digest(manifest.read(tmp_path / "a")) == manifest.digest(tmp_path / "a")


def test_a_truncated_file_is_named_with_both_sizes(artefact):
    file = artefact.parent / "layer_00.npy"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        manifest.verify(artefact)
    assert str(caught.value) == (f"{file}: 1,023 bytes where the manifest says 1,024; delete the folder and run again")


@given(byte=st.integers(0, 1023), flip=st.integers(1, 255))
def test_no_changed_byte_goes_unseen(tmp_path_factory, byte, flip):
    folder = tmp_path_factory.mktemp("artefact")
    data = bytearray(1024)
    (folder / "data").write_bytes(data)
    manifest.write(folder / "manifest.json", {"files": manifest.describe_files(folder)}, RUN)
    data[byte] ^= flip
    (folder / "data").write_bytes(data)
    with pytest.raises(UserError, match="data: sha256"):
        manifest.verify(folder / "manifest.json")


def test_a_changed_number_in_the_manifest_itself_is_found(artefact):
    artefact.write_text(artefact.read_text().replace('"seed": 0', '"seed": 1'))
    with pytest.raises(UserError, match=r"manifest\.json: its text does not match its checksum"):
        manifest.read(artefact)


def test_temporary_files_of_a_killed_job_are_no_part_of_an_artefact(tmp_path):
    (tmp_path / "layer_00.npy").write_bytes(b"a")
    (tmp_path / ".layer_01.0123456789ab.npy").write_bytes(b"half")
    assert list(manifest.describe_files(tmp_path)) == ["layer_00.npy"]


def test_without_hashes_only_sizes_count(artefact):
    file = artefact.parent / "layer_00.npy"
    file.write_bytes(bytes(1024))
    manifest.verify(artefact, hashes=False)
    file.write_bytes(bytes(1025))
    with pytest.raises(UserError, match="1,025 bytes"):
        manifest.verify(artefact, hashes=False)


def test_a_missing_file_is_named(artefact):
    (artefact.parent / "deep" / "layer_01.npy").unlink()
    with pytest.raises(UserError, match=r"deep/layer_01\.npy: missing"):
        manifest.verify(artefact)


def test_files_can_lie_elsewhere(artefact, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    copy = elsewhere / "manifest.json"
    copy.write_bytes(artefact.read_bytes())
    with pytest.raises(UserError, match="missing"):
        manifest.verify(copy)
    assert manifest.verify(copy, root=artefact.parent)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "schema, content and run"),
        ('{"content": {}, "run": {}}', "schema, content and run"),
        ('{"schema": 99, "content": {}, "run": {}}', "schema 99"),
        ('{"schema": 2, "content": [], "run": {}}', "must be mappings"),
        ('{"schema": 2, "content": {"files": ["a"]}, "run": {}}', "content.files must be a mapping"),
        ('{"schema": 2, "content": {"files": {"a": {"size": 1}}}, "run": {}}', "no size and sha256 for 'a'"),
        (
            '{"schema": 2, "content": {"files": {"../a": {"size": 1, "sha256": ""}}}, "run": {}}',
            "outside the folder",
        ),
        (
            '{"schema": 2, "content": {"files": {"/a": {"size": 1, "sha256": ""}}}, "run": {}}',
            "outside the folder",
        ),
    ],
)
def test_a_damaged_manifest_is_one_line(tmp_path, text, said):
    path = tmp_path / "manifest.json"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        manifest.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_manifest_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such manifest"):
        manifest.read(tmp_path / "manifest.json")


@pytest.mark.parametrize("content", [{"x": float("nan")}, {"x": {1}}, {1: "x"}])
def test_content_that_has_no_digest_is_refused_and_nothing_is_written(tmp_path, content):
    with pytest.raises((TypeError, ValueError)):
        manifest.write(tmp_path / "manifest.json", content, RUN)
    assert list(tmp_path.iterdir()) == []


def fail_while_writing(path, error):
    with manifest.atomic(path) as temporary:
        temporary.write_text("half of the new")
        raise error


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "table.parquet"
    path.write_text("old")
    with pytest.raises(RuntimeError):
        fail_while_writing(path, RuntimeError())
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"table.parquet": "old"}


def test_the_new_file_appears_only_at_the_end(tmp_path):
    path = tmp_path / "new folder" / "table.parquet"
    with manifest.atomic(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".parquet"
        assert temporary.parent == path.parent
        assert not path.exists()
    assert [file.name for file in path.parent.iterdir()] == ["table.parquet"]


def test_a_file_gets_the_permissions_that_any_new_file_gets(tmp_path):
    (tmp_path / "plain").write_text("")
    with manifest.atomic(tmp_path / "atomic") as temporary:
        temporary.write_text("")
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "atomic")}
    assert len(modes) == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, number):
    def full(_):
        raise OSError(number, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"manifest\.json: no space left on the disk"):
        manifest.write(tmp_path / "manifest.json", {}, RUN)
    assert list(tmp_path.iterdir()) == []


def test_another_error_of_the_system_stays_what_it_is(tmp_path):
    with pytest.raises(PermissionError):
        fail_while_writing(tmp_path / "x", PermissionError(errno.EACCES, "no"))
    assert list(tmp_path.iterdir()) == []


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_any_content_survives(tmp_path_factory, content):
    content.pop("files", None)
    path = tmp_path_factory.mktemp("manifest") / "manifest.json"
    manifest.write(path, content, {})
    assert manifest.read(path)["content"] == content
    assert json.loads(path.read_text(encoding="utf-8"))["content"] == content
