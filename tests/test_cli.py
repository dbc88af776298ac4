"""The command line: exit status 2 and one sentence for a user's mistake, JSON alone on standard output."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from mistakes import run_cli
from typer.testing import CliRunner

from wmlkit import cli, paths
from wmlkit.cli_options import a_path
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.study_plan import parse_rows, parse_shard, plan, shard, work

TINY = [f"--set={setting}" for setting in ("data.words=3000", "data.dev_words=1000", "train.steps=4")]


def wmlkit(*arguments, cwd=None, **environment):
    command = [sys.executable, "-m", "wmlkit", *map(str, arguments)]
    env = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    done = wmlkit("train", "--preset", "smoke", "--arm", "dml", "--seed", 2, "--out", out, *TINY)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


def test_train_prints_its_folder_and_progress_apart(trained):
    assert trained.name.startswith("dml-p2-s2-") and (trained / "done.json").is_file()


def test_an_option_and_a_setting_that_say_otherwise_are_refused():
    runner = CliRunner()
    refused = runner.invoke(cli.app, ["train", "--preset", "smoke", "--peers", "2", "--set", "mutual.num_peers=3"])
    assert isinstance(refused.exception, UserError) and str(refused.exception).startswith(
        "got --peers 2 and --set mutual.num_peers=3; expected one value"
    )


def test_evaluate(trained):
    done = wmlkit("evaluate", trained, "--per-paradigm", 2, "--out", trained.parents[1], "--json")
    document = json.loads(done.stdout)
    assert [m["member"] for m in document["members"]] == ["peer_1", "peer_2", "ensemble", "uniform_ensemble"]
    assert document["members"][0]["n"] == 34 and 0 <= document["members"][0]["score"] <= 100


def test_evaluate_language_modelling(trained):
    done = wmlkit("evaluate", trained, "--suite", "lm", "--json")
    assert done.returncode == 0, done.stderr
    path = paths.language_modelling(trained)
    assert json.loads(done.stdout) == paths.read_json(path)
    assert paths.read_json(path)["settings"]["words_per_domain"] == 16  # as the run's preset has it
    before = path.read_bytes()
    refused = wmlkit("evaluate", trained, "--suite", "lm", "--words", 8)
    assert refused.returncode == 2 and "give --force to replace it" in refused.stderr and path.read_bytes() == before
    assert wmlkit("evaluate", trained, "--suite", "lm", "--words", 8, "--force").returncode == 0
    assert paths.read_json(path)["settings"]["words_per_domain"] == 8


def test_evaluate_shows_the_ensembles_alone(trained):
    options = ("--per-paradigm", 2, "--out", trained.parents[1], "--ensemble", "--protocol", "babylm2026")
    done = wmlkit("evaluate", trained, *options)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["ensemble", "uniform_ensemble"], done.stderr
    written = paths.read_json(paths.evaluation(trained, "nursery", "babylm2026"))
    assert len(written["members"]) == 4  # the file has all of them


def test_export_then_evaluate_the_single_model(trained, tmp_path):
    done = wmlkit("export", trained, "--to", tmp_path / "model")
    assert done.returncode == 0 and Path(done.stdout.strip()) == tmp_path / "model"
    done = wmlkit("evaluate", tmp_path / "model", "--per-paradigm", 2, "--out", trained.parents[1], "--json")
    assert [m["member"] for m in json.loads(done.stdout)["members"]] == ["model"]


def test_an_exported_model_reads_text_as_its_run_does(trained, tmp_path):
    """Line by line, as `smoke` trains: the same number for the same weights and text."""
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dev").write_text("The cat sleeps.\nThe dogs near the river sleep.\n")
    wmlkit("export", trained, "--peer", 1, "--to", tmp_path / "model")
    found = []
    for model in (trained, tmp_path / "model"):
        done = wmlkit("evaluate", model, "--suite", "lm", "--corpus", tmp_path / "text", "--out", trained.parents[1])
        assert done.stdout.splitlines()[-1].startswith("read line by line, each token masked"), done.stderr
        found.append(done.stdout.splitlines()[0].partition(": ")[2])
    assert found[0] == found[1]
    (tmp_path / "model" / "wmlkit.json").write_text("[]")
    broken = wmlkit("evaluate", tmp_path / "model", "--suite", "lm", "--corpus", tmp_path / "text")
    assert broken.returncode == 2 and "does not say how the model's training read text" in broken.stderr
    (tmp_path / "model" / "wmlkit.json").unlink()
    other = wmlkit("evaluate", tmp_path / "model", "--suite", "lm", "--corpus", tmp_path / "text")
    assert other.stdout.splitlines()[-1].startswith("read with the lines of a document side by side, each token")


def test_an_unfinished_run_with_other_settings_is_named(trained, tmp_path):
    """A checkpoint more often is another run: whoever asks for it in the middle begins anew, and is told."""
    settings = [*TINY, "--set", "evaluate.curve=[]"]
    folder = Path(wmlkit("train", "--preset", "smoke", "--out", tmp_path, *settings).stdout.strip())
    (folder / "done.json").unlink()
    more = wmlkit("train", "--preset", "smoke", "--out", tmp_path, *settings, "--set", "train.checkpoint_every=5")
    sentence = f"{folder.name} is not finished and has train.checkpoint_every="
    assert more.returncode == 0 and sentence in more.stderr
    broken = folder.with_name(folder.name.rpartition("-")[0] + "-00000000")
    paths.write_json(broken / "config.json", {"format": 3})  # of a version to come: no reason to stop
    again = wmlkit("train", "--preset", "smoke", "--out", tmp_path, *settings)
    assert again.returncode == 0 and "is not finished" not in again.stderr


def test_a_run_is_evaluated_beside_its_own_text(trained, tmp_path):
    """Wherever the command runs: nothing is left in the working directory."""
    here = {"cwd": tmp_path, "PYTHONPATH": str(paths.REPOSITORY)}
    done = wmlkit("evaluate", trained, "--per-paradigm", 3, "--protocol", "babylm2026", "--force", **here)
    assert done.returncode == 0 and not list(tmp_path.iterdir()), done.stderr


def test_results_that_may_only_be_read_are_told(monkeypatch, capsys):
    """A disk that is mounted for reading: an error that Python gives no class of its own."""

    def refuse():
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), "there/tables")

    monkeypatch.setattr("wmlkit.cli.app", refuse)
    assert run_cli([], monkeypatch) == 2
    assert capsys.readouterr().err == (
        "wmlkit: there/tables: Read-only file system; expected a path that can be used for this; change it\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [["data", "list", "--out", ""], ["evaluate", "RUN", "--pairs", ""], ["evaluate", ""], ["report", "x", "--html", ""],
     ["export", "RUN", "--to", ""], ["bench", "report", "--to", ""], ["bench", "report", ""],
     ["evaluate", "RUN", "--suite", "lm", "--corpus", ""]],
)  # fmt: skip
def test_an_empty_path_is_not_the_working_directory(arguments, monkeypatch, capsys):
    assert run_cli(arguments, monkeypatch) == 2
    assert "'' names nothing; expected a path; give one, or leave it off" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("only", ["", ","])
def test_no_number_is_not_every_notebook(only, monkeypatch, capsys):
    assert run_cli(["reproduce", "--preset", "smoke", "--only", only], monkeypatch) == 2
    assert f"--only got '{only}'; expected numbers of notebooks" in capsys.readouterr().err


def test_what_is_no_run_is_not_called_unfinished(trained, monkeypatch, capsys, tmp_path):
    for folder in (paths.peer(trained, 1), trained.parent):
        assert run_cli(["export", str(folder), "--to", str(tmp_path / "model")], monkeypatch) == 2
        assert f"{folder} is no run folder; expected a finished run, OUT/<preset>/<run>" in capsys.readouterr().err


def test_a_renamed_run_is_told(trained, monkeypatch, capsys, tmp_path):
    preset = tmp_path / "smoke"
    shutil.copytree(trained, preset / trained.name)
    shutil.copytree(trained, preset / "copy")
    assert run_cli(["report", str(preset)], monkeypatch) == 0
    assert "wmlkit: copy is in no table: a run counts under the name that it was given" in capsys.readouterr().err


def test_a_folder_that_the_system_cannot_make(tmp_path):
    if not Path("/proc/self").exists():
        pytest.skip("only Linux has a folder in which nothing can be made")
    done = wmlkit("search", "--preset", "smoke", "--out", "/proc/x", *TINY)
    assert done.returncode == 2 and "the folder /proc/x/data cannot be made" in done.stderr
    done = wmlkit("data", "fetch", "babylm2024-10m", "--out", "/proc/x")
    assert done.returncode == 2 and "the folder /proc/x/downloads cannot be made" in done.stderr
    with pytest.raises(UserError, match="the folder /proc takes no new files"):
        paths.write_text(Path("/proc/x.html"), "of a report")


def test_search_json(tmp_path):
    done = wmlkit("search", "--preset", "smoke", "--out", tmp_path, "--json", *TINY)
    found = json.loads(done.stdout)
    names = {"num_layers", "num_heads", "hidden_size", "intermediate_size", "parameters", "target"}
    assert len(found) == 2 and names <= set(found[0])


def test_data_prepare_and_study_plan(tmp_path):
    done = wmlkit("data", "prepare", "nursery", "--preset", "smoke", "--out", tmp_path, *TINY)
    assert (Path(done.stdout.strip()) / "done.json").is_file()
    plan_rows = json.loads(wmlkit("study", "plan", "--preset", "smoke", "--json").stdout)
    assert len(plan_rows) == 8 and plan_rows[0] == {
        "row": 1, "arm": "independent", "peers": 2, "seed": 0, "steps": 12,
    }  # fmt: skip


def test_bench_json():
    document = json.loads(
        wmlkit("bench", "scoring", "--setting", "small", "--repeats", 1, "--pairs", 4, "--json").stdout
    )
    assert {"setting", "machine", "commit", "variants", "ratios"} <= set(document) and document["setting"] == "small"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--preset", "smoke", "--set", "train.stepz=1"], "the nearest valid key is 'train.steps'"),
        (["evaluate", "."], "neither a finished run nor a model folder"),
    ],
)
def test_mistakes_are_one_sentence_with_status_2_and_leave_nothing(tmp_path, arguments, message):
    """In a process of their own; all others are in test_bad_inputs.py and test_bad_files.py."""
    done = wmlkit(*arguments, cwd=tmp_path, WMLKIT_OUT=str(tmp_path / "out"))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("wmlkit: ") and message in lines[0]
    assert done.stdout == "" and list(tmp_path.iterdir()) == []


def test_options_and_settings_of_a_run_are_judged_together(tmp_path, monkeypatch):
    """A floor that is too high for the preset's four peers is right for two."""
    import_module("wmlkit.study")  # it keeps `train.run` under another name: the true one, whatever comes first
    seen = []
    monkeypatch.setattr("wmlkit.train.run", lambda config, *rest, **options: seen.append(config) or tmp_path)
    (tmp_path / "done.json").write_text('{"words": 1}')
    assert run_cli(["train", "--peers", "2", "--set", "outer.min_weight=0.4"], monkeypatch) == 0
    assert (seen[0].mutual.num_peers, seen[0].outer.min_weight) == (2, 0.4)


def test_shards_share_the_plan():
    runs = plan(load_preset("nursery"))
    slices = [shard(runs, index, 2) for index in (1, 2)]
    assert sorted(slices[0] + slices[1]) == list(range(1, len(runs) + 1))
    loads = [sum(work(runs[row - 1]) for row in part) for part in slices]
    assert abs(loads[0] - loads[1]) <= max(map(work, runs))
    assert parse_shard("2/8") == (2, 8) and parse_rows("3,1") == [3, 1]


def test_module_and_version():
    assert wmlkit("--help").returncode == 0
    assert paths.notebooks().is_dir()


def test_signs_that_the_terminal_does_not_have_are_written_as_numbers(tmp_path):
    done = wmlkit(
        "data",
        "prepare",
        "nursery",
        "--preset",
        "smoke",
        "--out",
        tmp_path / "\u00fcber",
        *TINY,
        PYTHONIOENCODING="ascii",
    )
    assert done.returncode == 0 and done.stdout.startswith(f"{tmp_path}/\\xfcber/data/nursery-")


def test_the_home_folder_is_written_short(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WMLKIT_OUT", "~/runs")
    assert paths.output() == tmp_path / "runs" and paths.output("~/out") == tmp_path / "out"
    assert a_path("~/out") == tmp_path / "out" and a_path("there/~") == Path("there/~")


def test_a_working_directory_that_is_gone_is_named(tmp_path):
    if os.name == "nt":
        pytest.skip("Windows keeps a directory that a process works in")
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.chdir({str(gone)!r}); os.rmdir({str(gone)!r})\nfrom wmlkit.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "doctor"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "wmlkit: the working directory is gone; expected one that is there; go to another\n"


def test_an_interrupt_while_modules_are_loaded_shows_no_traceback(monkeypatch):
    class Interrupts:
        @staticmethod
        def find_spec(name, *_):
            if name == "wmlkit.cli":
                raise KeyboardInterrupt

    entry = import_module("wmlkit.__main__")
    monkeypatch.setattr(sys, "meta_path", [Interrupts, *sys.meta_path])
    monkeypatch.delitem(sys.modules, "wmlkit.cli")
    with pytest.raises(SystemExit) as ended:
        entry.main()
    assert ended.value.code == 130


def test_evaluate_does_not_replace_a_run_s_own_evaluation(tmp_path):
    """The README's command without options takes as many pairs as the run's preset; others need --force."""
    settings = ["evaluate.per_paradigm=2", 'study.runs=[["independent", 1]]', "study.seeds=[0]"]
    settings = [f"--set={setting}" for setting in settings]
    run = Path(wmlkit("study", "run", "--preset", "smoke", *TINY, *settings, "--out", tmp_path).stdout.split()[-1])
    path = paths.evaluation(run, "nursery", "babylm2025")
    before = path.read_bytes()
    assert wmlkit("evaluate", run, "--out", tmp_path).returncode == 0 and path.read_bytes() == before
    refused = wmlkit("evaluate", run, "--per-paradigm", 1, "--out", tmp_path)
    assert refused.returncode == 2 and "give --force to replace it" in refused.stderr and path.read_bytes() == before
    assert wmlkit("evaluate", run, "--per-paradigm", 1, "--out", tmp_path, "--force").returncode == 0
    assert paths.read_json(path)["settings"]["per_paradigm"] == 1
