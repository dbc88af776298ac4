"""The only place that builds paths; also the atomic writers and checksums that every module uses.

Layout below the output folder (``runs`` unless ``--out`` says otherwise)::

    OUT/downloads/<name>/                         fetched releases
    OUT/data/<name>-<hash8>/                      prepared corpora, shared by all presets, and pairs
    OUT/search/                                   losses that the search has measured
    OUT/start/<preset>/                           the peers that notebooks 00 and 08 train
    OUT/<preset>/<arm>-p<P>-s<seed>-<hash8>/      one folder a run
    OUT/<preset>/replay/<name>/                   one folder a replay of the released code
    OUT/<preset>-ablations/                       runs of [ablations], and what was asked for, ablations.json
    OUT/<preset>/{notebooks,tables,figures}/      what `wmlkit reproduce` leaves
    OUT/<preset>/{report.html,answer.json,summary.json}
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .errors import UserError

_LEFTOVER = re.compile(r"\.(.+)\.\d+\.(tmp|old)(\.ipynb)?")  # of `write_atomic`, `write_folder`, `remove`, notebooks

PACKAGE = Path(__file__).resolve().parent  # .../wmlkit
REPOSITORY = PACKAGE.parent  # the checkout, when wmlkit runs from one
PRESETS = PACKAGE / "presets"
OFFICIAL_BLOBS = PACKAGE / "data" / "official_blobs.txt"  # git blob ids of the official BabyLM files
REFERENCES = REPOSITORY / "figures"  # committed tables and figures of the reference runs, a folder a preset


def notebooks() -> Path:
    """The folder of the numbered notebooks: beside the package in a checkout, inside it once installed."""
    beside = REPOSITORY / "notebooks"
    return beside if beside.is_dir() else PACKAGE / "notebooks"


def output(out: str | Path | None = None) -> Path:
    """The output folder: `out`, else $WMLKIT_OUT, else ``runs`` in the working directory; ``~`` as in `given`. Raises
    UserError for a name that is no text.

    JupyterLab's working directory is the notebook's own: there ``runs`` lies beside the folder ``notebooks``, so that a
    notebook opened by hand finds what `wmlkit reproduce` left.
    """
    default = REPOSITORY / "runs" if Path.cwd() == REPOSITORY / "notebooks" else "runs"
    chosen = given(str(out or os.environ.get("WMLKIT_OUT") or default)).resolve()
    try:
        str(chosen).encode()
    except UnicodeEncodeError:  # tokenizers and JSON know names of text alone
        raise UserError(
            f"the output folder {ascii(str(chosen))} has bytes in its name that are no text here; expected UTF-8, and "
            "a locale that reads it; rename the folder, or set LC_ALL=C.UTF-8"
        ) from None
    return chosen


def given(path: str) -> Path:
    """A path that a user gave; a leading ``~`` is the home folder."""
    return Path(os.path.expanduser(path))  # Path's own fails for a ~user that is not there


def named(folder: Path) -> Path:
    """A folder whose name and surroundings count: ``.`` and ``..``, which have neither, in full."""
    return folder if folder.name not in ("", "..") else folder.resolve()


def is_place(name: str) -> bool:
    """Whether `name` is written as a place on this machine, which an id of the Hugging Face hub is not."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1


def without(folder: Path, wanted: str) -> str:
    """What to say of a folder in which nothing `wanted` was found: there is none, or it is a file, or it lacks that."""
    if folder.is_dir():
        return f"has no {wanted}"
    return "is a file, not a folder" if folder.exists() else "does not exist"


def data(out: Path) -> Path:
    """Folder of the prepared corpora and of pairs that wmlkit writes."""
    return out / "data"


def prepared(out: Path, name: str, data_hash: str) -> Path:
    """Folder of a prepared corpus."""
    return data(out) / f"{name}-{data_hash[:8]}"


def prepared_named(out: Path, folder_name: str) -> Path:
    """A prepared corpus by the name of its folder, as a run notes it."""
    return data(out) / folder_name


def tokenizer(prepared_folder: Path) -> Path:
    """Folder of the tokenizer of a prepared corpus."""
    return prepared_folder / "tokenizer"


def proxy_losses(out: Path, key: str) -> Path:
    """Losses that the search has measured of shapes, all under the settings that `key` stands for."""
    return out / "search" / f"proxy-{key}.json"


def start(out: Path) -> Path:
    """Output folder of runs that belong to no study: those that notebooks 00 and 08 train to have something to show."""
    return out / "start"


def pairs(out: Path, name: str) -> Path:
    """Folder of minimal pairs that wmlkit writes: the nursery's, or a part of a suite."""
    return data(out) / name


def fetched(out: Path, name: str) -> Path:
    """Folder of a downloaded corpus or evaluation set, as its source publishes it."""
    return out / "downloads" / name


def reference(name: str) -> Path:
    """Folder of the committed tables and figures of a preset's reference run."""
    return REFERENCES / name


def preset(out: Path, name: str) -> Path:
    """Folder of everything that one preset produces."""
    return out / name


def tables(preset_folder: Path) -> Path:
    """Folder of a preset's tables, with what made them."""
    return preset_folder / "tables"


def figures(preset_folder: Path) -> Path:
    """Folder of a preset's figures, with what made them."""
    return preset_folder / "figures"


def executed(preset_folder: Path) -> Path:
    """Folder of the notebooks as `wmlkit reproduce` ran them."""
    return preset_folder / "notebooks"


def ablations(out: Path, preset_name: str) -> Path:
    """Folder of the runs of ``[ablations]`` of a preset."""
    return preset(out, f"{preset_name}-ablations")


def run(out: Path, preset_name: str, arm: str, num_peers: int, seed: int, run_hash: str) -> Path:
    """Folder of one run: ``<arm>-p<P>-s<seed>-<hash8>``."""
    return preset(out, preset_name) / f"{arm}-p{num_peers}-s{seed}-{run_hash[:8]}"


def out_of(run_folder: Path) -> Path:
    """The output folder that a run ``OUT/<preset>/<run>`` lies in."""
    return run_folder.parents[1]


def replays(preset_folder: Path) -> Path:
    """Folder of the replays of the released code, and of what they share, in a preset's folder."""
    return preset_folder / "replay"


def replay(out: Path, preset_name: str, name: str) -> Path:
    """Folder of one replay of the released code."""
    return replays(preset(out, preset_name)) / name


def peer(run_folder: Path, index: int) -> Path:
    """Exported Hugging Face folder of peer `index` (1-based)."""
    return run_folder / "peers" / f"peer_{index}"


def trained_on(model_folder: Path) -> Path:
    """Beside an exported model: how the text of its training was read."""
    return model_folder / "wmlkit.json"


def checkpoints(run_folder: Path) -> Path:
    """Folder of a run's checkpoints."""
    return run_folder / "checkpoints"


def evaluations(run_folder: Path) -> Path:
    """Folder of a run's results on suites."""
    return run_folder / "evaluation"


def evaluation(run_folder: Path, suite: str, protocol: str) -> Path:
    """Result of one suite under one protocol; the scores of its items stand beside it in ``.items.jsonl``."""
    return evaluations(run_folder) / f"{suite}-{protocol}.json"


def curve(run_folder: Path) -> Path:
    """Folder of a run's learning curve: ``<point>.json`` a point, with ``<point>/peer_1..P`` where peers are kept."""
    return run_folder / "curve"


def language_modelling(run_folder: Path) -> Path:
    """Loss of a run's members on dev text, by domain."""
    return run_folder / "language_modelling.json"


def ensembles(run_folder: Path) -> Path:
    """Losses of a run's ensembles under its own, equal and fitted weights."""
    return run_folder / "ensembles.json"


def remove(folder: Path) -> None:
    """Delete a folder of results, under another name first, so that a half-deleted one is never read."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name}.{os.getpid()}.old")
        folder.rename(doomed)
        shutil.rmtree(doomed)


def final_name(path: str | Path) -> str:
    """What a temporary file or folder of this module would have become; any other path as it is."""
    found = _LEFTOVER.fullmatch(Path(path).name)
    return str(Path(path).with_name(found[1]) if found else path)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half-written below `folder`; call it only where nobody else writes there."""
    for path in [path for path in folder.rglob(".*") if _LEFTOVER.fullmatch(path.name)]:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove_leftovers_of(folder: Path) -> None:
    """Delete what a killed process left beside `folder` of what it was replaced with or removed as."""
    for path in folder.parent.glob(f".{folder.name}.*.old"):
        if final_name(path) == str(folder):
            shutil.rmtree(path, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make `folder` and those above it where they are not there. Raises UserError where the system cannot, as below
    /proc or where nothing is mounted; other reasons are told by the system's own errors."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        raise UserError(
            f"the folder {final_name(folder)} cannot be made; expected a place for new files; give another"
        ) from None


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: readers see all of it or nothing."""
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a temporary folder beside `folder`, then rename it, replacing what was there."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    make_folder(temporary)
    try:
        write(temporary)
        remove(folder)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""
    return write_atomic(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8", newline="\n")
    except FileNotFoundError:  # the folder is there, but a view of something else, as /proc
        raise UserError(f"the folder {path.parent} takes no new files; expected one that does; give another") from None


def json_text(document: Any) -> str:
    """`document` as every JSON file of this package has it; NaN and infinity are refused because JSON has neither."""
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files_sha256(folder: Path, names: Iterable[str]) -> str:
    """SHA-256, hexadecimal, over the names and contents of these files of `folder`, in this order."""
    lines = [f"{name} {file_sha256(folder / name)}\n" for name in names]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_json(path: Path, document: Any) -> Path:
    """Write one JSON document, atomically."""
    return write_text(path, json_text(document))


def read_json(path: Path, finite: bool = True) -> Any:
    """Read one JSON document. Raises ValueError where it is none."""
    return parse_json(path.read_bytes(), finite)


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """The JSON document `text`, UTF-8. Raises ValueError, and nothing else, where it is none.

    NaN and infinity, which JSON does not have, are refused too unless `finite` is off; so is half of a surrogate pair,
    which could be read but never be written again.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        document = json.loads(text, parse_constant=_refused if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if "\\ud" in text.lower():  # an escaped surrogate: two of them are a character
        json.dumps(document, ensure_ascii=False).encode()
    return document


def _refused(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no number of JSON")
