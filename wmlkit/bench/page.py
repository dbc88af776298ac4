"""docs/benchmarks.md from the JSON documents of the benchmarks: nothing on that page is typed by hand."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import paths
from ..environment import shortened
from ..errors import UserError

FOLDER = paths.REPOSITORY / "docs" / "benchmarks"
PAGE = paths.REPOSITORY / "docs" / "benchmarks.md"
HEAD = """# Speed

Written by `wmlkit bench report` from the documents in [benchmarks/](benchmarks), each made by the command above its
table. Medians; variants take turns, so that a slow moment of the machine falls on all of them. `median ms` is by the
clock, `cpu ms` processor time, which on a shared machine is the steadier of the two. Trust the ratios, not the
milliseconds. `peak MiB` is the highest memory of a variant above what was there before it, measured in a process of its
own that gives freed memory back at once (`wmlkit/bench/measure.py`).
"""
# In the order of the page: command, heading, explanation
SECTIONS = {
    "step": (
        "A training step",
        "Forward, loss and backward of four peers on random tokens, 15 % of them scored. `released`: "
        "softmaxes of every pair of peers at all positions, as the released code has them. `reference`: the "
        "equation as it is written, at the positions of the KL. `fast`: what training uses. `ce-only`: the "
        "same peers with cross-entropy alone. `trunks`: without any head or loss, at all positions, which "
        "`fast` may beat because it computes the last layer's feed-forward part only where it is read. "
        "`optimizer`: AdamW, which comes on top for all. Memory is above weights and gradients. Utilisation "
        "compares the model's FLOP (6 a weight and token, and attention) with a matrix product timed in the "
        "same turns (1,024 x 1,024; on a card 8,192 x 8,192), both in float32.",
    ),
    "loss": (
        "The loss alone",
        "From hidden states to their gradients and those of the decoders. Below the forms: `fast` with one "
        "size of two peers of width 256, a vocabulary of 8,192 and 128 positions varied (256 where it is the "
        "peers), the same sizes under every setting; there memory counts the gradients too, because they grow with "
        "it. Linear in the number of peers means that 8 peers cost 4 times what 2 cost.",
    ),
    "train": (
        "The parts of a run's step",
        "Arm `wml` in a preset's sizes, on nursery text unless `--set` says other. `inner`: forward, loss and "
        "backward of all peers. `outer`: one outer step by kind of hypergradient, of which a run takes one every "
        "`every` steps; `step ms` is the whole step with that share. Utilisation compares 6 FLOP a token and "
        "parameter without embeddings with the matrix product timed in the same turns.",
    ),
    "search": (
        "The student search",
        "Sizes in closed form against models built without memory (torch's meta device), and the exact search "
        "for four students in the paper's space and in a large one.",
    ),
    "scoring": (
        "Scoring minimal pairs",
        "Pseudo-log-likelihoods of nursery pairs under a masked model of 4 layers and width 256. `naive`: one "
        "forward pass a masked position, head everywhere. `batched`: the same in batches of the best of four "
        "sizes.",
    ),
    "data": (
        "Text to token files",
        "Cleaning, encoding, counting and sealing of a text, without the training of its tokenizer. A tenth "
        "of the text is 1x. Every measurement has a process of its own; `peak MiB` is all of its memory, "
        "`start MiB` what it had before the text was opened.",
    ),
}
ORDER = ("small", "paper", "all-positions")  # of settings; others follow by name


def write_page(files: Sequence[Path] | None = None, to: Path | None = None) -> Path:
    """The page of the documents in `files` (default: docs/benchmarks), written to `to` (default: docs/benchmarks.md).

    Raises UserError where a file is not the document of a benchmark.
    """
    files = files or sorted(FOLDER.glob("*.json"))
    if not files:
        raise UserError(f"there is no JSON file in {FOLDER}; expected documents of `wmlkit bench X --json`; name some")
    page = PAGE if to is None else to
    paths.write_text(page, page_of([_read(file) for file in files]))
    return page


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UserError(f"there is no file {file}; expected what `wmlkit bench X --json` printed; check the name")
    try:
        document = paths.read_json(file)
        known = document["benchmark"] in SECTIONS and {"setting", "machine", "variants", "ratios"} <= set(document)
    except (ValueError, KeyError, TypeError):
        known = False
    if not known:
        raise UserError(
            f"{file} is not the document of a benchmark; expected what `wmlkit bench X --json` printed; make it again"
        )
    return document


def page_of(documents: Sequence[dict[str, Any]]) -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for benchmark, (heading, about) in SECTIONS.items():
        own = sorted((d for d in documents if d["benchmark"] == benchmark), key=_place)
        if own:
            parts += [f"## {heading}\n\n{about}\n", *(_section(document) for document in own)]
    return "\n".join(parts)


def _place(document: dict[str, Any]) -> tuple[int, str, int]:
    setting = document["setting"]
    return (ORDER.index(setting) if setting in ORDER else len(ORDER)), setting, document.get("threads", 1)


def _section(document: dict[str, Any]) -> str:
    benchmark, setting = document["benchmark"], document["setting"]
    option = {"train": "preset", "data": "corpus", "search": None}.get(benchmark, "setting")
    command = f"wmlkit bench {benchmark}" + (f" --{option} {setting}" if option else "")
    command += "".join(f" --set {shlex.quote(change)}" for change in document.get("changes", ()))
    heading, threads = setting, document.get("threads", 1)
    if threads != 1:
        heading, command = f"{setting}, {threads} threads", f"{command} --threads {threads}"
    apart = ("setting", "machine", "commit", "benchmark", "changes", "variants", "ratios")
    facts = [f"{_words(key)} {_text(value)}" for key, value in document.items() if key not in apart]
    commit = shortened(document.get("commit") or "unknown")
    columns = list(dict.fromkeys(key for variant in document["variants"] for key in variant))
    lines = [
        f"### {heading}\n\n`{command}`; {', '.join(facts)}. Machine: {document['machine']}. Commit {commit}.\n",
        "| " + " | ".join("variant" if key == "name" else _words(key) for key in columns) + " |",
        "|" + "---|" * len(columns),
    ]
    for variant in document["variants"]:
        lines.append("| " + " | ".join(_text(variant[key]) if key in variant else "" for key in columns) + " |")
    lines += ["", *(f"- {_words(name)}: {_text(value)}" for name, value in document["ratios"].items())]
    return "\n".join(lines) + "\n"


def _words(name: str) -> str:
    """A key as words: ``peak_mib`` -> peak MiB."""
    return name.replace("_", " ").replace("mib", "MiB").replace("flop", "FLOP").replace("vs", "against")


def _text(value: Any) -> str:
    """A number as people read it: three digits that count, thousands apart."""
    if isinstance(value, list):
        return " / ".join(_text(one) for one in value)
    if isinstance(value, float):
        if abs(value) >= 1e6:
            return f"{value:.2e}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
