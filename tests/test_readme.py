"""README and documents keep their word: commands compose, tables are those of real runs, links name what is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from statistics import fmean

import depthwise
import first_aid
import pytest
import teachers
from criterion import correlations
from hydra import compose, initialize_config_module
from inversion_step import table
from recovery_against_time import page

from dfkd import config
from dfkd.app import COMMANDS as SUBCOMMANDS
from dfkd.privacy.audit import rows_of, verdict
from dfkd.reporting.report import main as report
from dfkd.reporting.result import view

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GENERATED = {ROOT / "docs" / name for name in ("options.md", "changes.md")}  # by the build of the site
README = PAGES[0].read_text(encoding="utf-8")
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)).replace("\\\n", " ")
LINES = [line.split("#")[0].strip() for line in SHELL.splitlines() if line.startswith("dfkd ")]
COMMANDS = sorted({line for line in LINES if line.split()[1] not in SUBCOMMANDS})
LINKS = [(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", page.read_text(encoding="utf-8"))]
LINKED = {(page.parent / link).resolve() for page, link in LINKS if link.endswith("result.json")}
RESULTS = sorted(LINKED | set((ROOT / "docs" / "results").glob("*.json")))
PLUGINS = {
    "hydra/launcher=workstation": "hydra_joblib_launcher",
    "hydra/launcher=slurm": "hydra_submitit_launcher",
    "hydra/launcher=ray_cluster": "hydra_ray_launcher",
    "hydra/sweeper=search": "hydra_optuna_sweeper",
}
STUDIES = sorted(path for path in (ROOT / "docs" / "results").iterdir() if path.is_dir() and path.name != "privacy")
AUDITS = sorted(path for path in (ROOT / "docs" / "results" / "privacy").iterdir())


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line):
    for option, plugin in PLUGINS.items():
        if option in line:
            pytest.importorskip(f"hydra_plugins.{plugin}")
    overrides = [word for word in shlex.split(line)[1:] if word != "-m"]
    if "-m" in line:  # the first job of the sweep
        overrides = [re.sub(r"=.*\(([^(),]+),[^()]*\)+$", r"=\1", word) for word in overrides]  # a search's range
        overrides = [word if "[" in word else word.split(",")[0] for word in overrides]
    config.register()
    with initialize_config_module("dfkd.conf", version_base="1.3"):
        config.require_complete(compose("config", overrides=["name=readme", *overrides]))


def test_every_make_target_exists():
    targets = set(re.findall(r"^make ([\w-]+)", SHELL, re.MULTILINE))
    assert targets >= {"demo", "test"}
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_is_that_of_a_recorded_result(path):
    result = json.loads(path.read_text())
    for row in view(result).table(result)[1]:
        assert "| " + " | ".join(row) + " |" in TEXT
    assert view(result).summary(result) in TEXT.replace("\n", " ")


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)


@pytest.mark.parametrize("study", STUDIES, ids=lambda path: path.name)
def test_every_report_is_that_of_the_recorded_runs(study, tmp_path, monkeypatch):
    """Each table in the page is what the command above it prints; the CSV files beside the runs have every column."""
    monkeypatch.chdir(ROOT)
    folder = f"docs/results/{study.name}"
    commands = [shlex.split(line)[2:] for line in LINES if line.startswith(f"dfkd report {folder} ")]
    assert commands
    for number, arguments in enumerate(commands):
        report([*arguments, "--out", str(tmp_path)])
        students, dreams = tables((tmp_path / "report.md").read_text(encoding="utf-8"))
        assert students in TEXT and (number or dreams in TEXT)
        means = "class_incremental_means.csv" if study.name == "incremental" else "means.csv"
        for name, beside in ((means, f"{folder}.csv"), ("dream_means.csv", f"{folder}_dreams.csv")):
            assert (tmp_path / name).read_text(encoding="utf-8") == Path(beside).read_text(encoding="utf-8")
        assert max(len(table.splitlines()[0].split(" | ")) for table in (students, dreams)[: 2 - number]) <= 9


@pytest.mark.parametrize("audits", AUDITS, ids=lambda path: path.name)
def test_every_audit_is_that_of_the_recorded_runs(audits):
    recorded = [json.loads(path.read_text()) for path in sorted(audits.glob("*.json"))]
    rows = rows_of(recorded)
    assert recorded and all(f"| {' | '.join(row.values())} |" in TEXT for row in rows)
    assert verdict(recorded) in TEXT.replace("\n", " ")


OTHERS = sorted({line for line in LINES if len(line.split()) > 1 and line.split()[1] in SUBCOMMANDS})


@pytest.mark.parametrize("line", OTHERS)
def test_every_other_command_has_the_arguments_that_it_is_given(line, capsys):
    command, *arguments = shlex.split(line)[1:]
    if command == "plan":  # which takes the options of a run
        config.register()
        with initialize_config_module("dfkd.conf", version_base="1.3"):
            config.require_complete(compose("config", overrides=["name=readme", *arguments]))
        return
    with pytest.raises(SystemExit) as ended:
        SUBCOMMANDS[command](["--help"])
    usage = capsys.readouterr().out
    assert ended.value.code == 0
    for flag in (argument for argument in arguments if argument.startswith("--")):
        assert re.search(rf"^  .*{flag}\b", usage, re.MULTILINE), flag


def test_every_command_has_a_page_and_an_example():
    pages = {path.stem for path in (ROOT / "docs" / "commands").glob("*.md")}
    assert pages == {"index", "run", *SUBCOMMANDS}
    assert {line.split()[1] for line in OTHERS} == set(SUBCOMMANDS)


def test_the_map_names_what_is_there():
    code_map = TEXT.split("## Map of the code")[1].split("```")[1]
    for name in re.findall(r"^(\S+)", code_map, re.MULTILINE):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for link in (link for where, link in LINKS if where == page and not link.startswith("http")):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target in GENERATED:
            continue
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link


def test_the_table_of_int8_is_that_of_the_recorded_exports():
    page = (ROOT / "docs" / "deployment.md").read_text()
    for row in json.loads((ROOT / "benchmarks" / "int8.json").read_text())["rows"]:
        found = [row["networks"][name]["accuracy"] for name in ("float", "int8", "int8 on real", "int8 on noise")]
        assert f"| {row['sparsity']} | " + " | ".join(f"{100 * value:.1f}" for value in found) + " |" in page


def test_the_rank_of_the_criterion_is_that_of_the_recorded_students():
    rows = json.loads((ROOT / "benchmarks" / "criterion.json").read_text())["rows"]
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    every, new = correlations(rows), correlations([row for row in rows if row["new"]])
    assert f"Over {len(rows)} students" in text and f"Over the {sum(row['new'] for row in rows)} of them" in text
    assert f"is {every[0]}; that of agreement on held-out dreams is {every[1]}, of the KL divergence on these" in text
    assert f"on these {every[2]}, of that on the pictures {every[3]}" in text and ", ".join(new) in text


def test_the_readme_is_short():
    assert len(README.split()) <= 1200 and len(README.encode()) <= 9 * 1024


def test_the_readmes_results_are_those_of_their_runs():
    rows = [row for row in README.splitlines() if "](docs/results/" in row and row.startswith("|")]
    assert 4 <= len(rows) <= 8
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        run = json.loads((ROOT / re.findall(r"\]\((docs/results/[^)]+)\)", row)[0] / "result.json").read_text())
        assert len(cells) <= 7
        expected = [run["recovered"]["sparsity"], run["teacher"]["accuracy"], run["pruned"]["accuracy"],
                    run["controls"]["batchnorm"], run["recovered"]["accuracy"]]  # fmt: skip
        assert cells[1:6] == [f"{100 * value:.1f}" for value in expected]


def test_recovery_against_time_is_that_of_the_recorded_points():
    points = json.loads((ROOT / "benchmarks" / "recovery_against_time.json").read_text())["rows"]
    text = page(points)
    assert text == (ROOT / "docs" / "recovery_against_time.md").read_text()
    tests = {tuple(cells[:3]): cells[4] for cells in (line.strip("| ").split(" | ") for line in text.splitlines())
             if len(cells) == 6}  # fmt: skip
    for setting, name, iterations in (
        ("default", "`deepinversion_noise`", "150"),
        ("paper", "`cifar10_paper`", "2000"),
    ):
        row = [name, iterations, tests[setting, iterations, "75%"], tests[setting, iterations, "90%"]]
        assert f"| {' | '.join(row)} |" in TEXT


def test_what_features_of_new_classes_allow_is_that_of_the_recorded_networks():
    rows = json.loads((ROOT / "benchmarks" / "new_class_features.json").read_text())["rows"]
    text = " ".join((ROOT / "docs" / "results.md").read_text().split())
    assert [row["seed"] for row in rows] == [0, 1, 2] and "mean of three seeds" in text

    def mean(kind: str, *networks: str) -> list[str]:
        return [f"{100 * fmean(row['networks'][name][kind] for row in rows):.1f}" for name in networks]

    networks = "learn", "learning_without_forgetting", "joint"
    dreams, without, joint = mean("of all images", *networks)
    [updates] = {row["updates"] for row in rows}
    assert f"after {updates:,} updates, is right on {dreams} % of the test images" in text
    assert f"with those of `balanced`, on {without} with those of learning without forgetting" in text
    assert f"and on {joint} with those of joint training" in text
    told, auc = mean("told which", *networks), mean("old from new", *networks)
    assert f"the three are right on {told[0]} % (dreams), {told[1]} and {told[2]};" in text
    assert f"with an AUC of {auc[0]}, {auc[1]} and {auc[2]} %" in text
    assert f"themselves, has {mean('with the teacher', 'learn')[0]}." in text
    seen, dreamt = mean("images as old", "joint") + mean("dreams as old", "joint")
    assert f"takes {dreamt} % of them for an old class, and {seen} % of the old classes' test images" in text


def test_the_table_of_teachers_is_that_of_the_recorded_trainings():
    assert teachers.table(json.loads((ROOT / "benchmarks" / "teachers.json").read_text())["rows"]) in TEXT


def test_seconds_of_depthwise_convolutions_are_the_recorded_ones():
    assert depthwise.table(json.loads((ROOT / "benchmarks" / "depthwise.json").read_text())["rows"]) in TEXT


def test_first_aid_is_that_of_the_recorded_students():
    assert first_aid.table(json.loads((ROOT / "benchmarks" / "first_aid.json").read_text())["rows"]) in TEXT


def test_the_benchmark_pages_are_those_of_the_recorded_results():
    results = json.loads((ROOT / "benchmarks" / "results.json").read_text())
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    assert page == table(results)
    speed = TEXT.split("## The inversion engine")[1].split("\n## ")[0]
    rows = [line for line in speed.splitlines() if line.startswith("| ")]
    assert len(rows) >= 6 and all(row in page for row in rows)
    sentences = [line for line in page.splitlines() if line.startswith(("resnet20 at batch 256", "Peak memory"))]
    assert len(sentences) == 2 and all(line in speed.replace("\n", " ") for line in sentences)
