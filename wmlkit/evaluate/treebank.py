"""Words as the Penn Treebank splits English text, and NLTK's word tokenizer of 2024: what EWoK's filter looks up."""

from __future__ import annotations

import re

_OPENING = re.compile(r"""^"|(?<=[\s(\[{<])(?:"|'')""")  # double quotes; all others close
# A period with nothing but a closing mark or quote between it and the next space or the end
_PERIOD = re.compile(r"""(\S*[^\s.])\.(?=[\])}>'»”’]*(?:\s|$))""")
# Tokens wherever they stand. A comma or colon before a digit is part of a number or a time; a single quote stays with
# what follows it, unless that is a word of one letter and no clitic.
_MARK = re.compile(r"""\.{2,}|--|``|''|[,:](?!\d)|[;?!@#$%&*()\[\]{}<>`«»“”„‘’]|'(?=[^\Wmtsdn]\b)""")
_CLITIC = re.compile(r"(.*[^'])(n't|'(?:s|m|d|ll|re|ve)?)")
_JOINED = {
    "cannot": ("can", "not"), "gimme": ("gim", "me"), "gonna": ("gon", "na"), "gotta": ("got", "ta"),
    "lemme": ("lem", "me"), "wanna": ("wan", "na"), "d'ye": ("d", "'ye"), "more'n": ("more", "'n"),
    "'tis": ("'t", "is"), "'twas": ("'t", "was"),
}  # fmt: skip
# Words with a period of their own: numbers, "j.", "u.s.", and abbreviations. NLTK's list is learned; these are common.
_OWN_PERIOD = re.compile(
    r"-?[.,]?\d[\d,.-]*|(?:[^\W\d_]\.)*[^\W\d_]"
    "|mr|mrs|ms|messrs|dr|prof|rev|st|jr|sr|gen|sen|rep|gov|lt|col|capt|sgt|co|corp|inc|ltd|bros|vs|etc"
    "|jan|feb|aug|sept|oct|nov|dec"
)


def treebank_words(text: str) -> list[str]:
    """Lower-case words, clitics ("n't", "'s") and punctuation marks of English text, in order.

    Double quotes become `` where they open and '' where they close. A period that ends a sentence is a token. That of
    an abbreviation, a number or an initial is taken for such an end at the end of the text only: in lower case nothing
    else tells.
    """
    text = _OPENING.sub("``", text.strip().lower()).replace('"', "''")
    text = _MARK.sub(r" \g<0> ", _PERIOD.sub(_ended, text))
    return [word for chunk in text.split() for word in _parts(chunk)]


def _ended(found: re.Match[str]) -> str:
    word = re.split(r"[(\[{'`“‘«]", found[1])[-1]
    at_end = found.end() == len(found.string.rstrip(" ])}>'»”’"))
    return found[0] if _OWN_PERIOD.fullmatch(word) and not at_end else f"{found[1]} . "


def _parts(chunk: str) -> tuple[str, ...]:
    found = _CLITIC.fullmatch(chunk)
    return _JOINED.get(chunk) or (found.groups() if found else (chunk,))
