"""Bad models, test sets, runs and checkpoints: each one sentence that says what was found and what to do, status 2, no
traceback, and nothing half-written. Bad settings, text and commands: test_bad_inputs.py."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mistakes import ARM, Box, Case, check, cut, edit, flip, settings, without
from safetensors.torch import load_file, save_file

from wmlkit import paths
from wmlkit.data.tokenizer import train_tokenizer

GOOD = '{"sentence_good": "The cat sleeps.", "sentence_bad": "The cat sleep."}\n'
BAD_LINES = ("evaluate", "model", "--suite", "toy", "--pairs", "pairs")


def pairs(name: str, line: str | bytes, sentence: str) -> Case:
    """A test set with a good line and then this one."""

    def build(box: Box) -> tuple[str, ...]:
        box.model()
        box.write("pairs/number.jsonl", GOOD.encode() + (line.encode() if isinstance(line, str) else line))
        return BAD_LINES

    return Case(name, build, sentence)


def model(name: str, damage: Callable[[Path], Any], sentence: str) -> Case:
    """A model folder after `damage`."""

    def build(box: Box) -> tuple[str, ...]:
        damage(box.model())
        box.write("pairs/number.jsonl", GOOD)
        return BAD_LINES

    return Case(name, build, sentence)


def settled(**changes: Any) -> Callable[[Path], Any]:
    """A change of ``config.json``."""
    return lambda folder: edit(folder / "config.json", lambda document: document | changes)


def weights(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], Any]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return damage


def only_a_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def parts(*names: str) -> Callable[[Path], Any]:
    """Weights that an index spreads over these files."""

    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "weights.bin")
        weight_map = {f"weight_{number}": name for number, name in enumerate(names)}
        paths.write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})

    return damage


def larger_tokenizer(folder: Path) -> None:
    edit(folder / "tokenizer.json", lambda document: document | {"added_tokens": [
        *document["added_tokens"],
        *({**document["added_tokens"][0], "id": 600 + i, "content": f"<more {i}>"} for i in range(9)),
    ]})  # fmt: skip


def run(name: str, damage: Callable[[Path], Any], sentence: str, *arguments: str, leaves: str = r"(?!)") -> Case:
    """A finished run after `damage`, and a command on it: RUN and PRESET stand for its folder and that above."""

    def build(box: Box) -> list[str]:
        folder = box.run()
        damage(folder)
        places = {"RUN": str(folder), "PRESET": str(folder.parent), "BELOW": str(folder / "x" / "y")}
        places["OTHER"] = f"{folder}0"  # beside it, and not there
        return [places.get(argument, argument) for argument in arguments]

    return Case(name, build, sentence, leaves)


def no_step_size(folder: Path) -> None:
    path = folder / "config.json"
    document = paths.read_json(path)
    document["config"]["outer"]["lr"] = 0
    paths.write_json(path, document)


def report(name: str, file: str, content: str | bytes, sentence: str) -> Case:
    """A run with these contents of one of its files, when tables are made of it."""

    def damage(folder: Path) -> None:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return run(name, damage, sentence, "report", "PRESET")


def evaluated(name: str, change: Callable[[dict[str, Any]], Any], sentence: str) -> Case:
    """A run with an evaluation of another form."""
    row = {"paradigm": "p", "phenomenon": "q", "field": "r", "accuracy": 50.0, "ties": 0.0, "n": 2}
    names = [f"peer_{peer}" for peer in (1, 2)]
    members = [{"member": each, "score": 50.0, "ties": 0.0, "n": 2, "paradigms": [row]} for each in names]
    document = {"suite": "nursery", "protocol": "babylm2025", "settings": {}, "data_hash": "x", "members": members}
    return report(name, "evaluation/nursery-babylm2025.json", json.dumps(change(document)), sentence)


def of_members(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: document | {"members": [member | changes for member in document["members"]]}


def changed(file: str, change: Callable[[Any], Any]) -> Callable[[Path], Any]:
    return lambda folder: edit(folder / file, change)


def last_checkpoint(folder: Path) -> Path:
    (folder / "done.json").unlink()  # so that the run goes on from it
    return sorted((folder / "checkpoints").iterdir())[-1]


def checkpoint(name: str, damage: Callable[[Path], Any], sentence: str) -> Case:
    """A run that goes on from a damaged checkpoint."""
    again = ("train", *ARM, *settings())
    written = r"out/smoke/[^/]*/(config|environment)\.json|out/smoke/[^/]*lock"
    return run(name, lambda folder: damage(last_checkpoint(folder)), sentence, *again, leaves=written)


def signed(folder: Path) -> None:
    """The checksums of the files as they are now: whoever changed them did it on purpose."""
    names = ("tensors.safetensors", "state.json")
    edit(folder / "checksums.json", lambda _: {name: paths.file_sha256(folder / name) for name in names})


def older(folder: Path) -> None:
    """A checkpoint of another version."""
    edit(folder / "state.json", lambda document: document | {"version": 0})
    signed(folder)


def other_shapes(folder: Path) -> None:
    """A checkpoint whose tensors are not those of the peers."""
    tensors = load_file(folder / "tensors.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if "embeddings" not in name}, folder / "x")
    (folder / "x").replace(folder / "tensors.safetensors")
    signed(folder)


def other_text(folder: Path) -> None:
    """Another tokenizer in one of the peers."""
    train_tokenizer(["completely different text with other merges"] * 3, 300).save_pretrained(folder / "peers/peer_2")


def prepared(run_folder: Path) -> Path:
    return next((run_folder.parents[1] / "data").glob("nursery-*"))


def glue(box: Box) -> list[str]:
    box.model()
    (box.folder / "glue").mkdir()
    return ["evaluate", "model", "--suite", "glue", "--pairs", "glue"]


NONE: Callable[[Path], Any] = lambda folder: None  # noqa: E731
LM = ("evaluate", "RUN", "--suite", "lm")
NURSERY = ("evaluate", "RUN", "--per-paradigm", "2")
PAIRS = r"out/data/nursery-pairs-.*"

CASES = [
    pairs("broken line", '{"sentence_good": "A', "number.jsonl line 2 is not JSON .*; repair the line in pairs/num"),
    pairs("list", '["A", "B"]', "number.jsonl line 2 is a list; expected an object; repair it"),
    pairs("no sentence", '{"sentence_good": "A"}', "number.jsonl line 2 has no key 'sentence_bad'; .*; add it"),
    pairs("no text", '{"sentence_good": null, "sentence_bad": "A"}', "line 2 has None as sentence_good; expected a se"),
    pairs("empty sentence", '{"sentence_good": "A", "sentence_bad": " "}', "line 2 has ' ' as sentence_bad; .* fill"),
    pairs("number as sentence", '{"sentence_good": "A", "sentence_bad": 3}', "line 2 has 3 as sentence_bad; expected"),
    pairs("NaN as sentence", '{"sentence_good": "A", "sentence_bad": NaN}', "line 2 has nan as sentence_bad; expec"),
    pairs("EWoK", '{"Context1": "A", "Context2": "B", "Target1": "C"}', "line 2 has no key 'Target2'"),
    pairs("Latin-1 line", b'{"sentence_good": "caf\xe9", "sentence_bad": "B"}', "line 2 is not UTF-8 .*; repair"),
    pairs("UTF-16 line", GOOD.encode("utf-16"), "line 2 is not UTF-8 .*; repair the line"),
    pairs("NUL line", bytes(99), "number.jsonl line 2 is not JSON"),
    pairs("deep line", "[" * 100_000, "number.jsonl line 2 is not JSON .it is nested too deeply"),
    pairs("long number", f'{{"pair_id": {"9" * 5000}}}', "number.jsonl line 2 is not JSON .*digits"),
    pairs("half a character", '{"sentence_good": "\\ud800", "sentence_bad": "B"}', "line 2 is not JSON .*surrogates"),
    pairs("long sentence", GOOD.replace("sleep.", "sleep " * 400), r"line 2 has \d+ tokens, .* window"),
    Case("no pairs", lambda box: [box.model() and "evaluate", "model", "--suite", "blimp"], "'blimp' needs its JSONL"),
    Case("absent pairs", lambda box: [box.model() and "evaluate", *BAD_LINES[1:]], "pairs does not exist; expected"),
    Case("ewok", lambda box: [box.model() and "evaluate", "model", "--suite", "ewok"], "EWoK is gated: ask for acc"),
    Case("no tasks", glue, "glue has the files of no task; expected <task>.train.jsonl and"),
    Case("no model", lambda box: ["evaluate", box.folder], "neither a finished run nor a model folder; expected a fo"),
    Case("file as model", lambda box: ["evaluate", box.write("m.bin", "x")], "neither a finished run nor a model"),
    Case("no such folder", lambda box: ["evaluate", "gone/run"], "run does not exist; expected a folder with done.jso"),
    Case("text", lambda box: [box.model() and "evaluate", "model", "--suite", "lm"], "has no dev text of its own"),
    Case(
        "Latin-1 dev text",
        lambda box: [box.write("t/a.dev", b"caf\xe9") and "evaluate", box.model(), "--suite", "lm", "--corpus", "t"],
        "a.dev in t is not UTF-8 text .*; convert the file",
    ),
    model("config", lambda folder: (folder / "config.json").write_text("{"), "config.json is not JSON .*copy the"),
    model("config as list", lambda folder: (folder / "config.json").write_text("[]"), "is a list; expected one JSON"),
    model("binary config", lambda folder: (folder / "config.json").write_bytes(bytes(99)), "config.json is not JSON"),
    model("no architecture", settled(architectures=None), "the architecture 'unnamed'; expected a .*; name its arch"),
    model("T5", settled(architectures=["T5ForConditionalGeneration"]), "'T5ForC.*; give one, or a run folder"),
    model("classifier", settled(architectures=["BertForSequenceClassification"]), "expected a masked or causal lang"),
    model("model type", settled(model_type="nobody"), "the model in .* cannot be loaded .*nobody.*; expected a whole"),
    model("width", settled(hidden_size=64), "the model in .* cannot be loaded .*; expected a whole masked"),
    model("text for a width", settled(hidden_size="wide"), "the model in .* cannot be loaded .*; expected a whole"),
    model("more layers", settled(num_hidden_layers=9), r"lacks \d+ of its weights, such as .*; expected a whole"),
    model("quantized", settled(quantization_config={"quant_method": "gptq", "bits": 4}), "cannot be loaded"),
    model("pickle", only_a_pickle, "has no model.safetensors; wmlkit loads weights from safetensors only, because"),
    model("cut weights", lambda folder: cut(folder / "model.safetensors"), "the model in .* cannot be loaded .*copy"),
    model("flipped weights", lambda folder: flip(folder / "model.safetensors", 0), "cannot be loaded"),
    model("missing weights", weights(lambda tensors: tensors.popitem()), "lacks 1 of its weights, such as .*; expect"),
    model("NaN weights", weights(lambda t: next(iter(t.values())).fill_(math.nan)), "has NaN or infinity in 1 of its "),
    model("parts as pickles", parts("weights.bin"), "index.json names the file 'weights.bin'; expected safetensors"),
    model("parts elsewhere", parts("../x.safetensors"), "names the file '../x.safetensors'; expected safetensors"),
    model("absent parts", parts("a.safetensors"), "names the file 'a.safetensors'; expected safetensors files that"),
    model("no parts", parts(), "index.json has no weight_map; expected the file of each weight; copy"),
    model("adapter", lambda folder: shutil.copy(folder / "config.json", folder / "adapter_config.json"), "an adapter"),
    model("no tokenizer", lambda folder: (folder / "tokenizer.json").unlink(), "the tokenizer .* could not be loaded"),
    model("cut tokenizer", lambda folder: cut(folder / "tokenizer.json"), "the tokenizer .* could not be loaded"),
    model("other vocabulary", larger_tokenizer, r"\d+ tokens but model 1 was built for \d+"),
    run("suite", NONE, "--suite got '../x'; expected the plain name of a suite", "evaluate", "RUN", "--suite", "../x"),
    run("protocol", NONE, "'babylm25': input should be .*'babylm2026'", "evaluate", "RUN", "--protocol", "babylm25"),
    run("ties", NONE, "'evaluate.ties' is 'last': input should be 'half'", "evaluate", "RUN", "--ties", "last"),
    run("no pair", NONE, "'evaluate.per_paradigm' is 0: input should", "evaluate", "RUN", "--per-paradigm", "0"),
    run("no words", NONE, "'evaluate.text_words' is 0: input should", *LM, "--words", "0"),
    run("seeds", NONE, "--seeds got 'one'; expected whole numbers with commas", "evaluate", "RUN", "--suite", "glue",
        "--seeds", "one"),
    run("task", NONE, "babylm2025 has no task 'cola'; exp", "evaluate", "RUN", "--suite", "glue", "--pairs", ".",
        "--tasks", "cola"),
    run("rows", NONE, "max_train is 0; expected at least 1", "evaluate", "RUN", "--suite", "glue", "--pairs", ".",
        "--max-train", "0"),
    run("other text", NONE, "--corpus came with suite 'nursery'; .* leave it off", "evaluate", "RUN", "--corpus", "x"),
    run("ensemble", NONE, "--ensemble needs the peers of a run", "evaluate", "RUN", "--suite", "glue", "--ensemble"),
    run("no target", NONE, "Missing argument 'TARGET'", "evaluate"),
    run("done", changed("done.json", lambda _: []), "done.json has no 'peer_weights'; .*; move runs", *NURSERY,
        leaves=PAIRS),
    run("weights", changed("done.json", lambda d: d | {"peer_weights": "even"}), "no list of numbers as 'peer_weights'",
        *NURSERY, leaves=PAIRS),
    run("cut done", lambda folder: cut(folder / "done.json"), "done.json is not JSON", *NURSERY, leaves=PAIRS),
    run("older config", changed("config.json", without("config")), "config.json has no 'config'; expected the files",
        *NURSERY, leaves=PAIRS),
    run("flat config", changed("config.json", lambda d: d["config"]["model"]), "config.json has no 'config'",
        *NURSERY, leaves=PAIRS),
    run("no objective", changed("config.json", lambda d: d | {"config": {}}), "has no objective mlm or clm below",
        *NURSERY, leaves=PAIRS),
    run("no peer", lambda folder: shutil.rmtree(folder / "peers/peer_2"), r"peers are not there \(peer_2\).*; br",
        *NURSERY, leaves=PAIRS),
    run("peers of two minds", other_text, "different tokenizers", *NURSERY, leaves=PAIRS),
    run("run without its text", lambda folder: shutil.rmtree(prepared(folder)), "is not there; .* move both", *LM),
    run("changed text", lambda folder: flip(prepared(folder) / "dev.tokens", 1), "dev.tokens has SHA-256", *LM),
    run("text elsewhere", changed("config.json", lambda d: d | {"data": {"folder": "../.."}}), "no name of a prepared",
        *LM),
    run("cut tokens", lambda folder: (folder / "done.json").unlink() or cut(prepared(folder) / "train.tokens"),
        "train.tokens has .* bytes; expected", "train", *ARM, *settings()),
    run("unfinished", lambda folder: (folder / "done.json").unlink(), "so the run is not finished; start the",
        *NURSERY),
    run("unfinished for text", lambda folder: (folder / "done.json").unlink(), "so the run is not finished; start the",
        *LM),
    run("export", lambda folder: (folder / "done.json").unlink(), "so the run is not finished; start the", "export",
        "RUN", "--to", "x"),
    run("export of no run", NONE, r"there is no run folder .*; expected a finished .* \(the nearest name there is ",
        "export", "OTHER", "--to", "x"),
    run("which peer", NONE, "--peer got '3'; expected best or a number from 1 to 2", "export", "RUN", "--to", "x",
        "--peer", "3"),
    run("peer none", NONE, "--peer got '0'; expected best or", "export", "RUN", "--to", "x", "--peer", "0"),
    run("to what is there", NONE, "out exists already; give --to a folder that", "export", "RUN", "--to", "out"),
    run("to below a file", lambda folder: (folder / "x").write_text(""), "x/y: Not a directory; expected", "export",
        "RUN", "--to", "BELOW"),
    run("export of a cut run", lambda folder: cut(folder / "done.json"), "done.json is not JSON", "export", "RUN",
        "--to", "x"),
    run("export of a cut peer", lambda folder: cut(folder / "peers/peer_1/model.safetensors"), "cannot be loaded",
        "export", "RUN", "--to", "x", "--peer", "1"),
    run("export without words", lambda folder: (folder / "peers/peer_2/tokenizer.json").unlink(),
        "peer_2' could not be loaded .*; expected a folder with tokenizer.json", "export", "RUN", "--to", "x", "--peer",
        "2"),
    run("export of no peer", lambda folder: shutil.rmtree(folder / "peers"), "its peers are not there .*; bring",
        "export", "RUN", "--to", "x"),
    Case("no runs", lambda box: ["report", box.folder], "holds no finished run; expected at least one; train"),
    run("tables of one run's folder", NONE, "it is a run itself: give the folder that it lies in", "report", "RUN"),
    run("a renamed run alone", lambda folder: folder.rename(folder.parent / "copy"), "given, which copy has no more: r",
        "report", "PRESET"),
    run("page over a folder", NONE, "--html got out, which is a folder; expected the name", "report", "PRESET",
        "--html", "out"),
    report("result", "done.json", '{"steps": 3', "done.json is not JSON .*; remove that run's folder and repeat"),
    report("binary result", "done.json", b"\x80\x81", "done.json is not JSON .*utf-8"),
    report("result of another version", "done.json", "{}", "done.json has no 'steps'; expected the files that this"),
    report("settings of another version", "config.json", '{"lr": 1}', "config.json has no 'config'; .*; move runs of"),
    run("settings that are refused now", no_step_size, "config.json has a configuration that this version refuses: "
        "config key 'outer.lr' is 0: .* or move the run elsewhere", "report", "PRESET"),
    report("no commit", "environment.json", "{}", "environment.json has no 'commit'; expected the files"),
    report("log", "metrics.jsonl", '{"step": 1, "tok', "line 1 of .*metrics.jsonl is not JSON .*; remove that run's"),
    report("log of another version", "metrics.jsonl", '{"loss": 1}\n', "metrics.jsonl has no 'step'; expected"),
    report("table", "../tables/T9.csv", '"a\n', "T9.csv is not a CSV table .*; remove it and make it again"),
    report("empty table", "../tables/T9.csv", "", "T9.csv is not a CSV table .No columns"),
    report("binary table", "../tables/T9.csv", b"\x80\x81,1\n2,3\n", "T9.csv is not a CSV table .*utf-8"),
    report("provenance", "../tables/provenance.json", "[]", "provenance.json does not say what made it; expected"),
    report("notes", "../tables/provenance.json", '{"T4": {}}', "does not say what made T4; expected command?"),
    report("text in the log", "metrics.jsonl", '{"step": 1, "tokens": 2, "words": 3, "ce": ["a", 1.0]}\n',
        "metrics.jsonl has no numbers alone .*'a'"),
    run("no weights", changed("done.json", lambda d: {k: v for k, v in d.items() if k != "peer_weights"}),
        "done.json has no 'peer_weights'", "report", "PRESET"),
    report("curve without scores", "curve/1.json", json.dumps({"target_words": 1, "words": 1, "tokens": 1, "step": 1,
        "evaluations": [dict.fromkeys(("suite", "protocol", "settings", "data_hash"), "x") | {"members": [{}]}]}),
        "curve/1.json has no 'member'"),
    report("curve of another version", "curve/1.json", '{"target_words": 1}', "curve/1.json has no 'evaluations'"),
    run("best of none", changed("done.json", lambda d: d | {"best_peer": 3}), "best_peer from 1 to 2; remove the run's",
        "report", "PRESET"),
    run("text for a loss", changed("done.json", lambda d: d | {"dev_ce": ["a", "b"]}), "does not fit 2 peers of arm",
        "report", "PRESET"),
    evaluated("evaluation", lambda document: [document], "babylm2025.json has no 'suite'; expected the files"),
    evaluated("older evaluation", without("members"), "babylm2025.json has no 'members'; .*; move runs of other"),
    evaluated("members", lambda d: d | {"members": {}}, "has no list where it has dict; expected the files"),
    evaluated("text for a score", of_members(score="high"), "babylm2025.json has no number as 'score'; expected"),
    evaluated("NaN for a score", of_members(score=math.nan), "babylm2025.json is not JSON .it holds NaN, which is"),
    evaluated("paradigms", of_members(paradigms=[{"paradigm": "p"}]), "babylm2025.json has no 'phenomenon'"),
    checkpoint("cut tensors", lambda folder: cut(folder / "tensors.safetensors"), "cannot be read .*; delete that"),
    checkpoint("flipped tensors", lambda folder: flip(folder / "tensors.safetensors"), "cannot be read .tensors.safe"),
    checkpoint("flipped header", lambda folder: flip(folder / "tensors.safetensors", 0), "safetensors has SHA-256"),
    checkpoint("flipped state", lambda folder: flip(folder / "state.json"), "cannot be read .state.json has SHA-256"),
    checkpoint("cut state", lambda folder: cut(folder / "state.json"), "cannot be read .state.json has SHA-256"),
    checkpoint("no tensors", lambda folder: (folder / "tensors.safetensors").unlink(), "cannot be read .*No such file"),
    checkpoint("checksums", lambda folder: flip(folder / "checksums.json"), "step-00000004 cannot be read"),
    checkpoint("no checksums", lambda folder: (folder / "checksums.json").unlink(), "cannot be read .*No such file"),
    checkpoint("version", older, "step-00000004 has version 0, expected 2; delete the run folder and train again"),
    checkpoint("other peers", other_shapes, "step-00000004 cannot be read .*; delete that folder to use the one"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_file_is_one_sentence_and_leaves_nothing(
    case: Case, tmp_path: Path, trained_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, Box(tmp_path, trained_out, monkeypatch), capsys)


def test_every_bit_of_a_checkpoint_counts(tmp_path: Path, trained_out: Path) -> None:
    """Wherever a bit is changed, the checkpoint is refused: no run goes on from other numbers in silence."""
    from wmlkit.checkpoint import _check_whole

    folder = next(trained_out.glob("smoke/*/checkpoints/step-*"))
    _check_whole(folder)
    for file in ("tensors.safetensors", "state.json"):
        for place in (0.0, 0.1, 0.37, 0.9, 1.0):
            copy = tmp_path / f"{file}-{place}"
            shutil.copytree(folder, copy)
            flip(copy / file, place)
            with pytest.raises(ValueError, match="has SHA-256"):
                _check_whole(copy)


def test_a_model_without_all_its_weights_is_one_line_on_a_terminal(tmp_path: Path, trained_out: Path) -> None:
    """In a process of its own, where the library's own table would be seen."""
    folder = Path(shutil.copytree(next(trained_out.glob("smoke/dml-*/peers/peer_1")), tmp_path / "model"))
    weights(lambda tensors: tensors.popitem())(folder)
    command = [sys.executable, "-m", "wmlkit", "evaluate", str(folder), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("wmlkit: the model in ") and done.stdout == ""
