"""Models and texts that wmlkit did not make: any local Hugging Face masked or causal model, any folder of dev text."""

from __future__ import annotations

import logging
from pathlib import Path, PurePath

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .. import paths
from ..data.corpora import files_of_folder, lines_of
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from ..models import declared_architecture, load_model, max_length, objective_of_class
from ..settings import Objective
from .last_layer import logits_of

log = logging.getLogger(__name__)

UNNAMED = "unnamed"
TextFolder = dict[str, list[list[str]]]  # domain -> documents of lines


def load_outside(folder: Path, reads_text: bool = False) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Objective]:
    """The model of a Hugging Face folder, its tokenizer, and the objective that its architecture is made for.

    reads_text: for running text, which needs tokens for its start and end; else the tokenizer is as declared.

    Raises UserError for an architecture that is neither a masked nor a causal language model.
    """
    architecture = declared_architecture(folder) or UNNAMED
    objective = objective_of_class(architecture)
    if objective is None:
        unnamed = architecture == UNNAMED
        remedy = "name its architecture in its config.json" if unnamed else "give one, or a run folder"
        raise UserError(
            f"{folder} holds the architecture {architecture!r}; expected a masked or causal language model "
            f"(...ForMaskedLM, ...ForCausalLM, ...LMHeadModel); {remedy}"
        )
    model = load_model(folder, objective)  # first: what is wrong with it would look like a fault of the tokenizer
    if objective == "clm" and _looks_ahead(model):
        raise UserError(
            f"{folder} holds a {architecture}, whose logits change with the tokens behind them: it reads what it is to "
            "predict; expected a causal language model (is_decoder in its config.json), or a masked one"
        )
    return model, load_tokenizer(folder, needs_mask=objective == "mlm", reads_text=reads_text), objective


@torch.inference_mode()
def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether the logits of a text's beginning feel its last token."""
    padding = getattr(model.config, "pad_token_id", None)  # as text it would want an attention mask
    plain = [token for token in range(min(9, model.config.vocab_size)) if token != padding]
    ids = torch.tensor([plain[: min(8, max_length(model))]], device=model.device)
    other = torch.cat([ids[:, :-1], ids[:, :1]], dim=1)
    before, after = (logits_of(model, one)[:, :-1].float() for one in (ids, other))
    return not torch.allclose(before, after, rtol=1e-3, atol=1e-4)


def read_texts(folder: Path) -> TextFolder:
    """``<domain>.dev`` files in and below a folder (``.txt`` where there are none, which is said) as documents of
    lines, nothing cleaned.

    A blank line ends a document. A ``.txt`` file is a domain of its own, named by its path; hidden files are left out.
    """
    names = sorted(files_of_folder(folder)) if folder.is_dir() else []
    files = [name for name in names if PurePath(name).suffix.lower() == ".dev"]
    if not files:
        files = [name for name in names if PurePath(name).suffix.lower() == ".txt"]
        if files:
            log.warning(
                "%s has no .dev files, so its .txt files are scored: a model that was trained on them knows them; give "
                "text that it has not seen, as <domain>.dev",
                folder,
            )
    if not files:
        found = paths.without(folder, ".dev and no .txt file")
        raise UserError(f"{folder} {found}; expected <domain>.dev files of text; give their folder with --corpus")
    texts: TextFolder = {}
    for name in files:
        path = PurePath(name)
        domain = path.stem if path.suffix.lower() == ".dev" else ".".join(path.with_suffix("").parts)
        if domain in texts:
            raise UserError(f"{folder} holds two files of {domain!r}, one of them {name}; expected one; rename it")
        documents: list[list[str]] = [[]]
        for line in lines_of(folder, name):
            if line.strip():
                documents[-1].append(line)
            elif documents[-1]:
                documents.append([])
        texts[domain] = [document for document in documents if document]
        if not texts[domain]:
            raise UserError(f"{folder / name} holds no text; expected at least one line; fill or remove it")
    return texts
