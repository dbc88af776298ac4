"""What a notebook must be like before papermill gives it parameters."""

from __future__ import annotations

import ast

import nbformat


def parameter_cells(notebook: nbformat.NotebookNode) -> list[int]:
    return [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])]


def parameter_names(notebook: nbformat.NotebookNode) -> list[str]:
    (index,) = parameter_cells(notebook)
    return [node.targets[0].id for node in ast.parse(notebook.cells[index].source).body]


def parameter_problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What is wrong with the parameters of a notebook; empty if nothing is.

    Exactly one code cell tagged `parameters`, with `name = literal` lines only, and every name read by a later cell
    before it is given another value.
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
    names = [node.targets[0].id for node in body]
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
