"""What made a run: versions, commit, device, command."""

from __future__ import annotations

import json
import platform
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import paths
from .config import Config, load_preset, preset_names
from .errors import UserError
from .identity import SHAPING
from .redact import redacted
from .run_files import read_object

if TYPE_CHECKING:  # tables and reports, which want the commit, need not wait for torch
    from .device import Device

PACKAGES = ("torch", "transformers", "tokenizers", "accelerate", "numpy", "pandas", "scipy")


def commit() -> str | None:
    """The checkout's commit, ``-dirty`` appended where tracked files were changed; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != paths.REPOSITORY:
            return None  # installed inside somebody else's repository
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


NO_CHECKOUT = "not in a checkout"


def shortened(commits: str) -> str:
    """Commits as people read them: the first twelve digits of each hash, and all other words.

    >>> shortened("0123456789abcdef0123456789abcdef01234567-dirty, unknown")
    '0123456789ab-dirty, unknown'
    """
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]+", r"\1", commits)


_LEADING = re.compile(r"(?<![^\s=\"'])/(?:[^\s/\"']+/)*(?=[^\s/\"']+)")  # of an absolute path, all but its last part


def without_places(words: str) -> str:
    """A command without the leading folders of absolute paths: where things lie on a machine is not for others.

    >>> without_places("wmlkit report /a/b/nursery --html=/c/x.html")
    'wmlkit report nursery --html=x.html'
    """
    return _LEADING.sub("", words)


def command(config: Config | None = None) -> str:
    """The command line of this process, without the machine's paths and without access tokens.

    Of a notebook's kernel, whose own says nothing: the one that trains the run `config`.
    """
    program = Path(sys.argv[0]).name
    if program == "ipykernel_launcher.py":
        # A configuration that was built without a preset has no such command
        known = config if config and config.preset in preset_names() else None
        return without_places(train_command(known)) if known else "a cell of a notebook"
    words = ["wmlkit" if program == "__main__.py" else program, *map(redacted, sys.argv[1:])]
    return shlex.join(without_places(word) for word in words)


def train_command(config: Config) -> str:
    """The command that trains the run `config`: its preset, and as settings what shapes the run and differs from it."""
    preset, own = load_preset(config.preset).resolved(), config.resolved()
    words = ["wmlkit", "train", "--preset", config.preset]
    for section in SHAPING:
        for key, value in own[section].items():
            if value != preset[section][key]:
                words += ["--set", f"{section}.{key}={'none' if value is None else json.dumps(value)}"]
    return shlex.join(redacted(word) for word in words)


def own_version() -> str:
    """wmlkit's version; of a folder that is imported without being installed, what its pyproject.toml says."""
    try:
        return version("wmlkit")
    except PackageNotFoundError:
        project = tomllib.loads((paths.REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def document(device: Device, config: Config | None = None) -> dict[str, Any]:
    """environment.json: named facts only; nothing is copied from the process's environment variables.

    config: of the run, where there is one.
    """
    return {
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit(),
        "command": command(config),
        "device": device.name,
        "device_reason": device.reason,
        "processes": device.processes,
        "precision": device.precision,
    }


def continued(path: Path, now: Mapping[str, Any]) -> dict[str, Any]:
    """`now`, the document of a run that is trained further, with the commits, devices and commands of its earlier
    starts in front, which trained it too; `path` is what these left.

    Raises UserError where the run would go on in another precision: "auto" is what a device can.
    """
    before = read_object(path, ("commit", "device", "command", "precision"))
    if before["precision"] != now["precision"]:
        raise UserError(
            f"{path.parent} was begun in {before['precision']} on {before['device']} and would go on in "
            f"{now['precision']} on {now['device']}; expected one precision for the whole run; go on where it was "
            "begun, or move the folder away to begin anew"
        )
    told = dict(now)
    for name, between in (("commit", ", "), ("device", ", "), ("command", "; ")):
        earlier, latest = (str(document[name] or NO_CHECKOUT) for document in (before, now))
        if earlier != latest:
            told[name] = earlier if earlier.endswith(between + latest) else earlier + between + latest
    return told
