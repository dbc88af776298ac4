"""Where output goes."""

from __future__ import annotations

import hashlib
import os

import pytest

from wmlkit import paths
from wmlkit.errors import UserError


def test_a_notebook_opened_by_hand_finds_what_reproduce_left(tmp_path, monkeypatch):
    monkeypatch.delenv("WMLKIT_OUT", raising=False)
    monkeypatch.chdir(paths.REPOSITORY)
    left = paths.output()
    monkeypatch.chdir(paths.REPOSITORY / "notebooks")  # JupyterLab's working directory is the notebook's
    assert paths.output() == left == paths.REPOSITORY / "runs"
    monkeypatch.chdir(tmp_path)
    assert paths.output() == tmp_path / "runs"


def test_what_is_said_comes_before_what_is_usual(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WMLKIT_OUT", "elsewhere")
    assert paths.output() == tmp_path / "elsewhere"
    assert paths.output("here") == tmp_path / "here"
    monkeypatch.chdir(paths.REPOSITORY / "notebooks")
    assert paths.output("here") == paths.REPOSITORY / "notebooks" / "here"


def test_a_name_that_is_no_text_is_refused(tmp_path):
    """Old file systems have such names; tokenizers ended in a traceback there, after the text was prepared."""
    with pytest.raises(UserError, match=r"the output folder .*lat\\udcfc' has bytes .*LC_ALL=C.UTF-8"):
        paths.output(os.fsdecode(bytes(tmp_path) + b"/lat\xfc"))


def test_checksums_of_files(tmp_path):
    """As sha256sum gives them; that of several files changes with a name, a content and the order."""
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_bytes(b"")
    (tmp_path / "b").write_bytes(b"abc")
    assert (paths.file_sha256(tmp_path / "a"), paths.file_sha256(tmp_path / "b")) == (empty, abc)
    lines = f"a {empty}\nb {abc}\n".encode()
    assert paths.files_sha256(tmp_path, ["a", "b"]) == hashlib.sha256(lines).hexdigest()
    assert paths.files_sha256(tmp_path, ["b", "a"]) != paths.files_sha256(tmp_path, ["a", "b"])
