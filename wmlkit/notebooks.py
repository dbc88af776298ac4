"""Notebooks run without anybody looking: papermill behind checks that turn silent mistakes into errors.

A parameter that does not exist or that nothing reads, a kernel of another Python, a kernel that died, a notebook that
ended without its result: each is an error here, where papermill alone goes on.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import nbformat

from . import kernels, paths
from .errors import Stopped, UserError, signal_name
from .guard import stop_signals
from .notebook_checks import parameter_cells, parameter_names, parameter_problems

_LINK = re.compile(r"\]\((\.\.?/[^)\s]+)\)")  # of markdown, to a file beside or above

START_TIMEOUT = 600  # seconds: from a cold network disk torch alone may take minutes; a kernel that died is noticed


def run_notebook(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    required: Sequence[Path] = (),
    *,
    kernel: Any = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Execute the notebook `source` with `parameters`; returns the executed copy `target`.

    The kernel is this very Python and imports this very wmlkit. `required`: files that the notebook must write; they
    are deleted first and looked for afterwards (a ``.json`` must hold finite numbers only). The notebook's
    working directory is the caller's, so that relative paths mean the same in both. `kernel`: one that was started
    already in that folder (`wmlkit.kernels`), which whoever started it ends. `progress` gets a line when the notebook
    starts, each line that it prints, and a line with its seconds at the end.

    Raises UserError for a mistake in the parameters or the notebook, a cell that fails (the executed copy is kept as
    ``<name>.failed.ipynb``), a kernel that dies, or a required file that was not written; Stopped, after the kernel has
    ended, where a signal asked to stop.
    """
    say = progress or (lambda line: None)
    given = {name: _json_safe(name, value) for name, value in parameters.items()}
    notebook = _read(source)
    _check_parameters(source.name, notebook, given)
    failed = target.with_suffix(".failed.ipynb")
    for old in (target, failed, *required):
        old.unlink(missing_ok=True)
    paths.make_folder(target.parent)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.ipynb")

    say(f"{source.stem}: running")
    started = time.perf_counter()
    try:
        folder = Path.cwd()
        with nullcontext(kernel) if kernel else kernels.started(folder) as manager:
            _execute(source, temporary, given, folder, failed, manager, _Lines(say))
        _check_results(source.name, required)
        _point_links(temporary, source.parent, target.parent)
        os.replace(temporary, target)
    finally:  # whatever went wrong, even an interruption: what was executed can be read
        if temporary.exists():
            os.replace(temporary, failed)
    say(f"{source.stem}: done in {time.perf_counter() - started:.1f} s")
    return target


def _point_links(copy: Path, of: Path, to: Path) -> None:
    """Let relative links of the executed `copy`, written for the folder `of`, lead to the same files from `to`."""

    def pointed(found: re.Match[str]) -> str:
        there = (of / found[1]).resolve()
        return f"]({Path(os.path.relpath(there, to.resolve())).as_posix()})" if there.exists() else found[0]

    document = nbformat.read(copy, as_version=4)
    for cell in document["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = _LINK.sub(pointed, cell["source"])
    nbformat.write(document, copy)


class _Lines:
    """A file that hands on whole lines; papermill writes into it what the notebook prints."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.rest = ""

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.say(f"  {line}")

    def flush(self) -> None:
        pass


def _execute(
    source: Path, target: Path, given: dict[str, Any], cwd: Path, failed: Path, manager: Any, lines: _Lines
) -> None:
    """Run papermill; its errors become sentences."""
    import papermill  # it takes a second to import, and most uses of this module do without

    def pass_on(number: int) -> None:
        """To the kernel as SIGTERM: a run that trains there leaves a checkpoint, and anything else ends with it."""
        if manager.has_kernel:
            with suppress(ProcessLookupError):  # it has ended already
                os.kill(manager.provisioner.pid, signal.SIGTERM)

    try:
        with stop_signals(pass_on) as stop_asked:
            try:
                papermill.execute_notebook(
                    source,
                    target,
                    given,
                    kernel_name="python3",
                    language="python",
                    km=manager,
                    cwd=cwd,
                    start_timeout=START_TIMEOUT,
                    progress_bar=False,
                    stdout_file=lines,
                )
            finally:
                if stop_asked():
                    raise _stopped(source, stop_asked()) from None
    except papermill.PapermillExecutionError as error:
        number = _cell_number(source, error.cell_index) if given else error.cell_index + 1
        last = [line for line in str(error.evalue).splitlines() if line.strip()][-1:] or ["no message"]
        what = last[0] if error.ename == "UserError" else f"{error.ename}: {last[0]}"
        raise UserError(
            f"{source.name} failed in cell {number} with {_plain(what)!r}; expected it to run to its end: "
            f"read the executed copy {failed}, mend the cause and run it again"
        ) from None
    except RuntimeError as error:  # nbclient's DeadKernelError, or its client's for a kernel that never answered
        what = "died" if "died" in str(error) else f"did not start ({_plain(str(error))})"
        raise UserError(
            f"the kernel of {source.name} {what}; expected it to run to its end. Probably memory: set a smaller "
            "train.batch_size, fewer study.workers or a smaller preset"
        ) from None


def _stopped(source: Path, number: int) -> Stopped:
    return Stopped(
        f"{source.name} was stopped by {signal_name(number)}; runs that trained have a checkpoint; run the same "
        "command again to go on",
        number,
    )


def _cell_number(source: Path, index: int) -> int:
    """Number in `source`, from 1, of the cell that papermill calls `index`: it adds one behind the parameters cell."""
    (parameters,) = parameter_cells(_read(source))
    return index + 1 if index <= parameters else index


def _plain(text: str) -> str:
    """`text` without the codes that colour a terminal."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def _check_results(name: str, required: Sequence[Path]) -> None:
    for path in required:
        if not path.is_file() or path.stat().st_size == 0:
            raise UserError(
                f"{name} ran to its end but did not write {path}; expected that file: "
                "a cell that writes it is missing or was skipped"
            )
        if path.suffix == ".json":
            try:
                paths.read_json(path)
            except ValueError as error:
                raise UserError(
                    f"{name} wrote {path}, which is not a result ({error}); expected JSON with finite numbers: "
                    "look at the cell that writes it"
                ) from None


def _json_safe(name: str, value: Any) -> Any:
    """`value` with paths as text and tuples as lists; anything else that JSON lacks is refused."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_json_safe(name, item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _json_safe(name, item) for key, item in value.items()}
    finite = not isinstance(value, float) or math.isfinite(value)
    # Exact types: a numpy number is a subclass of float that papermill would write in a way Python cannot read.
    if (value is None or type(value) in (bool, int, float, str)) and finite:
        return value
    raise UserError(
        f"notebook parameter {name!r} is {value!r} of type {type(value).__name__}; "
        "expected text, a path, a finite number, true, false, none, or lists and dictionaries of them: convert it"
    )


def _read(path: Path) -> nbformat.NotebookNode:
    if not path.is_file():
        raise UserError(f"there is no notebook {path}; expected a file: look for its name in {path.parent}")
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat raises its own, json's and attribute errors
        raise UserError(f"{path} is not a notebook ({type(error).__name__}); expected Jupyter's format 4") from None


def _check_parameters(name: str, notebook: nbformat.NotebookNode, given: Mapping[str, Any]) -> None:
    problems = parameter_problems(notebook)
    if problems:
        raise UserError(f"{name}: {problems[0]}; mend the notebook")
    known = parameter_names(notebook)
    for parameter in given:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, n=1, cutoff=0.0)
            hint = f"the nearest is {near[0]!r}" if near else "it has none"
            raise UserError(f"{name} has no parameter {parameter!r}; {hint}")
