"""Loss on dev text: naive references, hand numbers, sampling, and text that comes back from a prepared corpus."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmlkit import paths
from wmlkit.data import nursery
from wmlkit.data.encode import decoded_documents, open_tokens, unknown_tokens, write_documents
from wmlkit.data.prepare import prepare
from wmlkit.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate.language_modelling import UNIT_WORDS, draw_units, evaluate_text
from wmlkit.evaluate.run_text import evaluate_run_text, nursery_floor, prepared_texts, unigram_loss
from wmlkit.evaluate.target import result_lines
from wmlkit.models import build_model
from wmlkit.run_files import FORMAT
from wmlkit.settings import DataConfig, ModelConfig
from wmlkit.shapes import Student

TEXTS = {
    "talk": [["Oh!", "Well.", "Where is the cat?", "It is on the mat."], ["Yes."]],
    "books": [["Ein Käse lay near the old barn, and nobody had ever seen it."]],
}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([line for documents in TEXTS.values() for lines in documents for line in lines], 290)


def tiny(tokenizer: PreTrainedTokenizerFast, objective: str, seed: int = 0, block_size: int = 12) -> PreTrainedModel:
    family = {"mlm": "modernbert", "clm": "llama"}[objective]
    config = ModelConfig(objective=objective, family=family)  # type: ignore[arg-type]
    model = build_model(Student(1, 2, 16, 16), config, tokenizer, block_size, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return model


@torch.inference_mode()
def naive(
    models: list[PreTrainedModel], weights: list[float], tokenizer: PreTrainedTokenizerFast, lines: list[str],
    by_line: bool,
):  # fmt: skip
    """Loss in nats and tokens of one document, read in windows of 12 as training cuts it: up to the last line end in
    reach, or by_line to the first, else as far as the window goes. One forward pass a token."""
    special = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    body = [token for line in lines for token in [*tokenizer(line)["input_ids"][1:-1], special[1]]]
    loss, count = 0.0, 0
    while body:
        ends = [i + 1 for i, token in enumerate(body[:11]) if token == special[1]]
        cut = (ends[0] if by_line else ends[-1]) if ends else 11
        ids, body = [special[0], *body[:cut]], body[cut:]
        for i in range(1, len(ids)):
            if ids[i] in special:
                continue
            masked = type(models[0]).__name__.endswith("ForMaskedLM")
            row = [*ids[:i], tokenizer.mask_token_id, *ids[i + 1 :]] if masked else ids[:i]
            at = i if masked else i - 1
            logits = [
                w * m.eval()(torch.tensor([row])).logits[0, at].double() for m, w in zip(models, weights, strict=True)
            ]
            loss -= torch.log_softmax(torch.stack(logits).sum(dim=0), dim=-1)[ids[i]].item()
            count += 1
    return loss, count


@pytest.mark.parametrize("by_line", [False, True])
@pytest.mark.parametrize("objective", ["mlm", "clm"])
def test_equals_one_forward_pass_a_token(objective: str, by_line: bool, tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny(tokenizer, objective, seed) for seed in range(2)]
    weights = {"peer_1": [1.0, 0.0], "peer_2": [0.0, 1.0], "ensemble": [0.9, 0.1], "uniform_ensemble": [0.5, 0.5]}
    document = evaluate_text(
        models, tokenizer, TEXTS, words_per_domain=None, ensemble_weights=[0.9, 0.1], by_line=by_line
    )
    assert document["objective"] == objective
    assert [member["member"] for member in document["members"]] == list(weights)
    for member in document["members"]:
        for domain in member["domains"]:
            losses = [naive(models, weights[member["member"]], tokenizer, lines, by_line)
                      for lines in TEXTS[domain["domain"]]]  # fmt: skip
            loss, tokens = (sum(column) for column in zip(*losses, strict=True))
            size = sum(len(line.encode()) for lines in TEXTS[domain["domain"]] for line in lines)
            assert domain["tokens"] == tokens and domain["bytes"] == size
            assert domain["nats_per_token"] == pytest.approx(loss / tokens, abs=1e-5)
            assert domain["perplexity"] == pytest.approx(math.exp(loss / tokens), rel=1e-4)
            assert domain["bits_per_byte"] == pytest.approx(loss / math.log(2) / size, abs=1e-5)
        total = sum(domain["nats_per_token"] * domain["tokens"] for domain in member["domains"])
        assert member["nats_per_token"] == pytest.approx(total / member["tokens"])
        assert member["bytes"] == sum(domain["bytes"] for domain in member["domains"])


def test_uniform_model_costs_the_logarithm_of_the_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(tokenizer, "clm")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    (member,) = evaluate_text(model, tokenizer, TEXTS, words_per_domain=None)["members"]
    assert member["member"] == "model"
    assert member["perplexity"] == pytest.approx(len(tokenizer), rel=1e-5)
    assert member["bits_per_byte"] == pytest.approx(math.log2(len(tokenizer)) * member["tokens"] / member["bytes"])


def test_units_are_whole_lines_of_one_document_in_order() -> None:
    lines = [f"line {i} has five words" for i in range(40)]
    units = draw_units([lines, ["", "alone"]], None, 0)
    assert [line for unit in units for line in unit] == [*lines, "alone"]
    assert units[-1] == ["alone"]
    assert all(sum(len(line.split()) for line in unit) >= UNIT_WORDS for unit in units[:-2])
    drawn = draw_units([lines, ["alone"]], UNIT_WORDS, 3)
    assert drawn == draw_units([lines, ["alone"]], UNIT_WORDS, 3)
    assert all(unit in units for unit in drawn)
    for seed in range(8):
        of_text = draw_units([lines], 3 * UNIT_WORDS, seed)
        assert of_text == [unit for unit in units if unit in of_text]
    sizes = [sum(len(line.split()) for line in unit) for unit in drawn]
    assert UNIT_WORDS <= sum(sizes) < UNIT_WORDS + max(sizes)  # it stops with the unit that makes it enough
    assert len({str(draw_units([lines], UNIT_WORDS, seed)) for seed in range(8)}) > 1


def test_words_are_counted_until_there_are_enough() -> None:
    """Three units of 64 words for 130, two for 128."""
    documents = [["one two three four"] * 16] * 10
    assert [sum(len(line.split()) for line in unit) for unit in draw_units(documents, None, 0)] == [64] * 10
    assert [len(draw_units(documents, words, 0)) for words in (0, 1, 64, 65, 128, 130, 640, 641)] == [
        0, 1, 1, 2, 2, 3, 10, 10,
    ]  # fmt: skip


def test_unknown_tokens_of_a_text_are_counted_unless_the_tokenizer_has_no_token_for_them(tmp_path: Path) -> None:
    """One token may be for the unknown and the end of a text; what the settings call unknown, an engine that knows all
    bytes never writes."""
    own = train_tokenizer(["a b c"], 270)
    write_documents(tmp_path / "dev.tokens", own, [["a b"], ["c"]])
    ids = open_tokens(tmp_path / "dev.tokens")[0]
    assert unknown_tokens(tmp_path / "dev.tokens", own) == 0
    own.unk_token = own.convert_ids_to_tokens(int(ids[1]))
    assert unknown_tokens(tmp_path / "dev.tokens", own) == 0
    for declared, end, expected in (({"unk_token": "<unk>"}, "</s>", 1), ({}, "</s>", 1), ({}, "<unk>", 0)):
        words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3}, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
        listed = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token=end, **declared)
        write_documents(tmp_path / "dev.tokens", listed, [["a b"]])
        assert unknown_tokens(tmp_path / "dev.tokens", listed) == expected


def test_bad_text_is_named(tokenizer: PreTrainedTokenizerFast) -> None:
    model = tiny(tokenizer, "mlm")
    with pytest.raises(UserError, match="domain 'empty' has no text"):
        evaluate_text(model, tokenizer, {**TEXTS, "empty": [["", " "]]})
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = math.nan
    with pytest.raises(UserError, match="loss of model on talk is nan"):
        evaluate_text(model, tokenizer, TEXTS)


def test_text_comes_back_from_a_prepared_corpus(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    written = {
        "one": ["The cat, <mask> and  all, sat down.", "Ça va?", "", "Another text begins here."],
        "two": ["He said: it's over."],
    }
    for domain, lines in written.items():
        # two copies: text to train on, of which a part is held out, and the dev text
        (folder / f"{domain}.train").write_text("\n".join(["Some words to learn from.", ""] * 40))
        (folder / f"{domain}.dev").write_text("\n".join(lines) + "\n", encoding="utf-8")
    prepared = prepare(DataConfig(corpus=str(folder), vocab_size=300, clean=False), tmp_path / "out")
    texts = prepared_texts(prepared.folder)
    assert texts == {"one": [written["one"][:2], written["one"][3:]], "two": [written["two"]]}


def test_run_is_measured_and_written(tmp_path: Path) -> None:
    prepared = prepare(DataConfig(corpus="nursery", words=2000, dev_words=400, vocab_size=300), tmp_path / "out")
    tokenizer = train_tokenizer(["a b c"], 270)
    run_folder = tmp_path / "run"
    for index in (1, 2):
        tiny(tokenizer, "clm", index, block_size=32).save_pretrained(paths.peer(run_folder, index))
        save_tokenizer(tokenizer, paths.peer(run_folder, index))
    paths.write_json(run_folder / "config.json", {"format": FORMAT, "config": {"model": {"objective": "clm"}}})
    paths.write_json(run_folder / "done.json", {"peer_weights": [0.7, 0.3]})
    document = evaluate_run_text(run_folder, prepared.folder, words_per_domain=30)
    assert json.loads((run_folder / "language_modelling.json").read_text()) == document
    assert [member["member"] for member in document["members"]] == ["peer_1", "peer_2", "ensemble", "uniform_ensemble"]
    assert len(document["members"][0]["domains"]) == 6
    assert document["settings"]["ensemble_weights"] == [0.7, 0.3]
    floor = document["floor"]
    assert 0 < floor["bits_per_byte"] < min(member["bits_per_byte"] for member in document["members"])
    stamp = (run_folder / "language_modelling.json").stat().st_mtime_ns
    assert evaluate_run_text(run_folder, prepared.folder, words_per_domain=30) == document
    assert (run_folder / "language_modelling.json").stat().st_mtime_ns == stamp  # nothing is measured twice
    assert evaluate_run_text(run_folder, prepared.folder, words_per_domain=40) != document
    evaluate_run_text(run_folder, prepared.folder, words_per_domain=30)
    # The text drawn is the same for another tokenizer: it is measured in the same bytes.
    # A run on lines apart from one another reads the dev text so, whatever was measured before.
    lines = {"model": {"objective": "clm"}, "data": {"packing": "lines"}}
    paths.write_json(run_folder / "config.json", {"format": FORMAT, "config": lines})
    apart = evaluate_run_text(run_folder, prepared.folder, words_per_domain=30)
    assert (document["settings"]["by_line"], apart["settings"]["by_line"]) == (False, True)
    assert apart["members"][0]["bytes"] == document["members"][0]["bytes"]
    assert apart["members"][0]["nats_per_token"] != document["members"][0]["nats_per_token"]
    other = train_tokenizer(["some other words"], 280)
    again = evaluate_text(
        tiny(other, "clm", block_size=64), other, prepared_texts(prepared.folder), words_per_domain=30
    )
    for one, two in zip(document["members"][0]["domains"], again["members"][0]["domains"], strict=True):
        assert one["bytes"] == two["bytes"] and one["domain"] == two["domain"]


def test_token_frequencies_cost_what_their_logarithms_say() -> None:
    """Of 4 tokens of text and a vocabulary of 4: 4/8 for one that comes three times, 2/8 and 1/8 for once and never."""
    measured = {"domains": [{"domain": "a", "tokens": 3, "bytes": 6}, {"domain": "b", "tokens": 1, "bytes": 2}]}
    found = unigram_loss(np.array([0, 0, 3, 1]), {"a": np.array([2, 2, 3]), "b": np.array([0])}, measured)
    assert [row["bits_per_byte"] for row in found["domains"]] == pytest.approx([4 / 6, 3 / 2])
    assert [row["nats_per_token"] for row in found["domains"]] == pytest.approx([4 / 3 * math.log(2), 3 * math.log(2)])
    assert found["bits_per_byte"] == pytest.approx(7 / 8) and found["tokens"] == 4


@pytest.mark.parametrize("trained", [True, False])
def test_token_frequencies_of_the_training_text_stand_beside_a_run(trained: bool, tmp_path: Path) -> None:
    """Counted line by line from the text itself, for the very tokens that the peers were asked."""
    data = DataConfig(corpus="nursery", words=2000, dev_words=400, vocab_size=300)
    if not trained:
        save_tokenizer(load_tokenizer(paths.tokenizer(prepare(data, tmp_path / "own").folder)), tmp_path / "given")
        data = data.model_copy(update={"tokenizer": str(tmp_path / "given")})
    prepared = prepare(data, tmp_path / "out")
    own = load_tokenizer(paths.tokenizer(prepared.folder))
    for name, tokenizer in (("run", own), ("other", train_tokenizer(["a b c"], 270))):
        tiny(tokenizer, "mlm", 1, block_size=32).save_pretrained(paths.peer(tmp_path / name, 1))
        save_tokenizer(tokenizer, paths.peer(tmp_path / name, 1))
        config = {"format": FORMAT, "config": {"model": {"objective": "mlm"}}}
        paths.write_json(tmp_path / name / "config.json", config)
        paths.write_json(tmp_path / name / "done.json", {"peer_weights": [1.0]})
    document = evaluate_run_text(tmp_path / "run", prepared.folder, words_per_domain=30)

    def tokens(documents: Iterable[Sequence[str]]) -> list[int]:
        return [i for lines in documents for line in lines for i in own(line, add_special_tokens=False)["input_ids"]]

    counts = Counter(tokens(decoded_documents(prepared.folder / "train.tokens", own)))
    asked = {d: tokens(draw_units(lines, 30, 0)) for d, lines in prepared_texts(prepared.folder).items()}
    size = counts.total() + len(own)
    peer, found = document["members"][0], document["unigram"]
    for ids, row, of_peer in zip(asked.values(), found["domains"], peer["domains"], strict=True):
        assert row["nats_per_token"] == pytest.approx(sum(math.log(size / (counts[i] + 1)) for i in ids) / len(ids))
        assert (row["domain"], row["tokens"], row["bytes"]) == (of_peer["domain"], len(ids), of_peer["bytes"])
    assert found["tokens"] == peer["tokens"] and found["nats_per_token"] < math.log(len(own))
    assert result_lines(document)[len(document["members"])].startswith("unigram: ")
    if trained:  # of another vocabulary, so of other ids; where ids are stored it is refused
        assert "unigram" not in evaluate_run_text(tmp_path / "other", prepared.folder, words_per_domain=30)


def test_the_floor_of_the_nursery_stands_beside_the_losses(tmp_path: Path) -> None:
    """Of the same text: exact for whole words, absent where a masked model's tokenizer splits them."""
    prepared = prepare(DataConfig(corpus="nursery", words=2000, dev_words=400, vocab_size=300), tmp_path / "out")
    texts = prepared_texts(prepared.folder)
    drawn = {domain: draw_units(documents, 30, 0) for domain, documents in texts.items()}
    lines = {domain: [line for unit in units for line in unit] for domain, units in drawn.items()}
    for objective in ("clm", "mlm"):
        floors = {d: [nursery.line_floor(line, d, objective) for line in lines[d]] for d in lines}
        rows = [
            {"domain": d, "tokens": sum(n for _, n in floors[d]), "bytes": sum(len(line.encode()) for line in lines[d])}
            for d in lines
        ]
        measured = {"domains": rows, **{key: sum(row[key] for row in rows) for key in ("tokens", "bytes")}}
        found = nursery_floor(drawn, objective, measured)  # type: ignore[arg-type]
        assert found is not None
        total = sum(nats for d in lines for nats, _ in floors[d])
        assert found["bits_per_byte"] == pytest.approx(total / math.log(2) / measured["bytes"])
        assert found["nats_per_token"] == pytest.approx(total / measured["tokens"])
        assert [row["domain"] for row in found["domains"]] == list(lines)
        split = {**measured, "domains": [{**row, "tokens": row["tokens"] + 1} for row in rows]}
        assert (nursery_floor(drawn, objective, split) is None) == (objective == "mlm")  # type: ignore[arg-type]
    assert nursery_floor({**drawn, "childes": [["No line of the grammar."]]}, "clm", measured) is None
