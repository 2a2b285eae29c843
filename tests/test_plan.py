"""`dfkd plan`: what a run would do here, before it does it."""

from __future__ import annotations

from conftest import TINY, command


def test_the_plan_of_a_run_names_every_stage_and_knows_what_is_there(finished, tmp_path):
    plan = command(["plan", *TINY], tmp_path).stdout
    for part in ("teacher", "dream", "recover", "choose", "procedural", "evaluate", "all"):
        assert part in plan
    assert "60 updates" in plan and "12 updates" in plan and "found in the store" not in plan
    assert "still to be trained" in plan and "Memory: about" in plan
    assert not list(tmp_path.glob("runs/*"))
    known = command(["plan", *TINY, "pruning.amount=0.3", f"store={finished}/artifacts"], tmp_path).stdout
    # the teacher and its accuracy, its dreams and their quality
    assert known.count("found in the store") == 4 and "still to be trained" not in known
    wrong = command(["plan", *TINY, "pruning.amount=1"], tmp_path, check=False)
    assert wrong.returncode == 1 and "dfkd: error:" in wrong.stderr and "Traceback" not in wrong.stderr
    other = command(["plan", *TINY, "inversion.iteratons=3"], tmp_path, check=False)
    assert other.returncode == 1 and "iteratons" in other.stderr and "Traceback" not in other.stderr


def test_the_plan_explains_itself_and_knows_new_names(tmp_path):
    assert "KEY=VALUE" in command(["plan", "--help"], tmp_path).stdout
    renamed = command(["plan", *TINY, "teacher=given"], tmp_path, check=False)
    assert renamed.returncode == 1 and "teacher=given is called teacher=pretrained now" in renamed.stderr


def test_the_plan_knows_the_steps_in_which_classes_are_learned(tmp_path):
    options = [
        "experiment=incremental_digits_steps", "incremental.updates=7", "incremental.steps=2",
        "new_data.only=[2,3,4,5]", "trainer.accelerator=cpu",
    ]  # fmt: skip
    plan = command(["plan", *options], tmp_path).stdout
    for stage in ("learn_1", "dream_2", "learning_without_forgetting", "joint", "evaluate_1"):
        assert stage in plan
    assert plan.count("7 updates") == 10  # of the network and four controls, in two steps
