"""Notebooks run without anybody looking: papermill behind checks that turn silent mistakes into errors.

A parameter that does not exist or that nothing reads, a kernel of another Python, a kernel that died, a notebook that
ended without its result: each is an error here, where papermill alone goes on.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import json
import math
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from . import paths
from .errors import UserError
from .guard import LIVE

MAX_CELL_LINES = 30


def run_notebook(
    source: Path,
    target: Path,
    parameters: Mapping[str, Any],
    required: Sequence[Path] = (),
    *,
    cwd: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Execute the notebook `source` with `parameters`; returns the executed copy `target`.

    The kernel is this very Python and imports this very wmlkit. `required`: files that the notebook must write; they
    are deleted first and looked for afterwards (a ``.json`` must hold finite numbers only). `cwd`: the notebook's
    working directory, by default the caller's, so that relative paths mean the same in both. `progress` gets a line
    when the notebook starts, each line that it prints, and a line with its seconds at the end.

    Raises UserError for a mistake in the parameters or the notebook, a cell that fails (the executed copy is kept as
    ``<name>.failed.ipynb``), a kernel that dies, or a required file that was not written.
    """
    say = progress or _silent
    given = {name: _json_safe(name, value) for name, value in parameters.items()}
    notebook = _read(source)
    _check_parameters(source.name, notebook, given)
    failed = target.with_suffix(".failed.ipynb")
    for old in (target, failed, *required):
        old.unlink(missing_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.stem}.{os.getpid()}.tmp.ipynb")

    say(f"{source.stem}: running")
    started = time.perf_counter()
    try:
        _execute(source, temporary, given, (cwd or Path.cwd()).resolve(), failed, _Lines(say))
        _check_results(source.name, required)
        os.replace(temporary, target)
    finally:  # whatever went wrong, even an interruption: what was executed can be read
        if temporary.exists():
            os.replace(temporary, failed)
    say(f"{source.stem}: done in {time.perf_counter() - started:.1f} s")
    return target


def _silent(line: str) -> None:
    pass


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


def _execute(source: Path, target: Path, given: dict[str, Any], cwd: Path, failed: Path, lines: _Lines) -> None:
    """Run papermill; its errors become sentences."""
    import papermill  # these take a second to import, and most uses of this module do without
    from jupyter_client.utils import run_sync
    from nbclient.exceptions import DeadKernelError

    manager = _kernel_manager()
    try:
        papermill.execute_notebook(
            source,
            target,
            given,
            kernel_name="python3",
            language="python",
            km=manager,
            cwd=cwd,
            progress_bar=False,
            stdout_file=lines,
        )
    except papermill.PapermillExecutionError as error:
        number = _cell_number(source, error.cell_index) if given else error.cell_index + 1
        last = [line for line in str(error.evalue).splitlines() if line.strip()][-1:] or ["no message"]
        what = last[0] if error.ename == "UserError" else f"{error.ename}: {last[0]}"
        raise UserError(
            f"{source.name} failed in cell {number} with {_plain(what)!r}; expected it to run to its end: "
            f"read the executed copy {failed}, mend the cause and run it again"
        ) from None
    except DeadKernelError:
        raise UserError(
            f"the kernel of {source.name} died; expected it to run to its end. Probably memory: set a smaller "
            "train.batch_size, fewer study.workers or a smaller preset"
        ) from None
    finally:  # nbclient leaves a kernel running that it did not make, with all its memory
        run_sync(manager.shutdown_kernel)(now=True)


def _kernel_manager() -> Any:
    """A kernel that is this interpreter, whatever kernels are registered on the machine under the name python3."""
    if importlib.util.find_spec("ipykernel") is None:
        raise UserError(
            f"the Python at {sys.executable} has no Jupyter kernel; expected the package ipykernel: "
            "install it with `make setup` or `pip install ipykernel`"
        )
    import zmq
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    # Without any folder to look in there is only ipykernel's own specification, which names sys.executable.
    manager = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    if zmq.has("curve"):  # other users of the machine cannot read along, and the kernel does not warn that they can
        manager.transport_encryption = "auto"
    environment = {
        # Nothing is fetched while notebooks run, unless the user says so.
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        # Nobody looks: text instead of pictures that change, and no widgets.
        LIVE: "0",
        # No warning on standard error about a debugger that nobody uses.
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    if "site-packages" not in paths.PACKAGE.parts:
        # A checkout that is not installed is found from any working directory.
        environment["PYTHONPATH"] = os.pathsep.join(
            part for part in (str(paths.PACKAGE.parent), os.environ.get("PYTHONPATH", "")) if part
        )
    specification = manager.kernel_spec
    assert specification is not None  # it has a name
    specification.env.update(environment)
    return manager


def _cell_number(source: Path, index: int) -> int:
    """Number in `source`, from 1, of the cell that papermill calls `index`: it adds one behind the parameters cell."""
    (parameters,) = _parameter_cells(_read(source))
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
                json.loads(path.read_text(encoding="utf-8"), parse_constant=_not_finite)
            except ValueError as error:
                raise UserError(
                    f"{name} wrote {path}, which is not a result ({error}); expected JSON with finite numbers: "
                    "look at the cell that writes it"
                ) from None


def _not_finite(text: str) -> None:
    raise ValueError(f"it holds {text}")


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
    known = _parameter_names(notebook)
    for parameter in given:
        if parameter not in known:
            near = difflib.get_close_matches(parameter, known, n=1, cutoff=0.0)
            hint = f"the nearest is {near[0]!r}" if near else "it has none"
            raise UserError(f"{name} has no parameter {parameter!r}; {hint}")


def _parameter_cells(notebook: nbformat.NotebookNode) -> list[int]:
    return [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


def _parameter_names(notebook: nbformat.NotebookNode) -> list[str]:
    (index,) = _parameter_cells(notebook)
    return [node.targets[0].id for node in ast.parse(notebook.cells[index].source).body]  # type: ignore[attr-defined]


def parameter_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the parameters of a notebook; empty if nothing is.

    Exactly one code cell tagged `parameters`, with `name = literal` lines only (papermill understands no others), and
    every name read by a later cell before it is given another value.
    """
    tagged = _parameter_cells(notebook)
    if len(tagged) != 1:
        return [f"{len(tagged)} cells are tagged 'parameters'; expected exactly one"]
    cell = notebook.cells[tagged[0]]
    if cell.cell_type != "code":
        return [f"the cell tagged 'parameters' is a {cell.cell_type} cell; expected a code cell"]
    problems = []
    try:
        body = ast.parse(cell.source).body
    except SyntaxError as error:
        return [f"line {error.lineno} of the parameters cell is not Python; expected `name = literal` lines"]
    for node in body:
        if not _is_plain(node):
            problems.append(f"line {node.lineno} of the parameters cell is not a plain `name = literal` line")
    if problems:
        return problems
    names = [node.targets[0].id for node in body]  # type: ignore[attr-defined]
    problems += [f"parameter {name!r} is set twice" for name in sorted({n for n in names if names.count(n) > 1})]
    uses = _Uses()
    for number, later in enumerate(notebook.cells[tagged[0] + 1 :], tagged[0] + 2):
        if later.cell_type == "code":
            try:
                uses.visit(ast.parse(_without_magics(later.source)))
            except SyntaxError:
                problems.append(f"cell {number} is not Python")
    for name in names:
        if uses.first.get(name) != "read":
            how = "overwritten before it is read" if name in uses.first else "read by no later cell"
            problems.append(f"parameter {name!r} is {how}")
    return problems


def _is_plain(node: ast.stmt) -> bool:
    """Is this statement `name = literal` on one line, without an equals sign in a text?"""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        return False
    try:
        value = ast.literal_eval(node.value)
    except ValueError:
        return False
    return node.lineno == node.end_lineno and "=" not in repr(value)


class _Uses(ast.NodeVisitor):
    """For each name, whether the cells first read it or first set it."""

    def __init__(self) -> None:
        self.first: dict[str, str] = {}

    def visit_Name(self, node: ast.Name) -> None:
        self.first.setdefault(node.id, "read" if isinstance(node.ctx, ast.Load) else "set")

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)  # evaluated before the targets are set
        for target in node.targets:
            self.visit(target)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.visit(node.value)
        if isinstance(node.target, ast.Name):
            self.first.setdefault(node.target.id, "read")
        self.visit(node.target)


def _without_magics(source: str) -> str:
    """`source` as Python: IPython's `%magic` and `!command` lines become calls."""
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def notebook_problems(path: Path) -> list[str]:
    """What keeps a notebook from being committed; empty if nothing does.

    Valid format with unique cell ids, kernel `python3`, no outputs, no execution counts, no widget state, no records
    of papermill, cells of at most 30 lines, and nothing that `parameter_problems` finds.
    """
    try:
        text = path.read_text(encoding="utf-8")
        ids = [cell.get("id") for cell in json.loads(text)["cells"]]
        if None in ids or len(set(ids)) < len(ids):  # nbformat would only warn, and make up others
            return ["cells without an id, or two with the same; expected format 4.5 with an id for each cell"]
        notebook = nbformat.reads(text, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, TypeError, LookupError, AttributeError, nbformat.ValidationError) as error:
        return [f"not a valid notebook: {str(error).splitlines()[0]}"]
    problems = []
    kernel = notebook.metadata.get("kernelspec", {}).get("name")
    if kernel != "python3":
        problems.append(f"the kernel is {kernel!r}; expected 'python3'")
    if "widgets" in notebook.metadata:
        problems.append("it holds widget state")
    if "papermill" in notebook.metadata:
        problems.append("it holds papermill's records")
    if "version" in notebook.metadata.get("language_info", {}):
        problems.append("it holds the version of Python that last ran it")
    for number, cell in enumerate(notebook.cells, 1):
        lines = len(cell.source.splitlines())
        if lines > MAX_CELL_LINES:
            problems.append(f"cell {number} has {lines} lines; expected at most {MAX_CELL_LINES}")
        if "papermill" in cell.metadata:
            problems.append(f"cell {number} holds papermill's records")
        if cell.get("outputs"):
            problems.append(f"cell {number} has outputs")
        if cell.get("execution_count") is not None:
            problems.append(f"cell {number} has an execution count")
    return problems + parameter_problems(notebook)
