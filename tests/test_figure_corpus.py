"""The pictures of a corpus and the tables behind them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from test_figures import faults
from tokenizers.pre_tokenizers import ByteLevel

from wmlkit import captions, report
from wmlkit.data import coverage, statistics
from wmlkit.data.statistics import DomainCounts, domain_statistics, read_statistics
from wmlkit.errors import UserError
from wmlkit.figures import corpus as figure_corpus
from wmlkit.figures.style import TEXT, save_figure


def record(domain: str, split: str, lines: list[str]) -> dict[str, Any]:
    counts = DomainCounts()
    list(counts.raw([*(f"*MOT: {line}" for line in lines), *["@End"] * len(lines)]))
    counts.add(lines)
    counts.close()
    counts.removed["speaker tag"] = len(lines)
    return domain_statistics(domain, split, counts, 30, 20)


def by_hand() -> dict[str, Any]:
    """Lines of 1, 2 and 11 words; 14 words, of which 12 are distinct but for punctuation."""
    lines = ["one", "two two", " ".join(f"word{letter}" for letter in "abcdefghij") + ", one."]
    splits = [
        {"split": "train", "domain": "childes", "words": 30, "documents": 1, "lines": 1, "tokens": 1},
        {"split": "train", "domain": "switchboard", "words": 10, "documents": 1, "lines": 1, "tokens": 1},
        {"split": "dev", "domain": "childes", "words": 5, "documents": 1, "lines": 1, "tokens": 1},
    ]
    domains = [record("childes", "train", lines), record("switchboard", "train", ["a"]), record("childes", "dev", [])]
    return {"corpus": "x", "domains": domains, "splits": splits}


def test_line_lengths_are_cumulative() -> None:
    table = statistics.line_lengths(by_hand())
    childes = table[(table["domain"] == "childes") & (table["split"] == "train")].set_index("up_to")
    assert childes.loc[[1, 2, 10, 12, 200], "share"].round(6).tolist() == [0.333333, 0.666667, 0.666667, 1.0, 1.0]
    assert childes["lines"].sum() == 3 and np.isnan(childes.index[-1])
    empty = table[table["split"] == "dev"]
    assert empty["share"].isna().all() and (empty["lines"] == 0).all()


def test_vocabulary_growth_in_the_order_of_reading() -> None:
    table = statistics.vocabulary_growth(by_hand())
    assert table[table["domain"] == "childes"][["words", "distinct"]].to_numpy().tolist() == [[10, 9], [14, 12]]
    assert table[table["domain"] == "switchboard"][["words", "distinct"]].to_numpy().tolist() == [[1, 1]]


def test_words_of_the_growth_are_those_of_the_coverage() -> None:
    line = "Don't, said Élan_2 (aged 30): x2y \u2014 three-part naïve 1,000 or 三个."
    kinds = [(kind, "".join(same)) for kind, same in itertools.groupby(line, coverage._kind)]
    words = [word for kind, word in kinds if kind]
    assert statistics._WORD.findall(line) == words and words[-1] == "三个"
    spans = [span for _, span in ByteLevel(add_prefix_space=False).pre_tokenize_str(line)]
    pieces = [line[start:end].strip(" '") for start, end in spans]
    assert words == [piece for piece in pieces if piece.isalnum()]


def test_shares_add_up_in_every_split() -> None:
    table = statistics.domain_mix(by_hand())
    assert table["share"].tolist() == [0.75, 0.25, 1.0]


def test_what_was_removed_a_thousand_lines() -> None:
    table = statistics.removed_counts({"domains": by_hand()["domains"][:2]})
    assert table.to_dict("records")[0] == {
        "split": "train", "domain": "childes", "reason": "speaker tag", "times": 3, "per_1000_lines": 500.0
    }  # fmt: skip
    assert list(statistics.removed_counts({"domains": []}).columns) == list(table.columns)


def test_no_statistics(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected a prepared corpus"):
        read_statistics(tmp_path)


# --- figures

BABYLM2023 = [
    *("aochildes", "bnc_spoken", "cbt", "children_stories", "gutenberg"),
    *("open_subtitles", "qed", "simple_wikipedia", "switchboard", "wikipedia"),
]
DOMAINS = [*BABYLM2023, "a_domain_of_a_user", "another"]  # two more than can be told apart


def mix() -> pd.DataFrame:
    rows = [
        (split, domain, words * (3 + 7 * place % 10 if place < 10 else 1))  # by size in another order than by name
        for split, words in (("train", 1_000_000), ("held_out", 60_000), ("dev", 40_000))
        for place, domain in enumerate(DOMAINS)
    ]
    table = pd.DataFrame(rows, columns=["split", "domain", "words"])
    return table.assign(share=table["words"] / table.groupby("split")["words"].transform("sum"))


def corpora() -> pd.DataFrame:
    table = mix().query("split != 'held_out'").rename(columns={"words": "words_after"})
    return table.assign(fertility_before=2.0, fertility_after=np.linspace(1.2, 1.6, len(table)))


def lengths() -> pd.DataFrame:
    rows = [
        ("train", domain, up_to, 100 * (12 - place), min(1.0, (step + 1) * (place + 3) / 40))
        for place, domain in enumerate(DOMAINS)
        for step, up_to in enumerate((1, 2, 5, 10, 20, 50, 100, 200, None))
    ]
    return pd.DataFrame(rows, columns=["split", "domain", "up_to", "lines", "share"]).astype({"up_to": float})


def growth(largest: int = 7) -> pd.DataFrame:
    rows = [
        ("train", domain, 10**power * (12 - place), int((10**power * (12 - place)) ** 0.7))
        for place, domain in enumerate(DOMAINS)
        for power in range(1, largest)
    ]
    return pd.DataFrame(rows, columns=["split", "domain", "words", "distinct"])


def few_words() -> pd.DataFrame:
    """A text of 54 words, said again and again."""
    words = [factor * 10**power for power in range(5) for factor in (2, 5, 10)]
    rows = [("train", domain, count, min(count, 54)) for domain in DOMAINS for count in words]
    return pd.DataFrame(rows, columns=["split", "domain", "words", "distinct"])


def long_names(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(domain="the sorrows of young Werther, first version, " + table["domain"])


def six(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["domain"].isin(DOMAINS[:6])]


DRAWINGS: dict[str, Callable[[], Axes]] = {
    "lengths": lambda: figure_corpus.plot_line_lengths(lengths()),
    "lengths, six": lambda: figure_corpus.plot_line_lengths(six(lengths())),
    "growth": lambda: figure_corpus.plot_vocabulary_growth(growth()),
    "growth, six": lambda: figure_corpus.plot_vocabulary_growth(six(growth())),
    "growth, little text": lambda: figure_corpus.plot_vocabulary_growth(growth(3)),
    "growth, few words": lambda: figure_corpus.plot_vocabulary_growth(few_words()),
    "mix": lambda: figure_corpus.plot_domain_mix(mix()),
    "left, long names": lambda: figure_corpus.mix_figure(long_names(mix()), long_names(corpora())).axes[0],
    "right, long names": lambda: figure_corpus.mix_figure(long_names(mix()), long_names(corpora())).axes[1],
    "fertility": lambda: figure_corpus.plot_fertility(corpora()),
    "left": lambda: figure_corpus.mix_figure(mix(), corpora()).axes[0],
    "right": lambda: figure_corpus.mix_figure(six(mix()), six(corpora())).axes[1],
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_figure_is_readable_in_print(name: str) -> None:
    ax = DRAWINGS[name]()
    assert faults(ax) == []
    assert ax.figure.get_size_inches()[0] <= TEXT + 1e-6  # type: ignore[union-attr]


def test_ten_domains_can_be_told_apart_without_colour() -> None:
    ax = figure_corpus.plot_line_lengths(lengths())
    assert [line.get_label() for line in ax.lines] == [domain.replace("_", " ") for domain in BABYLM2023]
    assert len({line.get_marker() for line in ax.lines}) == len({to_hex(line.get_color()) for line in ax.lines}) == 10


def test_the_name_of_the_dotted_line_lies_within_the_axes() -> None:
    """Its end is near the axis where a text has few words, so that the name would lie across that."""
    for words in (growth(), few_words()):
        ax = figure_corpus.plot_vocabulary_growth(words)
        FigureCanvasAgg(ax.figure).draw()  # type: ignore[arg-type]
        (name,) = [text for text in ax.texts if text.get_text() == "every word new"]
        assert name.get_window_extent().x0 > ax.get_window_extent().x0


def test_the_middle_of_a_long_name_is_left_out() -> None:
    ax = figure_corpus.plot_domain_mix(long_names(mix()))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert max(map(len, names)) <= figure_corpus.LONGEST_NAME and len(set(names)) == len(names)
    assert names[0] == "the sorrow…childes" and names[-1] == "the sorrow…kipe 10"


def test_bars_stand_at_the_names_of_their_domains() -> None:
    table = mix().sample(frac=1, random_state=0)
    ax = figure_corpus.plot_domain_mix(table)
    names = [label.get_text() for label in ax.get_yticklabels()]
    train = table[table["split"] == "train"].set_index("domain")["share"]
    assert names == [domain.replace("_", " ") for domain in BABYLM2023]
    bars = {names[round(bar.get_y() + bar.get_height() / 2 + 0.26)]: bar.get_width() for bar in ax.containers[0]}
    assert bars == pytest.approx({domain.replace("_", " "): 100 * train[domain] for domain in BABYLM2023})
    assert [bars.get_label() for bars in ax.containers] == ["train (77M)", "held-out (4.6M)", "dev (3.1M)"]


def test_points_stand_at_the_names_of_their_domains() -> None:
    ax = figure_corpus.plot_fertility(corpora())
    names = [label.get_text().replace(" ", "_") for label in ax.get_yticklabels()]
    dev = corpora().query("split == 'dev'").set_index("domain")["fertility_after"]
    drawn = ax.lines[2]
    assert drawn.get_label() == "dev"
    places = np.asarray(drawn.get_ydata(), dtype=int)
    assert list(np.asarray(drawn.get_xdata())) == [dev[names[place]] for place in places]


def test_another_split_is_named() -> None:
    with pytest.raises(UserError, match="no rows of 'train'; expected some \\(it has dev\\)"):
        figure_corpus.plot_line_lengths(lengths().assign(split="dev"))


def test_the_report_names_them_after_the_method(tmp_path: Path) -> None:
    for name in ("F01_mix", "F01_lengths", "F01_vocabulary", "F1", "F2"):
        (tmp_path / f"{name}.svg").write_text("<svg/>")
    found = [file.stem for file in report._found(tmp_path, "F*.svg")]
    assert found == ["F1", "F01_lengths", "F01_mix", "F01_vocabulary", "F2"]
    assert all(len(captions.caption(name)) > 40 for name in found)


def test_fonts_are_embedded_and_bytes_repeat(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_figure(figure_corpus.mix_figure(mix(), corpora()), tmp_path / folder, "F01_mix")
    pdf = (tmp_path / "a" / "F01_mix.pdf").read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf
    assert pdf == (tmp_path / "b" / "F01_mix.pdf").read_bytes()
