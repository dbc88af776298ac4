"""What wmlkit is made of: the pins of constraints.txt against what is installed, licences, and hashes of wheels.

    python -m tests.supply            compare with this environment; exit status 1 where something differs
    python -m tests.supply --write    docs/supply.md from this environment, extras included
    python -m tests.supply --hashes   hashes.txt from the package index

Only the last one needs the network.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, requires
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
SETUP = [*PROJECT["dependencies"], *EXTRAS["dev"]]  # what `make setup` installs
HASHES, PAGE = ROOT / "hashes.txt", ROOT / "docs" / "supply.md"
BEGIN, END = "<!-- packages: written by `python -m tests.supply --write` -->", "<!-- end of packages -->"

# Which requirements hold is asked for both kinds of system that the Makefile serves.
SYSTEMS = (
    {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
)
OF_TORCH = re.compile(r"nvidia-|cuda-|triton$")  # of its CUDA build, which pins them itself


def normal(name: str) -> str:
    """The name under which an index knows a package."""
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(file: Path = ROOT / "constraints.txt") -> dict[str, Requirement]:
    """Normal name -> requirement with one exact version; AssertionError for anything else."""
    pins: dict[str, Requirement] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line.partition(" --hash=")[0])
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and requirement.url is None, line
            assert normal(requirement.name) not in pins, f"{requirement.name} is pinned twice"
            pins[normal(requirement.name)] = requirement
    return pins


def version_of(pin: Requirement) -> str:
    """``torch==2.13.0`` -> ``"2.13.0"``"""
    return next(iter(pin.specifier)).version


@cache
def installed(name: str) -> Distribution | None:
    """The installed package, or None."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


@cache
def needs(name: str) -> list[Requirement]:
    """What an installed package asks for, whatever the markers; nothing of one that is not installed."""
    return [Requirement(text) for text in (installed(name) and requires(name)) or []]


def closure(requirements: Iterable[str], systems: Sequence[dict[str, str]] = ({},)) -> set[str]:
    """Normal names of all that `requirements` need, directly or not, on any of `systems` ({}: this one), as far as
    what is installed says. What torch's CUDA build pins itself is left out."""
    found: set[tuple[str, str]] = set()
    for system in systems:
        waiting = [(Requirement(text), [""]) for text in requirements]
        seen: set[tuple[str, str]] = set()
        while waiting:
            requirement, extras = waiting.pop()
            if requirement.marker and not any(requirement.marker.evaluate(system | {"extra": e}) for e in extras):
                continue
            name = normal(requirement.name)
            chosen = ["", *sorted(requirement.extras)]
            if OF_TORCH.match(name) or seen >= {(name, extra) for extra in chosen}:
                continue
            seen |= {(name, extra) for extra in chosen}
            waiting += [(below, chosen) for below in needs(name)]
        found |= seen
    return {name for name, _ in found}


def differences() -> list[str]:
    """Sentences about what is wrong with this environment or with constraints.txt, measured by the other."""
    pins = read_pins()
    wrong = []
    for name in sorted(closure(SETUP)):
        there = installed(name)
        version = there.version.partition("+")[0] if there else "not installed"  # 2.13.0+cpu is a build of 2.13.0
        pinned = version_of(pins[name]) if name in pins else "not pinned"
        if version != pinned:
            wrong.append(f"{name} is {version} here and {pinned} in constraints.txt")
    needed = closure([*SETUP, *sum(EXTRAS.values(), [])], SYSTEMS)
    wrong += [f"{name} is needed and not in constraints.txt" for name in sorted(needed - pins.keys())]
    # Who needs what belongs to an extra can be told only where the extra is installed.
    missing = [name for extra in EXTRAS for text in EXTRAS[extra] if not installed(name := Requirement(text).name)]
    here = {name for name in pins if installed(name) or not missing}
    wrong += [f"{name} is in constraints.txt and nothing needs it" for name in sorted(here - needed)]
    return wrong


def licence(there: Distribution) -> str:
    """What the package's metadata say: the SPDX expression, else a short text, else the classifiers."""
    metadata = there.metadata
    text = (metadata["License"] or "").strip()
    if metadata["License-Expression"]:
        return metadata["License-Expression"]
    if text and text != "UNKNOWN" and len(text) < 60 and "\n" not in text:
        return text
    names = [line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License")]
    return "; ".join(names) or "see its licence file"


def says_universal(there: Distribution) -> bool:
    """Whether the package says that it fits every system; not all that do come in one file (playwright)."""
    return "py3-none-any" in (there.read_text("WHEEL") or "")


def package_rows() -> dict[str, str]:
    """Name -> line of the table of docs/supply.md, for every pinned package that is installed in its version."""
    groups = {"": closure(PROJECT["dependencies"], SYSTEMS)}
    groups |= {extra: closure(EXTRAS[extra], SYSTEMS) - groups[""] for extra in EXTRAS}
    hashed = read_pins(HASHES)
    rows = {}
    for name, pin in read_pins().items():
        there, version = installed(name), version_of(pin)
        if there is not None and there.version.partition("+")[0] == version:
            asks = ", ".join(f"[{extra}]" if extra else "wmlkit" for extra in groups if name in groups[extra])
            rows[name] = f"| {name} | {version} | {licence(there)} | {asks} | {'sha256' if name in hashed else ''} |"
    return rows


def written_rows(page: Path = PAGE) -> dict[str, str]:
    """Name -> line of the table as it stands in the page."""
    table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    return {line.split(" | ")[0].removeprefix("| "): line for line in table.splitlines()[3:]}


def write_page() -> None:
    """docs/supply.md with the table of this environment; rows of pins that are not installed here are kept."""
    rows = {name: line for name, line in written_rows().items() if line.startswith(_start(name))} | package_rows()
    if missing := sorted(read_pins().keys() - rows.keys()):
        sys.exit(f"not installed in the pinned version, so unknown: {', '.join(missing)}; install them here first")
    text = PAGE.read_text(encoding="utf-8")
    table = ["| package | version | licence | needed by | hash |", "|---|---|---|---|---|"]
    table += [rows[name] for name in sorted(read_pins())]
    start, end = text.index(BEGIN) + len(BEGIN), text.index(END)
    PAGE.write_text("\n".join([text[:start], *table, text[end:]]), encoding="utf-8")


def _start(name: str) -> str:
    pin = read_pins().get(name)
    return f"| {name} | {version_of(pin)} |" if pin else "no longer pinned"


def write_hashes() -> None:
    """hashes.txt: every package of `make setup` that has one wheel for all systems, with that wheel's sha256."""
    pins = read_pins()
    names = sorted(name for name in closure(SETUP) & pins.keys() if says_universal(distribution(name)))
    with tempfile.TemporaryDirectory() as folder:
        asked, report = Path(folder, "asked.txt"), Path(folder, "report.json")
        asked.write_text("\n".join(f"{name}=={version_of(pins[name])}" for name in names))
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--no-deps"]
        subprocess.run([*pip, "--report", report, "-r", asked], check=True)
        answers = json.loads(report.read_text())["install"]
    lines = []
    for answer in answers:
        found = answer["download_info"]
        if re.search(r"-(py2\.)?py3-none-any\.whl$", found["url"]):
            name, sha256 = normal(answer["metadata"]["name"]), found["archive_info"]["hashes"]["sha256"]
            lines.append(f"{name}=={version_of(pins[name])} --hash=sha256:{sha256}")
    head = HASHES.read_text(encoding="utf-8").partition("\n\n")[0]
    HASHES.write_text("\n".join([head, "", *sorted(lines), ""]), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.supply", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--hashes", action="store_true")
    given = parser.parse_args()
    if given.hashes:
        write_hashes()
    if given.write:
        write_page()
    wrong = differences()
    print("\n".join(wrong) or f"{len(closure(SETUP))} packages, all as constraints.txt has them")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
