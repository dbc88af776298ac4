"""What a user can get wrong, as cases: a command on bad input, and the sentence that it must end with."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from wmlkit import cli, paths, train
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import save_tokenizer

TINY = ("data.words=3000", "data.dev_words=1000", "train.steps=4", "evaluate.curve=[]")
ARM = ("--preset", "smoke", "--arm", "dml", "--seed", "2")
_OURS = re.compile(r"\..+\.\d+\.(tmp|old)|\.prepare-.*|.*\.part|.*\.partial")  # names of unfinished work


def settings(*more: str) -> list[str]:
    """`--set` for a run of seconds, and for `more`."""
    return [argument for text in (*TINY, *more) for argument in ("--set", text)]


def train_tiny(out: Path) -> Path:
    """The run that the cases about runs, models and checkpoints start from."""
    given = {"mutual.arm": "dml", "train.seed": 2}
    return train.run(load_preset("smoke", TINY).updated(given), out)


@dataclass(frozen=True)
class Box:
    """An empty folder for one case; `template` is the output folder of a finished run, to be copied from."""

    folder: Path
    template: Path
    monkeypatch: pytest.MonkeyPatch

    def write(self, name: str, content: str | bytes | Any) -> Path:
        """A file of the case: text, bytes, or anything else as JSON."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def run(self) -> Path:
        """The finished run, copied with its corpus."""
        shutil.copytree(self.template, self.folder / "out", dirs_exist_ok=True)
        return next((self.folder / "out" / "smoke").glob("dml-*"))

    def model(self) -> Path:
        """Its first peer as a model folder."""
        source = next(self.template.glob("smoke/dml-*/peers/peer_1"))
        return Path(shutil.copytree(source, self.folder / "model"))

    def tokenizer(self, tokenizer: Any, name: str = "tokenizer") -> str:
        return str(save_tokenizer(tokenizer, self.folder / name))


@dataclass(frozen=True)
class Case:
    """`build` writes the input and returns the command; `leaves` matches what may rightly be new afterwards."""

    name: str
    build: Callable[[Box], Sequence[str | Path]]
    sentence: str
    leaves: str = r"(?!)"


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file."""
    paths.write_json(path, change(paths.read_json(path)))


def without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {name: value for name, value in document.items() if name != key}


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, `place` of the way through it."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Keep the first two thirds of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_cli(arguments: Sequence[str | Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status of a command of this process, as the shell would see it."""
    monkeypatch.setattr(sys, "argv", ["wmlkit", *map(str, arguments)])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def check(case: Case, box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, status 2, nothing on standard output, and every file as it was before."""
    box.monkeypatch.chdir(box.folder)
    box.monkeypatch.setenv("WMLKIT_OUT", str(box.folder / "out"))
    arguments = case.build(box)
    before = contents(box.folder)
    capsys.readouterr()
    status = run_cli(arguments, box.monkeypatch)
    said = capsys.readouterr()
    *others, last = said.err.strip().splitlines()
    assert status == 2, said.err
    assert re.search(case.sentence, last), last
    assert "Traceback" not in said.err and said.out == ""
    if last.startswith("wmlkit: "):  # not typer's own words about a command's form
        assert not any(line.startswith("wmlkit: ") for line in others)
    else:
        assert last.startswith("Error: "), last
    after = contents(box.folder)
    new = {name for name in after if before.get(name) != after[name]}
    new = {name for name in new if not name.endswith(".run.lock")}  # an empty file: whose turn it is
    assert not [name for name in new if not re.fullmatch(case.leaves, name)], new
    assert not before.keys() - after.keys()
    assert not [path for path in box.folder.rglob("*") if _OURS.fullmatch(path.name)]
