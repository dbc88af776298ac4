"""Access tokens have no place in a run folder, whose files are published: they are recognised and left out."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from .errors import UserError

MASK = "***"
_NAME = re.compile(r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|CREDENTIAL", re.IGNORECASE)
_COUNT = re.compile(r"TOKENS\Z", re.IGNORECASE)  # MAX_TOKENS=10000000 is a number of them
_HALF = re.compile("[\ud800-\udfff]")  # of a character, as a command line that is not UTF-8 has it
_SHORTEST = 8  # characters of a variable's value; a shorter one is no secret, and could be part of any word
_SHAPES = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-)[A-Za-z0-9_-]{20,}"  # Hugging Face, GitHub, GitLab, OpenAI and others
    r"|\bAKIA[0-9A-Z]{16}\b"  # Amazon
    r"|(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"  # user:password@ of an address
)


def redacted(text: str) -> str:
    """`text` with ``***`` for whatever looks like an access token, or is the value of a variable of the environment
    whose name says that it is one (HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY, ...)."""
    named = [
        value
        for name, value in os.environ.items()
        if _NAME.search(name) and len(value) >= _SHORTEST and not (_COUNT.search(name) and value.isdecimal())
    ]
    # A variable may say where the secret lies.
    secrets = [value for value in named if not (os.path.isabs(value) and os.path.exists(value))]
    for secret in sorted(secrets, key=len, reverse=True):  # one may be part of another
        text = text.replace(secret, MASK)
    return _SHAPES.sub(MASK, text)


def check_settings(document: Mapping[str, Any]) -> None:
    """Settings, by section and name, are written into run folders: all must be text that can be written, and no token.

    Raises UserError naming the key.
    """
    for section, values in document.items():
        for name, value in values.items() if isinstance(values, Mapping) else [("", values)]:
            text = "\n".join(_texts(value))
            key = f"{section}.{name}".rstrip(".")
            if _HALF.search(text):
                raise UserError(f"config key '{key}' is {value!r}, which is not Unicode text; change it")
            if redacted(text) != text:
                raise UserError(
                    f"config key '{key}' holds what looks like an access token; settings are written into "
                    "run folders, which are published: give tokens as environment variables, such as HF_TOKEN"
                )


def _texts(value: Any) -> Iterator[str]:
    """All that a value holds, as it stands: JSON would write a quotation mark in it otherwise."""
    if isinstance(value, Mapping):
        for part in value.items():
            yield from _texts(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _texts(part)
    else:
        yield str(value)
