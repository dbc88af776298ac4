"""Where output goes."""

from __future__ import annotations

from wmlkit import paths


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
