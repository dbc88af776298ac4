"""`wmlkit study run`: how many processes it starts, and how a stop reaches them."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest
from compare import rows
from typer.testing import CliRunner

from wmlkit import cli, paths, study, study_plan
from wmlkit.ablations import noted_plan
from wmlkit.errors import UserError

SMALL = ["data.words=3000", "data.dev_words=1000", "evaluate.per_paradigm=1", "study.seeds=[0]"]
TWO = [*SMALL, 'study.runs=[["independent", 1], ["wml", 2]]']


def arguments(out, settings):
    return ["study", "run", "--preset", "smoke", "--out", str(out), *(f"--set={one}" for one in settings)]


def test_runs_go_side_by_side_each_in_a_process_of_its_own(tmp_path):
    done = CliRunner().invoke(cli.app, arguments(tmp_path, [*TWO, "train.steps=2"]), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folders = [paths.Path(line) for line in done.stdout.splitlines()]
    assert [folder.name.rpartition("-")[0] for folder in folders] == ["independent-p1-s0", "wml-p2-s0"]
    assert all(list((folder / "evaluation").glob("*.items.jsonl")) for folder in folders)
    made_by = [paths.read_json(folder / "environment.json") for folder in folders]
    assert {one["command"].partition(" --stage")[0].rpartition("--rows ")[2] for one in made_by} == {"2,1"}
    assert done.stderr.count(": trained") == 2, done.stderr  # each run in one of the processes alone


def test_processes_share_what_is_left(tmp_path):
    """The dearest first, and each is told of everything: which of them does a run is seen when it comes to it."""
    settings = [*SMALL, "train.steps=2", "evaluate.curve=[]"]
    settings += ['study.runs=[["independent", 1], ["wml", 2], ["independent", 2]]']
    config = study.load_preset("smoke", settings)
    (third,) = study.run_rows(config, tmp_path, [3], "train")
    told = []
    folders = study.run("smoke", settings, tmp_path, "train", progress=told.append)
    commands = [paths.read_json(folder / "environment.json")["command"] for folder in folders]
    assert folders[2] == third and "--rows" not in commands[2]
    assert ["--rows 2,1 " in command for command in commands[:2]] == [True, True], commands
    assert sorted(line for line in told if line.endswith("trained")) == [
        "independent P=1 seed 0: trained",
        "wml P=2 seed 0: trained",
    ]


def test_a_row_that_another_process_has_taken_is_left_to_it(tmp_path, monkeypatch):
    config, taken = study.load_preset("smoke", [*TWO, "train.steps=2"]), tmp_path / "taken"
    paths.write_text(taken / "1", "")
    monkeypatch.setenv(study.TAKEN, str(taken))
    (folder,) = study.run_rows(config, tmp_path, [2, 1], "train")
    assert folder.name.startswith("wml-p2-s0") and {file.name for file in taken.iterdir()} == {"1", "2"}
    assert study.run_rows(config, tmp_path, [2, 1], "train") == []


def test_a_suite_that_could_not_be_scored_is_found_before_training(tmp_path):
    """Own pairs with one sentence of more words than a row has tokens; what is trained already may be told after."""
    pairs = tmp_path / "mine"
    pairs.mkdir()
    rows = [{"sentence_good": "a dog sees the cat", "sentence_bad": "a dog see " + "the cat " * 20}]
    paths.write_text(pairs / "long.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    own = [*SMALL, "train.steps=2", "evaluate.curve=[]", 'study.runs=[["independent", 1]]']
    config = study.load_preset("smoke", [*own, 'evaluate.suites=["nursery", "mine"]', f"evaluate.pairs={tmp_path}"])
    with pytest.raises(UserError, match=r"suite 'mine' has sentences of up to 6\d tokens \(long.jsonl line 1\)"):
        study.run_rows(config, tmp_path, [1])
    assert not (tmp_path / "smoke").exists()
    study.run_rows(config, tmp_path, [1], "train")
    with pytest.raises(UserError, match="long.jsonl line 1 has 6"):
        study.run_rows(config, tmp_path, [1])


def test_pairs_that_are_missing_are_told_before_the_text_is_prepared(tmp_path):
    config = study.load_preset("smoke", [*SMALL, 'evaluate.suites=["blimp"]', "evaluate.curve=[]"])
    with pytest.raises(UserError, match="evaluate.pairs is not set"):
        study.run_rows(config, tmp_path, [1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "workers", "launched", "expected"),
    [
        ([], 2, False, "processes"),
        ([], 1, False, (1, 1)),
        ([], 2, True, (1, 1)),  # the launcher's processes train each run together
        (["--shard", "1/1"], 2, False, (1, 1)),
        (["--shard", "2/2"], 2, False, (2, 2)),
        (["--rows", "2,1"], 2, False, [2, 1]),
    ],
)
def test_when_the_runs_stay_in_this_process(options, workers, launched, expected, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(study, "run", lambda *given: calls.append("processes") or [])
    monkeypatch.setattr(study, "run_shard", lambda config, out, index, count, *more: calls.append((index, count)) or [])
    monkeypatch.setattr(study, "run_rows", lambda config, out, rows, *more: calls.append(rows) or [])
    monkeypatch.setenv("WORLD_SIZE", "2" if launched else "1")
    given = [*arguments(tmp_path, [*TWO, f"study.workers={workers}"]), *options]
    done = CliRunner().invoke(cli.app, given, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert calls == [expected]


def test_a_signal_reaches_every_run_and_each_leaves_a_checkpoint(tmp_path):
    settings = [*TWO, "train.steps=4000", "train.log_every=1", "train.checkpoint_every=4000", "evaluate.curve=[]"]
    command = [sys.executable, "-m", "wmlkit", *arguments(tmp_path, settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as parent:
        told, training = [], set()
        for line in parent.stderr:
            told.append(line)
            if ": step " in line:
                training.add(line.split(":")[0])
            if len(training) == 2:
                parent.send_signal(signal.SIGTERM)
                break
        told += parent.stderr.readlines()
        assert parent.wait(60) == 128 + signal.SIGTERM, told
    assert told[-1].startswith("wmlkit: the study was stopped by SIGTERM; runs that trained have a checkpoint"), told
    left = sorted(tmp_path.glob("smoke/*/checkpoints/step-*"))
    assert {path.parents[1].name.rpartition("-")[0] for path in left} == {"independent-p1-s0", "wml-p2-s0"}
    for path in left:
        step = int(path.name.removeprefix("step-"))
        assert 1 <= step < 4000 and rows(path.parents[1])[-1]["step"] == step


def test_a_process_that_fails_is_named_by_its_last_line(tmp_path):
    """The second seed's folder is taken by a file."""
    settings = [*SMALL, 'study.runs=[["independent", 1]]', "study.seeds=[0,1]", "train.steps=2"]
    config = study.load_preset("smoke", settings)
    second = study.run_folder(study_plan.plan(config)[1], tmp_path)
    second.parent.mkdir(parents=True)
    second.write_text("in the way")
    with pytest.raises(UserError, match=r"1 of 2 training processes failed; the last line was: .*" + second.name):
        study.run("smoke", settings, tmp_path, progress=lambda line: None)
    assert (study.run_folder(study_plan.plan(config)[0], tmp_path) / "done.json").is_file()


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("os.kill(os.getpid(), 9)", "one of 1 .* was ended by SIGKILL; the system .*memory.*study.workers=1"),
        ("os.kill(os.getpid(), 11)", "one of 1 .* was ended by SIGSEGV; run the same command again to go on"),
        ("os._exit(143)", "one of 1 .* was ended by SIGTERM; run the same command again to go on"),  # as `Stopped` ends
        ("os._exit(1)", "1 of 1 training processes failed; the last line was: step 5; mend that"),
    ],
)
def test_a_process_that_a_signal_ends_is_not_named_by_its_last_line(end, expected):
    script = f"import os, time; print('step 5', flush=True); time.sleep(0.2); {end}"
    with pytest.raises(UserError, match=expected):
        study._run_processes([[sys.executable, "-c", script]], {}, lambda line: None)
    with pytest.raises(UserError, match="training processes failed; it said nothing; mend"):
        study._run_processes([[sys.executable, "-c", "exit(1)"]], {}, lambda line: None)


def test_a_listener_that_fails_stops_the_processes_instead_of_hanging():
    """A process whose lines nobody reads would wait for ever once the pipe is full."""
    talk = "import time\nfor i in range(40000): print(i, flush=True)\ntime.sleep(600)"

    def listen(line):
        raise BrokenPipeError(line)

    def give_up(*arguments):
        raise TimeoutError("still waiting")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    try:
        with pytest.raises(BrokenPipeError):
            study._run_processes([[sys.executable, "-c", talk]] * 2, {}, listen)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_stage_is_checked_before_anything_is_prepared(tmp_path):
    with pytest.raises(UserError, match="--stage got 'tests'; expected one of train, evaluate, all"):
        study.run("smoke", TWO, tmp_path, stage="tests")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("start", ["one slice", "all"])
def test_ablations_note_what_was_asked_for(start, tmp_path):
    """With it `wmlkit report` names changes as the notebook did, whatever the study's runs were trained with."""
    settings = ["data.words=3000", "data.dev_words=1000", "train.steps=2", "ablations.seeds=[0]", "study.workers=1"]
    settings += ["ablations.settings=[]", 'ablations.base={"mutual.arm" = "independent", "mutual.num_peers" = 1}']
    config = study.load_preset("smoke", settings)
    study.run_shard(config, tmp_path, stage="train", part="ablations")
    folder = paths.ablations(tmp_path, "smoke")
    if start == "all":  # with nothing left to train, so that no slice is started which would note it
        (folder / "ablations.json").unlink()
        study.run("smoke", settings, tmp_path, "train", part="ablations")
    assert noted_plan(folder) == config
    document = paths.read_json(folder / "ablations.json")
    for broken in (paths.json_text(document | {"train": {"no_such_setting": 1}}), '{"preset": "smo', "[]"):
        paths.write_text(folder / "ablations.json", broken)
        # The folder has all of the ablations' runs: the advice must not cost them.
        says = r"ablations\.json has no configuration of this version; .* remove that file alone, the runs .* stay"
        with pytest.raises(UserError, match=says):
            noted_plan(folder)


def test_points_of_a_curve_lack_where_the_run_itself_is_asked_for_them(tmp_path):
    """The nursery's ablations have no curve, its study has one: 54 runs were told to lack what nobody had asked for."""
    base = '"mutual.arm" = "independent", "mutual.num_peers" = 1'
    settings = ["data.words=3000", "data.dev_words=1000", "train.steps=2", "ablations.seeds=[0]", "evaluate.curve=[1]"]
    settings += ["ablations.settings=[]", "evaluate.per_paradigm=1"]

    def told(base, stage="train"):
        lines = []
        study.run("smoke", [*settings, f"ablations.base={{{base}}}"], tmp_path, stage, lines.append, "ablations")
        return [line for line in lines if "learning curve" in line]

    assert told(f'{base}, "evaluate.curve" = []') == []  # trained in a process of its own
    assert told(f'{base}, "evaluate.curve" = []') == []  # and found finished
    (line,) = told(base)
    assert line.startswith("wmlkit: independent-p1-s0-") and "lacks 2 of 2 points" in line
    for _ in ("to score", "scored"):  # once is enough: notebooks ask for training and for scores
        assert told(base, "evaluate") == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mutual.arm": "independent", "mutual.num_peers": 1}, 1 / 2),
        ({"mutual.arm": "wml", "mutual.num_peers": 4}, 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5),
        ({"mutual.arm": "distill", "mutual.num_peers": 2}, 1 / 2 + 1 / 3 + 1 + 1 / 3),
        ({"mutual.arm": "distill", "mutual.num_peers": 2, "mutual.teacher": "a_folder"}, 1 / 2 + 1 / 3 + 1 / 3),
        ({"mutual.arm": "dml", "mutual.num_peers": 2, "mutual.frozen_teacher": True}, 1 / 2 + 1 / 3 + 1 + 1 / 3),
        ({"mutual.arm": "teacher", "mutual.num_peers": 1}, 1),
        ({"mutual.arm": "teacher", "mutual.num_peers": 1, "mutual.teacher_size": "peer"}, 1 / 2),
        ({"mutual.arm": "distill", "mutual.num_peers": 1, "mutual.teacher_size": "peer"}, 1 / 2 + 1 / 2 + 1 / 6),
        ({"mutual.arm": "distill", "mutual.num_peers": 1, "mutual.teacher_steps": 15}, 1 / 2 + 1 / 4 + 1 / 3),
    ],
)
def test_the_work_of_a_run_by_hand(settings, expected):
    run = study.load_preset("smoke", settings | {"train.steps": 60})
    assert study_plan.work(run) == pytest.approx(60 * expected)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_slices_are_done_with_a_seed_at_about_the_same_time(count):
    """So a study that is stopped half-way has whole seeds; the dearest runs of all seeds first left none whole."""
    runs = study_plan.plan(study.load_preset("modern-10m"))
    slices = [study_plan.shard(runs, index, count) for index in range(1, count + 1)]
    assert sorted(row for part in slices for row in part) == list(range(1, len(runs) + 1))
    whole = sum(map(study_plan.work, runs))
    for seed in range(3):
        upto = [
            sum(study_plan.work(runs[row - 1]) for row in part if runs[row - 1].train.seed <= seed) for part in slices
        ]
        assert max(upto) * count / whole < (seed + 1) / 3 + 0.16
    assert study_plan.shard(runs, 1, 10**30) == study_plan.shard(runs, 1, 100) and not study_plan.shard(runs, 99, 100)
    many = [study_plan.shard(runs, index, 5) for index in range(1, 6)]
    assert max(sum(study_plan.work(runs[row - 1]) for row in part) for part in many) * 5 / whole < 1.15


def test_teachers_do_not_make_one_slice_longer():
    """Runs that take turns, as a study lists them, used to put every teacher into the second of two slices."""
    settings = {"study.runs": [["independent", 2], ["dml", 2], ["wml", 2], ["distill", 2]], "study.seeds": [0, 1]}
    runs = study_plan.plan(study.load_preset("smoke", settings))
    slices = [study_plan.shard(runs, index, 2) for index in (1, 2)]
    loads = [sum(study_plan.work(runs[row - 1]) for row in part) for part in slices]
    assert max(loads) < 1.1 * sum(loads) / 2
