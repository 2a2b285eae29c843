"""What every task begins with: the teacher, its dreams, and what is said of both."""

from __future__ import annotations

from dataclasses import replace

from dfkd.real_data import Purpose
from dfkd.stages import Source, Stage
from dfkd.stages.dreams import Dreaming, dream
from dfkd.stages.evaluation import Comparison, Quality, TeacherScoring, assess_dreams, compare_dreams, score_teacher
from dfkd.stages.teacher import Pretrained, Trained, load_pretrained, train
from dfkd.tasks.experiment import Experiment

Inputs = dict[str, Stage | Source]


def teacher_stage(e: Experiment) -> Stage:
    """The teacher, as its owner trained it or trained here."""
    weights, start = e.teacher.weights, e.teacher.start
    if weights is not None:
        return Stage("teacher", "teacher", Pretrained(), load_pretrained, {"network": e.network, "weights": weights})
    training = replace(e.teacher.training, start=None)  # an input, known by its content
    recipe = Trained(
        training=training, spec=e.spec, statistics_batches=training.statistics_batches, seed=e.seed,
        precision=e.options.precision,
    )  # fmt: skip
    network = replace(e.network, aspects=("inference", "training", "initialisation"))
    inputs: Inputs = {"network": network, "images": e.images(Purpose.TEACHER_TRAINING)}
    return Stage("teacher", "teacher", recipe, train, inputs | ({} if start is None else {"start": start}))


def dream_stage(e: Experiment, teacher: Stage) -> Stage:
    """The dreams that are made before there is a student, so without one to compete with."""
    inversion = replace(e.inversion, competition_weight=0.0)
    recipe = Dreaming(inversion=inversion, spec=e.spec, seed=e.seed, precision=e.options.precision)
    return Stage("dream", "dreams", recipe, dream, {"network": e.network, "teacher": teacher})


def teacher_scores(e: Experiment, teacher: Stage) -> list[Stage]:
    """The teacher's accuracy, where there are test images."""
    if e.data is None:
        return []
    inputs: Inputs = {"network": e.network, "teacher": teacher, "images": e.images(Purpose.EVALUATION)}
    return [Stage("teacher_scores", "scores", TeacherScoring(spec=e.spec), score_teacher, inputs)]


def quality_stage(e: Experiment, teacher: Stage, dreams: Stage) -> Stage:
    """What is said of the dreams without a real image."""
    inputs: Inputs = {"teacher_network": e.network, "teacher": teacher, "dreams": dreams, **_verifier(e)}
    return Stage("dream_quality", "dream_quality", Quality(spec=e.spec), assess_dreams, inputs)


def comparison(e: Experiment, teacher: Stage, dreams: Stage) -> list[Stage]:
    """What is said of the dreams beside real images, where it is asked for."""
    if e.verifier.extractor is None:
        return []
    recipe = Comparison(spec=e.spec, extractor=e.verifier.extractor)
    extractor: Inputs = {}
    if e.verifier.extractor == "teacher":
        extractor = {"teacher_network": e.network, "teacher": teacher}
    elif e.verifier.extractor == "verifier":
        extractor = _verifier(e)
    inputs: Inputs = {"dreams": dreams, "images": e.images(Purpose.EVALUATION), **extractor}
    return [Stage("dream_comparison", "dream_quality", recipe, compare_dreams, inputs)]


def _verifier(e: Experiment) -> Inputs:
    if e.verifier.weights is None or e.verifier.network is None:
        return {}
    return {"verifier_network": e.verifier.network, "verifier_weights": e.verifier.weights}
