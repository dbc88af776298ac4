"""Evaluating a folder of pairs and a finished run, end to end with tiny models; reading and checking suites."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from small import EWOK
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from wmlkit import paths
from wmlkit.config import load_preset
from wmlkit.data.tokenizer import save_tokenizer, train_tokenizer
from wmlkit.errors import UserError
from wmlkit.evaluate import evaluate_pairs, score_sentences
from wmlkit.evaluate.ewok import write_ewok
from wmlkit.evaluate.pairs import evaluate_run, read_pairs, requests_of, write_evaluation
from wmlkit.evaluate.protocols import PROTOCOLS, get_protocol
from wmlkit.evaluate.suites import pairs_folder, read_suite, sample_pairs, suite_hash
from wmlkit.evaluate.target import evaluate_target, result_lines
from wmlkit.evaluate.treebank import treebank_words
from wmlkit.models import build_model
from wmlkit.run_files import FORMAT
from wmlkit.settings import ModelConfig
from wmlkit.shapes import Student
from wmlkit.study_settings import EvaluateConfig

NUMBER = [("The cat sleeps.", "The cat sleep."), ("The dogs bark.", "The dogs barks."), ("A boy sings.", "A boy sing.")]
ORDER = [("She saw him.", "She him saw."), ("He ate bread.", "Ate he bread.")]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    folder = tmp_path / "toy"
    write_rows(
        folder / "number.jsonl",
        [
            {
                "sentence_good": good,
                "sentence_bad": bad,
                "UID": "number",
                "linguistics_term": "agreement",
                "field": "morphology",
                "pair_id": 10 + i,
            }
            for i, (good, bad) in enumerate(NUMBER)
        ],
    )
    write_rows(folder / "order.jsonl", [{"sentence_good": good, "sentence_bad": bad} for good, bad in ORDER])
    return folder


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([*(text for pair in NUMBER + ORDER for text in pair), *EWOK.values()], 300)


def tiny(tokenizer: PreTrainedTokenizerFast, seed: int = 0, family: str = "roberta") -> PreTrainedModel:
    objective = "mlm" if family == "roberta" else "clm"
    model = build_model(Student(1, 2, 16, 16), ModelConfig(objective=objective, family=family), tokenizer, 32, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(20)
    return model


def test_document_of_peers_follows_from_the_scores(suite: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    models = [tiny(tokenizer, seed) for seed in range(2)]
    document, items = evaluate_pairs(models, tokenizer, suite, ensemble_weights=[0.8, 0.2])
    scores = score_sentences(
        models, tokenizer, [text for pair in NUMBER + ORDER for text in pair], ensemble_weights=[0.8, 0.2]
    )
    assert [member["member"] for member in document["members"]] == list(scores)
    for member in document["members"]:
        better = scores[member["member"]][0::2] > scores[member["member"]][1::2]
        number, order = 100 * better[:3].mean(), 100 * better[3:].mean()
        assert member["score"] == pytest.approx((number + order) / 2)
        assert member["ties"] == 0 and member["n"] == 5
        assert member["paradigms"] == [
            {
                "paradigm": "number",
                "phenomenon": "agreement",
                "field": "morphology",
                "accuracy": pytest.approx(number),
                "ties": 0,
                "n": 3,
            },
            # without labels the paradigm and the folder stand in
            {
                "paradigm": "order",
                "phenomenon": "order",
                "field": "toy",
                "accuracy": pytest.approx(order),
                "ties": 0,
                "n": 2,
            },
        ]
    assert document["suite"] == "toy" and document["protocol"] == "babylm2025"
    assert document["data_hash"] == suite_hash(suite)
    tokens = [[len(tokenizer.tokenize(text)) for text in pair] for pair in NUMBER + ORDER]
    assert [item["tokens"] for item in items] == tokens and len({good - bad for good, bad in tokens}) > 1
    settings = document["settings"]
    assert settings["reduction"] == "sum" and settings["prefix"] == "none" and settings["dtype"] == "float32"
    assert settings["ties"] == "half" and settings["per_paradigm"] is None and settings["seed"] == 0
    assert [(item["paradigm"], item["pair_id"]) for item in items[:3]] == [("number", str(i)) for i in (10, 11, 12)]
    assert items[4]["scores"]["ensemble"] == pytest.approx(scores["ensemble"][8:10], abs=1e-6)
    json.dumps(document, allow_nan=False)


def test_one_model_is_the_member_model(suite: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    document, items = evaluate_pairs(tiny(tokenizer, family="gpt2"), tokenizer, suite, suite="named")
    assert [member["member"] for member in document["members"]] == ["model"]
    assert list(items[0]["scores"]) == ["model"]
    assert document["suite"] == "named" and document["settings"]["objective"] == "clm"


def test_equal_candidates_tie_by_rule(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_rows(tmp_path / "same" / "p.jsonl", [{"sentence_good": "A cat.", "sentence_bad": "A cat."}])
    expected = {"half": 50.0, "first": 100.0, "protocol": 100.0}
    for ties, accuracy in expected.items():
        document, _ = evaluate_pairs(tiny(tokenizer), tokenizer, tmp_path / "same", ties=ties)  # type: ignore[arg-type]
        assert document["members"][0]["score"] == accuracy and document["members"][0]["ties"] == 100
    settings = evaluate_pairs(tiny(tokenizer), tokenizer, tmp_path / "same", ties="protocol")[0]["settings"]
    assert settings["ties"] == "first"


def test_released_protocol_permutes_masked_scores_only(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """The first sentence comes back right after its second use: requests 0 and 3 are equal."""
    rows = [("The cat sleeps.", "The cat sleep."), ("The dogs bark.", "The cat sleeps.")]
    write_rows(tmp_path / "d" / "p.jsonl", [{"sentence_good": g, "sentence_bad": b} for g, b in rows])
    for family, order in (("roberta", [0, 3, 1, 2]), ("gpt2", [0, 1, 2, 3])):
        model = tiny(tokenizer, family=family)
        document, fixed = evaluate_pairs(model, tokenizer, tmp_path / "d", protocol="babylm2024-fixed")
        assert document["settings"]["ordering_fault"] is False
        document, released = evaluate_pairs(model, tokenizer, tmp_path / "d", protocol="babylm2024-released")
        assert document["settings"]["ordering_fault"] is (family == "roberta")
        right = [score for item in fixed for score in item["scores"]["model"]]
        assert [score for item in released for score in item["scores"]["model"]] == [right[i] for i in order]
        assert right[0] == right[3] != right[1]


def test_a_perfect_scorer_shows_what_the_order_costs(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Requests 0 and 3 are one sentence, so the first pair gets two good scores and the second two bad ones."""
    rows = [("The cat sleeps.", "The cat sleep."), ("The dogs bark.", "The cat sleeps.")]
    write_rows(tmp_path / "d" / "p.jsonl", [{"sentence_good": g, "sentence_bad": b} for g, b in rows])
    expected = {"babylm2024-fixed": (100, 100), "babylm2024-released": (50, 50), "babylm2025": (100, 100)}
    for protocol, (given, swapped) in expected.items():
        document = evaluate_pairs(tiny(tokenizer), tokenizer, tmp_path / "d", protocol=protocol)[0]
        assert document["perfect_scorer"] == {"score": given, "with_swapped_copies": swapped}
    causal = evaluate_pairs(tiny(tokenizer, family="gpt2"), tokenizer, tmp_path / "d", protocol="babylm2024-released")
    assert causal[0]["perfect_scorer"] == {"score": 100, "with_swapped_copies": 100}


def test_the_official_score_counts_ties_as_the_year_does(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_rows(tmp_path / "same" / "p.jsonl", [{"sentence_good": "A cat.", "sentence_bad": "A cat."}] * 8)
    for protocol, official in (("babylm2024-fixed", {100.0}), ("babylm2025", {100.0}), ("babylm2026", {37.5, 50.0})):
        document, _ = evaluate_pairs(tiny(tokenizer), tokenizer, tmp_path / "same", protocol=protocol)
        assert document["members"][0]["score"] == 50 and document["members"][0]["official_score"] in official


def test_ewok_by_protocol(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_rows(tmp_path / "ewok_filtered" / "social-relations.jsonl", [EWOK])
    model = tiny(tokenizer)
    c1, c2, t1, t2 = (EWOK[key] for key in ("Context1", "Context2", "Target1", "Target2"))
    candidates = {"babylm2025": ([t1, t2], [c1, c1]), "babylm2026": ([t1, t1], [c1, c2])}
    for protocol, (sentences, contexts) in candidates.items():
        document, items = evaluate_pairs(model, tokenizer, tmp_path / "ewok_filtered", protocol=protocol)
        expected = score_sentences(model, tokenizer, sentences, contexts=contexts)
        assert items[0]["scores"]["model"] == pytest.approx(expected, abs=1e-6)
        assert items[0]["tokens"] == [len(tokenizer.tokenize(text)) for text in sentences]  # contexts left out
        row = document["members"][0]["paradigms"][0]
        assert (row["paradigm"], row["field"]) == ("social-relations", "ewok")


def test_sampling_is_seeded_and_independent_of_other_paradigms(suite: Path) -> None:
    pairs = read_suite(suite, PROTOCOLS["babylm2025"])
    assert sample_pairs(pairs, None, 0) == pairs
    assert sample_pairs(pairs, 99, 5) == pairs
    drawn = sample_pairs(pairs, 1, 0)
    assert [pair.paradigm for pair in drawn] == ["number", "order"]
    assert drawn == sample_pairs(pairs, 1, 0)
    assert sample_pairs(pairs[:3], 1, 0) == drawn[:1]
    assert len({sample_pairs(pairs, 1, seed)[0].good for seed in range(20)}) == 3


def test_labels_of_blimp_are_merged_as_in_its_paper(tmp_path: Path) -> None:
    labels = {"UID": "animate_subject_passive", "linguistics_term": "s-selection", "field": "syntax/semantics"}
    write_rows(tmp_path / "p.jsonl", [{"sentence_good": "A", "sentence_bad": "B", **labels}])
    (pair,) = read_suite(tmp_path, PROTOCOLS["babylm2025"])
    assert (pair.paradigm, pair.phenomenon, pair.field) == (
        "animate_subject_passive",
        "argument_structure",
        "syntax_semantics",
    )
    write_rows(tmp_path / "own" / "bare.jsonl", [{"sentence_good": "A", "sentence_bad": "B"}])
    (pair,) = read_suite(tmp_path / "own", PROTOCOLS["babylm2025"])
    assert (pair.paradigm, pair.phenomenon, pair.field, pair.pair_id) == ("bare", "bare", "own", "1")


def test_a_score_that_is_no_number_is_named_by_file_and_line(suite: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    only_here = set(tokenizer("Ate he bread.")["input_ids"]) - {
        token
        for pair in [*NUMBER, *ORDER]
        for text in pair
        if text != "Ate he bread."
        for token in tokenizer(text)["input_ids"]
    }
    model = tiny(tokenizer)

    def break_it(module, args, options, output):  # type: ignore[no-untyped-def]
        return output.masked_fill((options["input_ids"] == min(only_here))[..., None], float("nan"))

    model.base_model.embeddings.register_forward_hook(break_it, with_kwargs=True)
    for models, name in ((model, "model"), ([model, tiny(tokenizer, seed=1)], "peer_1")):
        with pytest.raises(UserError, match=rf"the score of order.jsonl line 2 is nan under {name};"):
            evaluate_pairs(models, tokenizer, suite)


def test_a_sentence_that_is_too_long_is_named_by_file_and_line(suite: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_rows(suite / "zlong.jsonl", [{"sentence_good": "A cat.", "sentence_bad": "The cat sleeps. " * 20}])
    with pytest.raises(UserError, match=r"zlong.jsonl line 1 has \d+ tokens, the model's window is 32"):
        evaluate_pairs(tiny(tokenizer), tokenizer, suite)


def test_missing_suites_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist; .*evaluate.pairs"):
        read_suite(tmp_path / "blimp", PROTOCOLS["babylm2025"])
    (tmp_path / "blimp").write_text("{}")
    with pytest.raises(UserError, match="blimp is a file, not a folder; .*evaluate.pairs"):
        read_suite(tmp_path / "blimp", PROTOCOLS["babylm2025"])
    (tmp_path / "ewok").mkdir()
    with pytest.raises(UserError, match="no .jsonl file.* EWoK is gated: ask for access"):
        read_suite(tmp_path / "ewok", PROTOCOLS["babylm2025"])


def test_a_byte_order_mark_is_no_part_of_the_first_pair(suite: Path) -> None:
    expected = read_suite(suite, PROTOCOLS["babylm2025"])
    for file in suite.glob("*.jsonl"):
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_suite(suite, PROTOCOLS["babylm2025"]) == expected and expected


@pytest.mark.parametrize("content", ["", "\n \n"])
def test_a_file_without_pairs_is_named(suite: Path, tokenizer: PreTrainedTokenizerFast, content: str) -> None:
    (suite / "empty.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"toy/empty\.jsonl has no pairs; expected .* remove it"):
        evaluate_pairs(tiny(tokenizer), tokenizer, suite)


def test_a_link_to_nothing_among_the_pairs_is_named(suite: Path) -> None:
    (suite / "gone.jsonl").symlink_to(suite / "nowhere")
    with pytest.raises(UserError, match=r"gone\.jsonl is a link to nothing; expected a file of pairs"):
        read_suite(suite, PROTOCOLS["babylm2025"])


def test_files_that_lie_among_the_pairs_and_are_none(suite: Path) -> None:
    """What macOS copies beside a file, a folder; and a name in capitals, which is one."""
    expected = read_suite(suite, PROTOCOLS["babylm2025"])
    (suite / "._number.jsonl").write_bytes(b"\0\5\x16\7")
    (suite / "folder.jsonl").mkdir()
    assert read_suite(suite, PROTOCOLS["babylm2025"]) == expected
    file = next(path for path in suite.glob("[!.]*.jsonl") if path.is_file())
    file.rename(file.with_suffix(".JSONL"))
    again = read_suite(suite, PROTOCOLS["babylm2025"])
    assert [(pair.paradigm, pair.good) for pair in again] == [(pair.paradigm, pair.good) for pair in expected]


def test_a_row_of_ewok_and_its_swapped_copy_are_one_pair(tmp_path: Path) -> None:
    write_rows(tmp_path / "test.jsonl", [EWOK, EWOK | {"Context1": "Ben leads Anna."}])
    write_ewok(tmp_path / "test.jsonl", tmp_path / "out")
    for protocol in ("babylm2024-fixed", "babylm2025"):
        first, copy, second, other = (pair.pair_id for pair in read_suite(tmp_path / "out", PROTOCOLS[protocol]))
        assert first == copy != second == other


def test_absent_ewok_says_how_to_get_it(tmp_path: Path) -> None:
    for given in (None, str(tmp_path)):
        with pytest.raises(UserError, match="EWoK is gated: ask for access.*write_ewok"):
            pairs_folder(load_preset("nursery", {"evaluate.pairs": given}), "ewok", tmp_path)
    write_rows(tmp_path / "ewok_filtered" / "social-relations.jsonl", [EWOK])
    there = load_preset("nursery", {"evaluate.pairs": str(tmp_path)})
    assert pairs_folder(there, "ewok", tmp_path) == tmp_path / "ewok_filtered"
    files = load_preset("nursery", {"evaluate.pairs": str(tmp_path / "ewok_filtered")})
    assert pairs_folder(files, "ewok", tmp_path) == tmp_path / "ewok_filtered"


def test_a_tilde_before_a_folder_of_pairs_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_rows(tmp_path / "mine" / "a.jsonl", [EWOK])
    assert pairs_folder(load_preset("nursery", {"evaluate.pairs": "~"}), "mine", tmp_path) == tmp_path / "mine"


def test_one_folder_is_not_scored_as_two_suites(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}])
    given = {"evaluate.pairs": str(tmp_path)}
    for suites in (["mine"], ["blimp_tuning", "blimp_untouched"], ["nursery", "mine"]):
        one = load_preset("nursery", given | {"evaluate.suites": suites})
        assert pairs_folder(one, suites[-1].partition("_")[0], tmp_path) == tmp_path
    two = load_preset("nursery", given | {"evaluate.suites": ["blimp", "supplement"]})
    with pytest.raises(UserError, match="no folder supplement_filtered or supplement, and evaluate.suites names 2"):
        pairs_folder(two, "supplement", tmp_path)


def test_a_suite_whose_name_ends_like_a_part_is_itself(tmp_path: Path) -> None:
    folder = tmp_path / "style_tuning"
    folder.mkdir()
    for given in (tmp_path, folder):
        config = load_preset("smoke", {"evaluate.pairs": str(given)})
        assert pairs_folder(config, "style_tuning", tmp_path / "out") == folder


@pytest.mark.parametrize("suite", ["nursery", "nursery_tuning"])
def test_pairs_that_a_killed_process_left_half_written_are_written_again(tmp_path: Path, suite: str) -> None:
    config = load_preset("nursery", {"evaluate.per_paradigm": 2})
    found = pairs_folder(config, suite, tmp_path)
    whole = {file.name: file.read_bytes() for file in found.iterdir()}
    half = found.rename(found.with_name(f".{found.name}.7.tmp"))
    (half / "binding.jsonl").write_text("half")
    assert pairs_folder(config, suite, tmp_path) == found
    assert {file.name: file.read_bytes() for file in found.iterdir()} == whole
    assert [path.name for path in found.parent.iterdir() if path.name.startswith(".")] == []  # no lock either


def test_ewok_filter_and_swapped_copies(tmp_path: Path) -> None:
    unknown = EWOK | {"Context2": "Anna is Ben's zymurgist."}
    clitic = EWOK | {"Domain": "agent-properties", "Context2": "Anna isn't Ben's boss."}
    write_rows(tmp_path / "test.jsonl", [EWOK, unknown, clitic])
    vocabulary = ["anna", "is", "ben", "'s", "boss", "pupil", "leads", ".", "n't"]
    counts = write_ewok(tmp_path / "test.jsonl", tmp_path / "out", vocabulary)
    assert counts == {"agent-properties": 2, "social-relations": 2}
    rows = [json.loads(line) for line in (tmp_path / "out" / "social-relations.jsonl").read_text().splitlines()]
    assert rows[0] == EWOK
    assert [rows[1][key] for key in ("Context1", "Context2", "Target1", "Target2")] == [
        EWOK[key] for key in ("Context2", "Context1", "Target2", "Target1")
    ]
    assert write_ewok(tmp_path / "test.jsonl", tmp_path / "all")["social-relations"] == 4
    with pytest.raises(UserError, match="no file .*; EWoK is gated"):
        write_ewok(tmp_path / "absent.jsonl", tmp_path / "out")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Anna can't see Ben's well-made hat, they're off!", "anna ca n't see ben 's well-made hat , they 're off !"),
        ("I cannot go. He's gonna.", "i can not go . he 's gon na ."),
        ("It costs $3.5 or 1,000, at 7:30.", "it costs $ 3.5 or 1,000 , at 7:30 ."),
        ("It was 5. There were 50%.", "it was 5. there were 50 % ."),  # a number may be an ordinal
        ("o'clock, the dogs' bones", "o'clock , the dogs ' bones"),
        ("Mr. Smith saw Dr. J. Day. He left.", "mr. smith saw dr. j. day . he left ."),
        ("Is he Mr.", "is he mr ."),
        ("The U.S. team is from the U.S.", "the u.s. team is from the u.s ."),
        ("The team (it is from the U.S.)", "the team ( it is from the u.s . )"),
        ('"Hello," he said. She said "hi."', "`` hello , '' he said . she said `` hi . ''"),
        ('("So".)', "( `` so '' . )"),
        ("Wait... what?! -- a--b", "wait ... what ? ! -- a -- b"),
        ("couldn't've; it isn't (isn't)", "couldn't 've ; it is n't ( is n't )"),
        ("a 'b' and 'tis 'hello'", "a ' b ' and 't is 'hello '"),
        ("either/or a: b", "either/or a : b"),
        ("Gimme more'n that, d'ye? 'Twas gotta", "gim me more 'n that , d 'ye ? 't was got ta"),
        ("Lemme go, I wanna", "lem me go , i wan na"),
        (" ", ""),
    ],
)
def test_treebank_words(text: str, words: str) -> None:
    """The tokens that `nltk.word_tokenize` of the time gives for the text in lower case."""
    assert treebank_words(text) == words.split()


@pytest.fixture
def run_folder(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    folder = tmp_path / "wml-p2-s0-00000000"
    for index in (1, 2):
        tiny(tokenizer, seed=index).save_pretrained(paths.peer(folder, index))
        save_tokenizer(tokenizer, paths.peer(folder, index))
    paths.write_json(folder / "config.json", {"format": FORMAT, "config": {"model": {"objective": "mlm"}}})
    paths.write_json(folder / "done.json", {"peer_weights": [0.7, 0.3], "best_peer": 1})
    return folder


def test_run_is_evaluated_once(run_folder: Path, suite: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    config = EvaluateConfig(per_paradigm=2, ties="first")
    document = evaluate_run(run_folder, "toy", suite, config)
    path = run_folder / "evaluation" / "toy-babylm2025.json"
    assert json.loads(path.read_text()) == document
    items = [json.loads(line) for line in path.with_suffix(".items.jsonl").read_text().splitlines()]
    assert len(items) == 4 and list(items[0]) == ["paradigm", "pair_id", "tokens", "scores"]
    models = [tiny(tokenizer, seed=index) for index in (1, 2)]
    direct, _ = evaluate_pairs(
        models, tokenizer, suite, suite="toy", per_paradigm=2, ties="first", ensemble_weights=[0.7, 0.3]
    )
    assert direct == document

    stamp = path.stat().st_mtime_ns
    assert evaluate_run(run_folder, "toy", suite, config) == document
    assert path.stat().st_mtime_ns == stamp  # same settings, same pairs: nothing is scored again
    evaluate_run(run_folder, "toy", suite, EvaluateConfig())
    assert path.stat().st_mtime_ns > stamp  # other settings
    stamp = path.stat().st_mtime_ns
    with (suite / "order.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"sentence_good": "Ben sings.", "sentence_bad": "Sings Ben."}) + "\n")
    assert evaluate_run(run_folder, "toy", suite, EvaluateConfig())["members"][0]["n"] == 6
    assert path.stat().st_mtime_ns > stamp  # other pairs


@pytest.mark.parametrize("how", [{"temperature": 2.0}, {"within_word": True}])
def test_scores_made_otherwise_are_shown_and_not_kept(
    how: dict[str, Any], run_folder: Path, suite: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    config = load_preset("smoke", {"evaluate.pairs": str(suite), "evaluate.per_paradigm": None})
    models = [tiny(tokenizer, seed=index) for index in (1, 2)]
    plain, found = (evaluate_target(run_folder, "toy", config, tmp_path, **options) for options in ({}, how))
    kept = {path: path.read_bytes() for path in (run_folder / "evaluation").iterdir()}
    assert evaluate_target(run_folder, "toy", config, tmp_path, **how) == found  # nor taken for what is kept
    assert {path: path.read_bytes() for path in (run_folder / "evaluation").iterdir()} == kept
    assert found["settings"] == plain["settings"] | how
    direct, items = evaluate_pairs(models, tokenizer, suite, suite="toy", ensemble_weights=[0.7, 0.3], **how)
    assert found == direct and items != evaluate_pairs(models, tokenizer, suite, ensemble_weights=[0.7, 0.3])[1]
    (first, *_), texts = items, requests_of(read_pairs(suite, "babylm2025", None), tokenizer)[0]
    assert first["scores"]["peer_2"] == pytest.approx(score_sentences(models[1], tokenizer, texts[:2], **how), abs=1e-6)
    assert [line for line in result_lines(found) if "only shown" in line] == [result_lines(found)[-1]]
    assert len(result_lines(plain)) == len(plain["members"])
    alone = evaluate_target(run_folder / "peers" / "peer_1", "toy", config, tmp_path, **how)
    assert alone["members"][0]["score"] == found["members"][0]["score"]


def test_unfinished_and_unsafe_runs_are_refused(run_folder: Path, suite: Path) -> None:
    weights = paths.peer(run_folder, 2) / "model.safetensors"
    torch.save({}, weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(UserError, match="no model.safetensors"):
        evaluate_run(run_folder, "toy", suite, EvaluateConfig())
    (run_folder / "done.json").unlink()
    (run_folder / "environment.json").touch()
    with pytest.raises(UserError, match="no done.json"):
        evaluate_run(run_folder, "toy", suite, EvaluateConfig())


def test_peers_with_different_tokenizers_are_refused(run_folder: Path, suite: Path) -> None:
    other = train_tokenizer(["completely different text with other merges"] * 3, 300)
    save_tokenizer(other, paths.peer(run_folder, 2))
    with pytest.raises(UserError, match="different tokenizers"):
        evaluate_run(run_folder, "toy", suite, EvaluateConfig())


def test_write_evaluation_refuses_what_json_cannot_hold(tmp_path: Path) -> None:
    document = {"suite": "s", "protocol": "p", "members": [{"score": float("nan")}]}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_evaluation(tmp_path, document, [])
    assert not (tmp_path / "evaluation" / "s-p.json").exists()


def test_an_evaluation_that_was_killed_leaves_no_document_beside_items_of_another(
    run_folder: Path, suite: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_run(run_folder, "toy", suite, EvaluateConfig())

    def killed(path: Path, document: object) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(paths, "write_json", killed)
        evaluate_run(run_folder, "toy", suite, EvaluateConfig(per_paradigm=1), force=True)
    document = evaluate_run(run_folder, "toy", suite, EvaluateConfig())  # as the one before: scored again
    items = paths.evaluation(run_folder, "toy", "babylm2025").with_suffix(".items.jsonl").read_text().splitlines()
    assert len(items) == document["members"][0]["n"]


def write_phenomena(folder, phenomena):
    """One file of one pair for each (paradigm, phenomenon)."""
    folder.mkdir(parents=True)
    for paradigm, phenomenon in phenomena.items():
        pair = {"sentence_good": "the cat sleeps", "sentence_bad": "the cat sleep", "UID": paradigm}
        pair |= {"linguistics_term": phenomenon, "field": "syntax", "pair_id": "0"}
        (folder / f"{paradigm}.jsonl").write_text(json.dumps(pair) + "\n")


def test_a_third_of_a_suite_to_tune_on_and_the_rest(tmp_path):
    """Ordered by phenomenon, then name: b, d | a, c, e | f; every third from the first on."""
    phenomena = {"a": "binding", "b": "agreement", "c": "binding", "d": "agreement", "e": "binding", "f": "ellipsis"}
    write_phenomena(tmp_path / "pairs/blimp_filtered", phenomena)
    config = load_preset("nursery", {"evaluate.pairs": str(tmp_path / "pairs")})
    tuning, rest = (pairs_folder(config, f"blimp_{part}", tmp_path) for part in ("tuning", "untouched"))
    assert [pair.paradigm for pair in read_suite(tuning, get_protocol("babylm2025"))] == ["b", "c"]
    assert [pair.paradigm for pair in read_suite(rest, get_protocol("babylm2025"))] == ["a", "d", "e", "f"]
    assert pairs_folder(config, "blimp_tuning", tmp_path) == tuning
    (tmp_path / "pairs/blimp_filtered/a.jsonl").unlink()  # another suite has another part
    assert pairs_folder(config, "blimp_tuning", tmp_path) != tuning


def test_a_suite_of_one_file_has_no_rest(tmp_path):
    write_phenomena(tmp_path / "blimp", {"a": "binding"})
    config = load_preset("nursery", {"evaluate.pairs": str(tmp_path / "blimp")})
    with pytest.raises(UserError, match="leaves none for blimp_untouched"):
        pairs_folder(config, "blimp_untouched", tmp_path)
    assert not (tmp_path / "data").exists() or not list((tmp_path / "data").iterdir())


def test_the_thirds_of_the_real_suite(tmp_path):
    """23 and 44 of BLiMP's 67 paradigms; both hold each of the phenomena with five paradigms or more."""
    real = Path(__file__).parents[2] / "shared/data/babylm_eval"
    if not real.is_dir():
        pytest.skip("the real test sets are not on this machine")
    config = load_preset("nursery", {"evaluate.pairs": str(real)})
    parts = []
    for part in ("tuning", "untouched"):
        pairs = read_suite(pairs_folder(config, f"blimp_{part}", tmp_path), get_protocol("babylm2025"))
        parts.append({(pair.phenomenon, pair.paradigm) for pair in pairs})
    tuning, rest = parts
    assert (len(tuning), len(rest), len(tuning & rest)) == (23, 44, 0)
    counts = Counter(phenomenon for phenomenon, _ in tuning | rest)
    large = {phenomenon for phenomenon, count in counts.items() if count >= 5}
    for part in parts:
        assert large <= {phenomenon for phenomenon, _ in part}
