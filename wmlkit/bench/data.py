"""What the machine makes of the data path: words a second, growth with size, memory."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from ..data import nursery
from ..data.corpora import Source, find_source, folder_source, read_lines
from ..data.prepare import prepare
from ..data.statistics import read_statistics
from ..data.tokenizer import save_tokenizer, train_tokenizer
from ..device import peak_memory
from ..errors import UserError
from ..settings import DataConfig

CPU = torch.device("cpu")
FACTORS = (1, 4, 10)
BLOCK_LINES = 200  # of a folder's text: a size takes one block out of ten, four, or all of them
Measured = dict[str, float]


def bench_data(
    corpus: str = "nursery", words: int = 600_000, vocab_size: int = 8192, repeats: int = 3
) -> dict[str, Any]:
    """Time and memory of `wmlkit.data.prepare.prepare`, less the training of its tokenizer, for 1x, 4x, 10x of a text.

    It reads, cleans, splits, encodes, counts and seals. Words are those of the source. `corpus` nursery: 1x is `words`
    words, enough that the fixed part (a few tenths of a second, for examples of cleaning) counts little. A folder or
    zip: 10x is all of it, 1x every tenth block of lines, so no text comes twice. Every measurement has a process
    of its own, because a process only knows its highest memory; sizes take turns, so that a slow moment of the
    machine falls on all of them. Raises UserError as `find_source` does.
    """
    if repeats < 1 or words < 1000:
        raise UserError(f"repeats is {repeats} and words {words}; expected at least 1 and 1000; give larger ones")
    source = None if corpus == "nursery" else find_source(corpus, Path())
    measured: dict[int, list[Measured]] = {factor: [] for factor in FACTORS}
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        for factor in FACTORS:
            if source is None:
                nursery.write_corpus(work / f"{factor}x", words * factor, max(words * factor // 20, 1000), seed=0)
            else:
                _write_part(source, work / f"{factor}x", factor)
        if source is not None:
            _check_tenths(corpus, work)
        smallest = folder_source("bench", work / "1x")
        lines = (line for file in smallest.files if file.split == "train" for line in read_lines(file))
        save_tokenizer(train_tokenizer(lines, vocab_size), work / "tokenizer")
        for repeat in range(repeats):
            for factor in FACTORS:
                target = work / f"out-{factor}-{repeat}"
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    done = pool.submit(_prepare, work / f"{factor}x", work / "tokenizer", target)
                    measured[factor].append(done.result())
    setting = source.name if source else "nursery"
    return {"setting": setting, "vocab_size": vocab_size, "repeats": repeats, **_summary(measured)}


def _summary(measured: dict[int, list[Measured]]) -> dict[str, Any]:
    """Medians over the repeats, and each size's time and processor time a word relative to 1x."""
    variants: list[dict[str, Any]] = []
    for factor, runs in measured.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        variants.append(
            {
                "name": f"{factor}x",
                "words": int(middle["words"]),
                "median_ms": 1000 * middle["seconds"],
                "cpu_ms": 1000 * middle["cpu"],
                "words_per_second": middle["words"] / middle["seconds"],
                "peak_mib": middle["peak_mib"],
                "start_mib": middle["start_mib"],
            }
        )
    ratios = {}
    for variant in variants[1:]:
        for key in ("median_ms", "cpu_ms"):
            a_word = [one[key] / one["words"] for one in (variants[0], variant)]
            ratios[f"{key.removesuffix('_ms').replace('median', 'time')}_a_word_{variant['name']}"] = (
                a_word[1] / a_word[0]
            )
    smallest, largest = variants[0], variants[-1]
    growth = (largest["peak_mib"] - smallest["peak_mib"]) / (largest["words"] - smallest["words"])
    ratios["mib_a_million_words"] = 1e6 * growth
    return {"variants": variants, "ratios": ratios}


def _write_part(source: Source, folder: Path, tenths: int) -> None:
    """Blocks of lines of every file of `source`, `tenths` out of each ten, as ``<domain>.<split>``."""
    folder.mkdir()
    for file in source.files:
        with (folder / f"{file.domain}.{file.split}").open("a", encoding="utf-8", newline="\n") as target:
            target.writelines(_blocks(read_lines(file), tenths))


def _check_tenths(corpus: str, work: Path) -> None:
    """Raises UserError where the parts of a text are not 1 and 4 tenths of it, more or less."""
    sizes = {factor: sum(file.stat().st_size for file in (work / f"{factor}x").iterdir()) for factor in FACTORS}
    whole = sizes[FACTORS[-1]]
    if not all(abs(size / whole - factor / FACTORS[-1]) <= 0.1 for factor, size in sizes.items()):
        raise UserError(
            f"{corpus} is too short to be measured in tenths, which are blocks of {BLOCK_LINES} lines of each file; "
            f"expected {10 * BLOCK_LINES:,} lines a file or many more; give a longer text"
        )


def _blocks(lines: Iterator[str], tenths: int) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number // BLOCK_LINES % 10 < tenths:
            yield line + "\n"


def _prepare(corpus: Path, tokenizer: Path, out: Path) -> Measured:
    """Prepare once in this process: words, seconds, processor seconds, memory before and at its highest (MiB)."""
    # Once with little text before the clock starts: modules that are imported when first needed.
    prepare(DataConfig(corpus="nursery", words=2000, dev_words=1000, tokenizer=str(tokenizer)), out / "warm")
    before = peak_memory(CPU)
    cpu, start = time.process_time(), time.perf_counter()
    prepared = prepare(DataConfig(corpus=str(corpus), tokenizer=str(tokenizer)), out)
    seconds = time.perf_counter() - start
    words = sum(record["before"]["words"] for record in read_statistics(prepared.folder)["domains"])
    used = time.process_time() - cpu
    return {"words": words, "seconds": seconds, "cpu": used, "start_mib": before, "peak_mib": peak_memory(CPU)}
