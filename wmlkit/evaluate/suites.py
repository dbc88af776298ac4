"""Suites of minimal pairs as folders of JSONL files: reading with checks, sampling."""

from __future__ import annotations

import codecs
import functools
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from .. import paths
from ..config import Config
from ..data import grammar, lexicon, nursery, nursery_pairs
from ..errors import UserError
from ..identity import digest
from .protocols import Protocol, get_protocol

EWOK_KEYS = ("Context1", "Context2", "Target1", "Target2")

# Labels that BLiMP's files spell in two ways or split off; the paper has 12 phenomena and 4 fields.
PHENOMENON = {"s-selection": "argument_structure"}
FIELD = {"syntax/semantics": "syntax_semantics"}

# Parts of a suite that are suites themselves, blimp_tuning and blimp_untouched: see `tuning_third`
PARTS = ("tuning", "untouched")


@dataclass(frozen=True)
class Pair:
    """Two candidates, the first of them correct, each scored after its context."""

    paradigm: str
    phenomenon: str
    field: str
    pair_id: str
    good: str
    bad: str
    good_context: str
    bad_context: str
    origin: str  # "FILE line N", for messages


def read_suite(folder: str | Path, protocol: Protocol) -> list[Pair]:
    """All pairs of the ``*.jsonl`` files of `folder`, files in alphabetical order.

    A line is an object with sentence_good and sentence_bad (BLiMP, its supplement, the nursery) or with Context1,
    Context2, Target1 and Target2 (EWoK). Without UID (EWoK: Domain) the file name names the paradigm; without
    linguistics_term and field the paradigm and the folder do. Protocols differ on which EWoK scores they compare.

    Raises UserError with file and line for broken JSON, a missing key or an empty sentence, and for a file without
    pairs: its paradigm would be missing from the score.
    """
    pairs: list[Pair] = []
    for file in suite_files(folder):
        own = [_pair(row, file, number, protocol) for number, row in read_rows(file)]
        if not own:
            raise UserError(f"{file} has no pairs; expected one object a line; fetch the file again or remove it")
        pairs += own
    return pairs


def tuning_third(paradigms: Iterable[tuple[str, str]]) -> set[str]:
    """Of (phenomenon, paradigm) the paradigms on which a recipe may be chosen: every third in alphabetical order.

    The order is by phenomenon first, so both parts hold a share of each large phenomenon. Scores of a recipe that was
    chosen on the third say something new on the other two thirds only (table T4_thirds).

    >>> sorted(tuning_third([("binding", "a"), ("binding", "b"), ("ellipsis", "c"), ("agreement", "d")]))
    ['c', 'd']
    """
    return {paradigm for _, paradigm in sorted(set(paradigms))[::3]}


def _part_folder(whole: Path, suite: str, part: str, out: Path) -> Path:
    """A folder with those files of `whole` that are in a part of the suite, one file a paradigm."""
    files = {file.stem: file for file in suite_files(whole)}
    chosen = tuning_third((_first_phenomenon(file), name) for name, file in files.items())
    names = [name for name in files if (name in chosen) == (part == "tuning")]
    if not names:
        raise UserError(
            f"{whole} has {len(files)} file of pairs, which leaves none for {suite}_{part}; score all of it: {suite}"
        )

    folder = paths.pairs(out, f"{suite}_{part}-{suite_hash(whole)[:8]}")
    return _written_once(folder, lambda: {name: files[name].read_bytes() for name in names})


def _written_once(folder: Path, make: Callable[[], Mapping[str, bytes]]) -> Path:
    """`folder`, on first use filled with the files (name without .jsonl -> bytes) that `make` gives. One process writes
    and others wait; what a killed one left half-written goes."""
    if folder.is_dir():
        return folder
    files = make()  # may refuse, so before anything is written

    def write(temporary: Path) -> None:
        for name, content in files.items():
            (temporary / f"{name}.jsonl").write_bytes(content)

    paths.make_folder(folder.parent)
    lock = folder.with_name(f".{folder.name}.lock")
    with FileLock(lock):
        if not folder.is_dir():
            for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):
                shutil.rmtree(leftover, ignore_errors=True)
            paths.write_folder(folder, write)
        lock.unlink(missing_ok=True)  # whoever still waits for it finds the folder
    return folder


def _first_phenomenon(file: Path) -> str:
    """The phenomenon of a file's first pair."""
    protocol = get_protocol("babylm2025")  # any: they differ in scores, not in labels
    return next((_pair(row, file, number, protocol).phenomenon for number, row in read_rows(file)), "")


def pairs_folder(config: Config, suite: str, out: Path) -> Path:
    """The folder of a suite's pairs; the nursery's and those of a part of a suite are written on first use."""
    whole, _, part = suite.rpartition("_")
    own = _own_folder(config, suite)
    if part in PARTS and own is None:
        return _part_folder(pairs_folder(config, whole, out), whole, part, out)
    if suite == "nursery":
        seed, count = config.data.seed, config.evaluate.per_paradigm or 200
        folder = paths.pairs(out, f"nursery-pairs-s{seed}-n{count}-{_grammar_hash()[:8]}")
        return _written_once(folder, lambda: nursery_pairs.pair_files(seed, count))
    hint = f"; {EWOK_HELP}" if suite == "ewok" else ""
    if config.evaluate.pairs is None:
        raise UserError(
            f"suite {suite!r} needs its JSONL files, and evaluate.pairs is not set; "
            f"give their folder with --set evaluate.pairs=FOLDER (wmlkit evaluate: --pairs FOLDER){hint}"
        )
    base = paths.given(config.evaluate.pairs)
    found = own or base
    others = {one.rpartition("_")[0] if one.rpartition("_")[2] in PARTS else one for one in config.evaluate.suites}
    if found == base and len(others - {"nursery"}) > 1:  # one folder would be scored under several names
        raise UserError(
            f"{base} holds no folder {suite}_filtered or {suite}, and evaluate.suites names {len(others)} suites; "
            "expected a folder for each below evaluate.pairs; give the folder above them, or one suite"
        )
    if found == base and hint and not _jsonl_files(base):
        raise UserError(f"{base} holds no folder ewok_filtered or ewok and no .jsonl file{hint}")
    return found


def _own_folder(config: Config, suite: str) -> Path | None:
    """The folder that has a suite's name, below evaluate.pairs or that itself; None where none has."""
    if config.evaluate.pairs is None:
        return None
    base = paths.given(config.evaluate.pairs)
    below = (base / name for name in (f"{suite}_filtered", suite) if (base / name).is_dir())
    return next(below, base if base.name == suite else None)


@functools.cache
def _grammar_hash() -> str:
    """SHA-256 of the modules that write the nursery's pairs: those of another version are not taken for today's."""
    modules = (nursery_pairs, grammar, lexicon, nursery)
    return digest([paths.file_sha256(Path(str(module.__file__))) for module in modules])


def suite_files(folder: str | Path) -> list[Path]:
    """The JSONL files of a suite, alphabetical; UserError if there are none. Hidden ones are not of it, such as those
    that macOS copies beside others."""
    folder = Path(folder)
    files = _jsonl_files(folder)
    if not files:
        hint = f"; {EWOK_HELP}" if "ewok" in folder.name.lower() else "; point evaluate.pairs at the suite's folder"
        found = paths.without(folder, ".jsonl file")
        raise UserError(f"{folder} {found}; expected one JSONL file of minimal pairs a paradigm{hint}")
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is a link to nothing; expected a file of pairs; mend the link or remove it")
    return files


def _jsonl_files(folder: Path) -> list[Path]:
    found = (path for path in folder.glob("*") if path.suffix.lower() == ".jsonl" and not path.is_dir())
    return sorted((path for path in found if not path.name.startswith(".")), key=lambda path: path.name)


def suite_hash(folder: str | Path) -> str:
    """SHA-256 over the names and contents of a suite's files."""
    return paths.files_sha256(Path(folder), [file.name for file in suite_files(folder)])


def sample_pairs(pairs: list[Pair], per_paradigm: int | None, seed: int) -> list[Pair]:
    """At most `per_paradigm` pairs of each paradigm in their order, drawn with `seed`; all of them if None.

    A paradigm's draw depends on its name and on the seed, not on which other paradigms are there.
    """
    if per_paradigm is None:
        return pairs
    by_paradigm: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_paradigm.setdefault(pair.paradigm, []).append(index)
    kept: list[int] = []
    for paradigm, members in by_paradigm.items():
        generator = np.random.default_rng([seed, zlib.crc32(paradigm.encode())])
        count = min(per_paradigm, len(members))
        kept.extend(members[i] for i in generator.choice(len(members), size=count, replace=False))
    return [pairs[index] for index in sorted(kept)]


def read_rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers; UserError with file and line for anything else."""
    with file.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            if not raw.strip():
                continue
            try:
                row = paths.parse_json(raw, finite=False)
            except ValueError as error:
                why = f"JSON ({getattr(error, 'msg', error)})"
                if isinstance(error, UnicodeDecodeError):
                    why = f"UTF-8 ({error.reason})"
                raise UserError(
                    f"{file.name} line {number} is not {why}; expected one object a line; repair the line in {file}"
                ) from None
            if not isinstance(row, dict):
                raise UserError(
                    f"{file.name} line {number} is a {type(row).__name__}; expected an object; repair it in {file}"
                )
            yield number, row


def _pair(row: dict[str, Any], file: Path, number: int, protocol: Protocol) -> Pair:
    origin = f"{file.name} line {number}"
    if any(key in row for key in EWOK_KEYS):
        first, second, context1, context2 = (
            text_of(row, key, origin) for key in ("Target1", "Target2", "Context1", "Context2")
        )
        domain = str(row.get("Domain") or file.stem)
        if protocol.ewok == "same_context":
            good, bad, good_context, bad_context = first, second, context1, context1
        else:
            good, bad, good_context, bad_context = first, first, context1, context2
        both = digest([sorted((context1, context2)), sorted((first, second))])  # of a row and of its swapped copy
        return Pair(domain, domain, "ewok", both[:16], good, bad, good_context, bad_context, origin)
    good, bad = text_of(row, "sentence_good", origin), text_of(row, "sentence_bad", origin)
    paradigm = str(row.get("UID") or file.stem)
    phenomenon = str(row.get("linguistics_term") or paradigm)
    field = str(row.get("field") or file.parent.name)
    return Pair(
        paradigm=paradigm,
        phenomenon=PHENOMENON.get(phenomenon, phenomenon),
        field=FIELD.get(field, field),
        pair_id=str(row.get("pair_id", number)),
        good=good,
        bad=bad,
        good_context="",
        bad_context="",
        origin=origin,
    )


def text_of(row: dict[str, Any], key: str, origin: str) -> str:
    """The text under `key`. Raises UserError, naming `origin`, where there is none or it is blank."""
    value = row.get(key)
    if key not in row:
        raise UserError(f"{origin} has no key {key!r}; expected it beside {', '.join(list(row)[:6])}; add it")
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{origin} has {value!r} as {key}; expected a sentence; fill it in or remove the line")
    return value


EWOK_HELP = (
    "EWoK is gated: ask for access at huggingface.co/datasets/ewok-core/ewok-core-1.0, save its test split as JSONL "
    "and run wmlkit.evaluate.ewok.write_ewok(FILE, FOLDER, VOCABULARY)"
)
