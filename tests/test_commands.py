"""Commands in this process: what they print for people, how a stop or a full disk ends them, what a run notes."""

from __future__ import annotations

import csv
import errno
import importlib
import io
import json
import shlex
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from small import make_tokenizer
from tokenizers.processors import TemplateProcessing
from typer.testing import CliRunner

from wmlkit import cli, environment, ngrams, paths, session
from wmlkit.config import Config, load_preset
from wmlkit.data.fetch import RELEASES
from wmlkit.errors import Stopped, UserError
from wmlkit.evaluate.suites import Pair
from wmlkit.students import find_students

TINY = ["--preset", "smoke", "--set", "data.words=3000", "--set", "data.dev_words=1000", "--set", "train.steps=2"]
ONE_RUN = ["--set", 'study.runs=[["independent", 1]]', "--set", "study.seeds=[0]"]


def wmlkit(*arguments):
    """Standard output and standard error of a command that has to end well."""
    done = CliRunner().invoke(cli.app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout, done.stderr


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """An output folder with one finished and evaluated run, and what `study run` printed."""
    out = tmp_path_factory.mktemp("out")
    printed, _ = wmlkit("study", "run", *TINY, *ONE_RUN, "--set", "evaluate.per_paradigm=2", "--out", out)
    return out, printed


def test_a_study_prints_its_folders_and_is_collected(studied, monkeypatch):
    out, printed = studied
    (folder,) = printed.splitlines()
    assert paths.read_json(paths.Path(folder) / "done.json")["steps"] == 2
    asked = ["study", "collect", "--preset", "smoke", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["/home/somebody/.venv/bin/wmlkit", *asked])
    files, _ = wmlkit(*asked)
    tables = [paths.Path(line) for line in files.splitlines()]
    assert "T4.csv" in {path.name for path in tables} and all(path.is_file() for path in tables)
    noted = paths.read_json(tables[0].parent / "provenance.json")["T4"]
    assert noted["command"] == f"wmlkit study collect --preset smoke --out {out.name}"


def test_a_finished_run_that_lacks_the_curve_asked_for_is_told(studied):
    out, first = studied
    asked = [*TINY, "--set", "evaluate.per_paradigm=2", "--set", "evaluate.curve=[1]", "--out", out]
    lacking = "lacks 1 of 2 points of its learning curve (evaluate.curve), the first is words-0000000001"
    for command in (["study", "run", *ONE_RUN], ["train", "--arm", "independent", "--peers", "1", "--seed", "0"]):
        printed, told = wmlkit(*command, *asked)
        assert printed == first and told.count(lacking) == 1


def test_a_report_can_be_written_elsewhere_too(studied, tmp_path, monkeypatch):
    """What is on the page has its own tests; its figures would take most of this one's time."""
    out, _ = studied
    monkeypatch.setattr(
        "wmlkit.report.write_report",
        lambda folder, command, overwrite: paths.write_text(folder / "report.html", "<html>"),
    )
    printed, _ = wmlkit("report", out / "smoke", "--html", tmp_path / "page.html")
    assert printed.strip() == str(out / "smoke" / "report.html")
    assert (tmp_path / "page.html").read_text() == "<html>" and (out / "smoke" / "summary.json").is_file()


@pytest.mark.parametrize("method", ["exact", "bayesian"])
def test_search_tells_people_a_line_a_peer(studied, method):
    out, _ = studied
    printed, told = wmlkit("search", *TINY, "--method", method, "--out", out)
    *peers, distance = printed.strip().splitlines()
    assert told == "" and [line.split(":")[0] for line in peers] == ["peer 1", "peer 2"]
    assert all("parameters, target" in line and " %)" in line for line in peers)
    assert distance.startswith("distance ")


def test_a_study_tells_what_says_nothing_of_its_runs(monkeypatch):
    plain = wmlkit("study", "plan", "--preset", "smoke")
    told = wmlkit("study", "plan", "--preset", "smoke", "--set", "mutual.num_peers=3", "--set", "train.lr=0.1")
    assert told == (plain[0], "wmlkit: mutual.num_peers says nothing of these runs; study.runs does\n")
    assert plain[1] == ""
    asked = ["train.seed=3", "mutual.arm=dml", 'ablations.settings=[{"mutual.arm"="independent"}]']
    base = wmlkit("study", "plan", "--preset", "smoke", "--ablations", *(x for one in asked for x in ("--set", one)))
    assert base[1] == "wmlkit: train.seed says nothing of these runs; ablations.seeds does\n" and "dml" in base[0]
    monkeypatch.setattr("wmlkit.submit.submit", lambda *arguments, **more: [])
    submitted = wmlkit("study", "submit", "--shards", 1, "--preset", "smoke", "--set", "mutual.num_peers=3")
    assert submitted == ("", told[1])


def test_search_for_a_size_of_vocabulary_needs_no_corpus(tmp_path):
    printed, told = wmlkit("search", "--preset", "paper-10m", "--vocab-size", 5000, "--json", "--out", tmp_path / "out")
    expected = [student.document() for student in find_students(load_preset("paper-10m"), 5000)]
    assert json.loads(printed) == expected
    assert told == "" and not (tmp_path / "out").exists()


def test_corpora_are_listed_for_people_and_programs(tmp_path):
    printed, _ = wmlkit("data", "list", "--out", tmp_path)
    records = json.loads(wmlkit("data", "list", "--out", tmp_path, "--json")[0])
    assert [line.split()[0] for line in printed.splitlines()] == [record["name"] for record in records]
    assert set(RELEASES) <= {record["name"] for record in records}


def test_a_plan_is_a_table_for_people():
    printed, _ = wmlkit("study", "plan", *TINY, *ONE_RUN)
    assert [line.split() for line in printed.splitlines()] == [
        ["row", "arm", "peers", "seed", "steps"],
        ["1", "independent", "1", "0", "2"],
    ]


def test_an_unknown_cluster_is_refused(tmp_path):
    with pytest.raises(UserError, match="--cluster got 'pbs'; expected slurm or local"):
        wmlkit("study", "submit", "--shards", 1, "--cluster", "pbs", "--out", tmp_path, *TINY)


@pytest.mark.parametrize("name", ["step", "loss", "train", "search", "data", "scoring"])
def test_a_benchmark_prints_numbers_or_one_document(name, monkeypatch):
    module = importlib.import_module(f"wmlkit.bench.{name}")
    result = {"setting": "toy", "variants": [{"name": "fast", "median_ms": 1234.5}], "ratios": {"speedup": 2.5}}
    monkeypatch.setattr(module, f"bench_{name}", lambda *_, **__: result)
    assert wmlkit("bench", name)[0].splitlines() == ["fast, median_ms 1,234", "speedup: 2.5"]
    document = json.loads(wmlkit("bench", name, "--json")[0])
    assert document["benchmark"] == name and result.items() <= document.items() and "machine" in document


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (UserError("found; expected; do"), 2, "wmlkit: found; expected; do"),
        (Stopped("stopped at step 3", 15), 143, "wmlkit: stopped at step 3"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "there is no room left to write"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes\nframes"),
            2,
            "memory ran out (DefaultCPUAll",
        ),
        (MemoryError(), 2, "memory ran out (MemoryError); expected sizes that fit"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, ""),
    ],
)
def test_how_a_command_ends(error, status, sentence, monkeypatch, capsys):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as end:
        cli.main()
    told = capsys.readouterr().err
    assert end.value.code == status and sentence in told and told.count("\n") == bool(sentence)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "Permission denied"), RuntimeError("shapes differ")])
def test_a_fault_of_ours_is_not_dressed_up(error, monkeypatch):
    def fail():
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(type(error)):
        cli.main()


def test_the_commit_of_a_checkout_of_ours_only(tmp_path, monkeypatch):
    """None outside a checkout and inside somebody else's; marked where a tracked file was changed."""

    def git(*arguments):
        settings = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        done = subprocess.run(["git", *settings, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    monkeypatch.setattr(paths, "REPOSITORY", tmp_path.resolve())
    assert environment.commit() is None
    git("init", "--quiet")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "--quiet", "-m", "one")
    assert environment.commit() == git("rev-parse", "HEAD")
    (tmp_path / "untracked").write_text("")
    assert environment.commit() == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("2")
    assert environment.commit() == git("rev-parse", "HEAD") + "-dirty"
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setattr(paths, "REPOSITORY", (tmp_path / "site-packages").resolve())
    assert environment.commit() is None


def test_the_noted_command_has_no_paths_of_the_machine_before_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/home/somebody/.venv/bin/wmlkit", "train", "--set", "a=[1, 2]"])
    assert environment.command() == "wmlkit train --set 'a=[1, 2]'"
    monkeypatch.setattr(sys, "argv", ["/home/somebody/wmlkit/__main__.py", "doctor"])
    assert environment.command() == "wmlkit doctor"


def test_a_run_of_a_kernel_is_noted_with_the_command_that_trains_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/venv/ipykernel_launcher.py", "-f", "/tmp/x.json"])
    assert environment.command() == "a cell of a notebook"
    changed = {
        "mutual.arm": "dml",
        "data.words": None,
        "train.lr": 1e-5,
        "search.num_layers": [2, 4],
        "data.corpus": "a b",
    }
    config = load_preset("nursery", changed | {"data.packing": "documents", "study.seeds": [7]})
    words = shlex.split(environment.command(config))
    assert words[:4] == ["wmlkit", "train", "--preset", "nursery"] and set(words[4::2]) == {"--set"}
    same = load_preset("nursery", words[5::2])
    assert same == config.updated({"study.seeds": load_preset("nursery").study.seeds}) and len(words) == 4 + 2 * 6
    assert environment.command(load_preset("smoke")) == "wmlkit train --preset smoke"
    own = load_preset("smoke", {"data.corpus": "/home/somebody/private/text"})
    assert environment.command(own) == "wmlkit train --preset smoke --set 'data.corpus=\"text\"'"
    assert environment.command(Config(preset="my own")) == "a cell of a notebook"


def test_a_notebook_saves_what_it_shows_and_refuses_to_end_without_a_number(tmp_path, capsys):
    own = session.start("01_data", "smoke", str(tmp_path), ["data.words=3000"])
    assert "preset smoke, corpus nursery" in capsys.readouterr().out and own.config.data.words == 3000
    own.table("T1", pd.DataFrame({"a": [1, 2]}), seeds=[0, 1])
    with pytest.raises(UserError, match="01_data ends with loss = nan; expected a finite number; look at the runs"):
        own.finish({"words": 2, "loss": float("nan")})
    assert not (own.folder / "notebooks").exists()
    own.finish({"words": 2})
    document = paths.read_json(own.folder / "notebooks" / "01_data.done.json")
    assert list(document["files"]) == ["tables/T1.csv"] and document["numbers"] == {"words": 2.0}
    note = paths.read_json(own.folder / "tables" / "provenance.json")["T1"]
    # a command that can be pasted: the folder's last name, quoted where the shell needs it
    assert note["command"] == f"wmlkit reproduce --preset smoke --only 01 --out {tmp_path.name} --set data.words=3000"
    assert note["seeds"] == [0, 1] and note["created_by"] == "notebooks/01_data.ipynb"
    assert list(csv.reader(io.StringIO((own.folder / "tables" / "T1.csv").read_text())))[1:] == [["1"], ["2"]]


def test_a_notebook_tells_what_says_nothing_of_its_runs_and_refuses_a_text_for_a_list(tmp_path, capsys):
    """A student who asks notebook 00 for another arm would else take its two peers of wml for that arm."""
    session.start("00_start_here", "smoke", str(tmp_path), ["mutual.arm=independent", "train.seed=9", "train.steps=4"])
    said = capsys.readouterr().out.splitlines()[2:]
    assert said == [
        "mutual.arm says nothing of these runs; study.runs does",
        "train.seed says nothing of these runs; study.seeds does",
    ]
    asked = ["mutual.arm=dml", "train.seed=9", "mutual.num_peers=3"]
    session.start("06_ablations", "smoke", str(tmp_path), asked)
    assert capsys.readouterr().out.splitlines()[2:] == [
        "train.seed says nothing of these runs; ablations.seeds does",
        "mutual.num_peers says nothing of these runs; ablations.base does",
    ]
    for wrong in ("mutual.alpha=0.9", {"mutual.alpha": 0.9}):
        with pytest.raises(UserError, match="expected a list of texts, for example"):
            session.start("00_start_here", "smoke", str(tmp_path), wrong)


def test_word_counts_by_hand():
    """The stream 0 1 2 0 1 1, four words, 0.1 added to each count."""
    counts = ngrams.Counts(np.array([0, 1, 2, 0, 1, 1], dtype=np.uint16), 4)
    words = np.log([2.1 / 6.4, 3.1 / 6.4, 0.1 / 6.4]).sum()
    assert counts.unigram_score(np.array([0, 1, 3])) == pytest.approx(words)
    # 0 -> 1 twice of two, 1 -> 1 once of three, 1 -> 3 and 3 -> 3 never
    pairs = np.log([2.1 / 2.4, 1.1 / 3.4, 0.1 / 3.4, 0.1 / 0.4]).sum()
    assert counts.bigram_score(np.array([0, 1, 1, 3, 3])) == pytest.approx(pairs)


def test_word_counts_of_pairs_by_paradigm(tmp_path, monkeypatch):
    """Order is all that tells the first pair's sentences apart, and where a line begins those of the second, so
    unigrams tie; the third pair is the same twice. A tokenizer's own marks of a sentence are no words."""
    tokenizer = make_tokenizer()
    frame = TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.backend_tokenizer.post_processor = frame
    line = tokenizer("the cat sleeps", add_special_tokens=False)["input_ids"]
    monkeypatch.setattr(ngrams, "open_tokens", lambda path: (np.array([*line, 2] * 3), None))
    pairs = [
        Pair("order", "x", "x", "0", "the cat sleeps", "cat the sleeps", "", "", "a"),
        Pair("start", "x", "x", "1", "the", "cat", "", "", "b"),
        Pair("same", "x", "x", "2", "the cat", "the cat", "", "", "c"),
    ]
    table = ngrams.accuracy_table(tmp_path, tokenizer, pairs)
    assert table.loc["order"].to_dict() == table.loc["start"].to_dict() == {"unigram": 50.0, "bigram": 100.0}
    assert table.loc["same"].to_dict() == {"unigram": 50.0, "bigram": 50.0}


def test_the_end_of_a_line_is_a_word_to_bigrams(tmp_path, monkeypatch):
    """Both words begin lines once; one of them ends both times that it is there, the other never."""
    tokenizer = make_tokenizer()
    ends, goes_on = (tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ("the", "cat"))
    stream = [tokenizer.eos_token_id, ends, tokenizer.eos_token_id, goes_on, ends, tokenizer.eos_token_id]
    monkeypatch.setattr(ngrams, "open_tokens", lambda path: (np.array(stream), None))
    table = ngrams.accuracy_table(tmp_path, tokenizer, [Pair("end", "x", "x", "0", "the", "cat", "", "", "a")])
    assert table.loc["end", "bigram"] == 100.0
