"""What a notebook must be like before it is committed."""

from __future__ import annotations

import json
from pathlib import Path

import nbformat

from wmlkit.notebook_checks import parameter_problems

MAX_CELL_LINES = 30


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
