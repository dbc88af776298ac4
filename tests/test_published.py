"""What is published shows text as text, loads nothing from elsewhere, and holds no secret of the machine."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_runs import write_study
from mistakes import ARM, contents, edit, run_cli, settings

from wmlkit import environment, paths
from wmlkit.config import load_preset
from wmlkit.errors import UserError
from wmlkit.redact import check_settings, redacted
from wmlkit.report import write_report

# pages


class Loads(HTMLParser):
    """What a page would load or run, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.found: list[str] = []
        self.events: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action", "formaction", "background", "ping"):
                self.found.append(str(value))
            if name == "href" and tag != "a":
                self.found.append(str(value))
            if name.startswith("on"):
                self.events.append(name)

    def handle_data(self, data: str) -> None:
        self.text += data


EVIL = """<script src="https://evil.example/x.js"></script><img src=x onerror=alert(1)>" onload="alert(2)' </style>&"""


@pytest.fixture(scope="module")
def evil_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a run in which every name is markup."""
    folder = write_study(tmp_path_factory.mktemp("evil") / "nursery", (("wml", 2),), (0,), ("babylm2025",))
    run = next(folder.glob("wml-*"))
    facts = dict.fromkeys(("device", "command", "commit", "precision", "device_reason"), EVIL)
    edit(run / "environment.json", lambda document: document | facts)
    edit(run / "config.json", lambda document: document | {"data": {**document["data"], "name": EVIL}})
    edit(run / "config.json", lambda d: d | {"config": d["config"] | {"data": d["config"]["data"] | {"corpus": EVIL}}})

    def named(document: dict[str, Any]) -> dict[str, Any]:
        rows = [row for member in document["members"] for row in member["paradigms"]]
        for number, row in enumerate(rows):
            row.update(paradigm=f"{EVIL}{number % 13}", phenomenon=f"{EVIL}{number % 12}", field=EVIL)
        return document

    edit(run / "evaluation" / "nursery-babylm2025.json", named)
    (folder / "tables").mkdir()
    quoted = '"' + EVIL.replace('"', '""') + '"'
    (folder / "tables" / "T9.csv").write_text(f"case,{quoted}\n{quoted},1\n")
    note = dict.fromkeys(("command", "commit", "device", "created_by"), EVIL) | {"seeds": [EVIL]}
    paths.write_json(folder / "tables" / "provenance.json", {"T9": note})
    for name in ("F1", "F2", "F3", "F4", "F6"):  # there already, so not drawn
        paths.write_text(folder / "figures" / f"{name}.png", "")
    paths.write_text(folder / "figures" / "F2.svg", f'<svg width="9pt"><desc>{EVIL}</desc></svg>')
    return write_report(folder, command=EVIL).read_text(encoding="utf-8")


def test_no_text_of_a_run_becomes_markup(evil_page: str) -> None:
    page = Loads(evil_page)
    assert page.events == [] and page.tags.count("script") == 1 and "evil.example" in page.text
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.found), page.found
    assert page.text.count(EVIL) >= 8  # shown as it stands


def test_a_browser_is_told_to_load_nothing_and_to_run_one_script(evil_page: str) -> None:
    (policy,) = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]+)">', evil_page)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    script = evil_page.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert rules["script-src"] == f"'sha256-{digest}'"  # of the page's own script, and no other
    assert evil_page.index("Content-Security-Policy") < evil_page.index("<style>")


def test_no_page_here_fetches_from_elsewhere() -> None:
    """Neither the report's parts nor the widgets name anything outside."""
    loads = re.compile(r"""(?:src|srcset|href|data)\s*=\s*\\?["']?\s*(?:https?:)?//|@import|url\(|\bfetch\([\"'`]|
                           XMLHttpRequest|WebSocket|importScripts|\brequire\(\[""", re.VERBOSE)  # fmt: skip
    files = [*paths.PACKAGE.rglob("*.py"), *paths.PACKAGE.rglob("*.css"), *paths.notebooks().glob("*.ipynb")]
    found = {file.name: loads.findall(file.read_text(encoding="utf-8")) for file in files}
    assert {name: hits for name, hits in found.items() if hits} == {}


# secrets

SECRETS = {
    "HF_TOKEN": "marker-of-the-hub-token", "WANDB_API_KEY": "marker0of0the0wandb0key",
    "AWS_SECRET_ACCESS_KEY": "marker/of+the/aws+key", "MY_PASSWORD": "marker of a password",
}  # fmt: skip


def test_no_secret_of_the_environment_gets_into_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A whole run with its evaluation, report and export; the commands themselves name a folder after a secret."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    out = tmp_path / SECRETS["HF_TOKEN"]  # an argument with a secret in it
    monkeypatch.chdir(tmp_path)
    assert run_cli(["train", *ARM, *settings(), "--out", str(out)], monkeypatch) == 0
    run = Path(capsys.readouterr().out.strip())
    assert run_cli(["evaluate", str(run), "--per-paradigm", "2", "--out", str(out)], monkeypatch) == 0
    for name in ("F1", "F2", "F3", "F4", "F6"):  # there already, so not drawn
        paths.write_text(run.parent / "figures" / f"{name}.png", "")
    write_report(run.parent, command=environment.command())
    assert run_cli(["export", str(run), "--to", str(tmp_path / "model")], monkeypatch) == 0
    files = contents(tmp_path)
    assert len(files) > 30 and "***" in paths.read_json(run / "environment.json")["command"]
    for secret in SECRETS.values():
        assert [name for name, content in files.items() if secret.encode() in content] == []
        assert [name for name, content in files.items() if base64.b64encode(secret.encode()) in content] == []


@pytest.mark.parametrize("secret", [*SECRETS.values(), "hf_" + "aB3" * 11, "ghp_" + "x1" * 18])
def test_a_setting_with_a_secret_is_refused_and_not_repeated(
    tmp_path: Path, secret: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    for key in ("track.project", "train.steps"):  # one that takes text, one that does not
        assert run_cli(["train", "--preset", "smoke", "--set", f"{key}={secret}"], monkeypatch) == 2
        said = capsys.readouterr().err
        assert said.startswith("wmlkit: config key ") and secret not in said
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wmlkit train --out hf_" + "a" * 34 + "/x", "wmlkit train --out ***/x"),
        ("https://me:secret@host/x", "https://***@host/x"),
        ("AKIA" + "A1" * 8, "***"),
        ("task-of-a-long-name-without-secrets", "task-of-a-long-name-without-secrets"),
        ("hf_short runs/nursery https://host/x@y", "hf_short runs/nursery https://host/x@y"),
    ],
)
def test_redacted(text: str, expected: str) -> None:
    assert redacted(text) == expected


def test_a_variable_that_says_where_a_secret_lies_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_FOLDER", str(tmp_path))
    monkeypatch.setenv("SHORT_TOKEN", "train")
    monkeypatch.setattr(sys, "argv", ["wmlkit", "train", "--out", str(tmp_path)])
    assert environment.command() == f"wmlkit train --out {tmp_path.name}"
    assert load_preset("smoke", {"data.corpus": str(tmp_path)}).data.corpus == str(tmp_path)


@pytest.mark.parametrize("secret", ['marker"quoted', "marker\\slashed", "marker plain"])
def test_a_secret_is_refused_in_a_setting_as_it_stands(secret: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON would write a quotation mark and a backslash otherwise."""
    monkeypatch.setenv("MY_PASSWORD", secret)
    for value in (secret, ["x", secret], {"x": f"a {secret}."}):
        with pytest.raises(UserError, match="'track.project' holds what looks like an access token"):
            check_settings({"preset": "smoke", "track": {"project": value, "mode": "offline"}})
    check_settings({"preset": "smoke", "track": {"project": secret[:-1]}})


@pytest.mark.parametrize(
    ("variables", "text", "expected"),
    [
        ({"A_TOKEN": "marker-one", "B_TOKEN": "marker-one-and-more"}, "x marker-one-and-more marker-one", "x *** ***"),
        ({"AWS_SECRET_ACCESS_KEY": "/marker+of/a+key"}, "--key /marker+of/a+key", "--key ***"),
        ({"my_token": "marker78"}, "marker78", "***"),
        ({"MY_TOKEN": "marker7"}, "marker7", "marker7"),
        ({"MAX_TOKENS": "10000000"}, "words: 10000000", "words: 10000000"),
        ({"API_TOKENS": "marker10000000"}, "marker10000000", "***"),
        ({"MY_PASSWORD": "10000000"}, "10000000", "***"),
        ({}, "https://:marker@host/x", "https://***@host/x"),
    ],
    ids=[
        "part of another",
        "like a path",
        "eight characters",
        "seven characters",
        "a count",
        "no count",
        "digits",
        "no user",
    ],
)
def test_secrets_of_any_form_are_redacted(
    variables: dict[str, str], text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert redacted(text) == expected
