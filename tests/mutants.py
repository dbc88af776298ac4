"""Plant one fault at a time and see whether the tests find it. The faults are in mutants.toml.

    python -m tests.mutants                  all of them, some ten minutes
    python -m tests.mutants no-shift ...     these
    python -m tests.mutants --write          all, and the table in docs/mutants.md

Package and tests are copied to a temporary folder, one text is replaced there, and the tests that should notice run
until the first failure. In the end every test that noticed a fault runs on the copy without faults, where it has to
pass. Exit status 1 where fewer than nine in ten faults are found, or a text to be replaced is no longer there.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
BEGIN, END = "<!-- faults: written by `python -m tests.mutants --write` -->", "<!-- end of faults -->"
REQUIRED = 0.9
PATIENCE = 300.0  # seconds; what takes longer has been noticed too


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file`, below wmlkit/, `old` becomes `new`. tests: pytest's arguments."""

    name: str
    file: str
    fault: str
    old: str
    new: str
    tests: str


@dataclass(frozen=True)
class Outcome:
    """What the tests made of a fault: by whom it was found (pytest's name of the test; "" if by none)."""

    mutant: Mutant
    killed_by: str
    seconds: float


def read_mutants() -> list[Mutant]:
    """The faults, in their order."""
    text = (ROOT / "tests" / "mutants.toml").read_text(encoding="utf-8")
    return [Mutant(**entry) for entry in tomllib.loads(text)["mutant"]]


def mutated(text: str, mutant: Mutant) -> str:
    """`text` with the fault in it. ValueError where the text to be replaced is not there exactly once."""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the text is {text.count(mutant.old)} times in {mutant.file}, expected once")
    return text.replace(mutant.old, mutant.new)


def copy(root: Path, folder: Path) -> None:
    """Package and tests of `root`, with what pytest is set to."""
    for name in ("wmlkit", "tests"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", folder)


def run_tests(folder: Path, arguments: Sequence[str], patience: float = PATIENCE) -> str:
    """Name of the first test that fails in `folder`, "" if all pass. RuntimeError where no test ran."""
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "--hypothesis-seed=0", "--color=no"]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options, *arguments],
            cwd=folder, env=environment, timeout=patience, capture_output=True, text=True,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "(no end)"
    if done.returncode == 0:
        return ""
    failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)
    if done.returncode != 1 or not failed:
        raise RuntimeError(f"pytest {shlex.join(arguments)} ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return failed[1]


def try_all(mutants: Sequence[Mutant], root: Path = ROOT) -> list[Outcome]:
    """Each fault alone, printed as it is done. A test that fails without a fault too finds nothing."""
    outcomes = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(root, folder)
        for mutant in mutants:
            file = folder / "wmlkit" / mutant.file
            whole = file.read_text(encoding="utf-8")
            start = time.perf_counter()
            file.write_text(mutated(whole, mutant), encoding="utf-8")
            killed_by = run_tests(folder, shlex.split(mutant.tests))
            file.write_text(whole, encoding="utf-8")
            outcomes.append(Outcome(mutant, killed_by, time.perf_counter() - start))
            print(f"{mutant.name:36} {outcomes[-1].seconds:6.1f} s  {killed_by or 'SURVIVED'}", flush=True)
        killers = sorted({one.killed_by for one in outcomes if "::" in one.killed_by})
        if killers and (broken := run_tests(folder, killers, PATIENCE + 10 * len(killers))):
            raise RuntimeError(f"{broken} fails without a fault too")
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: a line a fault, and how many were found."""
    found = sum(bool(one.killed_by) for one in outcomes)
    lines = [f"{found} of {len(outcomes)} faults are found.", ""]
    lines += ["| name | file | fault | found by |", "|---|---|---|---|"]
    for one in outcomes:
        by = one.killed_by.partition("[")[0].removeprefix("tests/")
        lines.append(f"| {one.mutant.name} | {one.mutant.file} | {one.mutant.fault} | {f'`{by}`' if by else 'none'} |")
    return "\n".join(line.replace(" || ", r" \|\| ") for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults; none: all")
    parser.add_argument("--write", action="store_true", help="write the table in docs/mutants.md (of all faults)")
    given = parser.parse_args()
    mutants = read_mutants()
    if unknown := set(given.names) - {mutant.name for mutant in mutants}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    if given.write and given.names:
        parser.error("--write is for all faults, so it takes no names")
    outcomes = try_all([mutant for mutant in mutants if not given.names or mutant.name in given.names])
    found = sum(bool(one.killed_by) for one in outcomes)
    print(f"{found} of {len(outcomes)} found in {sum(one.seconds for one in outcomes):.0f} s")
    if given.write:
        text = PAGE.read_text(encoding="utf-8")
        start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
        PAGE.write_text(f"{text[:start]}\n{table(outcomes)}\n{text[end:]}", encoding="utf-8")
    sys.exit(found < REQUIRED * len(outcomes))


if __name__ == "__main__":
    main()
