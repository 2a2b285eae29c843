"""A task as a value, and how its stages are run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from torch import nn

from dfkd.models.probe import Network
from dfkd.reporting.record import Record
from dfkd.stages import Runner, Stage
from dfkd.stages.dreams import all_dreams
from dfkd.stages.images import Images, ImagesInARow
from dfkd.stages.learning import streamed_dreams
from dfkd.stages.networks import load
from dfkd.store import Product, product_key
from dfkd.tasks.experiment import Experiment
from dfkd.training.progress import duration

log = logging.getLogger(__name__)

Plan = dict[str, list[Stage]]
LOOKS = ("scores", "dream_quality")  # kinds of what is said, and not made


@dataclass(frozen=True)
class Task:
    """What the project is for, in one kind of run.

    Attributes:
        name: as in the configuration.
        parts: of a run, in order. The last but one trains the controls, the one before it makes the student, and the
            last evaluates.
        controls: that may be trained beside the student.
        ignored: options that do nothing in this task, as prefixes of their names.
        check: raises what can be known to be wrong with an experiment, given its teacher (`DfkdError`).
        plan: the stages of an experiment by part. `teacher` and `dream` begin with what they are named after and then
            look at it; the other parts end with it.
        facts: what the result tells of an experiment beside its products.
    """

    name: str
    parts: tuple[str, ...]
    controls: tuple[str, ...]
    ignored: tuple[str, ...]
    check: Callable[[Experiment, nn.Module], None]
    plan: Callable[[Experiment], Plan]
    facts: Callable[[Experiment], dict[str, object]]

    @property
    def learning(self) -> str:
        """The part that makes the student."""
        return self.parts[-3]


def run_stages(plan: Plan, runner: Runner, last: str, ended: Callable[[str], None] = lambda part: None) -> None:
    """Run the stages of a plan, part by part, up to and with the part `last`; `ended` is told of each that ended."""
    for part, stages in plan.items():
        started = time.monotonic()
        if stages:
            log.info("%s ...", part)
        found = [runner.run(stage).reused for stage in stages]
        if stages:
            log.info("%s: %s", part, "found in the store" if all(found) else duration(time.monotonic() - started))
        ended(part)
        if part == last:
            return


def stages_up_to(plan: Plan, last: str) -> list[Stage]:
    """The stages of a plan, up to and with those of the part `last`."""
    return [stage for part in list(plan)[: list(plan).index(last) + 1] for stage in plan[part]]


def check_images(plan: Plan, last: str) -> None:
    """Find out now whether all real images that the parts up to `last` will open can be used (`DataError`)."""
    for stage in stages_up_to(plan, last):
        for source in stage.inputs.values():
            if isinstance(source, Images | ImagesInARow):
                source.check()


def record(task: Task, experiment: Experiment, plan: Plan, runner: Runner, settings: dict[str, str]) -> Record:
    """What a run that went through its whole plan has to tell."""
    e, products = experiment, runner.products
    learned = plan[task.learning][-1]
    network = cast(Network, plan["evaluate"][0].inputs["student_network"])
    opened = [purpose for data in (e.data, *e.new_data) if data is not None for purpose in data.opened]
    return Record(
        experiment=e.name,
        task=task.name,
        seed=e.seed,
        choices=e.choices,
        settings=settings,
        spec=e.spec,
        facts=task.facts(e),
        parts=parts_of(plan),
        products=products,
        scores=products["evaluate"].notes["scores"],
        warnings=products["teacher_scores"].notes["warnings"] if "teacher_scores" in products else [],
        quality=_quality(products),
        choice=products["choose"].notes if "choose" in products else {},
        iterations=products["dream"].notes["iterations"],
        dreams=all_dreams(products["dream"]),
        streamed=[dreams for stage in plan[task.learning] for dreams in streamed_dreams(products[stage.name])],
        student=load(network, products[learned.name]),
        data={
            "name": None if e.data is None else e.data.name,
            "new": ", then ".join(images.name for images in e.new_data) or None,
            "opened_for": list(dict.fromkeys(opened)),
        },
        device=e.options.torch_device(),
    )


def _quality(products: Mapping[str, Product]) -> dict[str, object]:
    found = (products[name].notes for name in ("dream_quality", "dream_comparison") if name in products)
    return {kind: marks for notes in found for kind, marks in notes.items()}


def parts_of(plan: Plan) -> dict[str, list[str]]:
    """Names of the stages by part; whatever looks at teacher, dreams or students belongs to the last one.

    So the seconds of a part are those of the work that it is named after.
    """
    parts: dict[str, list[str]] = {part: [] for part in plan}
    for part, stages in plan.items():
        for stage in stages:
            parts["evaluate" if stage.kind in LOOKS else part].append(stage.name)
    return parts


def settings_of(task: Task, plan: Plan) -> dict[str, str]:
    """Digests of all that determines a run's `dreams`, and its `student` and what that is scored on.

    Of the same experiment with seed 0, they are the same for all seeds: what a mean over seeds may be taken of.
    """
    inputs = plan["evaluate"][0].inputs.items()
    tests = {name: source.identity() for name, source in inputs if not isinstance(source, Stage)}
    student = product_key("setting", {"student": plan[task.learning][-1].identity(), "tests": tests})
    return {"student": student, "dreams": plan["dream"][0].identity()}
