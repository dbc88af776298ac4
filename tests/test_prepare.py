from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmlkit import paths
from wmlkit.data import prepare as prepare_module
from wmlkit.data import splits
from wmlkit.data.encode import check_tokenizer, open_documents, open_tokens
from wmlkit.data.prepare import prepare
from wmlkit.data.prepared import Prepared, open_prepared
from wmlkit.data.statistics import GROWTH_POINTS, LINE_WORDS, DomainCounts, example_lines
from wmlkit.data.tokenizer import load_tokenizer, save_tokenizer, tokenizer_hash, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.settings import DataConfig

SHARED = Path(__file__).parents[2] / "shared" / "data" / "babylm2024"


def write_corpus(folder: Path, dev: bool = True) -> Path:
    """Two domains whose every line is unique, so that lines can be followed through the splits."""
    folder.mkdir(parents=True)
    childes = [f"*MOT: the child saw Number {index}. [nods]" for index in range(700)]
    poems = [f"Poem {index} begins\n" + "\n".join(f"verse {index} {line}" for line in range(6)) for index in range(60)]
    (folder / "childes.train").write_text("\n".join(childes) + "\n*CHI: xxx.\n")
    (folder / "poems.train").write_text("\n\n".join(poems) + "\n")
    if dev:
        (folder / "childes.dev").write_text("\n".join(f"*MOT: dev line {index}." for index in range(90)) + "\n")
    return folder


def config(corpus: Path | str, **changes: Any) -> DataConfig:
    return DataConfig(**{"corpus": str(corpus), "vocab_size": 300, **changes})


def lines_of(prepared: Prepared, split: str) -> list[str]:
    """The text of a split, from its tokens."""
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")
    tokens, header = open_tokens(prepared.folder / f"{split}.tokens")
    check_tokenizer(header, tokenizer)
    starts = open_documents(prepared.folder / f"{split}.tokens").tolist()
    assert [position for position, token in enumerate(tokens.tolist()) if token == 0] == starts
    text = tokenizer.decode(tokens.tolist())
    assert isinstance(text, str)
    return text.replace("<s>", "").split("</s>")[:-1]


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_folder(tmp_path: Path) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine")), tmp_path / "out")
    assert prepared == open_prepared(prepared.folder)
    assert prepared.folder == tmp_path / "out" / "data" / f"mine-{prepared.hash[:8]}"
    assert [path.name for path in (tmp_path / "out" / "data").iterdir()] == [prepared.folder.name]
    train, held_out, dev = (lines_of(prepared, split) for split in ("train", "held_out", "dev"))
    # Every line is in exactly one split; the held-out slice comes from the training text, of both domains.
    clean = [f"the child saw Number {index}." for index in range(700)]
    clean += [
        line for index in range(60) for line in (f"Poem {index} begins", *(f"verse {index} {n}" for n in range(6)))
    ]
    assert sorted(train + held_out) == sorted(clean)
    assert train == [line for line in clean if line in set(train)]  # in the order of the source
    assert dev == [f"dev line {index}." for index in range(90)]
    words = sum(len(line.split()) for line in held_out)
    assert 0.02 < words / sum(len(line.split()) for line in clean) <= 0.05
    assert any("child" in line for line in held_out)
    # Whole documents: all verses of a poem stay together.
    poems = {line.split()[1] for line in held_out if line.startswith(("verse", "Poem"))}
    assert poems and not poems & {line.split()[1] for line in train if line.startswith(("verse", "Poem"))}


def test_statistics(tmp_path: Path) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine")), tmp_path / "out")
    statistics = json.loads((prepared.folder / "statistics.json").read_text())
    records = {(record["domain"], record["split"]): record for record in statistics["domains"]}
    childes = records["childes", "train"]
    assert childes["before"]["lines"] == 701 and childes["before"]["words"] == 700 * 7 + 2
    assert childes["after"]["lines"] == 700 and childes["after"]["words"] == 700 * 5
    assert childes["removed"] == {"speaker tag": 701, "annotation": 700, "line without words": 1, "unintelligible": 1}
    assert childes["after"]["documents"] == 22  # 21 of 32 lines and one of 28
    assert records["poems", "train"]["before"]["documents"] == records["poems", "train"]["after"]["documents"] == 60
    assert childes["line_words"]["lines"][LINE_WORDS.index(5)] == sum(childes["line_words"]["lines"]) == 700
    assert childes["vocabulary_growth"]["words"] == [10, 20, 50, 100, 200, 500, 1000, 2000, 3500]
    assert (
        childes["vocabulary_growth"]["distinct"][:2] == [4 + 2, 4 + 4]
        and childes["vocabulary_growth"]["distinct"][-1] == 704
    )
    # Tokens of the splits count start and end tokens, those of the domains do not.
    tokenizer = load_tokenizer(prepared.folder / "tokenizer")
    by_hand = sum(len(tokenizer.tokenize(f"the child saw Number {index}.")) for index in range(700))
    assert childes["after"]["tokens"] == by_hand
    assert childes["after"]["fertility"] == round(by_hand / 3500, 4)
    for split in splits.SPLITS:
        tokens, _ = open_tokens(prepared.folder / f"{split}.tokens")
        assert sum(row["tokens"] for row in statistics["splits"] if row["split"] == split) == len(tokens)
    examples = json.loads((prepared.folder / "examples.json").read_text())
    assert examples["childes"][0]["after"] == ["the child saw Number 0."]
    assert examples["poems"] == []


def test_same_inputs_same_bytes(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mine")
    one = prepare(config(corpus), tmp_path / "one")
    two = prepare(config(corpus), tmp_path / "two")
    assert content(one.folder) == content(two.folder)


def test_the_cache_is_used_and_keyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "mine")
    first = prepare(config(corpus), tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(prepare_module, "_fill", None)  # would fail if it were called
        assert prepare(config(corpus, block_size=64, packing="windows"), tmp_path) == first
    variants: list[dict[str, Any]] = [{"seed": 1}, {"held_out": 0.1}, {"clean": False}, {"vocab_size": 299}]
    variants += [{"lowercase": True}, {"nfkc": True}, {"words": 1000}, {"dev_words": 100}]
    hashes = {prepare(config(corpus, **variant), tmp_path).hash for variant in variants}
    with (corpus / "childes.dev").open("a") as file:
        file.write("*MOT: one more.\n")
    hashes.add(prepare(config(corpus), tmp_path).hash)
    assert len(hashes | {first.hash}) == len(variants) + 2


def test_words_take_a_share_of_every_domain(tmp_path: Path) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine"), words=1500, dev_words=150), tmp_path)
    rows = json.loads((prepared.folder / "statistics.json").read_text())["splits"]
    used = {
        domain: sum(row["words"] for row in rows if row["domain"] == domain and row["split"] != "dev")
        for domain in ("childes", "poems")
    }
    total = 3500 + 60 * 21
    for domain, words in {"childes": 3500, "poems": 60 * 21}.items():
        share = 1500 * words / total
        assert share - 32 * 5 <= used[domain] <= share
    assert sum(row["words"] for row in rows if row["split"] == "dev") <= 150


def test_domains_share_the_words_of_a_dev_slice(tmp_path: Path) -> None:
    """400 words are 294 and 106, in whole documents of 160 and 21 words; a fifth of each would be 700 and 252."""
    folder = write_corpus(tmp_path / "mine", dev=False)
    prepared = prepare(config(folder, held_out=0.2, dev_words=400), tmp_path)
    rows = json.loads((prepared.folder / "statistics.json").read_text())["splits"]
    used = {row["domain"]: row["words"] for row in rows if row["split"] == "dev"}
    assert abs(used["childes"] - 294) <= 160 and abs(used["poems"] - 106) <= 21


def test_without_dev_text_a_slice_of_the_training_text_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine", dev=False)), tmp_path)
    assert "no dev text" in caplog.text
    assert "no dev text" in json.loads((prepared.folder / "corpus.json").read_text())["notes"][0]
    train, held_out, dev = (set(lines_of(prepared, split)) for split in splits.SPLITS)
    assert dev and held_out and not dev & held_out and not train & (dev | held_out)
    assert len(train) + len(held_out) + len(dev) == 700 + 60 * 7


def test_text_that_is_left_out_is_told(tmp_path: Path) -> None:
    folder = write_corpus(tmp_path / "mine")
    cut = prepare(config(folder, words=1500, dev_words=150), tmp_path).folder
    notes = json.loads((cut / "corpus.json").read_text())["notes"]
    used = Counter[str]()
    for row in json.loads((cut / "statistics.json").read_text())["splits"]:
        used["dev" if row["split"] == "dev" else "train"] += row["words"]
    assert 1000 < used["train"] <= 1500 and used["dev"] < 150
    told = [note for note in notes if " are used" in note]
    assert told[0].startswith(f"{used['train']:,} of ") and told[1].startswith(f"{used['dev']:,} of ")
    assert "words of training text are used: data.words is 1,500, and documents are taken whole; data.words" in told[0]
    assert "words of dev text are used: data.dev_words is 150, and documents are taken whole; data.dev_w" in told[1]
    whole = prepare(config(folder, words=10**6, dev_words=None), tmp_path).folder
    assert " are used" not in (whole / "corpus.json").read_text()


def test_long_documents_make_large_slices_and_that_is_said(tmp_path: Path) -> None:
    """Ten documents of one line: a twentieth for the held-out and for the dev text is one document each, a tenth."""
    folder = tmp_path / "books"
    folder.mkdir()
    (folder / "books.train").write_text("\n\n".join(f"word{index} " * 500 for index in range(10)), encoding="utf-8")
    notes = json.loads((prepare(config(folder, held_out=0.04), tmp_path).folder / "corpus.json").read_text())["notes"]
    told = "text has 500 words where 200 were to be drawn from the training text (data.held_out): documents are taken"
    assert [told in note for note in notes] == [False, True, True]
    fits = json.loads((prepare(config(folder, held_out=0.1), tmp_path).folder / "corpus.json").read_text())["notes"]
    assert len(fits) == 1


def test_long_documents_make_small_slices_too_and_that_is_said(tmp_path: Path) -> None:
    """Documents are drawn up to the first that does not fit: here a book of 1,000 words among verses of ten."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    verses = [f"verse {index} and eight words more of its own" for index in range(60)]
    (folder / "mixed.train").write_text("\n\n".join(["word " * 1000, *verses]), encoding="utf-8")
    small = []
    for seed in range(6):
        prepared = prepare(config(folder, held_out=0.1, seed=seed), tmp_path).folder
        rows = json.loads((prepared / "statistics.json").read_text())["splits"]
        (words,) = [row["words"] for row in rows if row["split"] == "held_out"]
        notes = " ".join(json.loads((prepared / "corpus.json").read_text())["notes"])
        small.append(words < 77)
        assert (f"the held-out text has {words} words where 154 were to be drawn" in notes) == small[-1]
    assert True in small and False in small


LINE = " ".join(["word"] * 1200)


@pytest.mark.parametrize(
    ("files", "changes", "expected"),
    [
        (
            {"a.txt": "one"},
            {},
            "only 1 document .* for held_out and dev; .*; give more text, or set blank lines into it, which make",
        ),
        (
            {"a.txt": "one", "b.txt": "two"},
            {},
            "only 2 documents .* for dev; .*; give more text, or .*, or a .dev file$",
        ),
        (
            {"a.txt": "one", "a.dev": "two"},
            {},
            "only 1 document .* for held_out; .*; give more text, or .* shorter documents$",
        ),
        ({"a.txt": LINE, "a.dev": "two"}, {}, "for held_out; .*; line ends and blank lines in the text make shorter"),
        ({f"{name}.txt": LINE for name in "abcd"}, {"words": 9}, "only 1 document .*; raise data.words, which is 9 wh"),
        (dict.fromkeys(("a.train", "b.train"), "one"), {}, "lines, in 2 domains, each of which keeps one to train on"),
        (dict.fromkeys(("a/1.txt", "b/1.txt"), LINE), {}, "documents, and .txt files of one folder are one domain"),
    ],
)
def test_too_few_documents_and_what_mends_it(
    tmp_path: Path, files: dict[str, str], changes: dict[str, Any], expected: str
) -> None:
    for name, text in files.items():
        paths.write_text(tmp_path / "mine" / name, text)
    with pytest.raises(UserError, match=f"(?s)^the training text has {expected}" if "only" in expected else expected):
        prepare(config(tmp_path / "mine", **changes), tmp_path)


def test_too_few_words_of_the_nursery_are_mended_by_more_of_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="which leaves none for held_out; .*; raise data.words, which is 300$"):
        prepare(config("nursery", words=300), tmp_path)


def test_text_files_of_a_user(tmp_path: Path) -> None:
    folder = tmp_path / "Texte"
    folder.mkdir()
    for index in range(4):
        (folder / f"{index}.txt").write_text(f"Élodie zählt {index}. [sic] *MOT: bleibt\n")
    prepared = prepare(config(folder), tmp_path)
    everything = [line for split in splits.SPLITS for line in lines_of(prepared, split)]
    assert sorted(everything) == [f"Élodie zählt {index}. [sic] *MOT: bleibt" for index in range(4)]
    assert prepared.name == "Texte"


def test_an_existing_tokenizer(tmp_path: Path) -> None:
    existing = train_tokenizer(["the child saw number 1 verse poem"] * 2, 290)
    folder = save_tokenizer(existing, tmp_path / "tokenizer")
    prepared = prepare(config(write_corpus(tmp_path / "mine"), tokenizer=str(folder)), tmp_path)
    assert tokenizer_hash(load_tokenizer(prepared.folder / "tokenizer")) == tokenizer_hash(existing)
    assert len(lines_of(prepared, "dev")) == 90


def test_what_ends_a_text_is_part_of_a_corpus(tmp_path: Path) -> None:
    """It stands beside the engine of a given tokenizer, and decides what is written."""
    folder = save_tokenizer(train_tokenizer(["the child saw number 1 verse poem"] * 2, 290), tmp_path / "tokenizer")
    data = config(write_corpus(tmp_path / "mine"), tokenizer=str(folder))
    before = prepare(data, tmp_path)
    told = paths.read_json(folder / "tokenizer_config.json")
    paths.write_json(folder / "tokenizer_config.json", told | {"eos_token": "<unk>", "sep_token": "<unk>"})
    after = prepare(data, tmp_path)
    assert tokenizer_hash(load_tokenizer(folder)) == tokenizer_hash(load_tokenizer(before.folder / "tokenizer"))
    assert after.hash != before.hash and load_tokenizer(after.folder / "tokenizer").eos_token == "<unk>"
    ends = [set(open_tokens(one.folder / "dev.tokens")[0].tolist()) & {2, 3} for one in (before, after)]
    assert ends == [{2}, {3}]  # </s> and <unk>


def test_a_tokenizer_whose_numbers_have_gaps_is_refused(tmp_path: Path) -> None:
    """A model has a row for each entry, so the last ids would have none."""
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    for step, refused in ((3, True), (1, False)):
        entries = {
            entry: step * index
            for index, entry in enumerate([*special.values(), "the", "child", "dev", "line", "verse"])
        }
        backend = Tokenizer(models.WordLevel(entries, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        folder = tmp_path / f"tokenizer-{step}"
        PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
        data = config(tmp_path / "mine", tokenizer=str(folder))
        if refused:
            write_corpus(tmp_path / "mine")
            with pytest.raises(UserError, match="has 9 entries and ids up to 24; expected ids from 0 on without gaps"):
                prepare(data, tmp_path)
        else:
            assert prepare(data, tmp_path).folder.is_dir()


def test_no_cleaning(tmp_path: Path) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine"), clean=False), tmp_path)
    assert lines_of(prepared, "dev")[0] == "*MOT: dev line 0."
    assert not (prepared.folder / "examples.json").exists()


def test_nursery(tmp_path: Path) -> None:
    prepared = prepare(config("nursery", words=6000, dev_words=600), tmp_path)
    assert prepared.name == "nursery"
    rows = json.loads((prepared.folder / "statistics.json").read_text())["splits"]
    assert {row["domain"] for row in rows if row["split"] == "held_out"} == set(prepare_module.nursery.DOMAINS)
    assert prepare(config("nursery", words=6000, dev_words=600), tmp_path) == prepared
    assert prepare(config("nursery", words=6000, dev_words=600, seed=1), tmp_path) != prepared


def test_the_nursery_is_written_once_a_process_and_again_when_it_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare_module, "_nursery_sums", {})
    write, written = prepare_module.nursery.write_corpus, []

    def counted(folder: Path, *arguments: int) -> None:
        written.append(arguments)
        write(folder, *arguments)

    monkeypatch.setattr(prepare_module.nursery, "write_corpus", counted)
    data = config("nursery", words=6000, dev_words=600)
    prepared = prepare(data, tmp_path)
    assert prepare(data, tmp_path) == prepared and written == [(6000, 600, 0)]
    assert prepare(config("nursery", words=6000, dev_words=600, vocab_size=290), tmp_path) != prepared
    assert prepare(config("nursery", words=6000, dev_words=700), tmp_path) != prepared
    assert written == [(6000, 600, 0), (6000, 600, 0), (6000, 700, 0)]
    before = content(prepared.folder)
    shutil.rmtree(prepared.folder)
    assert prepare(data, tmp_path) == prepared and content(prepared.folder) == before
    damage_byte(prepared.folder / "train.tokens")  # a known text is not a reason to trust the files
    with pytest.raises(UserError, match="expected"):
        prepare(data, tmp_path)


def damage_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


DAMAGE: list[tuple[str, Callable[[Path], Any], str]] = [
    ("train.tokens", damage_byte, "SHA-256"),
    ("dev.documents", lambda path: path.write_bytes(path.read_bytes()[:-8]), "bytes; expected"),
    ("tokenizer/tokenizer.json", damage_byte, "SHA-256"),
    ("statistics.json", Path.unlink, "missing"),
    ("corpus.json", lambda path: path.write_text(path.read_text().replace("mine", "nine")), "do not belong together"),
    ("corpus.json", lambda path: path.write_text("{"), "damaged"),
    ("done.json", Path.unlink, "has no done.json"),
]


@pytest.mark.parametrize(("name", "damage", "message"), DAMAGE)
def test_open_prepared_names_the_file_that_differs(
    tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str
) -> None:
    prepared = prepare(config(write_corpus(tmp_path / "mine")), tmp_path)
    damage(prepared.folder / name)
    with pytest.raises(UserError, match=message) as error:
        open_prepared(prepared.folder)
    assert name in str(error.value)


# Each child of this program stops itself with SIGKILL at the n-th call of one function; the last one is let through.
KILLED = """
import os, signal, sys
from pathlib import Path
from wmlkit.settings import DataConfig
from wmlkit.data import prepare as module
out = Path(sys.argv[2])
points = ["_clean_part", "train_tokenizer", "save_tokenizer", "write_documents", "seal", "_publish", "open_prepared"]
def kill_after(name):
    original = getattr(module, name)
    def replacement(*args, **kwargs):
        result = original(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(module, name, replacement)
for name in [*points, None]:
    child = os.fork()
    if child == 0:
        if name:
            kill_after(name)
        module.prepare(DataConfig(corpus=sys.argv[1], vocab_size=300), out)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    visible = [path.name for path in (out / "data").iterdir() if not path.name.startswith(".")]
    print(name, os.WIFSIGNALED(status), *visible)
"""


def test_killed_at_any_point_and_started_again(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "mine")
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "killed")]
    result = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], check=True)
    rows = [line.split() for line in result.stdout.splitlines()]
    whole = prepare(config(corpus), tmp_path / "whole").folder
    assert [row[1] for row in rows] == ["True"] * 7 + ["False"], result.stderr
    # Nothing is to be seen under the final name before the rename; from then on it is the whole corpus.
    assert [row[2:] for row in rows] == [[]] * 5 + [[whole.name]] * 3
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_work_that_goes_on_is_left_alone_and_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Whatever the processes' numbers and their machines' names."""
    (left := tmp_path / ".prepare-machine-1-x").mkdir()
    with prepare_module._workspace(tmp_path) as first, prepare_module._workspace(tmp_path) as second:
        prepare_module._remove_leftovers(tmp_path)
        assert first.is_dir() and second.is_dir() and first != second
        assert not left.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_is_prepared_is_found_without_writing(tmp_path: Path) -> None:
    """As in a folder of finished runs that may only be read. A folder's time changes with what is made in it."""
    corpora = [write_corpus(tmp_path / "mine"), "nursery"]
    first = [prepare(config(corpus, words=5000), tmp_path).folder for corpus in corpora]
    before = (tmp_path / "data").stat().st_mtime_ns
    assert [prepare(config(corpus, words=5000), tmp_path).folder for corpus in corpora] == first
    assert (tmp_path / "data").stat().st_mtime_ns == before


def test_a_faster_process_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "mine")
    fill = prepare_module._fill

    def fill_twice(*args: Any) -> None:
        monkeypatch.setattr(prepare_module, "_fill", fill)
        prepare(config(corpus), tmp_path)  # the other process, which finishes first
        fill(*args)

    monkeypatch.setattr(prepare_module, "_fill", fill_twice)
    prepared = prepare(config(corpus), tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == [prepared.folder.name]


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.integers(1, 50), max_size=40), small=st.floats(0, 400), more=st.floats(0, 400))
def test_draw(words: list[int], small: float, more: float) -> None:
    array = np.array(words, dtype=np.int64)
    mask = splits.draw(array, small, "key")
    assert mask.shape == array.shape and mask.any() == bool(words)
    assert array[mask].sum() <= max(small + 1e-6, array[mask].max(initial=0))
    larger = splits.draw(array, small + more, "key")
    assert not np.any(mask & ~larger)  # a larger budget holds the smaller sample
    assert np.array_equal(mask, splits.draw(array, small, "key"))


def test_draw_of_a_share_that_is_a_whole_number_of_words() -> None:
    assert 0.29 * 100 < 29
    assert splits.draw(np.ones(100, dtype=np.int64), 0.29 * 100, "key").sum() == 29


def test_documents_are_bounded() -> None:
    lines = [str(index) for index in range(70)] + ["", "a", "", "", "b"]
    assert [len(document) for document in splits.group_documents(lines)] == [32, 32, 6, 1, 1]


def test_growth_points_inside_a_line() -> None:
    counts = DomainCounts()
    counts.add([" ".join(str(index) for index in range(55))])
    counts.add(["0 1 2"])
    counts.close()
    assert counts.growth == [(10, 10), (20, 20), (50, 50), (58, 55)]
    assert counts.document_words == [55, 3] and not counts.seen
    assert GROWTH_POINTS[:4] == (10, 20, 50, 100)


@pytest.mark.parametrize(
    ("line", "words", "distinct"),
    [("हिन्दी में हिन्दी", 3, 2), ("cafe\u0301 a_b don't 12ab", 7, 7), ("می\u200cخواهم", 1, 1)],
)
def test_marks_belong_to_their_letters(line: str, words: int, distinct: int) -> None:
    counts = DomainCounts()
    counts.add([line])
    assert (counts.read, len(counts.seen)) == (words, distinct)


def test_examples_show_different_reasons() -> None:
    lines = ["*MOT: a b.", "*MOT: c d.", "*MOT: e [x].", "f"]
    assert [example["before"] for example in example_lines("childes", lines)] == ["*MOT: a b.", "*MOT: e [x]."]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real BabyLM text is not beside this checkout")
def test_real_text(tmp_path: Path) -> None:
    folder = tmp_path / "part"
    folder.mkdir()
    for path in SHARED.glob("*/*.*"):
        text = path.read_text(encoding="utf-8")[:40_000]
        (folder / path.name).write_text(text, encoding="utf-8")
    prepared = prepare(config(folder, vocab_size=1000), tmp_path)
    records = json.loads((prepared.folder / "statistics.json").read_text())["domains"]
    assert len(records) == 12
    assert all(1 < record["after"]["fertility"] < 3 for record in records)
    assert all(record["after"]["words"] <= record["before"]["words"] for record in records)


def test_the_held_out_share_is_one_of_the_words_that_are_used() -> None:
    part = splits.Part("mine", "train", Path(), DomainCounts(words=10_000, document_words=[100] * 100))
    dev = splits.Part("mine", "dev", Path(), DomainCounts(words=100, document_words=[100]))
    chosen, _ = splits.assign([part, dev], {"seed": 0, "held_out": 0.2, "words": 1000, "dev_words": None})
    assert [int(chosen[split][0].sum()) for split in ("train", "held_out")] == [8, 2]


def test_a_document_that_fits_exactly_is_taken() -> None:
    assert splits.draw(np.full(9, 10), 30.0, "key").sum() == 3


def test_examples_are_five_of_lines_that_are_not_too_long() -> None:
    lines = ["*MOT: a.", "a [x].", "a xxx.", "(I')m.", "a \u2308b.", "a ."]
    assert [example["before"] for example in example_lines("childes", lines)] == lines[:5]
    fits, longer = (f"*MOT: {'a' * (length - len('*MOT: '))}" for length in (400, 401))
    assert [example["before"] for example in example_lines("childes", [longer, fits])] == [fits]


def test_dev_text_that_cleaning_empties_is_none() -> None:
    part = splits.Part("mine", "train", Path(), DomainCounts(words=10_000, document_words=[100] * 100))
    empty = splits.Part("mine", "dev", Path(), DomainCounts())
    asked = {"seed": 0, "held_out": 0.1, "words": None, "dev_words": None}
    chosen, notes = splits.assign([part, empty], asked)
    assert [int(chosen[split][0].sum()) for split in splits.SPLITS] == [80, 10, 10]
    assert [note for note in notes if "no dev text" in note]


def test_dev_text_drawn_from_training_text_is_never_more_than_its_share() -> None:
    part = splits.Part("mine", "train", Path(), DomainCounts(words=10_000, document_words=[100] * 100))
    asked = {"seed": 0, "held_out": 0.1, "words": None, "dev_words": 5000}
    chosen, _ = splits.assign([part], asked)
    assert [int(chosen[split][0].sum()) for split in splits.SPLITS] == [80, 10, 10]
