"""README's answers and the results in docs/results.md are what the committed tables give."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner

from wmlkit import paths, results
from wmlkit.cli import app
from wmlkit.errors import UserError
from wmlkit.evaluate.protocols import get_protocol
from wmlkit.reference import DOCUMENTS, GLANCE, RESULTS, _ablations, glance, results_section, write_reference

README, PAGE, _ = (paths.REPOSITORY / name for name in DOCUMENTS)

PRESETS = sorted(path.parent.name for path in paths.REFERENCES.glob("*/summary.json"))


def test_there_is_a_reference_run_of_the_nursery():
    assert "nursery" in PRESETS


def between(document, marks, **named):
    """What stands in a document between two marks."""
    begin, end = (mark.format(**named) for mark in marks)
    return document.read_text(encoding="utf-8").partition(begin)[2].partition(end)[0].strip()


@pytest.mark.parametrize("preset", PRESETS)
def test_results_come_from_the_committed_tables(preset):
    assert between(PAGE, RESULTS, preset=preset) == results_section(paths.reference(preset)).strip()


def test_the_glance_has_a_line_for_each_reference():
    assert between(README, GLANCE) == glance(paths.REFERENCES)
    named = [line.split(" | ")[0].removeprefix("| ") for line in glance(paths.REFERENCES).splitlines()[2:]]
    assert named == PRESETS


def test_a_glance_by_hand(tmp_path):
    """The mean peer of the most peers compared; nothing where a comparison, or the cost of a teacher, is not known."""
    columns = ("setting", "suite", "peers", "member", "a", "b", "mean", "low", "high", "p_adjusted", "n_seeds")
    rows = [
        ("", "toy", 2, "mean_peer", "wml", "distill", 3.0, 1.0, 5.0, 0.02, 2),
        ("", "dev_ce", 2, "mean_peer", "wml", "distill", -0.25, -0.5, -0.125, 0.0004, 3),
        ("", "dev_ce", 4, "mean_peer", "wml", "distill", 9.0, None, None, None, 1),  # of one seed
        ("", "dev_ce", 2, "best_peer", "wml", "dml", 9.0, 8.0, 10.0, 0.5, 3),
        ("alpha = 0.9", "dev_ce", 2, "mean_peer", "wml", "dml", 9.0, 8.0, 10.0, 0.5, 3),
    ]
    for name, kept in (("both", rows), ("loss", [rows[1]])):
        tables = tmp_path / name / "tables"
        differences = pd.DataFrame(kept, columns=columns).assign(protocol="")
        paths.write_text(tables / "T4_differences.csv", differences.to_csv(index=False))
        costs = [("", "wml", 2, 2.0), ("", "distill", 2, 5.0 if name == "both" else None), ("", "distill", 4, 8.0)]
        cost = pd.DataFrame(costs, columns=["setting", "arm", "peers", "flops_with_teacher"])
        paths.write_text(tables / "T7.csv", cost.to_csv(index=False))
    assert glance(tmp_path).splitlines()[2:] == [
        "| both | 2 | 3 |  |  | -0.250 [-0.500, -0.125] p <0.001 | +3.0 [1.0, 5.0] p 0.02 (2 of 3 seeds) | 2.5 times |",
        "| loss | 2 | 3 |  |  | -0.250 [-0.500, -0.125] p <0.001 |  |  |",
    ]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_committed_table_and_figure_says_what_made_it(preset):
    for kind, suffix in (("tables", "csv"), ("figures", "svg")):
        folder = paths.reference(preset) / kind
        notes = paths.read_json(folder / "provenance.json")
        found = {path.stem for path in folder.glob(f"*.{suffix}")}
        assert found and found <= set(notes)
        assert all(note["commit"] and note["command"] for note in notes.values())


def test_notes_of_the_tables_are_shown(tmp_path):
    """Of an arm, of a comparison and of an ablation, each behind its name."""
    folder = tmp_path / "nursery"
    shutil.copytree(paths.reference("nursery"), folder)
    for name, rows in (("T4", "arm"), ("T4_differences", "b"), ("T8", "arm")):
        path = folder / "tables" / f"{name}.csv"
        table = pd.read_csv(path)
        table["note"] = ["of a given teacher" if value == "distill" else None for value in table[rows]]
        table.to_csv(path, index=False)
    told = [line for line in results_section(folder).splitlines() if "(of a given teacher)" in line]
    assert any(line.startswith("| distill (of a given teacher) | 4 |") for line in told)
    assert any(line.startswith("| wml − distill (of a given teacher) | 4 |") for line in told)
    assert any(line.startswith("| arm = distill (of a given teacher) | ") for line in told)
    assert len(told) < len(results_section(folder).splitlines()) / 2


def test_rows_of_fewer_seeds_and_scores_that_are_no_accuracy_are_told(tmp_path):
    folder = tmp_path / "nursery"
    shutil.copytree(paths.reference("nursery"), folder)
    for name in ("T4", "T4_differences", "T8"):
        path = folder / "tables" / f"{name}.csv"
        table = pd.read_csv(path)
        scored = table["suite"] == "nursery"
        table.loc[scored, "suite"] = "glue"
        if name == "T4_differences":
            table.loc[scored & (table["a"] == "wml") & (table["b"] == "distill"), "n_seeds"] = 2
        table.to_csv(path, index=False)
    text = results_section(folder)
    assert text.count("| wml − distill (2 of 3 seeds) | 4 |") == text.count("| wml − distill | 4 |") == 1
    assert "\nMean metric of glue under `babylm2025` in percent: mean over seeds" in text
    assert "| change | FLOP | mean metric of glue | dev loss |" in text
    assert "ccuracy on" not in text.partition("Mean metric of glue")[2]


def test_a_seed_that_a_teacher_alone_lacks_is_not_one_of_its_arm(tmp_path):
    folder = tmp_path / "nursery"
    shutil.copytree(paths.reference("nursery"), folder)
    before = results_section(folder)
    path = folder / "tables" / "T4.csv"
    table = pd.read_csv(path)
    teachers = table["member"] == "teacher"
    assert teachers.any()
    table.loc[teachers, "n_seeds"] = 2
    table.to_csv(path, index=False)
    assert results_section(folder) == before
    table["n_seeds"] = table["n_seeds"].where(~teachers, 4)  # nor one that others lack
    table.to_csv(path, index=False)
    assert results_section(folder) == before


@pytest.mark.parametrize("document", [README, *sorted(README.parent.glob("docs/*.md"))], ids=lambda path: path.name)
def test_files_that_a_document_links_to_exist(document):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith(("http:", "https:"))]
    assert [link for link in local if not (document.parent / link).exists()] == []
    if document == README:
        assert {f"docs/{path.name}" for path in README.parent.glob("docs/*.md")} <= set(local)  # each page is named


def test_the_tree_names_every_module_where_it_lies():
    lines = README.read_text(encoding="utf-8").partition("    wmlkit/\n")[2].partition("\n\n")[0].splitlines()
    named, folder = set(), ""
    for line in lines:
        if line[6] != " ":  # not of a folder, which lies two spaces deeper
            folder = line.strip() if line.rstrip().endswith("/") else ""
        named |= {folder + name for name in re.findall(r"[a-z_]+\.py", line)}
    package = paths.REPOSITORY / "wmlkit"
    modules = {str(path.relative_to(package)) for path in package.rglob("*.py") if path.name != "__init__.py"}
    assert named == modules


def test_pictures_that_the_readme_shows_are_there_and_small():
    shown = re.findall(r"!\[([^\]]+)\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(shown) >= 3 and all(words for words, _ in shown)
    for _, name in shown:
        assert (paths.REPOSITORY / name).stat().st_size < 200_000


def test_the_lines_for_an_own_corpus_give_a_model_that_transformers_loads(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line and not line.startswith(("from", "import"))]) <= 5
    (tmp_path / "my_texts").mkdir()
    lines = [f"Das {adjective} {noun} steht am {place}." for adjective in ("alte", "neue", "kleine", "rote")
             for noun in ("Haus", "Boot", "Rad", "Tor") for place in ("Ufer", "Berg", "Markt", "See")]  # fmt: skip
    (tmp_path / "my_texts" / "deutsch.txt").write_text("\n".join(lines * 20), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    smaller = (("2000", "50"), ("4096", "300"))  # of what the lines say, only the size is changed
    for old, new in smaller:
        assert code.count(old) == 1
        code = code.replace(old, new)
    given: dict = {}
    exec(code, given)
    model = AutoModelForMaskedLM.from_pretrained(given["folder"] / "peers" / "peer_1")
    tokenizer = AutoTokenizer.from_pretrained(given["folder"] / "peers" / "peer_1")
    assert model(**tokenizer("Das alte Haus.", return_tensors="pt")).logits.isfinite().all()


def test_the_line_for_a_larger_own_corpus_trains(tmp_path, monkeypatch):
    """With the sizes of a test; the learning curve is left out, as BLiMP is not there."""
    (line,) = re.findall(
        r"^    wmlkit (train --preset modern-10m .*)$", README.read_text(encoding="utf-8"), re.MULTILINE
    )
    (tmp_path / "my_texts").mkdir()
    lines = [f"Das Boot Nummer {n} steht am Ufer." for n in range(400)]
    (tmp_path / "my_texts" / "deutsch.txt").write_text("\n".join(lines), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    smaller = ("data.vocab_size=300", "data.block_size=32", "data.block_schedule=[]", "mutual.num_peers=1",
               "model.num_layers=2", "model.num_heads=2", "model.hidden_size=16", "model.intermediate_size=32",
               "search.num_layers=[1]", "search.num_heads=[2]", "search.hidden_size=[8, 16]", "train.batch_size=4",
               "train.steps=2", "train.warmup_steps=1", "train.final_eval_rows=8", "outer.batch_size=2")  # fmt: skip
    given = [*shlex.split(line), *(word for setting in smaller for word in ("--set", setting))]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert (Path(result.output.splitlines()[-1]) / "peers" / "peer_1" / "model.safetensors").is_file()


def test_what_it_says_of_45_comparisons_is_what_the_committed_table_has():
    """Of the five ways of learning the weights, and of equal ones, on BabyLM text; by its values of each seed."""
    table = pd.read_csv(paths.reference("modern-10m") / "tables" / "T8.csv")
    table = table[(table["suite"] == "dev_ce") & ~table["ablation"].str.contains("steps")]
    values = {(row.ablation.removeprefix("arm = "), row.member): [float(value) for value in row.values_.split()]
              for row in table.rename(columns={"values": "values_"}).itertuples()}  # fmt: skip
    ways = sorted({name for name, _ in values if name == "dml" or name.startswith("wml")})
    told, compared = [], Counter()
    for a, b in itertools.combinations(ways, 2):  # dml, equal weights, comes first
        for member in ("best_peer", "mean_peer", "ensemble"):
            differences = [y - x for x, y in zip(values[a, member], values[b, member], strict=True)]
            low, high = results.interval(differences)
            compared[a == "dml"] += 1
            if low > 0.001 or high < -0.001:  # the table's values are rounded to 0.001
                told.append((a, b, member, round(sum(differences) / 3, 3)))
    assert compared == {True: 15, False: 30}
    assert told == [("dml", "wml, outer.objective = probability_mixture", "ensemble", -0.011)]
    text = " ".join((paths.REPOSITORY / "docs/findings.md").read_text(encoding="utf-8").split())
    assert "one of 15 comparisons with equal weights shows one (an ensemble, 0.011 nats" in text
    assert "none of 30 between the ways of learning them" in text


@pytest.mark.parametrize("preset", PRESETS)
def test_what_learned_weights_gain_over_equal_ones_is_told(preset):
    """Every difference that was shown and is more than 0.6 % of the loss stands in README, in percent."""
    tables = paths.reference(preset) / "tables"
    losses = pd.read_csv(tables / "T4.csv").query("suite == 'dev_ce'")
    equal = losses[losses["arm"] == "dml"].set_index(["peers", "member"])["mean"]
    shown = pd.read_csv(tables / "T4_differences.csv").query("suite == 'dev_ce' and a == 'wml' and b == 'dml'")
    shares = {
        f"{100 * abs(row.mean_) / equal[row.peers, row.member]:.1f} %"
        for row in shown[shown["p_adjusted"] < 0.05].rename(columns={"mean": "mean_"}).itertuples()
    }
    text = README.read_text(encoding="utf-8").partition("**Learned weights")[2].partition("\n- **")[0]
    assert [share for share in shares if float(share.split()[0]) > 0.6 and share not in text] == []


@pytest.mark.parametrize("preset", PRESETS)
def test_sentences_that_win_by_being_short_do_so_where_scores_are_sums(preset):
    path = paths.reference(preset) / "tables" / "T4_lengths.csv"
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if not (len(table) and (table["suite"] == "blimp").any()):
        pytest.skip("no pairs of unlike length")
    table = table[table["suite"] == "blimp"].pivot_table(
        index=["protocol", "arm", "member"], columns="tokens", values=["mean", "pairs"]
    )
    fewer, more = (next(name for name in table["mean"] if word in name) for word in ("fewer", "more"))
    won = table["pairs"][fewer] * table["mean"][fewer] + table["pairs"][more] * (100 - table["mean"][more])
    for (protocol, *_), share in (won / (table["pairs"][fewer] + table["pairs"][more])).items():
        assert (share > 50) == (get_protocol(protocol).mlm_reduction == "sum" or "causal" in preset)


def test_how_far_seeds_lie_apart_without_a_defect_is_what_the_committed_table_has():
    table = pd.read_csv(paths.reference("nursery") / "tables" / "T9.csv").set_index("case")
    values = [float(value) for value in table.loc["none", "values"].split(", ")]
    told = f"within {max(values) - min(values):.3f} nats"
    assert len(values) == 3
    for name in ("docs/deviations.md", "notebooks/07_released_code.ipynb"):
        assert told in (paths.REPOSITORY / name).read_text(encoding="utf-8")


@pytest.fixture
def root(tmp_path):
    """A README with a place, a page of results with places for two presets, and the page of deviations."""
    paths.write_text(tmp_path / DOCUMENTS[0], "\nold glance\n".join(GLANCE))
    places = ["\nold {preset}\n".join(RESULTS).format(preset=preset) for preset in ("nursery", "smoke")]
    paths.write_text(tmp_path / DOCUMENTS[1], "\n".join(places))
    shutil.copy(paths.REPOSITORY / DOCUMENTS[2], tmp_path / "docs")
    return tmp_path


def read(root):
    """README, results and deviations as they are."""
    return [(root / name).read_text(encoding="utf-8") for name in DOCUMENTS]


def changed_run(folder):
    """The committed run with other numbers in T4 and T9."""
    shutil.copytree(paths.reference("nursery"), folder)
    for name, column, value in (("T4", "mean", 12.3), ("T9", "dev_ce", 77.0)):
        table = pd.read_csv(folder / "tables" / f"{name}.csv")
        table.assign(**{column: value}).to_csv(folder / "tables" / f"{name}.csv", index=False)
    told = paths.read_json(folder / "answer.json")
    paths.write_json(folder / "answer.json", told | {"answer": "Another answer.", "basis": ["Another basis."]})
    return folder


def test_a_reference_takes_the_place_of_the_one_of_its_preset(root):
    old = root / "figures" / "nursery"
    paths.write_text(old / "tables" / "T99.csv", "goes with the run that it is of")
    new = changed_run(root / "runs" / "nursery")
    notes = paths.read_json(new / "tables" / "provenance.json")
    command = 'wmlkit report /a/runs --set data.corpus=/of/somebody/texts --set study.runs=[["wml",2]] --out /here'
    changes = {"T1": {"command": command}, "T8": {"runs_commit": "b" * 40}}
    changes["T4"] = {"commit": "a" * 40 + "-dirty", "runs_commit": "c" * 40}
    changed = {name: notes[name] | change for name, change in changes.items()}
    paths.write_json(new / "tables" / "provenance.json", notes | changed)
    (new / "tables" / ".provenance.lock").touch()
    write_reference(new, old, root)
    assert not list(old.rglob(".*"))
    readme, text, deviations = read(root)
    assert readme.partition(GLANCE[1])[0] == f"{GLANCE[0]}\n{glance(old.parent)}\n"
    assert "| dml | 4 | 12.3 [" in text and "| dml | 4 | 12.300 [" in text
    assert "**Another answer.**\n\n- Another basis.\n" in text
    assert "old nursery" not in text and "old smoke" in text
    assert f"at commit {'a' * 12}-dirty, from runs of {'c' * 12}, on cpu. The runs" in text
    assert text.count(f"The runs of the changes to the base are of {'b' * 12}.") == 1
    commands = {note["command"] for note in paths.read_json(old / "tables" / "provenance.json").values()}
    assert 'wmlkit report runs --set data.corpus=texts --set study.runs=[["wml",2]] --out here' in commands
    assert "dev loss 77.00 [" in deviations
    assert sorted(path.name for path in old.iterdir()) == ["answer.json", "figures", "summary.json", "tables"]
    assert not (old / "tables" / "T99.csv").exists()


def test_each_suite_has_a_table_of_its_own(root):
    new = changed_run(root / "runs" / "nursery")
    for name in ("T4", "T4_differences"):
        table = pd.read_csv(new / "tables" / f"{name}.csv")
        other = table[table["suite"] == "nursery"].assign(suite="supplement")
        pd.concat([table, other]).to_csv(new / "tables" / f"{name}.csv", index=False)
    write_reference(new, root / "figures" / "nursery", root)
    text = read(root)[1]
    headings = re.findall(r"^(?:Accuracy on (\w+)|Dev (loss))", text, re.MULTILINE)
    assert headings == [("nursery", ""), ("", "loss"), ("supplement", "")]
    assert text.count("| wml − distill | 4 |") == 3


def test_a_reference_without_a_comparison_and_one_that_cannot_be_read(root):
    new, target = changed_run(root / "runs" / "nursery"), root / "figures" / "nursery"
    (new / "tables" / "T4_differences.csv").unlink()
    write_reference(new, target, root)
    before = read(root)
    text = before[1]
    assert "Differences, paired by seed" not in text and "| wml | 4 | 12.3 " in text
    (new / "tables" / "T4.csv").unlink()
    with pytest.raises(FileNotFoundError):
        write_reference(new, target, root)
    assert (target / "tables" / "T4.csv").is_file() and read(root) == before


def test_two_protocols_of_ablations_have_heads_of_their_own():
    """Of the committed T8, and of the same with each accuracy under a second protocol."""
    table = pd.read_csv(paths.reference("nursery") / "tables" / "T8.csv").fillna({"protocol": ""})
    (head,) = (line for line in _ablations(table) if line.startswith("| change |"))
    assert head == "| change | FLOP | accuracy on nursery | dev loss |"
    scored = table[table["suite"] == "nursery"]
    (own,) = set(scored["protocol"])
    (head,) = (
        line
        for line in _ablations(pd.concat([table, scored.assign(protocol="babylm2024-fixed")]))
        if line.startswith("| change |")
    )
    assert f"| accuracy on nursery under `{own}` |" in head and "nursery under `babylm2024-fixed` |" in head
    assert head.count("accuracy on nursery") == 2 and head.count("| dev loss |") == 1


def test_ablations_stand_below_the_arms(root):
    new, target = changed_run(root / "runs" / "nursery"), root / "figures" / "nursery"
    table = pd.read_csv(new / "tables" / "T8.csv")
    only = (table["ablation"] == "arm = dml") & (table["member"] == "mean_peer") & (table["suite"] == "dev_ce")
    table.loc[only, ["difference", "difference_low", "difference_high", "p_adjusted"]] = [0.25, 0.125, 0.375, 0.04]
    table.loc[(table["ablation"] == "base") & (table["suite"] == "nursery"), "mean"] = 77.7
    table.loc[table["ablation"] == "alpha = 0.9", ["n_seeds", "difference_low", "difference_high"]] = [1, None, None]
    for change, flops in (("base", 2e12), ("arm = dml", 5e12), ("arm = independent", None)):
        table.loc[table["ablation"] == change, "flops_with_teacher"] = flops
    table = table[~((table["ablation"] == "arm = independent") & (table["suite"] == "nursery"))]
    table.loc[
        table["ablation"] == "hypergradient = direct", ["difference", "difference_low", "difference_high", "p"]
    ] = None
    table["difference_n_seeds"] = table["n_seeds"].where(table["ablation"] != "arm = distill", 2)
    table.to_csv(new / "tables" / "T8.csv", index=False)
    write_reference(new, target, root)
    shown = read(root)[1].partition("The base is wml with 2 peers and 150 steps;")[2].splitlines()
    assert shown[2] == "| change | FLOP | accuracy on nursery | dev loss |"
    assert shown[4].startswith("| base | 2e+12 | 77.7 [")
    (dml,) = (line for line in shown if line.startswith("| arm = dml | 2.5 times |"))
    assert dml.endswith("| +0.250 [0.125, 0.375] p 0.04 |")
    assert len([line for line in shown if line.startswith("| alpha = 0.9 (1 of 3 seeds) | ")]) == 1
    assert len([line for line in shown if line.startswith("| arm = distill (2 of 3 seeds) | ")]) == 1
    assert not any("hypergradient = direct" in line for line in shown)  # no seed in common with the base: no difference
    (independent,) = (line for line in shown if line.startswith("| arm = independent |"))
    assert independent.startswith("| arm = independent |  |  | ")
    table.assign(peers=1).to_csv(new / "tables" / "T8.csv", index=False)
    write_reference(new, target, root)
    assert "The base is wml with 1 peer and 150 steps;" in read(root)[1]
    table[table["ablation"] != "base"].to_csv(new / "tables" / "T8.csv", index=False)
    write_reference(new, target, root)
    assert "Changes to the base" not in read(root)[1]


def test_only_the_nursery_s_effects_are_quoted(root):
    before = read(root)[2]
    write_reference(changed_run(root / "runs" / "smoke"), root / "figures" / "smoke", root)
    _, text, deviations = read(root)
    assert "old nursery" in text and "old smoke" not in text and deviations == before


def test_a_preset_without_a_place_is_refused_before_anything_is_replaced(root):
    new, old = changed_run(root / "runs" / "nursery"), root / "figures" / "nursery"
    paths.write_text(old / "summary.json", "old")
    before = read(root)
    for document in DOCUMENTS[:2]:
        whole = (root / document).read_text(encoding="utf-8")
        (root / document).write_text("# nothing\n", encoding="utf-8")
        with pytest.raises(UserError, match="has no place for results; expected the lines .* add them"):
            write_reference(new, old, root)
        (root / document).write_text(whole, encoding="utf-8")
        assert read(root) == before and (old / "summary.json").read_text() == "old"
    (new / "tables" / "T9.csv").unlink()
    with pytest.raises(UserError, match=r"has no T9.csv"):
        write_reference(new, old, root)
    assert read(root) == before and (old / "summary.json").read_text() == "old"
