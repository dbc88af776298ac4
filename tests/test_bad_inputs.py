"""Bad settings, bad text and bad commands: each one sentence that says what was found and what to do, status 2, no
traceback, and nothing half-written. Bad models, runs and checkpoints: test_bad_files.py."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
import test_bad_files
from mistakes import ARM, Box, Case, check, contents, run_cli, settings
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from wmlkit import paths

ENOUGH = "The cat sleeps near the barn.\nThe dogs bark.\n\n" * 60
TOKEN = "hf_" + "a1B2c3D4e5" * 3
PREPARED = r"out/data/.*"


def setting(name: str, text: str, sentence: str, leaves: str = r"(?!)") -> Case:
    return Case(name, lambda box: ["train", "--preset", "smoke", "--set", text], sentence, leaves)


def command(name: str, *arguments: str, says: str) -> Case:
    return Case(name, lambda box: arguments, says)


def preset(name: str, content: str | bytes, sentence: str) -> Case:
    """A preset file of these contents, as a fork of the package may have it."""

    def build(box: Box) -> list[str]:
        box.write("presets/mine.toml", content)
        box.monkeypatch.setattr(paths, "PRESETS", box.folder / "presets")
        return ["study", "plan", "--preset", "mine"]

    return Case(name, build, sentence)


def text(name: str, content: str | bytes, sentence: str, file: str = "talk.train") -> Case:
    """A corpus of one file."""

    def build(box: Box) -> list[str]:
        box.write(f"corpus/{file}", content)
        return ["data", "prepare", "corpus", "--preset", "smoke"]

    return Case(name, build, sentence)


def files(name: str, content: dict[str, str], sentence: str) -> Case:
    """A corpus of several files, or of none."""

    def build(box: Box) -> list[str]:
        (box.folder / "corpus").mkdir()
        for file, one in content.items():
            box.write(f"corpus/{file}", one)
        return ["data", "prepare", "corpus", "--preset", "smoke"]

    return Case(name, build, sentence)


def zipped(name: str, content: bytes, sentence: str) -> Case:
    def build(box: Box) -> list[str]:
        box.write("corpus.zip", content)
        return ["data", "prepare", "corpus.zip", "--preset", "smoke"]

    return Case(name, build, sentence)


def make_zip(entry: str, content: bytes, *others: str, packed: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as archive:
        for name in (entry, *others):
            archive.writestr(name, content)
    return buffer.getvalue()


def encrypted() -> bytes:
    """A zip whose entry says that it is encrypted."""
    content = bytearray(make_zip("a.txt", ENOUGH.encode()))
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(mark) + place] |= 1
    return bytes(content)


def words(**special: str) -> PreTrainedTokenizerFast:
    """A tokenizer of two words with these special tokens."""
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["a", "b", *special.values()])}, "a"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def tokenizer(name: str, sentence: str, **given_files: str | bytes) -> Case:
    """A tokenizer folder with these files (a dot in a name is written as two underscores)."""

    def build(box: Box) -> list[str]:
        (box.folder / "tok").mkdir()
        for file, content in given_files.items():
            box.write(f"tok/{file.replace('__', '.')}", content)
        return ["data", "prepare", "nursery", "--preset", "smoke", *settings("data.tokenizer=tok")]

    return Case(name, build, sentence)


def without_mask(box: Box) -> list[str]:
    folder = box.tokenizer(words(bos_token="<s>", eos_token="</s>", pad_token="<pad>"))
    return ["train", "--preset", "smoke", *settings(f"data.tokenizer={folder}")]


def shapes_without_mask(box: Box) -> list[str]:
    return ["search", *without_mask(box)[1:], *settings("search.prefer=proxy", "search.proxy_steps=2")]


def without_end(box: Box) -> list[str]:
    folder = box.tokenizer(words(bos_token="<s>", mask_token="<mask>"))
    return ["data", "prepare", "nursery", "--preset", "smoke", *settings(f"data.tokenizer={folder}")]


def untagged(box: Box) -> list[str]:
    """A notebook whose parameters cell has lost its tag."""
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell('preset = "smoke"')]
    box.write("notebooks/01_data.ipynb", nbformat.writes(notebook))
    box.monkeypatch.setattr(paths, "notebooks", lambda: box.folder / "notebooks")
    return ["reproduce", "--preset", "smoke", "--only", "01"]


def no_teacher(box: Box) -> list[str]:
    return ["train", "--preset", "smoke", "--arm", "distill", *settings("mutual.teacher=./none")]


def nobody_to_imitate(_: Path) -> list[str]:
    return ["train", "--preset", "smoke", "--peers", "1", *settings("mutual.alpha=1")]


def slow_teacher(_: Path) -> list[str]:
    return ["train", "--preset", "smoke", *settings("train.warmup_steps=3", "mutual.teacher_steps=2")]


def odd_head(_: Path) -> list[str]:
    shape = ("model.family=modernbert", "model.hidden_size=24", "model.num_heads=8")
    return ["train", "--preset", "smoke", *settings(*shape)]


def floor_with_a_teacher(box: Box) -> list[str]:
    return ["train", "--preset", "smoke", *settings("outer.min_weight=0.4", "mutual.frozen_teacher=true")]


def masked_twice(box: Box) -> list[str]:
    return ["train", "--preset", "smoke", *settings("train.mask_random=0.7", "train.mask_keep=0.4")]


def masked_rows_of_a_stranger(box: Box) -> list[str]:
    causal = ("model.family=llama", "model.objective=clm", "train.mntp_share=0.2")
    return ["train", "--preset", "smoke", *settings(*causal, "mutual.arm=distill", "mutual.teacher=./none")]


def no_notebook(box: Box) -> list[str]:
    box.write("notebooks/01_data.ipynb", "print('hello')")
    box.monkeypatch.setattr(paths, "notebooks", lambda: box.folder / "notebooks")
    return ["reproduce", "--preset", "smoke", "--only", "1"]


def force_with_a_mistake(box: Box) -> list[str]:
    box.run()  # which must still be there afterwards
    return ["reproduce", "--preset", "smoke", "--only", "77", "--force"]


def out_is_a_file(*arguments: str) -> Case:
    def build(box: Box) -> list[str]:
        return [*arguments, "--out", str(box.write("taken", "text"))]

    return Case(f"{arguments[0]} into a file", build, "taken.*: (Not a directory|File exists); expected a")


def saved_search(name: str, content: str, sentence: str) -> Case:
    def build(box: Box) -> list[str]:
        box.write("shapes.json", content)
        return ["train", "--preset", "smoke", *settings("search.saved=shapes.json")]

    return Case(name, build, sentence, PREPARED)


CASES = [
    setting("key", "train.stepz=1", "unknown config key 'train.stepz'; the nearest valid key is 'train.steps'"),
    setting("bare key", "alpha=0.3", "unknown config key 'alpha'; the nearest valid key is 'mutual.alpha'"),
    setting("section", "trian.steps=3", "unknown config key 'trian.steps'; the nearest valid key is 'train.steps'"),
    setting("whole section", "train=3", "unknown config key 'train'; the nearest valid key is"),
    setting("no key", "=3", "unknown config key ''; the nearest valid key is"),
    setting("no value", "train.steps", "--set got 'train.steps'; expected KEY=VALUE, for example train.steps=100"),
    setting("zero peers", "mutual.num_peers=0", "'mutual.num_peers' is 0: input should be greater than or equal to 1"),
    setting("share above 1", "mutual.alpha=1.5", "config key 'mutual.alpha' is 1.5: .* less than or equal to 1"),
    setting("NaN", "train.lr=nan", "config key 'train.lr' is nan: input should be a finite number"),
    setting("infinity", "train.lr=inf", "config key 'train.lr' is inf: input should be a finite number"),
    setting("text for a number", "train.steps=many", "'train.steps' is 'many': input should be a valid integer"),
    setting("true for a number", "train.steps=true", "'train.steps' is True: expected a number or text, not true"),
    setting("true among numbers", "study.seeds=[0, true]", r"'study.seeds' is \[0, True\]: expected a number"),
    setting("true for a number of peers", 'study.runs=[["wml", true]]', "'study.runs' is .*: expected a number"),
    setting("true for a share", "data.block_schedule=[[true, 32]]", "'data.block_schedule' is .*: expected a number"),
    setting("a huge row", f"data.block_schedule=[[1.0, {10**30}]]", "'data.block_schedule' is .*: expected .* at most"),
    setting("quotation marks that the shell took", 'study.runs=[["wml",2]]'.replace('"', ""),
            r"in a shell a list stands in single quotes, --set 'study.runs="),
    setting("half a step", "train.steps=1.5", "'train.steps' is 1.5: input should be a valid integer"),
    setting("list for a number", "train.lr=[1]", r"'train.lr' is \[1\]: input should be a valid number"),
    setting("list without end", f"train.lr={'[' * 5000}", r"'train.lr' is '\[\["),
    setting("number without end", f"train.steps={'9' * 5000}", r"'train.steps' is '9{99}\.\.\.: .*integer"),
    setting("arm", "mutual.arm=best", "config key 'mutual.arm' is 'best': input should be 'independent', 'dml'"),
    setting("family", "model.objective=clm", "family 'roberta' cannot be trained with objective 'clm'; use gpt2"),
    setting("heads", "model.num_heads=7", "model.hidden_size 32 is not a multiple of num_heads 7; change one"),
    setting("all held out", "data.held_out=0.9", "config key 'data.held_out' is 0.9: .* less than 0.5; change it"),
    setting("no seeds of ablations", "ablations.seeds=[]", r"'ablations.seeds' is \[\]: .* at least 1 item"),
    setting("no seeds of replays", "replay.seeds=[]", r"'replay.seeds' is \[\]: .* at least 1 item"),
    setting("dictionary", "data.vocab_size=1000001", "'data.vocab_size' is 1000001: .* less than or equal to 1000000"),
    setting("vocabulary", "data.vocab_size=100", "'data.vocab_size' is 100: .* greater than or equal to 270"),
    setting("shares", "data.block_schedule=[[0.5, 16]]", "shares that sum to 0.5, expected 1; change the shares"),
    setting("empty row", "data.block_schedule=[[0.5, 16], [0.5, 0]]", r"0\]\]; expected pairs .* 8 to 65,536; ch"),
    setting("no share", "data.block_schedule=[[1, 16], [0, 32]]", "block_schedule is .*; expected pairs of a share"),
    setting("rows that nothing trains", "data.block_schedule=[[1, 16]]", "is 32, .* have 16 tokens, .*; lower data"),
    setting("rows that do not fill a step", "data.block_schedule=[[1, 48]]", "has 512 tokens .*, which rows of 48 "),
    setting("endless rows", "data.block_size=2000000000", "'data.block_size' is 2000000000: .* less than or equal to"),
    setting("a crowd", "mutual.num_peers=1000000", "'mutual.num_peers' is 1000000: .* less than or equal to 1000; ch"),
    setting("boiling", "mutual.temperature=1e200", "'mutual.temperature' is 1e.200: .* less than or equal to 1000"),
    setting("frozen", "mutual.temperature=1e-320", "'mutual.temperature' is .*: .* greater than or equal to 0.001"),
    setting("no step size", "outer.lr=0", "'outer.lr' is 0: input should be greater than 0; change it"),
    setting("huge seed", "train.seed=99999999999", "'train.seed' is 99999999999: .* less than 4294967296"),
    setting("huge seed of a study", "study.seeds=[99999999999]", "'study.seeds.0' is 99999999999: .* less than"),
    setting("huge size", f"data.vocab_size={10**17}", "'data.vocab_size' is 10{17}: expected a number of at most 9,0"),
    setting("no suite", "evaluate.suites=[]", r"'evaluate.suites' is \[\]: .* at least 1 item"),
    setting("curve", "evaluate.curve=[5, 3]", r"evaluate.curve is \[5, 3\]; expected word counts .* rising order"),
    setting("teacher's peers", "mutual.arm=teacher", "num_peers is 2 for arm 'teacher', .*; set it to 1"),
    Case("nobody to imitate", nobody_to_imitate, "mutual.alpha is 1 for arm 'wml', whose peers .*; change mutual."),
    Case("width of a head", odd_head, "model.hidden_size 24 over num_heads 8 is odd, and modernbert turns pairs"),
    setting("only imitation", "mutual.alpha=1", "mutual.alpha is 1 for arm 'wml', whose peers would imitate one"),
    setting("slow start", "train.warmup_steps=16", "warmup_steps is 16 and train.steps 12, .* end at 75 % .*; lower"),
    Case("slow start of a teacher", slow_teacher, "warmup_steps is 3 and mutual.teacher_steps 2, so what rises over"),
    setting("alpha's rise", "mutual.kl_warmup_steps=13", "mutual.kl_warmup_steps is 13 and train.steps 12, so what"),
    setting("no step for long rows", "data.block_schedule=[[0.99,32],[0.01,64]]", "rows of 64 tokens for 0.01 of 12 "),
    setting("suite twice", 'evaluate.suites=["blimp","blimp"]', "suites names blimp, blimp; expected each once, and"),
    setting("the dev loss", 'evaluate.suites=["dev_ce"]', "suites names dev_ce; expected each once, and none dev_ce"),
    setting("no peers", 'study.runs=[["wml",0]]', "'study.runs.0.1' is 0: .* greater than or equal to 1"),
    command("two methods", "search", "--method", "exact", "--set", "search.method=bayesian",
            says="got --method exact and --set search.method=bayesian; expected one value; leave out one of the two"),
    command("two texts", "data", "prepare", "nursery", "--set", "data.corpus=/nowhere",
            says="got prepare nursery and --set data.corpus=/nowhere; expected one value"),
    setting("late outer steps", "outer.start=12", "so none of the 12 steps .* would have an outer step, .*; lower"),
    setting("floor", "outer.min_weight=0.6", "min_weight is 0.6 for 2 peers, whose 2 weights .* less than 1/2, or no"),
    Case("floor with a teacher", floor_with_a_teacher, "is 0.4 for 2 peers and a frozen teacher, whose 3 weights sum"),
    Case("masked shares", masked_twice, "train.mask_random 0.7 and train.mask_keep 0.4 are .* at most 1; lower one"),
    setting("masked rows", "train.mntp_share=0.2", "mntp_share is 0.2 and model.objective 'mlm', .*; change one"),
    Case("masked rows of a stranger", masked_rows_of_a_stranger, "is 0.2 and mutual.teacher names a model, .* noise"),
    setting("scoring year", "evaluate.protocol=foo", "'evaluate.protocol' is 'foo': input should be 'babylm2024"),
    setting("decay", "replay.decay_epochs=1", "decay_epochs is 1; expected more than replay.warmup_epochs"),
    setting("study's arm", 'study.runs=[["best", 2]]', "config key 'study.runs.0.0' is 'best'"),
    setting("half a pair", 'study.runs=[["wml"]]', "config key 'study.runs.0.1' is .*field required"),
    setting("tracker", "track.to=tensorbord", "'track.to' is 'tensorbord': input should be 'off', 'tensorboard'"),
    setting("odd heads", "search.num_heads=[7]", r"search.num_heads \[7\] fits any width", PREPARED),
    setting("no depths", "search.num_layers=[]", r"'search.num_layers' is \[\]: .* at least 1 item"),
    setting("no layers", "search.num_layers=[0]", "'search.num_layers.0' is 0: .* greater than or equal to 1"),
    setting("no heads", "search.num_heads=[2,0]", "'search.num_heads.1' is 0: .* greater than or equal to 1"),
    setting("no width", "search.hidden_size=[-8]", "'search.hidden_size.0' is -8: .* greater than or equal to 1"),
    setting("passes", "data.max_passes=0.1", r"data.max_passes is 0.1 .*; lower train.steps to 5 or", PREPARED),
    Case("no teacher", no_teacher, "there is no teacher folder './none'; give mutual.teacher a", PREPARED),
    setting("not UTF-8", "track.project=\udcff", "'track.project' is '.udcff', which is not Unicode text"),
    setting("a token", f"track.project={TOKEN}", "'track.project' holds what looks like an access token; .* HF_TOKEN"),
    setting("a password", "data.corpus=https://me:pass@host/x", "'data.corpus' holds what looks like an access token"),
    command("preset", "train", "--preset", "nursary", says="there is no preset 'nursary'; expected one of .*nursery"),
    command("peers", "train", "--preset", "smoke", "--peers", "two", says="--peers.: .*valid integer"),
    command("seed", "train", "--preset", "smoke", "--seed", "-1", says="config key 'train.seed' is -1: .* change it"),
    command("arm of a run", "train", "--preset", "smoke", "--arm", "x", says="config key 'mutual.arm' is 'x'"),
    command("command", "trian", says="No such command 'trian'"),
    command("pairs of no suite", "evaluate", "RUN", "--pairs", "x", says="--pairs got 'x', and suite 'nursery' does"),
    command("tasks of pairs", "evaluate", "RUN", "--suite", "blimp", "--tasks", "rte", says="--tasks got 'rte', and"),
    command("words of glue", "evaluate", "RUN", "--suite", "glue", "--words", "9", says="--words got '9', and suite"),
    command("ties of text", "evaluate", "RUN", "--suite", "lm", "--ties", "half", says="--ties got 'half', and suite"),
    command("ties of glue", "evaluate", "RUN", "--suite", "glue", "--ties", "half", says="--ties got 'half', and"),
    command(
        "protocol of text", "evaluate", "RUN", "--suite", "lm", "--protocol", "babylm2026",
        says="--protocol got 'babylm2026', and suite 'lm' does not read it",
    ),
    command("pairs of text", "evaluate", "RUN", "--suite", "lm", "--per-paradigm", "9", says="name that with --suite"),
    command("empty shard", "study", "run", "--preset", "smoke", "--shard", "", says="--shard got ''; expected I/N"),
    command("shard and rows", "study", "run", "--shard", "", "--rows", "1", says="got both --shard and --rows"),
    setting("no saved search", "search.saved=", "'search.saved' is '': .* at least 1 character"),
    setting("empty teacher", "mutual.teacher=", "'mutual.teacher' is '': .* at least 1 character"),
    setting("long spans", "train.mask_span=1000000", "'train.mask_span' is 1000000: .* less than or equal to 100"),
    setting("many threads", "train.threads=100000", "'train.threads' is 100000: .* less than or equal to 1024"),
    command("option", "train", "--steps", "3", says="No such option: --steps"),
    preset("TOML", "[train\nsteps = 3", "mine.toml is not TOML .*line 1"),
    preset("TOML in Latin-1", b"# caf\xe9\n", "mine.toml is not TOML .*utf-8"),
    preset("number for a section", "train = 3", "config section 'train' is 3; expected a table of settings"),
    preset("unknown section", "[trian]\nsteps = 3", "unknown config section 'trian'; expected one of data, model"),
    preset("ablation", '[ablations]\nbase = {"train.stepz" = 3}', "ablations of preset 'mine' have an unknown config"),
    text("UTF-16", ENOUGH.encode("utf-16"), "talk.train in corpus is UTF-16 text; expected text in UTF-8; convert"),
    text("UTF-16, no mark", ENOUGH.encode("utf-16-le"), "holds a NUL character; .* may be UTF-16 or no text; convert"),
    text("Latin-1", ("café\n" * 60).encode("latin-1"), "is not UTF-8 text .byte 0xe9: .*; convert the file"),
    text("NUL bytes", ENOUGH[:500] + "\0" + ENOUGH, "talk.train in corpus holds a NUL character"),
    text("PNG", b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture .PNG.; expected text in UTF-8"),
    text("gzip", b"\x1f\x8b\x08\x00" + bytes(99), "is a gzip archive; expected text in UTF-8; convert or unpack"),
    text("PDF", b"%PDF-1.7\nplain so far\n" * 60, "is a PDF file; expected text in UTF-8"),
    text("zip called text", make_zip("a.txt", b"x" * 99), "is a zip archive; expected text in UTF-8", "talk.txt"),
    text("array", np.lib.format.MAGIC_PREFIX + bytes(99), "is not UTF-8 text .byte 0x93"),
    text("empty file", "", "all training files in corpus are empty; expected text; check data.corpus"),
    text("blank lines", " \n\n" * 99, "the training text holds no words after cleaning; expected text"),
    text("huge line", "word " * 600_000, "has only 1 document .*; line ends and blank lines .* shorter documents$"),
    text("annotations", "*MOT: [laughs].\n*CHI: xxx.\n" * 20, "holds no words after cleaning", "childes.train"),
    files("no files", {}, "corpus holds no training text; expected <domain>.train or .txt files; check data.corpus"),
    files("dev text alone", {"a.dev": ENOUGH}, "corpus holds no training text, only a.dev; expected <domain>.train or"),
    files("no text files", {"notes.pdf": "%PDF"}, "corpus holds no training text, only notes.pdf; expected .* check"),
    files("two releases", dict.fromkeys(("a/x.train", "b/x.train"), ENOUGH), "holds two files for the train text of"),
    files("two kinds", {"corpus.train": ENOUGH, "x.txt": ENOUGH}, "files for the train text of 'corpus', corpus.train"),
    files("two kinds again", {"a.txt": ENOUGH, "corpus.train": ENOUGH}, "the train text of 'corpus', a.txt and"),
    files("two documents", {"a.train": "one\n\ntwo\n"}, "has only 2 documents .* none for dev; .* or a .dev file"),
    command("no corpus", "data", "prepare", "no-such", says="there is no corpus 'no-such'; .* check data.corpus"),
    Case("a file", lambda box: ["data", "prepare", box.write("a.txt", ENOUGH)], "is a single file; .* folder of its"),
    Case(
        "name of the embedded text",
        lambda box: ["data", "prepare", box.write("nursery/a.train", ENOUGH).parent],
        "nursery would be taken for the embedded text, because of its name; expected another name than nursery; rename",
    ),
    Case(
        "long name",
        lambda box: ["data", "prepare", box.write(f"{'n' * 250}/a.train", ENOUGH).parent, "--preset", "smoke"],
        "n: File name too long; expected a path that can be used for this; change it",
    ),
    zipped("no zip", b"not a zip", "the zip file corpus.zip cannot be read .*; copy it again"),
    zipped("cut zip", make_zip("a.txt", ENOUGH.encode())[:-30], "the zip file corpus.zip cannot be read"),
    zipped("damaged zip", make_zip("a.txt", ENOUGH.encode(), packed=0).replace(b"barn", b"bern", 1), "Bad CRC"),
    zipped("bomb", make_zip("a.txt", b"\n" * (8 << 20)), "'a.txt' in corpus.zip grows from .* unpack it first if you"),
    zipped("text twice", make_zip("a.txt", b"x", "b.txt").replace(b"b.txt", b"a.txt"), "holds a.txt twice; expected"),
    zipped("encrypted", encrypted(), "'a.txt' in corpus.zip is encrypted; expected plain text; unpack it first"),
    zipped("zip that leads out", make_zip("../a.txt", ENOUGH.encode()), "'../a.txt' that points elsewhere"),
    zipped("zip from the root", make_zip("/etc/a.txt", ENOUGH.encode()), "'/etc/a.txt' that points elsewhere"),
    command(
        "tokenizer", "data", "prepare", "nursery", "--set", "data.tokenizer=./none",
        says="there is no tokenizer folder './none'; give an existing folder or a Hugging Face id",
    ),
    tokenizer("empty tokenizer", "the tokenizer 'tok' could not be loaded .*; check data.tokenizer"),
    tokenizer("broken tokenizer", "tokenizer 'tok' could not be loaded .*; check", tokenizer__json='{"model": '),
    tokenizer("tokenizer of zeros", "tokenizer 'tok' could not be loaded", tokenizer__json=bytes(999)),
    tokenizer("tokenizer's settings", "tokenizer_config.json is not JSON .*copy", tokenizer_config__json="{"),
    tokenizer("tokenizer's list", "tokenizer_config.json is a list; expected one JSON", tokenizer_config__json="[1]"),
    Case("no mask", without_mask, "tokenizer' has no mask token; this objective needs bos, eos, mask; choose another"),
    Case("no mask for proxy losses", shapes_without_mask, "has no mask token; this objective needs bos, eos, mask"),
    Case("no end", without_end, "has no eos token; this objective needs bos, eos, mask; choose another"),
    saved_search("no shapes", "{", "search.saved shapes.json is not JSON; expected a list of shapes"),
    saved_search("nested", "[" * 100_000, "search.saved shapes.json is not JSON; expected a list of shapes"),
    command("notebook", "reproduce", "--preset", "smoke", "--only", "77", says="--only got '77'; expected numbers of"),
    Case("mistake before force", force_with_a_mistake, "--only got '77'; expected numbers of notebooks: 00, 01"),
    Case("no tag", untagged, "01_data.ipynb: 0 cells are tagged 'parameters'; expected exactly one; mend the notebook"),
    Case("no notebook", no_notebook, "01_data.ipynb is not a notebook .*; expected Jupyter's format 4"),
    command("search", "search", "--preset", "smoke", "--method", "random", says="'search.method' is 'random'"),
    command("counted", "search", "--preset", "smoke", "--vocab-size", "99", "--set", "search.prefer=proxy",
            says="search.prefer is 'proxy', which trains on the corpus; leave out --vocab-size"),
    command("shard", "study", "run", "--preset", "smoke", "--shard", "3/2", says="shard 3/2 does not exist; expected"),
    command("forced", "reproduce", "--preset", "smoke", "--only", "01", "--force", says="got --force with --only;"),
    command("hours", "study", "submit", "--shards", "1", "--minutes", "-5", says="--minutes got -5; expected at"),
    command("staged", "study", "submit", "--shards", "1", "--stage", "x", says="--stage got 'x'; expected one of"),
    command("seedless", "study", "plan", "--set", "study.seeds=[]", says="study.seeds"),
    command("row", "study", "run", "--preset", "smoke", "--rows", "2,9", says="row 9 does not exist; expected 1 to 8"),
    command("no row", "study", "run", "--preset", "smoke", "--rows", "0", says="row 0 does not exist; expected 1 to"),
    command("plan rows", "study", "run", "--preset", "smoke", "--rows", "1,", says="--rows got '1,'; expected row"),
    command("both", "study", "run", "--rows", "1", "--shard", "1/2", says="got both --shard and --rows; expected at"),
    command("shards", "study", "run", "--preset", "smoke", "--shard", "x", says="--shard got 'x'; expected I/N with"),
    command("stage", "study", "run", "--preset", "smoke", "--stage", "tests", says="--stage got 'tests'; expected one"),
    command("cluster", "study", "submit", "--shards", "1", "--cluster", "lsf", says="--cluster got 'lsf'; expected"),
    command("cards", "study", "submit", "--shards", "1", "--gpus", "-1", says="--gpus got -1; expected 0 or more"),
    command("partition of this machine", "study", "submit", "--shards", "1", "--cluster", "local", "--partition", "x",
            says="--partition says nothing of --cluster local"),
    command("jobs", "study", "submit", "--preset", "smoke", "--shards", "0", says="--shards got 0; expected 1 to 8"),
    command("nothing to collect", "study", "collect", "--preset", "smoke", says="no folder .*smoke; .* train first"),
    command("release", "data", "fetch", "babylm", says="there is no release 'babylm'; expected .*; the nearest is"),
    command("dataset", "data", "fetch", "hf:../secret", says="hf:../secret names no dataset of the hub; expected hf:O"),
    command("bench's setting", "bench", "step", "--setting", "huge", says="no setting 'huge'; expected"),
    command("loss' setting", "bench", "loss", "--setting", "huge", says="no setting 'huge'; expected"),
    command("scoring's setting", "bench", "scoring", "--setting", "huge", says="no scoring setting 'huge'; expected"),
    command("bench's preset", "bench", "train", "--preset", "nursary", says="there is no preset 'nursary'; expected"),
    command("repeats", "bench", "data", "--repeats", "0", says="repeats is 0 .* expected at least 1"),
    command("repeats of a search", "bench", "search", "--repeats", "0", says="repeats is 0; expected at least 1"),
    command("repeats of scoring", "bench", "scoring", "--repeats", "0", says="repeats is 0; expected at least 1"),
    command("threads", "bench", "step", "--threads", "0", says="Invalid value for '--threads': .* or equal to 1"),
    command("bench's corpus", "bench", "data", "--corpus", "none", says="there is no corpus 'none'; expected"),
    Case("bench's page", lambda box: ["bench", "report", box.write("x.json", "{}")], "is not the document of a bench"),
    command("bench's file", "bench", "report", "x.json", says="there is no file x.json; expected what `wmlkit bench"),
    out_is_a_file("train", "--preset", "smoke"),
    out_is_a_file("data", "prepare", "nursery", "--preset", "smoke"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    case: Case, tmp_path: Path, trained_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(case, Box(tmp_path, trained_out, monkeypatch), capsys)


def test_the_tables_hold_as_many_mistakes_as_they_promise() -> None:
    names = [case.name for case in (*CASES, *test_bad_files.CASES)]
    assert len(set(names)) == len(names) >= 160


def test_the_same_case_passes_when_the_input_is_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cases fail for their mistake, and not because nothing could pass."""
    monkeypatch.chdir(tmp_path)
    box = Box(tmp_path, tmp_path, monkeypatch)
    box.write("corpus/talk.train", ENOUGH)
    arguments = ["data", "prepare", "corpus", "--preset", "smoke", "--out", str(tmp_path / "out")]
    assert run_cli(arguments, monkeypatch) == 0
    assert any(name.endswith("done.json") for name in contents(tmp_path / "out"))
    assert run_cli(["train", *ARM, "--set", "train.steps=0"], monkeypatch) == 2
