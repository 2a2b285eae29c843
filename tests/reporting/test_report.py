"""`dfkd report` on runs that were really made: rows over seeds, what differs as columns, failures in sight."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pandas as pd
import pytest
import yaml
from conftest import DREAMS, TINY, command, without_training

from dfkd.errors import ConfigError
from dfkd.reporting.plots import recovery_plot
from dfkd.reporting.reading import read_runs
from dfkd.reporting.report import main, summarise, summarise_dreams
from dfkd.reporting.settings import LABELS, named_settings
from dfkd.reporting.students import recovery


def test_a_sweep_becomes_a_table_with_means_over_seeds(sweep, tmp_path):
    text = command(["report", str(sweep / "sweep"), "--out", "tables"], tmp_path).stdout
    results = [json.loads(path.read_text()) for path in sorted((sweep / "sweep").glob("*/result.json"))]
    at_half = [100 * r["recovered"]["accuracy"] for r in results if round(r["pruned"]["sparsity"], 1) == 0.5]
    assert len(at_half) == 2
    expected = f"{statistics.mean(at_half):.1f} ± {statistics.stdev(at_half):.1f}"
    row = next(line for line in text.splitlines() if "| 0.5 |" in line)
    assert expected in row and "| 2 |" in row
    assert "pruning.amount" in text and "inversion.iterations" not in text  # what differs, and nothing else
    assert {path.name for path in (tmp_path / "tables").iterdir()} == {
        "report.md", "report.html", "report.csv", "means.csv", "dreams.csv", "dream_means.csv",
        "recovery_against_sparsity.png", "accuracy_against_time.png", "learning_curves.png",
    }  # fmt: skip
    assert (tmp_path / "tables" / "report.md").read_text() in text
    assert len(pd.read_csv(tmp_path / "tables" / "report.csv")) == 6


def test_a_table_has_the_columns_that_are_asked_for_and_a_csv_all_of_them(sweep, tmp_path, capsys):
    asked = ["--columns", "pruning.amount,recovered", "--dream-columns", "dreams"]
    main([str(sweep / "sweep"), "--out", str(tmp_path), *asked])
    tables = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    full = pd.read_csv(tmp_path / "means.csv", dtype=str)
    assert tables[:2] == ["| pruning.amount | recovered |", "| --- | --- |"] and len(full.columns) > 9
    assert tables[2:5] == [f"| {row['pruning.amount']} | {row['recovered']} |" for _, row in full.iterrows()]
    assert tables[5] == "| dreams |"
    with pytest.raises(ConfigError, match="--columns must be of the table's columns: .*pruning.amount.* got 'amount'"):
        main([str(sweep / "sweep"), "--out", str(tmp_path), "--columns", "amount"])


def test_dreams_have_a_row_for_each_setting_whoever_learned_from_them(sweep, tmp_path):
    results = [json.loads(path.read_text()) for path in (sweep / "sweep").glob("*/result.json")]
    accuracies = {r["seed"]: 100 * r["dreams"]["teacher_accuracy"] for r in results}
    table = summarise_dreams(read_runs([sweep / "sweep"]).dreams)
    assert len(results) == 6 and list(table["seeds"]) == [2] and "verifier" not in table
    mean, std = statistics.mean(accuracies.values()), statistics.stdev(accuracies.values())
    assert table["teacher accuracy"][0] == f"{mean:.1f} ± {std:.1f}"


def test_dreams_say_who_looked_at_them_and_what_looked_at_real_images(tmp_path):
    command([*TINY, "stage=teacher", "seed=1", "run_dir=teacher"], tmp_path)
    weights = next(tmp_path.glob("**/teacher/*/weights.safetensors"))
    command(
        [*TINY, "controls=[]", f"verifier.weights={weights}", "verifier.extractor=teacher", "run_dir=run"], tmp_path
    )
    marks = json.loads((tmp_path / "run" / "result.json").read_text())["dreams"]["quality"]
    row = summarise_dreams(read_runs([tmp_path / "run"]).dreams).iloc[0]
    assert row["verifier accuracy"] == f"{100 * marks['without_real_images']['verifier_accuracy']:.1f}"
    assert row["real fid"] == f"{marks['with_real_images']['fid']:.1f}" and row["extractor"] == "teacher"
    assert row["verifier"] == "resnet20"


def test_runs_that_failed_are_listed(sweep, tmp_path):
    command(
        [*without_training(TINY), "teacher=pretrained", "teacher.weights=none.pt", "run_dir=failed"],
        tmp_path,
        check=False,
    )
    command([*TINY, "stage=teacher", "run_dir=short"], tmp_path)
    found = read_runs([sweep / "sweep", tmp_path])
    assert len(found.students) == 6
    assert sorted(found.others["status"]) == ["failed", "finished"]
    why = found.others["why"]
    assert why.str.contains("there is no file none.pt").any() and (why == "stage=teacher").any()
    text = command(["report", ".", "--out", "tables"], tmp_path).stdout
    assert "2 runs have no result" in text and "there is no file none.pt" in text


def test_one_seed_has_no_spread(sweep):
    runs = read_runs([sweep, sweep / "sweep"]).students  # a folder within another: each run counts once
    assert len(runs) == 6
    table = summarise(runs[runs["seed"] == 0])
    assert len(table) == 3 and not table["recovered"].str.contains("±").any()


def test_a_student_with_two_runs_is_one_seed(sweep, tmp_path):
    shutil.copytree(sweep / "sweep", tmp_path / "first")
    shutil.copytree(sweep / "sweep", tmp_path / "with_control")
    for path in (tmp_path / "with_control").glob("*/result.json"):
        result = json.loads(path.read_text())
        result["controls"]["noise"] = 0.125
        path.write_text(json.dumps(result))
    for results in (tmp_path / "first").glob("*/result.json"):
        result = json.loads(results.read_text())
        result["controls"]["noise"] = None
        results.write_text(json.dumps(result))
    runs = read_runs([tmp_path]).students
    assert len(runs) == 6
    table = summarise(runs)
    assert (table["seeds"] == 2).all() and (table["noise"] == "12.5 ± 0.0").all()


def test_another_teacher_is_another_row(sweep, tmp_path):
    shutil.copytree(sweep / "sweep", tmp_path / "sweep")
    for path in (tmp_path / "sweep").glob("*/config.yaml"):
        config = yaml.safe_load(path.read_text())
        config["teacher"]["weights"] = "mine.pt" if config["seed"] else "other.pt"
        path.write_text(yaml.safe_dump(config))
    table = summarise(read_runs([tmp_path]).students)
    assert sorted(table["teacher.weights"]) == 3 * ["mine.pt"] + 3 * ["other.pt"]


def test_an_option_that_was_not_there_yet_equals_one_that_is_not_used(sweep, tmp_path):
    shutil.copytree(sweep / "sweep", tmp_path / "sweep")
    older = next(path for path in (tmp_path / "sweep").glob("*/config.yaml") if "seed: 1" in path.read_text())
    config = yaml.safe_load(older.read_text())
    assert config["distillation"].pop("patience", "not there") is None
    older.write_text(yaml.safe_dump(config))
    runs = read_runs([tmp_path]).students
    assert len(summarise(runs)) == 3
    config["distillation"]["patience"] = 3
    older.write_text(yaml.safe_dump(config))
    runs = read_runs([tmp_path]).students
    assert len(summarise(runs)) == 4


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be a folder with runs"):
        read_runs([tmp_path])


def test_class_incremental_runs_have_a_table_of_their_own(tmp_path):
    options = [option for option in DREAMS if not option.startswith("experiment")]
    tiny = ["experiment=incremental_digits", *options, "incremental.updates=2", "controls=[fine_tuning]"]
    command(["-m", *tiny, "seed=0,1", "run_dir=sweep"], tmp_path)
    text = command(["report", "sweep"], tmp_path).stdout
    results = [json.loads(path.read_text())["scores"] for path in sorted(tmp_path.glob("sweep/*/result.json"))]
    for network in ("teacher", "fine_tuning", "learn"):
        marks = [100 * scores[network]["combined"] for scores in results]
        row = next(line for line in text.splitlines() if f"| {network} |" in line)
        assert f"{statistics.mean(marks):.1f} ± {statistics.stdev(marks):.1f}" in row
    assert "2 finished runs" in text and len(pd.read_csv(tmp_path / "report" / "class_incremental.csv")) == 6


def test_a_run_of_several_steps_tells_its_average_and_what_it_forgot(tmp_path):
    options = [option for option in DREAMS if not option.startswith("experiment")]
    steps = ["data.only=[0,1]", "new_data.only=[2,3,4,5]", "incremental.new_classes=2", "incremental.steps=2"]
    tiny = ["experiment=incremental_digits", *options, *steps, "input.num_classes=2", "incremental.updates=2"]
    shown = command([*tiny, "controls=[fine_tuning]", "run_dir=run"], tmp_path)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    first, *_, last = [result["scores"]["teacher"]["old"], *(row["learn"] for row in result["scores_by_step"])]
    assert len(result["scores_by_step"]) == 2 and len(last["tasks"]) == 3
    assert result["scores"]["learn"]["combined"] == last["combined"]
    average = (first + sum(row["learn"]["combined"] for row in result["scores_by_step"])) / 3
    assert result["scores"]["learn"]["average"] == pytest.approx(average, abs=1e-5)
    assert "4 new classes in 2 steps beside 2 old ones" in shown.stdout
    text = command(["report", "run"], tmp_path).stdout
    assert "| average | forgetting |" in text and f"| {100 * average:.1f} |" in text


def test_runs_that_differ_in_their_normalisation_are_not_seeds_of_one_setting(tmp_path):
    for seed, std in (("0", "[0.376]"), ("1", "[0.5]")):
        command([*TINY, "controls=[]", f"seed={seed}", f"input.std={std}", f"run_dir=runs/{seed}"], tmp_path)
    runs = read_runs([tmp_path / "runs"])
    assert list(summarise(runs.students)["seeds"]) == [1, 1] == list(summarise_dreams(runs.dreams)["seeds"])
    assert set(summarise(runs.students)["input.std"]) == {"[0.376]", "[0.5]"}


def test_runs_whose_files_had_other_content_under_the_same_name_are_not_seeds_of_one_setting(sweep, tmp_path):
    shutil.copytree(sweep / "sweep", tmp_path / "sweep")
    results = [(path, json.loads(path.read_text())) for path in tmp_path.glob("sweep/*/result.json")]
    assert len({result["setting"] for _, result in results}) == 3  # of six runs: the seed has no part in it
    for path, result in results:
        path.write_text(json.dumps(result | {"setting": result["setting"] + str(result["seed"])}))
    assert len(summarise(read_runs([tmp_path]).students)) == 6


RESULTS = Path(__file__).parents[2] / "docs" / "results"


@pytest.mark.parametrize("study", ["resnet20", "small", "streaming", "transfer"])
def test_a_line_or_colour_is_one_setting_named_by_what_tells_it_apart(study):
    runs = read_runs([RESULTS / study]).students
    for labels, apart_from in (([*LABELS, "measure"], []), (["model", *LABELS[1:], "measure"], ["pruning.amount"])):
        named = named_settings(runs, labels, apart_from)
        assert len({name for name, _ in named}) == len(named) > 1
        for _, group in named:
            counted = group if not apart_from else group.drop_duplicates(["seed", "option pruning.amount"])
            assert len(counted) == len(group)
            for option in (column for column in group if column.startswith("option ")):
                assert (option == "option pruning.amount" and apart_from) or group[option].nunique(dropna=False) == 1


def test_the_recovered_line_of_one_recipe_is_no_mean_over_two():
    axes = recovery_plot(read_runs([RESULTS / "resnet20"]).students).axes[0]
    ends = {c.get_label(): dict(zip(*c.lines[0].get_data(), strict=True)) for c in axes.containers}
    recovered = {label: values for label, values in ends.items() if label.startswith("recovered")}
    at_90 = sorted(round(value, 1) for values in recovered.values() for x, value in values.items() if round(x) == 90)
    assert at_90 == [40.6, 82.6, 83.1, 83.6, 83.7, 84.0, 84.1]


def test_runs_that_differ_in_their_test_images_alone_are_two(sweep, tmp_path):
    shutil.copytree(sweep / "sweep", tmp_path / "first")
    shutil.copytree(sweep / "sweep", tmp_path / "corrected")
    for path in (tmp_path / "corrected").glob("*/result.json"):
        result = json.loads(path.read_text())
        path.write_text(json.dumps(result | {"setting": "0" * 16}))
    assert len(read_runs([tmp_path]).students) == 12


@pytest.mark.parametrize(
    ("scores", "share"), [((0.9, 0.5, 0.7), 0.5), ((0.9, 0.9, 0.8), None), ((0.50, 0.51, 0.47), None)]
)
def test_a_share_of_what_was_lost_is_told_where_something_was(scores, share):
    assert recovery(*scores) == pytest.approx(share)
