"""What a notebook must be like: before papermill gives it parameters, and before it is committed."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat

MAX_CELL_LINES = 30


def parameter_cells(notebook: nbformat.NotebookNode) -> list[int]:
    return [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


def parameter_names(notebook: nbformat.NotebookNode) -> list[str]:
    (index,) = parameter_cells(notebook)
    return [node.targets[0].id for node in ast.parse(notebook.cells[index].source).body]  # type: ignore[attr-defined]


def parameter_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the parameters of a notebook; empty if nothing is.

    Exactly one code cell tagged `parameters`, with `name = literal` lines only (papermill understands no others), and
    every name read by a later cell before it is given another value.
    """
    tagged = parameter_cells(notebook)
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
    """Is this statement `name = literal` on one line?"""
    if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
        return False
    try:
        ast.literal_eval(node.value)
    except ValueError:
        return False
    return node.lineno == node.end_lineno


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
