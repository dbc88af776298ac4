"""One call for what `wmlkit evaluate` names: a run folder or a model folder, on any suite."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from .. import paths
from ..config import Config, load_preset
from ..device import best_device
from ..errors import UserError
from ..run_files import known_result, not_finished, other_settings, run_document, run_facts
from ..settings import Objective
from ..study_settings import SUITE_NAME
from .ensembles import NAMES, evaluate_run_ensembles
from .glue import GlueOptions, evaluate_glue, evaluate_run_glue
from .language_modelling import evaluate_text
from .outside import load_outside, read_texts
from .pairs import evaluate_pairs, evaluate_run, known_evaluation, load_peers
from .run_text import evaluate_run_text, known_text, model_reads_lines, prepared_of, reads_lines
from .suites import pairs_folder

TEXT_WORDS = 2000  # words of dev text a domain where neither the call nor the run says how many


# Which suites read an option of `wmlkit evaluate`; pairs: those of minimal pairs that have files
_READ_BY = {
    "--pairs": ("pairs", "glue"),
    "--protocol": ("nursery", "pairs", "glue"),
    "--ties": ("nursery", "pairs"),
    "--per-paradigm": ("nursery", "pairs"),
    "--temperature": ("nursery", "pairs"),
    "--within-word": ("nursery", "pairs"),
    "--words": ("lm",),
}


def check_options(suite: str, given: Mapping[str, object]) -> None:
    """Raises UserError for an option that was given and that `suite` does not read: perhaps --suite was forgotten."""
    kind = suite if suite in ("nursery", "glue", "lm", "ensembles") else "pairs"
    for option, value in given.items():
        if value not in (None, "") and kind not in _READ_BY.get(option, ("glue",)):
            raise UserError(
                f"{option} got {str(value)!r}, and suite {suite!r} does not read it; expected it with the suite that "
                "it is for; name that with --suite, or leave the option off"
            )


def output_of(target: Path) -> Path | None:
    """The output folder of a run that lies in it beside its prepared text; None for any other target."""
    if not (target / "done.json").is_file():
        return None
    try:
        return prepared_of(target).parents[1]
    except UserError:
        return None


def evaluate_target(
    target: Path,
    suite: str,
    config: Config,
    out: Path,
    *,
    corpus: Path | None = None,
    glue: GlueOptions | None = None,
    best: bool = False,
    ensemble: bool = False,
    temperature: float = 1.0,
    within_word: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Evaluate a run folder (written into it), or a model folder in Hugging Face format (only returned).

    suite: a folder of pairs by name, "glue", "lm" or, of a run, "ensembles". corpus: dev text for "lm" as
    `outside.read_texts` takes it (a run's own dev text if None; other text is only returned). glue: options of "glue";
    best: only a run's best peer. ensemble: of the result, only the members that are ensembles. temperature,
    within_word: how pairs are scored, see `score_sentences`; with other than the defaults, which a study is scored
    with, a run's result is only returned. config: that of `evaluation_config`, so that a plain call finds the result of
    the study.
    Raises UserError for a target that is neither, for a run that is not finished, has no such members, or has other
    results already, which only `force` replaces.
    """
    if not re.fullmatch(SUITE_NAME, suite):
        raise UserError(f"--suite got {suite!r}; expected the plain name of a suite, for example blimp; change it")
    is_run = (target / "done.json").is_file()
    # Training leaves these two from its start; a model folder has a config.json as well, but neither of them.
    if not is_run and any((target / name).is_file() for name in ("environment.json", "metrics.jsonl")):
        raise not_finished(target)
    if not is_run and not (target / "config.json").is_file():
        what = "is neither a finished run nor a model folder" if target.exists() else "does not exist"
        raise UserError(f"{target} {what}; expected a folder with done.json or config.json in it; give such a folder")
    if corpus is not None and suite != "lm":
        raise UserError(f"--corpus came with suite {suite!r}; it is the text of suite lm: leave it off or use lm")
    if suite == "ensembles" and not is_run:
        raise UserError(f"suite ensembles needs the peers of a run, and {target} is one model; give a run folder")
    if ensemble and (not is_run or suite == "glue"):
        raise UserError("--ensemble needs the peers of a run, on pairs or lm; leave it off or give a run folder")
    if best and (not is_run or suite != "glue"):
        raise UserError("--best is for glue and the peers of a run; leave it off or give a run folder")
    if suite == "lm":
        document = _text(target, is_run, corpus, config, force)
    elif suite == "ensembles":
        document = evaluate_run_ensembles(target, force=force)
    elif suite == "glue":
        document = _glue(target, is_run, config, out, glue or GlueOptions(), best, force)
    else:
        how = {"temperature": temperature, "within_word": within_word}
        document = _pairs(target, is_run, suite, config, out, how, force)
    if ensemble:
        return {**document, "members": [one for one in document["members"] if one["member"] in NAMES]}
    return document


def evaluation_config(target: Path, suite: str, asked: Mapping[str, Any]) -> Config:
    """The settings of an evaluation that are `asked` for, ``{"evaluate.ties": "first", ...}``; where they are open
    (None, or not there) those that a finished run has for the suite, its seed of data too, which draws the nursery's
    pairs; else the defaults."""
    given = {key: value for key, value in asked.items() if value is not None}
    config = load_preset("nursery").updated({"evaluate.per_paradigm": None, "evaluate.text_words": None})
    if suite == "glue" or not (target / "done.json").is_file():
        return config.updated(given)
    document = run_document(target, ("config",))["config"]
    own, changes = document.get("evaluate", {}), {"data.seed": document.get("data", {}).get("seed", config.data.seed)}
    names = ("per_paradigm", "protocol", "ties") if suite in own.get("suites", ()) else ()
    changes |= {f"evaluate.{name}": own[name] for name in (*names, "text_words") if name in own}
    return config.updated(changes | given)


def _pairs(
    target: Path, is_run: bool, suite: str, config: Config, out: Path, how: Mapping[str, Any], force: bool
) -> dict[str, Any]:
    chosen = config.evaluate
    if is_run and how == {"temperature": 1.0, "within_word": False}:
        folder = pairs_folder(config, suite, out)
        there = paths.evaluation(target, suite, chosen.protocol)
        stands = known_result(there, ("settings", "data_hash", "members"))  # one that is broken is made again
        if stands and not force and known_evaluation(target, suite, folder, chosen) is None:
            raise other_settings(there)
        return evaluate_run(target, suite, folder, chosen, force=force)
    models, tokenizer, objective, weights = _opened(target, is_run)  # before anything is written
    folder = pairs_folder(config, suite, out)
    document, _ = evaluate_pairs(
        models,
        tokenizer,
        folder,
        suite=suite,
        protocol=chosen.protocol,
        ties=chosen.ties,
        per_paradigm=chosen.per_paradigm,
        ensemble_weights=weights,
        objective=objective,
        **how,
        token_budget=chosen.token_budget,
        device=best_device(),
    )
    return document


def _opened(
    target: Path, is_run: bool, reads_text: bool = False
) -> tuple[Any, PreTrainedTokenizerFast, Objective, list[float] | None]:
    """A run's peers, their tokenizer, objective and weights; or one model, without weights."""
    if not is_run:
        return (*load_outside(target, reads_text), None)
    weights, objective = run_facts(target)
    return (*load_peers(target), objective, weights)


def _glue(
    target: Path, is_run: bool, config: Config, out: Path, options: GlueOptions, best: bool, force: bool
) -> dict[str, Any]:
    folder = pairs_folder(config, "glue", out)
    year = "babylm2024" if config.evaluate.protocol.startswith("babylm2024") else "babylm2025"
    if is_run:
        return evaluate_run_glue(target, folder, options, protocol=year, best=best, force=force)
    model, tokenizer, objective = load_outside(target)
    return evaluate_glue(model, tokenizer, folder, options, protocol=year, objective=objective, device=best_device())


def _text(target: Path, is_run: bool, corpus: Path | None, config: Config, force: bool) -> dict[str, Any]:
    words = config.evaluate.text_words or TEXT_WORDS
    if is_run and corpus is None:
        prepared, budget = prepared_of(target), config.evaluate.token_budget
        there = paths.language_modelling(target)
        stands = known_result(there, ("data_hash", "settings", "members"))  # one that is broken is made again
        if stands and not force:
            data_hash = run_document(target, ("data",))["data"].get("hash")
            if known_text(target, data_hash, words) is None:
                raise other_settings(there)
        return evaluate_run_text(target, prepared, words_per_domain=words, token_budget=budget, force=force)
    if corpus is None:
        raise UserError(f"{target} is no run, so it has no dev text of its own; give a folder of .dev files: --corpus")
    texts: Any = read_texts(corpus)
    models, tokenizer, objective, weights = _opened(target, is_run, reads_text=True)
    document = evaluate_text(
        models,
        tokenizer,
        texts,
        objective=objective,
        words_per_domain=words,
        by_line=reads_lines(target) if is_run else model_reads_lines(target),
        ensemble_weights=weights,
        token_budget=config.evaluate.token_budget,
        device=best_device(),
    )
    return {**document, "corpus": corpus.name}


def result_lines(document: dict[str, Any]) -> list[str]:
    """A document of any suite as lines for people."""
    members = document["members"]
    if all("weights" in member for member in members):
        return [_ensemble_line(member) for member in members]
    if "suite" not in document:  # lm
        masked = document["objective"] == "mlm"
        name = "pseudo-perplexity" if masked else "perplexity"
        lines = [_text_line(member, name) for member in members]
        lines += [_text_line(document[known], name) for known in ("unigram", "floor") if document.get(known)]
        apart = document["settings"]["by_line"]
        how = ", each token masked in turn, which does not compare with a causal model's numbers" if masked else ""
        lines.append(f"read {'line by line' if apart else 'with the lines of a document side by side'}{how}")
        return lines + _lost_lines(document)
    if document["suite"] != "glue":
        lines = [f"{m['member']}: {m['score']:.2f} % of {m['n']} pairs, ties {m['ties']:.2f} %" for m in members]
        how = document["settings"]
        told = [f"temperature {how['temperature']:g}"] if how["temperature"] != 1 else []
        told += ["later pieces of a word hidden too"] if how["within_word"] else []
        return lines + ([f"scored otherwise than a study is ({', '.join(told)}): only shown"] if told else [])
    lines = []
    for member in members:
        lines.append(f"{member['member']}: {member['score']:.2f}, mean of {len(member['paradigms'])} tasks")
        for row in member["paradigms"]:
            values = " ".join(f"{value:.1f}" for value in row["per_seed"])
            lines.append(
                f"  {row['paradigm']}: {row['metric']} {row['score']:.1f} (seeds: {values}; most frequent class "
                f"{row['majority_class']:.1f} % of {row['n']}), {row['seconds']:.0f} s"
            )
    return lines + [f"skipped {one['task']}: {one['reason']}" for one in document["skipped"]]


def _ensemble_line(row: dict[str, Any]) -> str:
    weights = " ".join(f"{weight:.3f}" for weight in row["weights"])
    return f"{row['member']}: dev CE {row['dev_ce']:.3f}, held-out CE {row['held_out_ce']:.3f}, weights {weights}"


def _text_line(row: dict[str, Any], perplexity: str) -> str:
    return (
        f"{row['member']}: {row['bits_per_byte']:.3f} bits a byte, {row['nats_per_token']:.3f} nats a token, "
        f"{perplexity} {row['perplexity']:.1f}"
    )


def _lost_lines(document: Mapping[str, Any]) -> list[str]:
    """What of the text a tokenizer did not keep."""
    parts = {
        "unknown": "of the tokens are the tokenizer's unknown token, which stands for text of any length",
        "left_out": "of the characters have no token at all",
    }
    return [
        f"{100 * document[name]:.3g} % {what}: these bits a byte are not comparable with those of other tokenizers"
        for name, what in parts.items()
        if document.get(name)
    ]
