"""Plant one fault at a time and see whether the tests find it. The faults are in mutants.toml.

    python -m tests.mutants                  all of them, some minutes
    python -m tests.mutants no-shift ...     these
    python -m tests.mutants --write ...      and their lines of the table in docs/mutants.md

Package and tests are copied to a temporary folder, one text is replaced there, and the tests that should notice run
until the first failure. In the end every test that noticed a fault runs on the copy without faults, where it has to
pass. Exit status 1 where fewer than nine in ten faults are found, or a text to be replaced is no longer there.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mutants.md"
BEGIN, END = "<!-- faults: written by `python -m tests.mutants --write` -->", "<!-- end of faults -->"
REQUIRED = 0.9
PATIENCE = 300.0  # seconds; what takes longer has been noticed too


HEAVY = (
    "torch._dynamo", "accelerate", "datasets", "hypothesis", "matplotlib.figure", "pandas", "scipy.stats",
    *(f"transformers.models.{family}.modeling_{family}" for family in ("roberta", "modernbert", "gpt2", "llama")),
)  # fmt: skip

# Each line of input is a list of pytest's arguments; two lines come back, the number of the process and its status.
PROGRAM = """
import importlib, json, os, sys
import pytest
for name in sys.argv[2:]:
    importlib.import_module(name)
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os._exit(pytest.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


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
    """`text` with the fault in it. ValueError where the text to be replaced is not there exactly once, SyntaxError
    where the fault would show by itself."""
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: the text is {text.count(mutant.old)} times in {mutant.file}, expected once")
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")
    return changed


def copy(root: Path, folder: Path) -> None:
    """Package and tests of `root`, with what pytest is set to."""
    for name in ("wmlkit", "tests"):
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(root / "pyproject.toml", folder)


class Tests:
    """A process that has imported the heavy packages and forks for every run of pytest, which so begins at once."""

    def __init__(self, folder: Path, modules: Sequence[str] = HEAVY) -> None:
        self.folder, self.log = folder, folder / "pytest.log"
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-B", "-c", PROGRAM, str(self.log), *modules],  # -B: no bytecode of a file with a fault
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def first_failure(self, arguments: Sequence[str], patience: float = PATIENCE) -> str:
        """Name of the first test that fails, "" if all pass. RuntimeError where no test ran."""
        assert self.process.stdin is not None and self.process.stdout is not None
        options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "no:cov", "--hypothesis-seed=0", "--color=no"]
        self.process.stdin.write(json.dumps([*options, *arguments]) + "\n")
        self.process.stdin.flush()
        timer = threading.Timer(patience, os.kill, (int(self.process.stdout.readline()), signal.SIGKILL))
        timer.start()
        status = int(self.process.stdout.readline())
        timer.cancel()
        printed = self.log.read_text(encoding="utf-8", errors="replace")
        failed = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", printed, re.MULTILINE)
        if status == 0:
            return ""
        if status == -signal.SIGKILL:
            return "(no end)"
        if status != 1 or not failed:
            raise RuntimeError(f"pytest {shlex.join(arguments)} ended with {status}:\n{printed[-2000:]}")
        return failed[1]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()  # it ends with its input


def try_all(mutants: Sequence[Mutant], root: Path = ROOT, modules: Sequence[str] = HEAVY) -> list[Outcome]:
    """Each fault alone, printed as it is done. A test that fails without a fault too finds nothing."""
    outcomes = []
    for mutant in mutants:  # all can be planted, or nothing begins
        mutated((root / "wmlkit" / mutant.file).read_text(encoding="utf-8"), mutant)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy(root, folder)
        with closing(Tests(folder, modules)) as tests:
            for mutant in mutants:
                file = folder / "wmlkit" / mutant.file
                whole = file.read_text(encoding="utf-8")
                start = time.perf_counter()
                file.write_text(mutated(whole, mutant), encoding="utf-8")
                killed_by = tests.first_failure(shlex.split(mutant.tests))
                file.write_text(whole, encoding="utf-8")
                outcomes.append(Outcome(mutant, killed_by, time.perf_counter() - start))
                print(f"{mutant.name:36} {outcomes[-1].seconds:6.1f} s  {killed_by or 'SURVIVED'}", flush=True)
            killers = sorted({one.killed_by for one in outcomes if "::" in one.killed_by})
            if killers and (broken := tests.first_failure(killers, PATIENCE + 10 * len(killers))):
                raise RuntimeError(f"{broken} fails without a fault too")
    return outcomes


def line(one: Outcome) -> str:
    """Its line of the table in docs/mutants.md."""
    by = one.killed_by.partition("[")[0].removeprefix("tests/")
    text = f"| {one.mutant.name} | {one.mutant.file} | {one.mutant.fault} | {f'`{by}`' if by else 'none'} |"
    return text.replace(" || ", r" \|\| ")


def written_lines(page: Path = PAGE) -> dict[str, str]:
    """Name -> line of the table as it stands in the page."""
    table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return {text.split(" | ")[0].removeprefix("| "): text for text in table.splitlines()[6:]}


def write(outcomes: Sequence[Outcome], mutants: Sequence[Mutant], page: Path = PAGE) -> None:
    """The lines of `outcomes` in the page; those of other faults on the list stay as they were."""
    lines = written_lines(page) | {one.mutant.name: line(one) for one in outcomes}
    lines = {mutant.name: lines[mutant.name] for mutant in mutants if mutant.name in lines}
    found = sum(not text.endswith("| none |") for text in lines.values())
    head = f"\n\n{found} of {len(lines)} faults are found.\n\n| name | file | fault | found by |\n|---|---|---|---|"
    text = page.read_text(encoding="utf-8")
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    page.write_text("\n".join([text[:start] + head, *lines.values(), text[end:]]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="faults; none: all")
    parser.add_argument("--write", action="store_true", help="write their lines in docs/mutants.md")
    given = parser.parse_args()
    mutants = read_mutants()
    if unknown := set(given.names) - {mutant.name for mutant in mutants}:
        parser.error(f"there is no fault {', '.join(sorted(unknown))}")
    outcomes = try_all([mutant for mutant in mutants if not given.names or mutant.name in given.names])
    found = sum(bool(one.killed_by) for one in outcomes)
    print(f"{found} of {len(outcomes)} found in {sum(one.seconds for one in outcomes):.0f} s")
    if given.write:
        write(outcomes, mutants)
    sys.exit(found < REQUIRED * len(outcomes))


if __name__ == "__main__":
    main()
