"""Files from elsewhere are data: none of them runs code, and no archive leaves its folder."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from mistakes import Box, Case, check, contents, edit, settings
from safetensors.torch import load_file

from wmlkit import paths
from wmlkit.data import archives
from wmlkit.errors import UserError
from wmlkit.evaluate.ewok import write_ewok
from wmlkit.untrusted import INDEX, check_model, read_settings

MODULE = "from pathlib import Path\nPath({marker!r}).write_text('ran')\n"


class Evil:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def mark(box: Box) -> Path:
    return box.folder / "marker"


def module(box: Box, folder: Path) -> None:
    """A Python module in `folder` that leaves the mark as soon as it is imported."""
    classes = "class Evil:\n    def __init__(self, *a, **k):\n        pass\n"
    (folder / "evil.py").write_text(MODULE.format(marker=str(mark(box))) + classes)


def pickled(name: str) -> Callable[[Box], list[str]]:
    """A model folder with its weights in a pickle of this name, and none beside."""

    def build(box: Box) -> list[str]:
        folder = box.model()
        torch.save({"weight": Evil(mark(box))}, folder / name)
        (folder / "model.safetensors").unlink()
        return ["evaluate", "model"]

    return build


def renamed(box: Box) -> list[str]:
    """A pickle under the name of the safetensors."""
    torch.save({"weight": Evil(mark(box))}, box.model() / "model.safetensors")
    return ["evaluate", "model"]


def indexed(box: Box) -> list[str]:
    """An index of safetensors that names a pickle."""
    folder = box.model()
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({"weight": Evil(mark(box))}, folder / "evil.bin")
    paths.write_json(
        folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": dict.fromkeys(names, "evil.bin")}
    )
    return ["evaluate", "model"]


def adapted(box: Box) -> list[str]:
    """A config that names an adapter's pickle as the weights, the one name besides safetensors that is let through."""
    folder = box.model()
    torch.save({"weight": Evil(mark(box))}, folder / "adapter_model.bin")
    edit(folder / "config.json", lambda document: document | {"transformers_weights": "adapter_model.bin"})
    return ["evaluate", "model"]


def objects(box: Box) -> list[str]:
    """A corpus of an array of objects."""
    (box.folder / "corpus").mkdir()
    np.save(box.folder / "corpus" / "a.npy", np.array([Evil(mark(box))], dtype=object))
    (box.folder / "corpus" / "a.npy").rename(box.folder / "corpus" / "a.train")
    return ["data", "prepare", "corpus", "--preset", "smoke"]


def own_code(file: str, key: str, **more: Any) -> Callable[[Box], list[str]]:
    """A model folder whose settings name a module beside them."""

    def build(box: Box) -> list[str]:
        folder = box.model()
        module(box, folder)
        edit(folder / file, lambda document: document | {"auto_map": {key: "evil.Evil"}} | more)
        return ["evaluate", "model"]

    return build


def nested_code(box: Box) -> list[str]:
    folder = box.model()
    module(box, folder)
    edit(folder / "config.json", lambda document: document | {"text_config": [{"auto_map": {"AutoConfig": "evil.E"}}]})
    return ["evaluate", "model"]


def kernel(box: Box) -> list[str]:
    edit(box.model() / "config.json", lambda document: document | {"_attn_implementation": "somebody/kernel"})
    return ["evaluate", "model"]


def teacher(build: Callable[[Box], list[str]]) -> Callable[[Box], list[str]]:
    """The same folder as the teacher of a run."""

    def build_run(box: Box) -> list[str]:
        build(box)
        return ["train", "--preset", "smoke", "--arm", "distill", *settings("mutual.teacher=model")]

    return build_run


def data_tokenizer(build: Callable[[Box], list[str]]) -> Callable[[Box], list[str]]:
    """The same folder as the tokenizer of a corpus."""

    def build_corpus(box: Box) -> list[str]:
        build(box)
        return ["data", "prepare", "nursery", "--preset", "smoke", *settings("data.tokenizer=model")]

    return build_corpus


PREPARED = r"out/data/.*"
CODE = "names code that comes with the model .auto_map.; wmlkit runs none"
AS_TOKENIZER = own_code("tokenizer_config.json", "AutoTokenizer", tokenizer_class="Evil")
AS_CONFIG = own_code("config.json", "AutoModelForMaskedLM")
CASES = [
    Case(
        "pytorch_model.bin", pickled("pytorch_model.bin"), "wmlkit loads weights from safetensors only, because other"
    ),
    Case("model.pt", pickled("model.pt"), "wmlkit loads weights from safetensors only, because other formats can run"),
    Case("pickle by another name", renamed, "the model in model cannot be loaded .*; expected a whole"),
    Case("pickle in an index", indexed, "index.json names the file 'evil.bin'; expected safetensors"),
    Case("adapter's pickle", adapted, "names a file of weights of its own .'adapter_model.bin'."),
    Case("array of objects", objects, "a.train in corpus is not UTF-8 text"),
    Case("code of a config", AS_CONFIG, CODE),
    Case("code of a model type", own_code("config.json", "AutoConfig", model_type="evil"), CODE),
    Case("code of a tokenizer", AS_TOKENIZER, CODE),
    Case("code deep in a config", nested_code, CODE),
    Case("kernel", kernel, "asks for a kernel of the hub, which is code ._attn_implementation"),
    Case("teacher's code", teacher(AS_CONFIG), CODE, PREPARED),
    Case("teacher's tokenizer", teacher(AS_TOKENIZER), CODE, PREPARED),
    Case("teacher's pickle", teacher(pickled("pytorch_model.bin")), "has no model.safetensors; wmlkit loads", PREPARED),
    Case("teacher's index", teacher(indexed), "has no model.safetensors; wmlkit loads weights from such a", PREPARED),
    Case("corpus' tokenizer", data_tokenizer(AS_TOKENIZER), CODE),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_code_of_a_file_runs(
    case: Case, tmp_path: Path, trained_out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    box = Box(tmp_path, trained_out, monkeypatch)
    check(case, box, capsys)
    assert not mark(box).exists()


def test_the_marks_would_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pickles and the module of these tests do leave their mark where something runs them."""
    box = Box(tmp_path, tmp_path, monkeypatch)
    for load in (pickle.loads, lambda data: torch.load(io.BytesIO(data), weights_only=False)):
        buffer = io.BytesIO()
        torch.save(Evil(mark(box)), buffer) if load is not pickle.loads else pickle.dump(Evil(mark(box)), buffer)
        load(buffer.getvalue())
        assert mark(box).exists()
        mark(box).unlink()
    array = io.BytesIO()
    np.save(array, np.array([Evil(mark(box))], dtype=object))
    array.seek(0)
    np.load(array, allow_pickle=True)
    assert mark(box).exists()
    mark(box).unlink()
    module(box, tmp_path)
    exec((tmp_path / "evil.py").read_text(), {})
    assert mark(box).exists()


# what this package never calls


def calls() -> Iterator[tuple[str, ast.AST]]:
    """Every node of the package's and the notebooks' code, with where it is."""
    for file in sorted(paths.PACKAGE.rglob("*.py")):
        yield from (
            (f"{file.name}:{node.lineno}", node) for node in ast.walk(ast.parse(file.read_text())) if placed(node)
        )
    for file in sorted(paths.notebooks().glob("*.ipynb")):
        for cell in nbformat.read(file, as_version=4).cells:
            if cell.cell_type == "code":
                yield from ((file.name, node) for node in ast.walk(ast.parse(cell.source)) if placed(node))


def placed(node: ast.AST) -> bool:
    return isinstance(node, (ast.Call, ast.Import, ast.ImportFrom))


PICKLES = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "yaml"}


def unsafe(node: ast.AST) -> str:
    """What is wrong with a call or an import; empty if nothing is."""
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        return next((name for name in names if name.split(".")[0] in PICKLES), "")
    assert isinstance(node, ast.Call)
    name = ast.unparse(node.func)
    given = {one.arg: ast.unparse(one.value) for one in node.keywords}
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "torch.load", "pd.read_pickle"):
        return name
    switches = {"shell": "False", "allow_pickle": "False", "trust_remote_code": "False", "weights_only": "True"}
    for switch, safe in switches.items():
        if given.get(switch, safe) != safe:
            return f"{name} with {switch}={given[switch]}"
    loads_folder = name.endswith(".from_pretrained")
    return f"{name} without trust_remote_code=False" if loads_folder and "trust_remote_code" not in given else ""


def test_nothing_here_can_run_what_a_file_says() -> None:
    assert [(place, fault) for place, node in calls() if (fault := unsafe(node))] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "eval(text)", "exec(text)", "torch.load(path)", "os.system(line)",
        "np.load(path, allow_pickle=True)", "subprocess.run(line, shell=True)", "yaml.load(text)\nimport yaml",
        "AutoModel.from_pretrained(name, trust_remote_code=True)", "AutoModel.from_pretrained(name)",
        "AutoModel.from_pretrained(name, trust_remote_code=trust)",
    ],
)  # fmt: skip
def test_the_search_for_unsafe_calls_finds_them(source: str) -> None:
    assert any(unsafe(node) for node in ast.walk(ast.parse(source)) if placed(node))


# archives: what test_fetch.py does not have


def make_tar(path: Path, **changes: Any) -> None:
    with tarfile.open(path, "w") as archive:
        member = tarfile.TarInfo("a")
        for name, value in changes.items():
            setattr(member, name, value)
        archive.addfile(member)


def make_zip(path: Path, *names: str, content: bytes = b"x") -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, content)


ARCHIVES: list[tuple[str, Callable[[Path], Any], str]] = [
    ("root.tar", lambda path: make_tar(path, name="/evil"), "points elsewhere"),
    ("far.tar", lambda path: make_tar(path, name="a/b/../../../evil"), "points elsewhere"),
    ("windows.tar", lambda path: make_tar(path, name="..\\evil"), "points elsewhere"),
    ("block.tar", lambda path: make_tar(path, type=tarfile.BLKTYPE, devmajor=8), "a link or device; expected plain"),
    ("character.tar", lambda path: make_tar(path, type=tarfile.CHRTYPE, devmajor=1), "a link or device"),
    ("backslash.zip", lambda path: make_zip(path, "..\\evil"), "points elsewhere"),
    ("many.zip", lambda path: make_zip(path, *map(str, range(60))), "holds more than 50 entries; expected fewer"),
    ("total.zip", lambda path: make_zip(path, "a", "b", "c", content=os.urandom(40_000)), "unpacks to over 100000"),
]


@pytest.mark.parametrize(("name", "make", "message"), ARCHIVES, ids=[row[0] for row in ARCHIVES])
def test_archives_that_lead_out_or_grow_are_refused(
    tmp_path: Path, name: str, make: Callable[[Path], Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "MOST_ENTRIES", 50)
    monkeypatch.setattr(archives, "LARGEST_TOTAL", 100_000)
    make(tmp_path / name)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=message):
        archives.unpack(tmp_path / name, tmp_path / "target" / "corpus", lambda inner: inner)
    outside = {file for file in contents(tmp_path) if not file.startswith("target/corpus/")}
    assert outside == before.keys()


def test_a_domain_of_ewok_cannot_name_a_file_elsewhere(tmp_path: Path) -> None:
    row = {key: "A cat." for key in ("Context1", "Context2", "Target1", "Target2")}
    for domain in ("../evil", "a/../../evil"):  # neither from its beginning on nor further back
        (tmp_path / "ewok.jsonl").write_text(json.dumps(row | {"Domain": domain}))
        with pytest.raises(UserError, match=f"has '{domain}' as Domain; expected a plain name"):
            write_ewok(tmp_path / "ewok.jsonl", tmp_path / "set")
    assert contents(tmp_path).keys() == {"ewok.jsonl"}


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_experts_implementation"])
def test_no_kernel_of_the_hub_is_asked_for_under_any_name(tmp_path: Path, key: str) -> None:
    for value, refused in (("somebody/kernel", True), ("eager", False)):
        path = paths.write_json(tmp_path / "config.json", {"text_config": {key: value}})
        if refused:
            with pytest.raises(UserError, match=f"asks for a kernel of the hub, which is code .{key} 'somebody/ker"):
                read_settings(path)
        else:
            assert read_settings(path) == {"text_config": {key: value}}


def test_settings_may_hold_an_infinity(tmp_path: Path) -> None:
    paths.write_text(tmp_path / "config.json", '{"time_step_limit": [0.0, Infinity]}')
    assert read_settings(tmp_path / "config.json") == {"time_step_limit": [0.0, float("inf")]}


@pytest.mark.parametrize("name", ["../x.safetensors", "more/x.safetensors", "x.safetensors"])
def test_parts_of_the_weights_lie_in_the_model_s_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    paths.write_json(folder / "config.json", {})
    paths.write_json(folder / INDEX, {"weight_map": {"weight": name}})
    paths.write_text(folder / name, "there")
    if "/" in name:
        with pytest.raises(UserError, match=f"names the file '{name}'; expected safetensors files that lie in that"):
            check_model(folder)
    else:
        check_model(folder)
