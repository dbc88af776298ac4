"""One cleaning function a domain: lines in, cleaned lines out, as a stream.

Every function here only *deletes*: markup, annotation, speaker tags, text that is not language, and of an HTML entity
all but the character that it stands for. It keeps capitals, accents, punctuation and word forms as they are, since the
tokenizer and the test sets know them.
An empty line in the output separates two documents; a change of speaker does not. What was removed, and why,
is counted in the Counter that the caller may pass in.

Because a rule can expose what another one looks for, a line is cleaned until nothing changes any more. Rules only
shorten, so this ends, and cleaning text twice is the same as cleaning it once.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from html.entities import name2codepoint

# Raise it whenever any output changes: prepared corpora made by older rules are then made again.
RULES_VERSION = 2

INDENTATION, WHITE_SPACE = "indentation", "white space inside a line"  # reasons that `plain` counts

Removed = Counter[str]
Cleaner = Callable[..., Iterator[str]]  # (lines, removed=None) -> cleaned lines
# Cuts a line into pieces; None stands for a document boundary.
Splitter = Callable[[str, Removed], list[str | None]]
Kept = str | Callable[[re.Match[str]], str]
Rule = tuple[str, re.Pattern[str], Kept]  # reason, what to delete, what to keep of it ("", " ", a group, a character)


def _rule(reason: str, pattern: str, keep: Kept = "") -> Rule:
    return reason, re.compile(pattern), keep


# A bracket between two words leaves a space; before punctuation or the end of the line it leaves nothing.
def _brackets(reason: str, opening: str, closing: str, begins: str = "") -> tuple[Rule, Rule]:
    inside = rf"\{opening}{begins}[^\{opening}\{closing}]*\{closing}"
    return _rule(reason, rf"\s*{inside}(?=[\s.,?!;:]|$)"), _rule(reason, inside, " ")


_REPLACEMENT_CHARACTER = _rule("broken character", "\ufffd+")
_SPACE_BEFORE_PUNCTUATION = _rule("space before punctuation", r"\s+(?=[.,?!](?:\s|$))")
LONGEST_TITLE = 12  # words; longer pieces between heading marks are text
_RECORDING = re.compile(r"\S+\.cha")
_BOOK_NUMBER = re.compile(r"PG\d+")
_STRAY_STOP = _rule("stray full stop", r"(?<=[.?!])\s+\.(?=\s|$)")  # "is it? ." after a name that was removed
# Angle brackets are what is left of tags. A space takes the place of one that does not break, as elsewhere.
_ENTITIES = (
    _rule("entity", r"&(?:lt|gt|#0*60|#0*62|#[xX]0*3[cCeE]);"),
    _rule(
        "entity",
        rf"&(?:#\d{{1,7}}|#[xX][0-9a-fA-F]{{1,6}}|apos|{'|'.join(sorted(name2codepoint))});",
        lambda entity: html.unescape(entity[0]),
    ),
)
_HEADING = re.compile(r"(?:^|(?<=\s))=(?:\s=)+(?=\s|$)")  # "= = =", also in the middle of a line

_CHILDES = (
    _rule("code", r"%[a-z]{3}:[^%\[*]*", " "),  # %add: MOT, %int: singing
    *_brackets("annotation", "[", "]"),  # [turns the page]
    _rule("annotation", r"\s*\[[^\[\]]*$"),  # opened on this line, closed on a lost one
    _rule("annotation", r"^[^\[\]]*\]"),  # and the other half
    _rule("unintelligible", r"\s*\b(?:xxx|yyy|www)\b(?=[\s.,?!;:]|$)"),
    _rule("part of a word in brackets", r"\(([\w']+)\)", r"\1"),  # (I')m -> I'm
    _rule("overlap mark", "[⌈⌉⌊⌋↫⟨⟩‹›„‡]"),
    _rule("lone code", r"^(?:[A-Z]{3}\d?)$"),  # INV
    _SPACE_BEFORE_PUNCTUATION,
    _REPLACEMENT_CHARACTER,
)
_SPEAKER = re.compile(r"(?:^|(?<=\s))\*[A-Za-z0-9]{1,7}:")

_SWITCHBOARD = (
    _rule("speaker tag", r"^[AB]:(?:\s+|$)"),
    # "*typo", "* see note above". Where a note ends is not marked: of 77 in the text of 2024 about a dozen have speech
    # behind them, which goes too.
    _rule("annotator's note", r"\s*\*.*$"),
    _SPACE_BEFORE_PUNCTUATION,
    _REPLACEMENT_CHARACTER,
)

_BNC = (_STRAY_STOP, _SPACE_BEFORE_PUNCTUATION, _REPLACEMENT_CHARACTER)  # the gaps are names that were taken out

_SUBTITLES = (
    _rule(
        "credit",
        r"(?i)^.*(?:\bsubtitles? (?:by|created|ripped|downloaded)|\bsubtitles?:|opensubtitles|www\.|https?://"
        r"|\bsync(?:ed|hronized)?\b.{0,20}\bcorrect).*$",
    ),
    _rule("tag", r"<\s?/?\s?[ibu]\s?>|</?[A-Za-z][^<>]{0,60}>"),  # <i>, < i >, <font color=...>
    *_brackets("sound", "[", "]"),  # [ music ]
    *_brackets("sound", "(", ")"),  # (SIGHS)
    *_brackets("styling", "{", "}"),  # {\an8}
    _rule("music sign", "[♪♫♬¶]+"),
    _rule("music sign", r"(?:^|(?<=\s))[#*]+(?=\s|$)"),
    _rule("asterisk", r"\*+"),
    # A dash marks a new speaker; "--" is a break in the speech and stays.
    _rule("speaker dash", r"^\s*[-–—~](?![-–—~])\s*"),
    _rule("speaker dash", r"""(?<=[.?!"'])\s+[-–~](?![-–~])(?=\s)"""),
    _rule("speaker name", r"(?:^|(?<=[.?!\])]\s))[A-Z][A-Z.'#0-9 ]{1,24}:(?=\s|$)"),  # NARRATOR: His findings
    _rule("speaker name", r"^:\s*"),  # what "[BILLY]:" leaves
    _STRAY_STOP,
    _SPACE_BEFORE_PUNCTUATION,
    _REPLACEMENT_CHARACTER,
)

_INSERTS = r"(?:Illustration|Frontispiece|Cover Illustration|Footnote|Transcriber|Sidenote)\b"
_GUTENBERG = (
    _rule("licence text", r"(?i)(?:\*\*\*\s*)?\b(?:end|start) of (?:the |this )?project gutenberg.*$"),
    _rule("credit", r"^(?:Produced by|E-text prepared by|Transcribed (?:by|from)) .*$"),
    *_brackets("illustration", "[", "]", _INSERTS),
    _rule("illustration", rf"\s*\[{_INSERTS}[^\[\]]*$"),  # closed on a later line
    _rule("footnote mark", r"\[(?:\d{1,3}|[A-Z]|\*+)\]"),
    _rule("italics", "_+"),
    _rule("asterisks", r"\*+"),  # * * * between scenes, *CHAPTER I*
    _rule("bold", r"=([^=\s](?:[^=]*[^=\s])?)=", r"\1"),
    _rule("ruled line", r"(?<!\w)[-=~]{4,}|\.{6,}"),
    _REPLACEMENT_CHARACTER,
)

_WIKI = (
    # &lt;ref name="x"/&gt;. Both limits are for lines without end or spaces: the time would grow with their square, and
    # where a script sets no spaces one bar would take the paragraph with it.
    _rule("tag", r"&lt;/?[a-z]+\b(?:(?!&gt;).){0,1000}&gt;"),
    *_ENTITIES,
    _rule("address", r"\bhttps?://\S+"),
    _rule("table cell", r"\S{0,80}\|\S{0,80}"),
    _rule("empty brackets", r"\s*\([\s,;:/]*\)"),  # what templates leave behind: "Siddur () is"
    _rule("empty brackets", r"(?<=\()[\s,;:]+"),  # "(; born 1970)"
    _rule("template", r"\{\{|\}\}|\[\[|\]\]"),
    _SPACE_BEFORE_PUNCTUATION,
    _REPLACEMENT_CHARACTER,
)

_CBT = (
    _rule("annotation", r"-L([SC])B-(?:(?!-[LR][RSC]B-).)*-R\1B-"),  # -LSB- 1 -RSB-, -LCB- picture -RCB-
    _rule("bracket code", r"-[LR][RSC]B-"),  # -LRB- text -RRB-: the text stays
    _rule("quotation code", r"``|''"),
    _SPACE_BEFORE_PUNCTUATION,
    _REPLACEMENT_CHARACTER,
)
_BOOK_TITLE = re.compile(r"^\s*_BOOK_TITLE_\b.*$")

_QED = (
    *_ENTITIES,
    *(rule for rule in _SUBTITLES if rule[0] != "asterisk"),
)


def childes(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """CHILDES of 2024: drops ``*MOT:`` tags, ``[...]`` annotation, ``%add:`` codes, ``xxx``, lone codes (``INV``).

    Two utterances on one line become two lines. ``= = = childes/.../010900b.cha = = =`` starts a recording,
    hence a document.
    """
    return _stream(lines, removed, _CHILDES, _split_utterances)


def switchboard(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """Switchboard: drops ``A:<tab>`` and ``B:<tab>`` and annotators' notes (``*typo``)."""
    return _stream(lines, removed, _SWITCHBOARD)


def bnc_spoken(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """BNC, spoken part: plain text; only the space that a removed name left before punctuation goes."""
    return _stream(lines, removed, _BNC)


def open_subtitles(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """OpenSubtitles: drops speakers' dashes and names in capitals, ``[ music ]``, ``(SIGHS)``, tags, credits.

    Letters confused in scanning (I and l) are left alone: deleting cannot mend them.
    """
    return _stream(lines, removed, _SUBTITLES)


def gutenberg(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """Project Gutenberg: drops ``_italics_`` marks, ``[Illustration: ...]``, footnote marks, ``* * *``, licence lines.

    ``= = = PG18681 = = =`` starts a book, hence a document.
    """
    return _stream(lines, removed, _GUTENBERG, _split_books)


def simple_wiki(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """Wikipedia and Simple Wikipedia: ``= = = Title = = =`` starts a document whose first line is the title.

    Drops the heading marks, empty brackets of templates, table cells, escaped tags and addresses.
    """
    return _stream(lines, removed, _WIKI, _split_articles)


def cbt(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """Children's Book Test (2023): drops bracket and quotation codes; ``_BOOK_TITLE_ : ...`` starts a document."""
    return _stream(lines, removed, _CBT, _split_book_titles)


def qed(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """QED (2023): subtitles of lectures, handled as `open_subtitles`, and HTML entities."""
    return _stream(lines, removed, _QED)


def plain(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """Any other text: runs of white space become one space, blank lines separate documents, all else stays."""
    return _stream(lines, removed, (), drop_wordless=False)


def untouched(lines: Iterable[str], removed: Removed | None = None) -> Iterator[str]:
    """No cleaning: every line as it stands; lines of white space alone separate documents."""
    return _collapse_blank(line if line.strip() else "" for line in lines)


# The domains of BabyLM 2023 and 2024 by file name; every other file name is `plain`.
CLEANERS: dict[str, Cleaner] = {
    "aochildes": childes,  # child-directed lines without tags
    "bnc_spoken": bnc_spoken,
    "cbt": cbt,
    "children_stories": gutenberg,  # plain prose
    "childes": childes,
    "gutenberg": gutenberg,
    "open_subtitles": open_subtitles,
    "qed": qed,
    "simple_wiki": simple_wiki,
    "simple_wikipedia": simple_wiki,
    "switchboard": switchboard,
    "wikipedia": simple_wiki,
}


def cleaner(domain: str) -> Cleaner:
    """The cleaning function of a domain, `plain` for a domain that is not BabyLM's."""
    return CLEANERS.get(domain, plain)


def _stream(
    lines: Iterable[str],
    removed: Removed | None,
    rules: tuple[Rule, ...],
    split: Splitter | None = None,
    drop_wordless: bool = True,
) -> Iterator[str]:
    counts: Removed = Counter() if removed is None else removed
    return _collapse_blank(_cleaned(lines, counts, rules, split, drop_wordless))


def _cleaned(
    lines: Iterable[str], removed: Removed, rules: tuple[Rule, ...], split: Splitter | None, drop_wordless: bool
) -> Iterator[str]:
    for raw in lines:
        line = " ".join(raw.split())
        if not line:
            yield ""  # a blank line in the source
            continue
        # Counted for text in no known format alone: in the formats white space sets off tags and columns.
        if not rules and len(line) != len(raw.rstrip()):
            removed[INDENTATION if raw[0].isspace() else WHITE_SPACE] += 1
        for piece in _settled(line, removed, rules, split):
            if piece is None:
                yield ""
            elif any(map(str.isalnum, piece)) or (piece and not drop_wordless):
                yield piece
            else:
                removed["line without words"] += 1


def _settled(line: str, removed: Removed, rules: tuple[Rule, ...], split: Splitter | None) -> list[str | None]:
    """`line` cut and cleaned until nothing changes; None stands for a document boundary."""
    pieces: list[str | None] = [line]
    while True:
        result: list[str | None] = []
        for piece in pieces:
            if piece is None:
                result.append(None)
                continue
            for part in split(piece, removed) if split else [piece]:
                result.append(None if part is None else _applied(part, removed, rules))
        if result == pieces:
            return result
        pieces = result


def _applied(text: str, removed: Removed, rules: tuple[Rule, ...]) -> str:
    for reason, pattern, keep in rules:
        text, count = pattern.subn(keep, text)
        if count:
            removed[reason] += count
    return " ".join(text.split())


def _collapse_blank(lines: Iterable[str]) -> Iterator[str]:
    """Runs of empty lines become one; none at the start or the end."""
    started = False
    pending = False
    for line in lines:
        if not line:
            pending = started
            continue
        if pending:
            yield ""
        pending = False
        started = True
        yield line


def _split_utterances(line: str, removed: Removed) -> list[str | None]:
    parts: list[str | None] = []
    for piece in _cut_at_headings(line, _RECORDING, removed):
        if piece is None:
            parts.append(None)
            continue
        utterances = _SPEAKER.split(piece)
        if len(utterances) > 1:
            removed["speaker tag"] += len(utterances) - 1
        parts.extend(utterance for utterance in utterances if utterance.strip())
    return parts


def _split_books(line: str, removed: Removed) -> list[str | None]:
    return _cut_at_headings(line, _BOOK_NUMBER, removed)


def _cut_at_headings(line: str, file_name: re.Pattern[str], removed: Removed) -> list[str | None]:
    """Cut at ``= = =``; what matches `file_name` between two cuts is dropped and marks a boundary."""
    if not _HEADING.search(line):
        return [line]
    parts: list[str | None] = []
    for piece in _HEADING.split(line):
        if file_name.fullmatch(piece.strip()):
            removed["file name"] += 1
            parts.append(None)
        elif piece.strip():
            parts.append(piece)
    return parts


def _split_articles(line: str, removed: Removed) -> list[str | None]:
    if not _HEADING.search(line):
        return [line]
    removed["heading mark"] += 1
    pieces = [piece.strip() for piece in _HEADING.split(line) if piece.strip()]
    if len(pieces) == 1 and len(_HEADING.findall(line)) > 1:
        return [None, pieces[0]]
    # Where line breaks were lost, a mark may stand between a title and its text: only a title opens a document.
    parts: list[str | None] = []
    for piece in pieces:
        if len(piece.split()) <= LONGEST_TITLE and piece[-1] not in ".!?":
            parts.append(None)
        parts.append(piece)
    return parts


def _split_book_titles(line: str, removed: Removed) -> list[str | None]:
    if _BOOK_TITLE.match(line):
        removed["file name"] += 1
        return [None]
    return [line]
