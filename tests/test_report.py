from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from fake_runs import weigh, write_run, write_study

from wmlkit import captions, environment, paths, tables
from wmlkit.answer import Answer, answer
from wmlkit.diversity import UNIFORM, diversity, diversity_table
from wmlkit.errors import UserError
from wmlkit.report import _answer, _markdown, write_report
from wmlkit.results import TEACHER_COST
from wmlkit.runs import read_runs, renamed_runs

STUDY = (("independent", 2), ("wml", 2), ("distill", 2))
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects what a test asks for, and that every tag is closed in its order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.links += [value for name in ("src", "href") if (value := named.get(name))]
        self.ids += [value for value in [named.get("id")] if value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_study(
        tmp_path_factory.mktemp("out") / "nursery", STUDY, protocols=("babylm2025",), overrides={"train.steps": 200}
    )
    (write_run(folder, "wml", 2, 7) / "done.json").unlink()
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_every_table_and_figure_is_there_with_what_made_it(folder: Path, page: str) -> None:
    parsed = Page(page)
    for kind, pattern in (("tables", "T*.csv"), ("figures", "F*.svg")):
        for file in (folder / kind).glob(pattern):
            assert file.stem.lower() in parsed.ids
            assert f"#{file.stem.lower()}" in parsed.links
    assert len(parsed.ids) == len(set(parsed.ids))
    made = environment.shortened(environment.commit() or environment.NO_CHECKOUT)
    assert f"commit {made}, seeds 0, 1, 2" in parsed.text and "runs commit0123abc" in parsed.text.replace("\n", "")
    assert captions.TABLES["T4_differences"] in parsed.text
    assert "Nothing is noted" not in parsed.text
    assert parsed.text.count("generated text, not from BabyLM") == len(list((folder / "tables").glob("T*.csv")))


def test_every_table_and_figure_that_is_written_has_a_caption_and_every_caption_is_of_one() -> None:
    notebooks = "".join(path.read_text(encoding="utf-8") for path in (paths.REPOSITORY / "notebooks").glob("*.ipynb"))
    sources = [(paths.PACKAGE / name).read_text(encoding="utf-8") for name in ("tables.py", "figures/files.py")]
    for kind, known in (("table", captions.TABLES), ("figure", captions.FIGURES)):
        saved = re.findall(rf'session\.{kind}\(\\"(\w+)\\"', notebooks)
        made = re.findall(rf'"({kind[0].upper()}\d\w*)"\]? ?[:=] lambda', "".join(sources))
        assert len(set(made)) >= 7 and set(saved) | set(made) == set(known)


def test_the_answer_is_a_file_too(folder: Path, page: str) -> None:
    told = paths.read_json(folder / "answer.json")
    assert told["question"].endswith("on small datasets?") and len(told["basis"]) >= 3
    assert told["answer"] == given_by(folder).headline
    text = Page(page).text
    assert all(sentence in text for sentence in (told["question"], told["answer"], *told["basis"]))


def given_by(folder: Path) -> Answer:
    runs, scores = read_runs(folder), tables.all_scores(folder)
    return answer(runs, tables.main_result(scores), tables.differences(scores))


def test_the_page_loads_nothing(page: str) -> None:
    for link in Page(page).links:
        assert link.startswith(("#", "data:")), link
    assert "@import" not in page and "url(" not in page
    assert page.count("<script>") == 1


def test_tables_and_the_numbers_of_figures_can_be_downloaded_as_they_are(folder: Path, page: str) -> None:
    coded = re.findall(r'download="(\w+\.csv)" href="data:text/csv;base64,([^"]+)"', page)
    files = {file.name: file for kind in ("tables", "figures") for file in (folder / kind).glob("*.csv")}
    assert {name for name, _ in coded} == set(files) >= {"T4.csv", "F2.csv", "F6.csv"}
    for name, data in coded:
        assert base64.b64decode(data) == files[name].read_bytes()


def test_figures_are_embedded_as_they_are(folder: Path, page: str) -> None:
    coded = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)" alt="([^"]+)"', page)
    drawn = [file.read_bytes() for file in (folder / "figures").glob("*.svg")]
    assert sorted(base64.b64decode(data) for data, _ in coded) == sorted(drawn)
    assert all(alt for _, alt in coded)


def test_unfinished_runs_are_named_and_in_no_table(page: str) -> None:
    assert "Not finished, so in no table: wml-p2-s7-" in Page(page).text
    assert "wml-p2-s7" not in page.split('id="runs"')[0]


def test_a_renamed_run_is_named_and_in_no_table(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0, 1), protocols=("babylm2025",))
    assert "Renamed" not in write_report(folder).read_text(encoding="utf-8")
    next(folder.glob("wml-p2-s1-*")).rename(folder / "my run")
    text = Page(write_report(folder).read_text(encoding="utf-8")).text
    for name in ("done.json", "metrics.jsonl"):  # what a killed `--force` left
        paths.write_text(folder / ".wml-p2-s0-00000000.7.old" / name, "{}")
    assert renamed_runs(folder) == ["my run"]
    assert "Renamed or copied, so in no table: my run" in text and "1 run on nursery" in text


def test_the_same_runs_give_the_same_page(folder: Path, page: str) -> None:
    assert write_report(folder).read_text(encoding="utf-8") == page


def test_text_from_files_cannot_become_markup(tmp_path: Path) -> None:
    evil = '<script>alert("x")</script>&'
    folder = write_study(tmp_path / "nursery", (("wml", 2),), seeds=(0,), protocols=("babylm2025",))
    run = next(folder.glob("wml-*"))
    environment = paths.read_json(run / "environment.json")
    paths.write_json(run / "environment.json", {**environment, "device": evil, "command": evil, "commit": evil})
    document = paths.read_json(run / "config.json")
    paths.write_json(run / "config.json", {**document, "data": {**document["data"], "name": evil}})
    for name in ("F1", "F2", "F3", "F4", "F6"):  # there already, so not drawn
        paths.write_text(folder / "figures" / f"{name}.png", "")
    (folder / "tables").mkdir()
    (folder / "tables" / "T9.csv").write_text(f"defect,{evil}\n".replace('"', "") + f"{evil},1\n".replace('"', ""))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;" in page
    Page(page)


def test_a_folder_without_finished_runs_still_shows_its_tables(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "T1.csv").write_text("corpus,split,domain,words_before,words_after\nnursery,train,all,2,1\n")
    text = Page(write_report(tmp_path).read_text(encoding="utf-8")).text
    assert "Not answered: there is no finished run yet." in text
    assert "Nothing is noted about what made T1." in text
    with pytest.raises(UserError, match="no folder"):
        write_report(tmp_path / "absent")


def given(
    folder: Path,
    values: dict[str, list[float]],
    seeds: int = 3,
    losses: dict[str, list[float]] | None = None,
    corpus: str = "nursery",
) -> Answer:
    """The answer of runs whose best peer has these accuracies, and dev losses, by arm."""
    runs = [replace(run, corpus=corpus) for run in read_runs(folder) if run.seed < seeds and run.arm in values]
    rows = [
        {"run": f"{arm}{seed}", "setting": "", "note": "", "arm": arm, "peers": 2, "seed": seed, "corpus": corpus,
         **place, "member": member, "score": value, "ties": 0.0, "n": 10}
        for place, of_arms in (
            ({"suite": "nursery", "protocol": "babylm2025"}, values),
            ({"suite": "dev_ce", "protocol": ""}, losses or {}),
        )
        for arm, scores in of_arms.items()
        for seed, value in enumerate(scores[:seeds])
        for member in ("peer_1", "best_peer", "ensemble")
    ]  # fmt: skip
    scores = pd.DataFrame(rows)
    return answer(runs, tables.main_result(scores), tables.differences(scores))


LOW, HIGH, MIXED = [70.0, 71.0, 72.0], [80.0, 81.5, 82.0], [69.0, 72.0, 72.5]


@pytest.mark.parametrize(
    ("wml", "distill", "words"),
    [
        (HIGH, LOW, "Yes, on nursery: the best of the mutually learning peers (wml) beat"),
        (LOW, HIGH, "No, on nursery: the best of the mutually learning peers (wml) fell behind"),
        (
            MIXED,
            LOW,
            "Not shown by the best peers' accuracy on nursery: a difference between mutual learning (wml) and a teach",
        ),
        (
            LOW,
            LOW,
            "Not shown by the best peers' accuracy on nursery: a difference between mutual learning (wml) and a teach",
        ),
    ],
)
def test_the_headline_follows_from_the_interval(
    folder: Path, wml: list[float], distill: list[float], words: str
) -> None:
    found = given(folder, {"wml": wml, "distill": distill})
    assert found.headline.startswith(words)


def test_a_difference_that_the_family_of_comparisons_takes_back_is_doubted(folder: Path) -> None:
    """Differences 2, 3, 1.6: t = 5.28, p = 0.034 alone; three comparisons make it 0.1."""
    three = {"wml": [72.0, 74.0, 73.6], "distill": LOW, "independent": [71.0, 74.0, 72.0]}
    found = given(folder, three)
    assert found.headline.startswith("Only a hint, on nursery: the best") and found.headline.endswith(
        "over 3 seeds, but adjusted p is 0.1)."
    )
    assert found.comparisons["reading"].iloc[0] == "better: the interval lies above 0, but adjusted p is 0.1"
    assert "adjusted" not in given(folder, {"wml": HIGH, "distill": LOW}).headline


def test_the_answer_states_difference_interval_seeds_tokens_and_corpus(folder: Path) -> None:
    found = given(folder, {"wml": MIXED, "distill": LOW, "independent": HIGH})
    # Differences -1, 1, 0.5: mean 0.1667, sd 1.0408, half width 4.302653 * 1.0408 / sqrt(3) = 2.5855.
    assert "(+0.2 points, 95 % interval -2.4 to +2.8 over 3 seeds)" in found.headline
    basis = " ".join(found.basis)
    assert "with 3 seeds (0, 1, 2)" in basis and re.search(r"40\d,\d{3} to 40\d,\d{3} tokens a run", basis)
    assert "not BabyLM" in basis
    table = found.comparisons.set_index(["comparison", "member"])
    assert table.loc[("wml - distill", "best_peer"), "reading"] == "not shown: the interval contains 0"
    assert table.loc[("wml - independent", "best_peer"), "reading"] == "worse: the interval lies below 0"


def test_one_seed_answers_nothing(folder: Path) -> None:
    found = given(folder, {"wml": HIGH, "distill": LOW}, seeds=1)
    assert found.headline.startswith("Open:") and "one seed only" in found.headline
    assert found.comparisons["95 % interval"].eq("none").all()
    assert found.comparisons["reading"].str.startswith("one seed only").all()
    assert "with one seed, " in " ".join(found.basis)


def test_the_report_reads_the_items_of_one_seed_alone(tmp_path: Path) -> None:
    """There they are all there is for an interval; of several seeds the answer has the interval over seeds."""
    for seeds, told in (((0,), True), ((0, 1), False)):
        folder = write_study(tmp_path / f"{len(seeds)}" / "nursery", (("wml", 2), ("distill", 2)), seeds)
        readings = _answer(folder, read_runs(folder)).comparisons["reading"]
        assert readings.str.contains("resampling this seed's items: ").all() == told
        assert readings.str.contains("resampling this seed's items: ").any() == told


def test_without_a_teacher_the_question_stays_open(folder: Path) -> None:
    found = given(folder, {"wml": HIGH, "independent": LOW})
    assert found.headline.startswith("Not answered: these runs hold no teacher-guided distillation")
    assert "Against peers that learn alone, mutual learning (wml): +10.2 points" in found.headline
    assert found.headline.endswith("over 3 seeds; better: the interval lies above 0.")
    assert list(found.comparisons["comparison"].unique()) == ["wml - independent"]


def test_scores_near_chance_are_called_so(folder: Path) -> None:
    near = given(folder, {"wml": [51.0, 50.0, 49.0], "distill": [50.0, 49.5, 52.0]})
    assert "near chance" in " ".join(near.basis) and "(distill, 2 peers, best peer; " in " ".join(near.basis)
    same = given(folder, {"wml": [100.0, 100.0, 100.0], "distill": [100.0, 100.0, 100.0]})
    assert "(wml, 2 peers, best peer; 3 other rows of T4 have it too)" in " ".join(same.basis)
    assert "near chance" not in " ".join(given(folder, {"wml": HIGH, "distill": LOW}).basis)
    small = given(folder, {"wml": [51.0, 52.0, 51.4], "distill": [50.0, 50.9, 50.3]}).headline
    assert small.startswith("Only a hint, on nursery: the best") and "3 seeds; all means lie near chance)." in small


def test_a_teacher_that_was_given_is_told_of(folder: Path) -> None:
    told = "The teacher roberta-base was given, not trained on the runs' text"
    assert told not in " ".join(given(folder, {"wml": HIGH, "distill": LOW}).basis)
    taught = [run for run in read_runs(folder) if run.arm == "distill"]
    for run in taught:
        known = {"name": "roberta-base", "run": None, "dev_ce": None, **dict.fromkeys(TEACHER_COST)}
        paths.write_json(run.folder / "done.json", {**run.done, "teacher": known, "teacher_outside_budget": True})
    found = given(folder, {"wml": HIGH, "distill": LOW})
    assert told in " ".join(found.basis) and found.headline.startswith("Only a hint, on nursery")
    for run in taught:  # the folder is that of other tests too
        paths.write_json(run.folder / "done.json", run.done)


def test_the_nursery_s_pairs_cannot_answer_for_other_text(folder: Path) -> None:
    losses = {"wml": [2.16, 2.14, 2.10], "distill": [2.13, 2.11, 2.08]}
    own = given(folder, {"wml": HIGH, "distill": LOW}, losses=losses)
    other = given(folder, {"wml": HIGH, "distill": LOW}, losses=losses, corpus="letters")
    assert "sentences of the nursery's grammar" in " ".join(other.basis) and "In dev loss (nats" in other.headline
    assert (
        other.headline.startswith("Only a hint, on letters")
        and "3 seeds; of pairs of another text). In dev" in other.headline
    )
    assert "sentences of the nursery's grammar" not in " ".join(own.basis) and "In dev loss" not in own.headline


# wml - distill: 0.02, 0.03, 0.016, t = 5.28 as in the test above
DOUBTED = {"wml": [2.12, 2.14, 2.136], "distill": [2.10, 2.11, 2.12], "independent": [2.11, 2.14, 2.12]}


def test_the_same_comparison_in_dev_loss_where_lower_is_better(folder: Path) -> None:
    higher, lower = [2.16, 2.14, 2.10], [2.13, 2.11, 2.08]
    scores = {"wml": [99.0, 99.5, 98.0], "distill": [100.0, 99.0, 99.5]}
    found = given(folder, scores, losses={"wml": higher, "distill": lower})
    # Differences 0.03, 0.03, 0.02: mean 0.0267, sd 0.00577, half width 4.302653 * 0.00577 / sqrt(3) = 0.0143.
    worse = "+0.027 (95 % interval +0.012 to +0.041; worse: the loss is higher)"
    sentence = (
        f"In dev loss (nats a scored token), wml minus distill, 2 peers, 3 seeds: best peer {worse}; ensemble {worse}."
    )
    # accuracy near its ceiling cannot answer, so the headline says the loss
    assert found.headline.startswith("Not shown by the best peers' accuracy on nursery") and found.headline.endswith(
        "In dev loss (nats a scored token, lower is better) wml is behind distill (best peer +0.027, ensemble +0.027)."
    )
    assert any("near 100 %" in one for one in found.basis) and found.basis[-1] == sentence
    better = given(folder, scores, losses={"wml": lower, "distill": higher})
    assert better.headline.endswith(" wml is ahead of distill (best peer -0.027, ensemble -0.027).")
    apart = {"wml": [2.16, 2.05, 2.10], "distill": [2.13, 2.11, 2.08]}  # differences 0.03, -0.06, 0.02
    none = given(folder, scores, losses=apart)
    assert none.headline.endswith(" no difference is shown (best peer -0.003, ensemble -0.003).")
    doubted = given(folder, scores | {"independent": scores["wml"]}, losses=DOUBTED)
    assert doubted.headline.endswith(
        " only a hint, with an adjusted p of 0.05 or more (best peer +0.022, ensemble +0.022)."
    )
    assert doubted.basis[-2].endswith("worse: the loss is higher, but adjusted p is 0.1).")
    clear = given(folder, {"wml": HIGH, "distill": LOW}, losses={"wml": higher, "distill": lower})
    assert "dev loss" not in clear.headline and clear.basis[-1] == sentence
    three = {"wml": higher, "distill": lower, "independent": [2.10, 2.15, 2.09]}
    control = given(folder, {"wml": HIGH, "distill": LOW, "independent": LOW}, losses=three).basis
    assert control[-2] == sentence
    # Differences 0.06, -0.01, 0.01: mean 0.02, sd 0.03606, half width 0.0896.
    none = "+0.020 (95 % interval -0.070 to +0.110; not shown: the interval contains 0)"
    assert control[-1].endswith(f"wml minus independent, 2 peers, 3 seeds: best peer {none}; ensemble {none}.")
    one = given(folder, scores, seeds=1, losses={"wml": higher, "distill": lower})
    assert "dev loss" not in " ".join([one.headline, *one.basis])
    alone = given(folder, {"wml": HIGH, "independent": LOW}, losses={"wml": higher, "independent": higher}).basis
    assert "near 100 %" not in " ".join(alone) and "dev loss" not in " ".join(alone)  # no spread: no interval


def test_what_peers_are_worth_together(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "nursery", STUDY, protocols=())
    scores = {"wml": HIGH, "independent": LOW, "distill": LOW}
    assert "T4_diversity" not in " ".join(given(folder, scores).basis)  # equal weights were not measured
    weigh(folder)
    told = [one for one in given(folder, scores).basis if "T4_diversity" in one]
    table = diversity(diversity_table(read_runs(folder))).query(f"quantity == {UNIFORM!r}").set_index("arm")
    assert len(told) == 1 and "2 peers, nats a scored token, in brackets against independent): independent " in told[0]
    row = table.loc["wml"]
    assert f" {table.loc['independent', 'mean']:.3f}; " in told[0]
    assert f"wml {row['mean']:.3f} ({row['difference']:+.3f}, 95 % interval {row['difference_low']:+.3f}" in told[0]
    assert "T4_diversity" not in " ".join(given(folder, scores, seeds=1).basis)  # no interval
    assert "T4_diversity" not in " ".join(given(folder, {"wml": HIGH, "distill": LOW}).basis)  # no control


def test_the_teacher_s_bill(tmp_path: Path) -> None:
    """Two peers of wml at 200 FLOP; two students' 220 and their teacher's 280: 2.5 times. Four are not compared."""
    folder = tmp_path / "nursery"
    flops = {("wml", 4): 100.0, ("wml", 2): 200.0, ("distill", 4): 900.0, ("distill", 2): 220.0}
    for (arm, peers), value in flops.items():
        path = write_run(folder, arm, peers, 0) / "done.json"
        teacher = {"name": "teacher-p1-s0-0a1b2c3d", "tokens": 1, "words": 1, "seconds": 1.0, "flops": 280.0}
        paths.write_json(
            path, paths.read_json(path) | {"flops": value} | ({"teacher": teacher} if arm == "distill" else {})
        )
    sentence = "With its teacher's training distill took 2.5 times the FLOP of wml (T7)."
    assert given(folder, {"wml": HIGH, "distill": LOW}).basis[-1] == sentence
    assert sentence not in given(folder, {"wml": HIGH, "independent": LOW}).basis
    done = paths.read_json(path)
    paths.write_json(path, done | {"teacher": done["teacher"] | {"flops": None}})
    assert "FLOP" not in " ".join(given(folder, {"wml": HIGH, "distill": LOW}).basis)


def test_comments_of_a_page_are_not_shown_and_break_nothing() -> None:
    text = "<!-- a -->\nAll.\n<!-- end -->\n\n1. first\n   <!-- measured: x -->\n   goes on\n   <!-- end -->\n2. two\n"
    assert " ".join(_markdown(text).split()) == "<p>All.</p> <ol> <li>first goes on</li> <li>two</li> </ol>"
    deviations = (paths.REPOSITORY / "docs" / "deviations.md").read_text(encoding="utf-8")
    assert "<!-- measured" in deviations and "!--" not in _markdown(deviations)


def test_deviations_become_plain_markup() -> None:
    text = "# Title\n\nSome `x < y` and **bold**\n*text*.\n\n1. first\n   goes on\n\n## Part\n\n3. a\n4. <b>\n"
    assert " ".join(_markdown(text).split()) == (
        "<p>Some <code>x &lt; y</code> and <strong>bold</strong> <em>text</em>.</p> <ol> <li>first goes on</li> </ol> "
        '<h3>Part</h3> <ol start="3"> <li>a</li> <li>&lt;b&gt;</li> </ol>'
    )
