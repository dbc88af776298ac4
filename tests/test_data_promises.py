"""What a user may rely on: damage is found before training, decoding gives the text back, kills leave no trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import chaos
import pytest

from wmlkit import train
from wmlkit.config import Config, load_preset
from wmlkit.data import cleaning, nursery
from wmlkit.data.corpora import folder_source, read_lines
from wmlkit.data.encode import encode_documents
from wmlkit.data.prepare import prepare
from wmlkit.data.prepared import Prepared, open_prepared
from wmlkit.data.splits import group_documents
from wmlkit.data.tokenizer import train_tokenizer
from wmlkit.errors import UserError

REAL_DEV = Path(__file__).parents[2] / "shared" / "data" / "babylm2024" / "dev"
FILES = (
    *(f"{split}.{kind}" for split in ("train", "held_out", "dev") for kind in ("tokens", "documents")),
    *("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"),
    *("statistics.json", "examples.json", "corpus.json", "done.json"),
)


@pytest.fixture(scope="module")
def config() -> Config:
    return load_preset("smoke", ["data.words=2000", "data.dev_words=1000", "data.vocab_size=300"])


@pytest.fixture(scope="module")
def whole(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(config.data, tmp_path_factory.mktemp("whole"))


def test_every_file_is_tried(whole: Prepared) -> None:
    found = {path.relative_to(whole.folder).as_posix() for path in whole.folder.rglob("*") if path.is_file()}
    assert found == set(FILES)


def cut_in_half(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def without_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def swap(path: Path) -> None:
    """With the file that is nearest in size, the hardest to tell apart."""
    top = path.parent if path.parent.name != "tokenizer" else path.parents[1]
    others = [other for other in top.rglob("*") if other.is_file() and other != path]
    other = min(others, key=lambda one: (abs(one.stat().st_size - path.stat().st_size), one.name))
    mine = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(mine)


@pytest.mark.parametrize("damage", [cut_in_half, without_last_byte, empty, flip, swap, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_before_training(
    config: Config, whole: Prepared, tmp_path: Path, name: str, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "data" / whole.folder.name
    shutil.copytree(whole.folder, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    damage(folder / name)
    changed = [path.name for path, data in before.items() if not path.is_file() or path.read_bytes() != data]
    with pytest.raises(UserError) as error:
        open_prepared(folder)
    assert any(one in str(error.value) for one in changed)  # after a swap, either of the two
    if (name, damage) == ("done.json", Path.unlink):
        return  # not a finished corpus any more: it is made again
    for use in (lambda: prepare(config.data, tmp_path), lambda: train.run(config, tmp_path)):
        with pytest.raises(UserError) as again:
            use()
        assert str(again.value) == str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]  # no run was begun


@pytest.mark.parametrize("name", ["done.json", "train.documents"])
@pytest.mark.parametrize("mask", [1, 128])
def test_any_byte_that_changes_is_noticed(whole: Prepared, tmp_path: Path, name: str, mask: int) -> None:
    folder = tmp_path / "corpus"
    shutil.copytree(whole.folder, folder)
    data = (folder / name).read_bytes()
    for position in range(0, len(data), 1 if name == "done.json" else 97):
        changed = bytearray(data)
        changed[position] ^= mask
        (folder / name).write_bytes(changed)
        with pytest.raises(UserError, match=name):
            open_prepared(folder)


def assert_round_trip(folder: Path, vocab_size: int) -> int:
    """Clean, encode and decode every dev line below `folder`; how many there were."""
    files = [file for file in folder_source("dev", folder).files if file.split == "dev"]
    documents: list[list[str]] = []
    for file in files:
        documents += group_documents(cleaning.cleaner(file.domain)(read_lines(file)))
    lines = [line for document in documents for line in document]
    tokenizer = train_tokenizer(lines[::3], vocab_size)  # two lines of three are new to it
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    decoded: list[str] = []
    for ids in encode_documents(tokenizer, documents):
        assert ids[0] == bos and ids[-1] == eos
        decoded += split_at(tokenizer, ids[1:].tolist(), eos)
    assert decoded == lines
    return len(lines)


def split_at(tokenizer, ids: Iterable[int], eos: int) -> list[str]:  # type: ignore[no-untyped-def]
    """The text of each line that ends with `eos`."""
    lines, line = [], []
    for token in ids:
        if token == eos:
            lines.append(tokenizer.decode(line))
            line = []
        else:
            line.append(token)
    return lines


def test_decoding_gives_every_dev_line_back(tmp_path: Path) -> None:
    nursery.write_corpus(tmp_path, 600, 6000, seed=3)
    assert assert_round_trip(tmp_path, 400) > 900


@pytest.mark.skipif(not REAL_DEV.is_dir(), reason="the real BabyLM text is not beside this checkout")
def test_decoding_gives_every_real_dev_line_back(tmp_path: Path) -> None:
    for path in REAL_DEV.glob("*.dev"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "childes.train").write_text("*MOT: a corpus has training text.\n", encoding="utf-8")
    assert assert_round_trip(tmp_path, 2000) > 20_000


@pytest.mark.parametrize("what", ["prepare", "fetch", "train", "evaluate", "study"])
def test_three_kills_at_random_moments(tmp_path: Path, what: str) -> None:
    kills, same = chaos.run(what, 3, tmp_path, words=6000, seed=1)
    assert same and len(kills) == 3


NOTEBOOK = {
    "cells": [
        {"cell_type": "code", "source": "out = 'a'", "metadata": {"tags": ["injected-parameters"]}, "outputs": []},
        {
            "cell_type": "code",
            "source": "plot()",
            "execution_count": 2,
            "metadata": {"papermill": {"duration": 1.5}},
            "outputs": [
                {"output_type": "stream", "text": "12.5 s"},
                {"output_type": "display_data", "data": {"image/png": "iVBO"}},
            ],
        },
    ]
}


@pytest.mark.parametrize(
    ("name", "whole", "alike", "other"),
    [
        ("a/tables/T3.csv", "peer,search_ms\n1,0.3\n", "peer,search_ms\n1,0.4\n", "peer,search_ms\n2,0.3\n"),
        ("a/tables/T4.csv", "mean\n1\n", "mean\n1\n", "mean\n2\n"),
        ("a/summary.json", '{"total": 1.5, "mean": 2}', '{"total": 2.5, "mean": 2}', '{"total": 1.5, "mean": 3}'),
        ("a/summary.json", '{"total": 1.5, "mean": 2}', '{"total": null, "mean": 2}', '{"total": 1.5, "mean": null}'),
        (
            "r/environment.json",
            '{"command": "wmlkit --out \\"a\\"", "commit": "1"}',
            '{"command": "wmlkit --out b", "commit": "1"}',
            '{"command": "wmlkit --out \\"a\\"", "commit": "2"}',
        ),
        ("report.html", "<td>0.31</td><p>difference</p>", "<td>12</td><p>difference</p>", "<td>0.31</td><p>none</p>"),
        (
            "03.ipynb",
            json.dumps(NOTEBOOK),
            json.dumps(NOTEBOOK).replace("12.5", "9.1").replace("'a'", "'b'").replace("1.5", "2.5"),
            json.dumps(NOTEBOOK).replace("iVBO", "iVBP"),
        ),
        ("peers/model.safetensors", "seconds: 1.5", "seconds: 1.5", "seconds: 2.5"),
    ],
)
def test_what_the_harness_compares(name: str, whole: str, alike: str, other: str) -> None:
    assert chaos.comparable(name, whole.encode()) == chaos.comparable(name, alike.encode())
    assert chaos.comparable(name, whole.encode()) != chaos.comparable(name, other.encode())
