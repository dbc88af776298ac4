"""The strict runner, on notebooks that have one defect each."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from committed import notebook_problems

from wmlkit import kernels, notebooks, paths
from wmlkit.errors import Stopped, UserError
from wmlkit.notebook_checks import parameter_names, parameter_problems
from wmlkit.notebooks import run_notebook

COMMITTED = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
SAVE = "import json, pathlib\npathlib.Path(result).write_text(json.dumps({'number': number}))"


def make(*cells: str, parameters: str = 'number = 1\nresult = ""', tags: int = 1) -> nbformat.NotebookNode:
    """A notebook with a heading, `tags` parameters cells and then `cells`."""
    notebook = nbformat.v4.new_notebook()
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.cells = [nbformat.v4.new_markdown_cell("# A heading")]
    for _ in range(tags):
        notebook.cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    notebook.cells += [nbformat.v4.new_code_cell(cell) for cell in cells]
    return notebook


def write(folder: Path, notebook: nbformat.NotebookNode, name: str = "01_test.ipynb") -> Path:
    path = folder / name
    path.write_text(nbformat.writes(notebook), encoding="utf-8")
    return path


def run(folder: Path, notebook: nbformat.NotebookNode, parameters: dict | None = None, **more) -> Path:
    result = folder / "result.json"
    given = {"number": 3, "result": result} if parameters is None else parameters
    target = folder / "out" / "01_test.ipynb"
    return run_notebook(write(folder, notebook), target, given, required=more.pop("required", [result]), **more)


def test_a_good_notebook_runs_with_its_parameters_in_this_python(tmp_path, monkeypatch, capfd):
    # A kernel of another Python under the same name must not be taken.
    other = tmp_path / "jupyter" / "kernels" / "python3"
    other.mkdir(parents=True)
    specification = {"argv": ["/nowhere/python", "-m", "ipykernel_launcher", "-f", "{connection_file}"]}
    (other / "kernel.json").write_text(json.dumps({**specification, "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    where = tmp_path / "elsewhere"
    where.mkdir()
    monkeypatch.chdir(where)
    cell = (
        "import json, os, sys, pathlib, wmlkit\n"
        "facts = {'number': number, 'python': sys.executable, 'cwd': os.getcwd(), 'wmlkit': wmlkit.__file__,\n"
        "         'offline': os.environ['HF_HUB_OFFLINE'], 'list': names}\n"
        "pathlib.Path(result).write_text(json.dumps(facts))\n"
        "print('halfway')\nprint('there')"
    )
    lines: list[str] = []
    stale = tmp_path / "out" / "01_test.failed.ipynb"
    stale.parent.mkdir()
    stale.write_text("an earlier failure")
    notebook = make(cell, parameters='number = 1\nresult = ""  # a file\nnames = []')
    given = {"number": 2.5, "result": tmp_path / "result.json", "names": ("a=b", "c")}
    target = run(tmp_path, notebook, given, progress=lines.append)
    facts = json.loads((tmp_path / "result.json").read_text())
    assert facts == {
        "number": 2.5,
        "python": sys.executable,
        "cwd": str(where),
        "wmlkit": str(paths.PACKAGE / "__init__.py"),
        "offline": "1",
        "list": ["a=b", "c"],
    }
    assert sorted(p.name for p in target.parent.iterdir()) == ["01_test.ipynb"]  # nothing temporary or stale is left
    assert capfd.readouterr() == ("", "")  # `progress` is the only voice
    executed = nbformat.read(target, as_version=4)
    assert executed.cells[2].metadata["tags"] == ["injected-parameters"]
    assert executed.cells[-1].outputs[0].text == "halfway\nthere\n"
    assert lines[:3] == ["01_test: running", "  halfway", "  there"]
    assert lines[3].startswith("01_test: done in ") and lines[3].endswith(" s") and len(lines) == 4


def test_links_of_the_executed_copy_lead_where_those_of_the_notebook_do(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("here")
    (tmp_path / "notebooks").mkdir()
    there = "[a](../docs/a.md) and [it](https://x.org/../b), [none](../docs/b.md)\n\n[again](../docs/a.md)"
    notebook = make(SAVE)
    notebook.cells.insert(1, nbformat.v4.new_markdown_cell(there))
    source = write(tmp_path / "notebooks", notebook)
    target = tmp_path / "runs" / "nursery" / "notebooks" / "01_test.ipynb"
    given = {"number": 3, "result": str(tmp_path / "result.json")}
    copy = nbformat.read(run_notebook(source, target, given), as_version=4)
    text = next(cell.source for cell in copy.cells if "[a]" in cell.source)
    assert text == there.replace("../docs/a.md", "../../../docs/a.md")
    assert (target.parent / "../../../docs/a.md").resolve() == (tmp_path / "docs" / "a.md").resolve()
    assert source.read_text() == nbformat.writes(notebook)


@pytest.mark.parametrize("given", [True, False])
def test_a_failing_cell_is_named_and_its_copy_kept(tmp_path, given):
    notebook = make("number, result", "1 / 0\n")
    # The failing cell is the fourth: a heading, the parameters, a good one.
    with pytest.raises(
        UserError, match="01_test.ipynb failed in cell 4 with 'ZeroDivisionError: division by zero'"
    ) as error:
        run(tmp_path, notebook, None if given else {})
    copy = tmp_path / "out" / "01_test.failed.ipynb"
    assert str(copy) in str(error.value)
    assert any("ZeroDivisionError" in str(cell.get("outputs")) for cell in nbformat.read(copy, as_version=4).cells)
    assert not (tmp_path / "out" / "01_test.ipynb").exists()


def test_a_user_error_inside_a_notebook_keeps_its_sentence(tmp_path):
    cell = "from wmlkit.errors import UserError\nnumber, result\nraise UserError('found a; expected b; do c')"
    with pytest.raises(UserError, match="failed in cell 3 with 'found a; expected b; do c'"):
        run(tmp_path, make(cell))


def test_a_dead_kernel_is_probably_memory(tmp_path):
    with pytest.raises(UserError, match="the kernel of 01_test.ipynb died; .* Probably memory"):
        run(tmp_path, make("import os\nnumber, result\nos._exit(9)"))
    assert not (tmp_path / "out" / "01_test.ipynb").exists()


def test_a_notebook_without_its_result_has_failed(tmp_path):
    result = tmp_path / "result.json"
    result.write_text('{"number": 1}')  # of an earlier run: it must not count
    with pytest.raises(UserError, match="01_test.ipynb ran to its end but did not write .*result.json"):
        run(tmp_path, make("number, result"))
    assert not result.exists()
    assert (tmp_path / "out" / "01_test.failed.ipynb").is_file()


@pytest.mark.parametrize("last", ["pass", "raise ValueError"])
def test_no_kernel_lives_on(tmp_path, last):
    """One kernel a notebook, each with its models, would be gigabytes at the end of the main job."""
    save_pid = "import os, pathlib; pathlib.Path(result).write_text(str(os.getpid() + 0 * number))"
    with suppress(UserError):
        run(tmp_path, make(save_pid, last))
    pid = int((tmp_path / "result.json").read_text())
    with suppress(psutil.NoSuchProcess):
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_result_must_be_finite(tmp_path):
    with pytest.raises(UserError, match=r"is not a result \(it holds NaN"):
        run(tmp_path, make("number = float('nan') * number\n" + SAVE))


TRAINING = """
import pathlib, time
from wmlkit.guard import stop_signals
with stop_signals() as asked:
    pathlib.Path(result).with_name("started").write_text(str(number))
    while not asked():
        time.sleep(0.01)
pathlib.Path(result).with_name("checkpoint").write_text("")
raise SystemExit
"""
IDLE = "import pathlib, time\npathlib.Path(result).with_name('started').write_text(str(number))\ntime.sleep(600)"


@pytest.mark.parametrize(("cell", "left"), [(TRAINING, True), (IDLE, False)])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_training_in_the_kernel(tmp_path, cell, left, number):
    """A run that trains there leaves its checkpoint; another cell ends at once."""

    def stop():
        while not (tmp_path / "started").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    others = set(psutil.Process().children())  # helpers of multiprocessing, where an earlier test started them
    asker = threading.Thread(target=stop, daemon=True)
    asker.start()
    with pytest.raises(Stopped, match=f"01_test.ipynb was stopped by {number.name}; .* same command again") as stopped:
        run(tmp_path, make(cell))
    asker.join()
    assert stopped.value.status == 128 + number and (tmp_path / "checkpoint").exists() == left
    assert not (tmp_path / "out" / "01_test.ipynb").exists()
    assert set(psutil.Process().children()) <= others


# What follows is found before a kernel is started.


@pytest.fixture
def no_kernel(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(notebooks, "_execute", refuse)


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"nunber": 3}, "has no parameter 'nunber'; the nearest is 'number'"),
        ({"number": {1, 2}}, "'number' is {1, 2} of type set"),
        ({"number": [float("inf")]}, "'number' is inf of type float; expected .* a finite number"),
        ({"number": np.float64(1.0)}, "of type float64"),
        ({"number": {1: 2}}, "'number' is {1: 2} of type dict"),
        ({"number": object}, "of type type"),
    ],
)
def test_bad_parameters_are_refused(tmp_path, no_kernel, parameters, match):
    with pytest.raises(UserError, match=match):
        run(tmp_path, make(SAVE), parameters)


def test_a_text_with_an_equals_sign_is_a_parameter_like_others(tmp_path, capfd):
    """As `overrides = ["mutual.alpha=0.9"]` is; papermill would say that it knows none of that name."""
    notebook = make(SAVE, parameters='number = ["a=b"]\nresult = ""')
    assert parameter_problems(notebook) == []
    run(tmp_path, notebook)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("notebook", "problem"),
    [
        (make(SAVE, tags=0), "0 cells are tagged 'parameters'; expected exactly one"),
        (make(SAVE, tags=2), "2 cells are tagged 'parameters'; expected exactly one"),
        (make("print(number)"), "parameter 'result' is read by no later cell"),
        (make("number = 2", SAVE), "parameter 'number' is overwritten before it is read"),
        (make("number, result = number = (1, '')", SAVE), "parameter 'number' is overwritten before it is read"),
        (make("for number in [1]:\n    print(result)"), "parameter 'number' is overwritten before it is read"),
        (make("print(number.result)"), "parameter 'result' is read by no later cell"),
        (make(SAVE, "1 +"), "cell 4 is not Python"),
        (make(SAVE, parameters='number = 1\nresult: str = ""'), "line 2 of the parameters cell is not a plain"),
        (make(SAVE, parameters='number = 1 + 1\nresult = ""'), "line 1 of the parameters cell is not a plain"),
        (make(SAVE, parameters='number = [\n    1\n]\nresult = ""'), "line 1 of the parameters cell is not a plain"),
        (make(SAVE, parameters='number = result = ""'), "line 1 of the parameters cell is not a plain"),
        (make(SAVE, parameters="import os"), "line 1 of the parameters cell is not a plain"),
        (make(SAVE, parameters="number ="), "line 1 of the parameters cell is not Python"),
        (make(SAVE, parameters='number = 1\nresult = ""\nnumber = 2'), "parameter 'number' is set twice"),
    ],
)
def test_each_defect_of_the_parameters_is_found(tmp_path, no_kernel, notebook, problem):
    assert any(found.startswith(problem) for found in parameter_problems(notebook))
    with pytest.raises(UserError, match="01_test.ipynb: .*; mend the notebook"):
        run(tmp_path, notebook, {})


@pytest.mark.parametrize(
    "cell",
    [
        "%matplotlib inline\nprint(number, result)",
        "number = number + len(result)",
        "number += 1; print(result)",
        "def read():\n    return number, result",
        "f'{number} {result}'",
    ],
)
def test_a_parameter_may_be_read_in_many_ways(cell):
    assert parameter_problems(make(cell)) == []


def test_a_markdown_cell_cannot_hold_parameters():
    notebook = make(SAVE, tags=0)
    notebook.cells[0].metadata["tags"] = ["parameters"]
    assert parameter_problems(notebook) == ["the cell tagged 'parameters' is a markdown cell; expected a code cell"]


def test_files_that_are_no_notebooks_are_refused(tmp_path, no_kernel):
    with pytest.raises(UserError, match="there is no notebook .*09_none.ipynb"):
        run_notebook(tmp_path / "09_none.ipynb", tmp_path / "out.ipynb", {})
    (tmp_path / "09_text.ipynb").write_text("# not JSON")
    with pytest.raises(UserError, match="09_text.ipynb is not a notebook"):
        run_notebook(tmp_path / "09_text.ipynb", tmp_path / "out.ipynb", {})


def test_a_missing_kernel_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="has no Jupyter kernel; .*pip install ipykernel"):
        run(tmp_path, make(SAVE))


def _with_output(notebook):
    notebook.cells[2].outputs = [nbformat.v4.new_output("stream", text="x")]


def _without_ids(notebook):
    for cell in notebook.cells:
        del cell["id"]


def _long(notebook):
    notebook.cells[2].source += "\n#" * 31


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_with_output, "cell 3 has outputs"),
        (lambda n: n.cells[2].update(execution_count=1), "cell 3 has an execution count"),
        (lambda n: n.metadata.update(widgets={}), "it holds widget state"),
        (lambda n: n.metadata.update(papermill={}), "it holds papermill's records"),
        (lambda n: n.cells[2].metadata.update(papermill={}), "cell 3 holds papermill's records"),
        (
            lambda n: n.metadata.update(language_info={"name": "python", "version": "3"}),
            "it holds the version of Python",
        ),
        (lambda n: n.metadata.kernelspec.update(name="my-env"), "the kernel is 'my-env'; expected 'python3'"),
        (_without_ids, "cells without an id"),
        (lambda n: n.cells[2].update(id=n.cells[1].id), "cells without an id, or two with the same"),
        (lambda n: n.cells[2].pop("source"), "not a valid notebook"),
        (_long, "cell 3 has 33 lines; expected at most 30"),
        (lambda n: n.cells[1].metadata.update(tags=[]), "0 cells are tagged 'parameters'"),
    ],
)
def test_each_defect_of_a_committed_notebook_is_found(tmp_path, spoil, problem):
    notebook = make(SAVE)
    assert notebook_problems(write(tmp_path, notebook)) == []
    spoil(notebook)
    path = tmp_path / "01_test.ipynb"
    path.write_text(json.dumps(notebook))  # nbformat would mend some of the defects
    assert [found for found in notebook_problems(path) if found.startswith(problem)]


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_notebooks_are_clean(path):
    assert notebook_problems(path) == []
    notebook = nbformat.read(path, as_version=4)
    names = parameter_names(notebook)
    assert names == ["preset", "out", "overrides"]  # what `wmlkit reproduce` gives


def test_there_are_committed_notebooks():
    assert len(COMMITTED) >= 6
    assert os.access(COMMITTED[0], os.R_OK)
