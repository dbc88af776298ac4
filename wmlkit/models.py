"""Students and teachers as transformers classes; trunk and head separately, so a head can skip positions."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.utils import logging

from .errors import UserError, first_line
from .faults import is_out_of_memory
from .settings import ModelConfig, Objective
from .shapes import Student
from .untrusted import check_model, read_settings

LARGEST_PAD = 15  # id of a padding token: so many rows of RoBERTa's positions at most are read by no text
FAMILIES = ("roberta", "modernbert", "gpt2", "llama")  # what a student can be
# Position embeddings of these begin behind the padding token's number.
OFFSET_POSITIONS = (
    "roberta", "roberta-prelayernorm", "camembert", "xlm-roberta", "xlm-roberta-xl", "xmod", "data2vec-text",
    "esm", "ibert", "longformer", "luke",
)  # fmt: skip
FIRST_POSITION = {"mpnet": 2, "mra": 2, "nystromformer": 2, "yoso": 2}  # of these, whatever the padding token
MORE_POSITIONS = ("mra", "nystromformer", "yoso")  # with embeddings for those before the first beside all others

logging.disable_progress_bar()  # of loading and saving shards: noise for models of one file


def build_model(
    student: Student,
    model: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    block_size: int,
    seed: int,
) -> PreTrainedModel:
    """A freshly initialised model of `student`'s shape, float32, in training mode.

    `seed` alone fixes the initial parameters; the global generator of torch is left as it was.
    """
    if student.hidden_size % student.num_heads:
        raise UserError(
            f"a student of width {student.hidden_size} cannot have {student.num_heads} heads; "
            "the width must be a multiple of the number of heads: change search.num_heads or search.hidden_size"
        )
    build = {"roberta": _roberta, "modernbert": _modernbert, "gpt2": _gpt2, "llama": _llama}[model.family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = build(student, model, tokenizer, block_size)
        embedding: Any = built.get_input_embeddings()
        if embedding.padding_idx in (tokenizer.bos_token_id, tokenizer.eos_token_id):
            # It stands in texts too, where a padding row would stay zero as an input and learn nothing
            embedding.padding_idx = None
            nn.init.normal_(embedding.weight[tokenizer.pad_token_id], std=built.config.initializer_range)
    return built.train()


def _common(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        "attn_implementation": "sdpa",
    }


def _roberta(
    student: Student, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> PreTrainedModel:
    if tokenizer.pad_token_id > LARGEST_PAD:
        raise UserError(
            f"the tokenizer's padding token has the id {tokenizer.pad_token_id}, and RoBERTa keeps a row of positions "
            f"for every id up to it, which no text reads and the student search does not count; expected at most "
            f"{LARGEST_PAD}; set model.family=modernbert, or give a tokenizer whose padding comes first"
        )
    return RobertaForMaskedLM(
        RobertaConfig(
            **_common(tokenizer),
            num_hidden_layers=student.num_layers,
            num_attention_heads=student.num_heads,
            hidden_size=student.hidden_size,
            intermediate_size=student.intermediate_size,
            # RoBERTa counts positions from pad_token_id + 1
            max_position_embeddings=block_size + tokenizer.pad_token_id + 1,
            type_vocab_size=1,
            hidden_dropout_prob=model.dropout,
            attention_probs_dropout_prob=model.dropout,
        )
    )


def _modernbert(
    student: Student, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> PreTrainedModel:
    return ModernBertForMaskedLM(
        ModernBertConfig(
            **_common(tokenizer),
            cls_token_id=tokenizer.bos_token_id,
            sep_token_id=tokenizer.eos_token_id,
            num_hidden_layers=student.num_layers,
            num_attention_heads=student.num_heads,
            hidden_size=student.hidden_size,
            intermediate_size=student.intermediate_size,
            max_position_embeddings=block_size,
            local_attention=max(2 * block_size, 128),  # half of it to each side: all of a row
            attention_dropout=model.dropout,
            mlp_dropout=model.dropout,
            embedding_dropout=model.dropout,
        )
    )


def _gpt2(student: Student, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, block_size: int) -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            **_common(tokenizer),
            n_layer=student.num_layers,
            n_head=student.num_heads,
            n_embd=student.hidden_size,
            n_inner=student.intermediate_size,
            n_positions=block_size,
            resid_pdrop=model.dropout,
            embd_pdrop=model.dropout,
            attn_pdrop=model.dropout,
        )
    )


def _llama(
    student: Student, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, block_size: int
) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            **_common(tokenizer),
            num_hidden_layers=student.num_layers,
            num_attention_heads=student.num_heads,
            num_key_value_heads=student.num_heads,
            hidden_size=student.hidden_size,
            intermediate_size=student.intermediate_size,
            max_position_embeddings=block_size,
            attention_dropout=model.dropout,
        )
    )


def layers(model: PreTrainedModel) -> nn.ModuleList:
    """The layers of a student's trunk, in their order."""
    of_model: Any = model.base_model
    of_model = of_model.encoder if model.config.model_type == "roberta" else of_model
    return of_model.h if model.config.model_type == "gpt2" else getattr(of_model, "layer", None) or of_model.layers


def hidden_states(
    model: PreTrainedModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    segments: Tensor | None = None,
) -> Tensor:
    """Last hidden states of the trunk, (B, T) ids -> (B, T, H); no head is applied.

    attention_mask: (B, T) of ones and zeros, or (B, 1, T, T) boolean, true where attention is allowed.
    position_ids: (B, T), counted from 0 for every family (`first_position` is added here); left out for a model that
    takes none. segments: (B, T), which text of a pair a token is of, 0 or 1; left out for a model that is not told
    (`reads_segments`), as no student is.
    """
    trunk = model.base_model
    given: dict[str, Any] = no_cache(trunk)
    if position_ids is not None and "position_ids" in inspect.signature(trunk.forward).parameters:
        given["position_ids"] = position_ids + first_position(model)
    if segments is not None and reads_segments(model):
        given["token_type_ids"] = segments
    output = trunk(input_ids=input_ids, attention_mask=attention_mask, **given)
    return output.last_hidden_state


def reads_segments(model: PreTrainedModel) -> bool:
    """Whether a model tells the two texts of a pair apart by segment ids, as BERT does."""
    known = "token_type_ids" in inspect.signature(model.base_model.forward).parameters
    return known and getattr(model.config, "type_vocab_size", 1) > 1


def no_cache(module: nn.Module) -> dict[str, Any]:
    """What to give a model's forward pass so that it keeps no keys and values: they are for generating text."""
    return {"use_cache": False} if "use_cache" in inspect.signature(module.forward).parameters else {}


def first_position(model: PreTrainedModel) -> int:
    """Number that a family gives the first token of a text."""
    kind = model.config.model_type
    return model.config.pad_token_id + 1 if kind in OFFSET_POSITIONS else FIRST_POSITION.get(kind, 0)


def hidden_at(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, position_ids: Tensor, index: Tensor
) -> Tensor:
    """Last hidden states at ascending flat positions `index` (N,): (B, T) ids -> (N, H). Masks: None or (B, 1, T, T).

    The last layer of a masked model is computed at those positions alone from where its attention has mixed them: its
    output projection and feed-forward part are most of its work, and nobody reads them elsewhere.
    """
    trunk: Any = model.base_model
    if model.config.model_type == "roberta" and not model.config.is_decoder:
        hidden = trunk.embeddings(input_ids=input_ids, position_ids=position_ids + first_position(model))
        for layer in trunk.encoder.layer[:-1]:
            hidden = layer(hidden, attention_mask)
        last = trunk.encoder.layer[-1]
        mixed = last.attention.self(hidden, attention_mask)[0]
        attended = last.attention.output(_at(mixed, index), _at(hidden, index))
        return last.feed_forward_chunk(attended)
    if model.config.model_type == "modernbert" and input_ids.shape[1] <= model.config.sliding_window:
        hidden = trunk.embeddings(input_ids=input_ids)
        kinds = set(model.config.layer_types)
        rotations = {kind: trunk.rotary_emb(hidden, position_ids, kind) for kind in kinds}
        for layer in trunk.layers[:-1]:
            hidden = layer(hidden, attention_mask, rotations[layer.attention_type])
        last = trunk.layers[-1]
        mixed = last.attn(last.attn_norm(hidden), rotations[last.attention_type], attention_mask)[0]
        attended = _at(hidden + mixed, index)
        return trunk.final_norm(attended + last.mlp(last.mlp_norm(attended)))
    return _at(hidden_states(model, input_ids, attention_mask, position_ids), index)


def _at(states: Tensor, index: Tensor) -> Tensor:
    """(B, T, H) at ascending flat positions: (N, H); all of them need no copy."""
    flat = states.flatten(0, 1)
    return flat if len(index) == len(flat) else flat[index]


def lm_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits of hidden states, (..., H) -> (..., V); apply it to scored positions only."""
    return decoder(model)(head_transform(model)(hidden))


def head_transform(model: PreTrainedModel) -> Callable[[Tensor], Tensor]:
    """The language-modelling head up to its last linear map, `decoder`: (..., H) -> (..., H).

    Nothing for GPT-2 and Llama; a linear map, an activation and a norm for the masked models.
    """
    if model.config.model_type == "modernbert":
        return model.head  # type: ignore[return-value]
    if model.config.model_type == "bert":  # no student's family, but it may be a teacher
        return model.cls.predictions.transform  # type: ignore[union-attr, return-value]
    head: Any = model.lm_head
    if isinstance(head, nn.Linear):
        return lambda hidden: hidden
    return lambda hidden: head.layer_norm(gelu(head.dense(hidden)))  # as RobertaLMHead


def decoder(model: PreTrainedModel) -> nn.Linear:
    """The map from hidden states to logits: weight (V, H), as a rule the token embeddings', and bias (V,) or None."""
    return model.get_output_embeddings()


def max_length(model: PreTrainedModel) -> int:
    """Longest input in tokens, special tokens included; a large number for a model without a limit."""
    positions = int(getattr(model.config, "max_position_embeddings", None) or 0)
    if positions <= 0:  # XLNet says -1
        return 1 << 30
    return positions if model.config.model_type in MORE_POSITIONS else positions - first_position(model)


def window_length(model: PreTrainedModel) -> int:
    """Longest row in tokens that the model's layers see whole; a large number for one without windows or chunks.

    transformers gives a (B, 1, T, T) mask to every layer as it is, so a longer row would lose the window.
    """
    kinds = getattr(model.config, "layer_types", None)  # None: all layers are alike
    lengths = [1 << 30]
    window = getattr(model.config, "sliding_window", None)
    if window is not None and (kinds is None or "sliding_attention" in kinds):
        # As its masks count: a causal model's window holds the token itself, a masked model's is what lies to each side
        lengths.append(int(window) + (objective_of_class(type(model).__name__) == "mlm"))
    chunk = getattr(model.config, "attention_chunk_size", None)
    if chunk is not None and (kinds is None or "chunked_attention" in kinds):
        lengths.append(int(chunk))
    return min(lengths)


def body_parameters(model: PreTrainedModel) -> int:
    """Parameters that every token passes through: all but the token and position embeddings."""
    return model.num_parameters(exclude_embeddings=True)


def objective_of_class(name: str) -> Objective | None:
    """What a model class is trained for, by its name; None for one that is no language model.

    ``BertForPreTraining`` and its like are masked models with one more head, which `load_model` leaves out.

    >>> objective_of_class("BertForPreTraining"), objective_of_class("GPT2LMHeadModel"), objective_of_class("BertModel")
    ('mlm', 'clm', None)
    """
    if name.endswith(("ForMaskedLM", "ForPreTraining")):
        return "mlm"
    return "clm" if name.endswith(("ForCausalLM", "LMHeadModel")) else None


def declared_architecture(folder: Path) -> str:
    """The model class that ``config.json`` of a model folder names first; "" where it names none."""
    named = read_settings(folder / "config.json").get("architectures")
    return str(named[0]) if isinstance(named, list) and named else ""


def load_model(folder: str | Path, objective: str) -> PreTrainedModel:
    """A model saved in Hugging Face format; safetensors only, no code from the folder is run.

    Raises UserError for a folder that names code, or does not hold a whole model of that objective, all of numbers.
    """
    check_model(Path(folder))
    loader: Any = AutoModelForMaskedLM if objective == "mlm" else AutoModelForCausalLM
    kind = "masked" if objective == "mlm" else "causal"
    expected = f"expected a whole {kind} language model of a family that transformers has; copy or export it again"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its table of missing weights: they are told below, in a sentence
    try:
        model, report = loader.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except Exception as error:  # the library raises whatever its parts raise: SafetensorError, ValueError, ...
        if is_out_of_memory(error):
            raise
        raise UserError(f"the model in {folder} cannot be loaded ({first_line(error)}); {expected}") from None
    finally:
        logging.set_verbosity(verbosity)
    if report["missing_keys"]:  # the library would go on with random numbers in their place
        missing = sorted(report["missing_keys"])
        raise UserError(f"the model in {folder} lacks {len(missing)} of its weights, such as {missing[0]}; {expected}")
    wrong = [name for name, weight in model.named_parameters() if not torch.isfinite(weight).all()]
    if wrong:
        raise UserError(
            f"the model in {folder} has NaN or infinity in {len(wrong)} of its weights, such as {wrong[0]}; expected "
            "numbers; its training diverged, or the file is damaged: take another"
        )
    return model
