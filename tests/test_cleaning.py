from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wmlkit.data import cleaning

SHARED = Path(__file__).parents[2] / "shared" / "data" / "babylm2024" / "dev"

# Lines written for these tests in the formats of the domains, and what must come out.
CASES: dict[str, list[tuple[str, list[str]]]] = {
    "childes": [
        ("*MOT:\twhere is the Ball?", ["where is the Ball?"]),
        ("*CHI: xxx ball.", ["ball."]),
        ("*CHI: xxx .", []),
        ("INV", []),
        ("*MOT: you want it? [turns the page]", ["you want it?"]),
        ("*MOT: the blue [INV] ?[points] one", ["the blue? one"]),
        ("*MOT: I go[b]home", ["I go home"]),
        ("*MOT: yes. %add: BRO and SIS [faint]", ["yes."]),
        ("*MOT: hey! *CHI: no. *PAR1: oh.", ["hey!", "no.", "oh."]),
        ("*MOT: (I')m sure you didn('t).", ["I'm sure you didn't."]),
        ("*MOT: hi. = = = childes/CHILDES_NA/X/010900b.cha = = = [breakfast]", ["hi."]),
        ("*MOT: put it [on the", ["put it"]),
        ("the table] there", ["there"]),
    ],
    "switchboard": [
        ("A:\tUh-huh.", ["Uh-huh."]),
        ("B:\tI like their car *typo: they're", ["I like their car"]),
        ("A B C is a channel", ["A B C is a channel"]),
    ],
    "open_subtitles": [
        ("- Hello there.", ["Hello there."]),
        ("-No.", ["No."]),
        ("- What? - Nothing, Tom.", ["What? Nothing, Tom."]),
        ("I was-- well, there.", ["I was-- well, there."]),
        ("-- or not", ["-- or not"]),
        ("[ music ] <i>Run!</i>", ["Run!"]),
        ("(SIGHS) l don't know.", ["l don't know."]),
        ("{\\an8}Up here", ["Up here"]),
        ("♪ la la ♪", ["la la"]),
        ("NARRATOR: Once there was a king.", ["Once there was a king."]),
        ("[BOB]: Go!", ["Go!"]),
        ("Subtitles by Somebody", []),
        ("It is 5:30, Anna: run.", ["It is 5:30, Anna: run."]),
        ("***", []),
    ],
    "gutenberg": [
        ("It _was_ the _Roanoke_.", ["It was the Roanoke."]),
        ("* * * * *", []),
        ('[Illustration: "Snakes!" he cried] Then he ran.', ["Then he ran."]),
        ("Then he ran. [Illustration: A man", ["Then he ran."]),
        ("The tribe[12] moved [thine] south.", ["The tribe moved [thine] south."]),
        ("*CHAPTER XII*", ["CHAPTER XII"]),
        ("=Big Brother.= x = y", ["Big Brother. x = y"]),
        ("the m----!", ["the m----!"]),
        ("The end. = = = PG18681 = = = THE PLAIN", ["The end.", "", "THE PLAIN"]),
        ("End of the Project Gutenberg EBook of X", []),
    ],
    "simple_wiki": [
        ("= = = County Cavan = = =", ["County Cavan"]),
        ("A siddur () is a (; old) book.", ["A siddur is a (old) book."]),
        ("Ratchet &amp; Clank&lt;ref name=x&gt;", ["Ratchet & Clank"]),
        ("He played. 224||0 !Total||20||0", ["He played."]),
        ("the player&#39;s &quot;best&quot;&nbsp;&copy;", ['the player\'s "best" ©']),
        ("天" * 200 + "|" + "地" * 200, ["天" * 120 + "地" * 120]),  # no spaces: one bar does not take the paragraph
        ('496 (four hundred [and] "96")', ['496 (four hundred [and] "96")']),
    ],
    "bnc_spoken": [("Thank you Mr .", ["Thank you Mr."]), ("Was it? .", ["Was it?"]), ("cost £5 .50", ["cost £5 .50"])],
    "cbt": [
        ("_BOOK_TITLE_ : Some___Book.txt.out", []),
        ("-LCB- a picture -RCB- Once , there was", ["Once, there was"]),
        ("the cat -LRB- a big one -RRB- ran", ["the cat a big one ran"]),
        ("`` Oh ! '' said she", ["Oh! said she"]),
    ],
    "qed": [
        (
            "I don&apos;t; caf&#233;, na&#xEF;ve &amp;lt;b&gt; &quot;so&quot; R&D; &foo;",
            ['I don\'t; café, naïve b "so" R&D; &foo;'],
        ),
        ("WELCOME BACK &amp; SIT. (Applause)", ["WELCOME BACK & SIT."]),
    ],
    "aochildes": [("you want juice ?", ["you want juice?"])],
    "children_stories": [("Once _upon_ a time", ["Once upon a time"])],
    "my_own": [("  Ünter   den\tLinden. [sic] ", ["Ünter den Linden. [sic]"]), ("...", ["..."])],
}


@pytest.mark.parametrize(("domain", "line", "expected"), [(d, a, b) for d, pairs in CASES.items() for a, b in pairs])
def test_one_line(domain: str, line: str, expected: list[str]) -> None:
    assert list(cleaning.cleaner(domain)([line])) == expected


def test_every_babylm_domain_has_a_function() -> None:
    of_2024 = {"bnc_spoken", "childes", "gutenberg", "open_subtitles", "simple_wiki", "switchboard"}
    of_2023 = {"aochildes", "bnc_spoken", "cbt", "children_stories", "gutenberg", "open_subtitles", "qed"}
    of_2023 |= {"simple_wikipedia", "switchboard", "wikipedia"}
    assert set(cleaning.CLEANERS) == of_2024 | of_2023


def test_boundaries() -> None:
    assert list(cleaning.plain(["", "a", "", " ", "b", "\t", ""])) == ["a", "", "b"]
    wiki = [
        "= = = One = = =",
        "One is a number.",
        "= = = Two",
        "= = = Two is a number, too.",
        "Three = = = Three is odd.",
    ]
    expected = ["One", "One is a number.", "", "Two", "Two is a number, too.", "", "Three", "Three is odd."]
    assert list(cleaning.simple_wiki(wiki)) == expected
    # What stands alone between two marks is a title however it ends, one with text behind it keeps the text, and so
    # long a piece behind a mark is none.
    long = "of twelve words it is a title and of more it is not"
    wiki = ["= = = Who? = = =", "Me.", "= = = Who, me? = = =", "= = = Four = = = Four is even.", f"= = = {long}"]
    wiki.append(f"= = = {long[:-4]}")
    expected = ["Who?", "Me.", "", "Who, me?", "", "Four", "Four is even.", long, "", long[:-4]]
    assert list(cleaning.simple_wiki(wiki)) == expected
    # A name is a file's where nothing follows it.
    assert list(cleaning.gutenberg(["One. = = = PG1 is a name. = = = Two."])) == ["One.", "PG1 is a name.", "Two."]
    # A change of speaker is no boundary; a new recording and a new book are.
    tape = ["*MOT: one.", "*CHI: two.", "*MOT: end. = = = childes/a/b.cha = = =", "*MOT: three."]
    assert list(cleaning.childes(tape)) == ["one.", "two.", "end.", "", "three."]
    books = ["_BOOK_TITLE_ : a.txt", "one .", "_BOOK_TITLE_ : b.txt", "two ."]
    assert list(cleaning.cbt(books)) == ["one.", "", "two."]
    # A line that cleaning empties is gone; it is not a boundary.
    assert list(cleaning.childes(["*MOT: one.", "*CHI: [laughs].", "*MOT: two."])) == ["one.", "two."]


def test_untouched_keeps_lines_as_they_are() -> None:
    assert list(cleaning.untouched(["*MOT:\ta  b [x]", "", "  ", " c "])) == ["*MOT:\ta  b [x]", "", " c "]


def test_reasons_are_counted() -> None:
    removed: Counter[str] = Counter()
    lines = ["*MOT: yes. [nods]", "*CHI: xxx.", "*MOT: no. *CHI: why? [x] [y] now"]
    assert list(cleaning.childes(lines, removed)) == ["yes.", "no.", "why? now"]
    assert removed == {"speaker tag": 4, "annotation": 3, "unintelligible": 1, "line without words": 1}


MARKUP = (
    *("*MOT:", "*CHI: ", "[", "]", "[laughs]", "%add: MOT", "xxx", "INV", "(", ")", "{", "}", "<i>", "</i>", "<", ">"),
    *(
        "A:\t",
        "B:\t",
        "*",
        "* * *",
        "_",
        "=",
        "= = =",
        "- ",
        "--",
        "~",
        "♪",
        "#",
        "NARRATOR:",
        ":",
        " .",
        "?",
        "...",
        "!",
    ),
    *(
        "[Illustration: x]",
        "[Illustration",
        "[1]",
        "&amp;",
        "&lt;ref&gt;",
        "&nbsp;",
        "&#38;",
        "lt;",
        "||",
        "()",
        "(;",
        "{{",
        "http://a.b",
    ),
    *(
        "-LRB-",
        "-RRB-",
        "-LSB-",
        "-RSB-",
        "``",
        "''",
        "_BOOK_TITLE_",
        "PG12",
        "a/b.cha",
        "www.",
        "Subtitles by",
        "\ufffd",
    ),
    *(" ", "\t", "Word", "über", "É", "don't", "7", "İ", "\u2028", "ﬁ"),
)
LINE = st.lists(st.one_of(st.sampled_from(MARKUP), st.text(max_size=4)), max_size=12).map("".join)
DOMAINS = [*sorted(cleaning.CLEANERS), "my_own"]


def is_subsequence(short: str, long: str) -> bool:
    rest = iter(long)
    return all(character in rest for character in short)


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(LINE, max_size=5))
@pytest.mark.parametrize("domain", DOMAINS)
def test_cleaning_twice_is_cleaning_once(domain: str, lines: list[str]) -> None:
    clean = cleaning.cleaner(domain)
    once = list(clean(lines))
    assert list(clean(once)) == once
    assert "" not in once[:1] + once[-1:]
    assert all(line == " ".join(line.split()) for line in once)


@settings(max_examples=60, deadline=None)
@given(line=LINE)
@pytest.mark.parametrize("domain", DOMAINS)
def test_cleaning_only_deletes(domain: str, line: str) -> None:
    found = "".join("".join(cleaning.cleaner(domain)([line])).split())
    assert is_subsequence(found, "".join(line.split()))


# "www" is no plain word: a code of CHILDES, and with the full stop behind it a link
WORD = st.from_regex(r"[A-ZÄÉŠĐ]?[a-wzäéšđñ]{1,8}'?[a-w]", fullmatch=True).filter(lambda w: "www" not in w.lower())


@settings(max_examples=60, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=8))
@example(words=["Waw", "wow"])
@pytest.mark.parametrize("domain", DOMAINS)
def test_plain_words_keep_capitals_and_accents(domain: str, words: list[str]) -> None:
    text = " ".join(words) + "."
    assert list(cleaning.cleaner(domain)([text])) == [text]


def test_rules_version_is_raised_with_the_rules() -> None:
    """A changed output needs a new RULES_VERSION, or prepared corpora of older rules would be taken for new ones."""
    removed: Counter[str] = Counter()
    output = [list(cleaning.cleaner(domain)([line], removed)) for domain, pairs in CASES.items() for line, _ in pairs]
    for noted in (cleaning.INDENTATION, cleaning.WHITE_SPACE):  # counted for a note: the text is as it was before them
        removed.pop(noted, None)
    found = hashlib.sha256(repr((output, sorted(removed.items()))).encode()).hexdigest()[:16]
    assert (cleaning.RULES_VERSION, found) == (2, "51a6886df2909582")  # new cases change it, too


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real BabyLM text is not beside this checkout")
@pytest.mark.parametrize("path", sorted(SHARED.glob("*.dev")), ids=lambda path: path.stem)
def test_real_text_is_clean_after_one_pass(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()[:1500]
    clean = cleaning.cleaner(path.stem)
    removed: Counter[str] = Counter()
    once = list(clean(lines, removed))
    assert list(clean(once)) == once
    text = "\n".join(once)
    assert len(text.split()) > 0.5 * sum(len(line.split()) for line in lines)
    for mark in ("*MOT:", "*CHI:", "%add:", "= = =", "[Illustration", "♪", "A:\t", "<i>"):
        assert mark not in text


def test_footnotes_have_up_to_three_digits_and_ruled_lines_four_marks_or_more() -> None:
    assert list(cleaning.gutenberg(["He ran.[123] Then [1234] men stood."])) == ["He ran. Then [1234] men stood."]
    assert list(cleaning.gutenberg(["The end ---- of it", "a --- b"])) == ["The end of it", "a --- b"]


@pytest.mark.parametrize("address", ["https://a.example/b", "http://a.example", "WWW.a.example"])
def test_a_subtitle_with_an_address_is_a_credit(address: str) -> None:
    removed: Counter[str] = Counter()
    assert list(cleaning.open_subtitles([f"Visit {address} now", "Run!"], removed)) == ["Run!"]
    assert removed["credit"] == 1


@pytest.mark.parametrize(
    ("line", "noted"),
    [
        ("a b", {}),
        ("a b  \n", {}),
        (" a b", {cleaning.INDENTATION: 1}),
        ("a  b", {cleaning.WHITE_SPACE: 1}),
        ("a\t b ", {cleaning.WHITE_SPACE: 1}),
    ],
)
def test_white_space_of_plain_text_is_noted_by_where_it_stood(line: str, noted: dict[str, int]) -> None:
    removed: Counter[str] = Counter()
    assert list(cleaning.plain([line], removed)) == ["a b"] and removed == noted
