"""Workspace: how it is found, and files that are never half there."""

import errno
import hashlib
import os
import stat

import pytest

from moe_router.errors import WorkspaceError
from moe_router.workspace import Workspace, atomic, digest_file, digest_json, read_json, write_json, write_text


def test_find_order(tmp_path, monkeypatch):
    for name in ("given", "home", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert Workspace.find().root == tmp_path / "here"
    monkeypatch.setenv("MOE_ROUTER_HOME", "")
    assert Workspace.find().root == tmp_path / "here"
    monkeypatch.setenv("MOE_ROUTER_HOME", str(tmp_path / "home"))
    assert Workspace.find().root == tmp_path / "home"
    assert Workspace.find(tmp_path / "given").root == tmp_path / "given"
    assert Workspace.find("../new").root == tmp_path / "new"


def test_a_file_is_no_workspace(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WorkspaceError, match="is a file, not a folder"):
        Workspace.find(tmp_path / "file")


def test_every_path_lies_inside(tmp_path):
    workspace = Workspace(tmp_path)
    names = [name for name, member in vars(Workspace).items() if isinstance(member, property)]
    paths = [getattr(workspace, name) for name in names]
    assert all(path.is_relative_to(tmp_path) for path in paths)
    assert len(set(paths)) == len(paths)
    assert list(tmp_path.iterdir()) == []


def test_require_names_the_command(tmp_path):
    workspace = Workspace(tmp_path)
    with pytest.raises(WorkspaceError, match=r"records\.parquet is not there yet: run `moe-router prepare` first"):
        workspace.require(workspace.records, "prepare")
    write_text(workspace.records, "")
    assert workspace.require(workspace.records, "prepare") == workspace.records


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(OSError, match="No space left"), atomic(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_write_leaves_nothing(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", float("nan"))
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "file") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_removes_its_file_is_noticed(tmp_path):
    write_text(tmp_path / "file", "old")
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file") as temporary:
        temporary.unlink()
    assert (tmp_path / "file").read_text() == "old"


def test_a_write_makes_folders_and_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a" / "b" / "file", "ação")
    finally:
        os.umask(before)
    path = tmp_path / "a" / "b" / "file"
    assert path.read_bytes() == "ação".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_json_round_trip_keeps_accents_readable(tmp_path):
    value = {"é": [1, 2.5, None, True]}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert "é" in (tmp_path / "a.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("data", [b"{", b"", b'"\xff"'])
def test_damaged_json_is_named(tmp_path, data):
    (tmp_path / "a.json").write_bytes(data)
    with pytest.raises(WorkspaceError, match=r"a\.json is damaged"):
        read_json(tmp_path / "a.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(WorkspaceError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1}) != digest_json({"a": 1, "b": [3]})
