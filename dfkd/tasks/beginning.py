"""The stages that every task begins and ends with: the teacher, its dreams, and what is said of the dreams."""

from __future__ import annotations

from dataclasses import replace

from dfkd.real_data import Purpose
from dfkd.stages import Source, Stage
from dfkd.stages.dreams import Dreaming, dream
from dfkd.stages.evaluation import Quality, assess_dreams
from dfkd.stages.teacher import Pretrained, Trained, load_pretrained, train
from dfkd.tasks.experiment import Experiment


def teacher_stage(e: Experiment) -> Stage:
    """The teacher, as its owner trained it or trained here."""
    weights, start = e.teacher.weights, e.teacher.start
    if weights is not None:
        return Stage("teacher", "teacher", Pretrained(), load_pretrained, {"network": e.network, "weights": weights})
    training = replace(e.teacher.training, start=None)  # an input, known by its content
    recipe = Trained(training=training, spec=e.spec, seed=e.seed, precision=e.options.precision)
    network = replace(e.network, aspects=("inference", "training", "initialisation"))
    inputs: dict[str, Source] = {"network": network, "images": e.images(Purpose.TEACHER_TRAINING)}
    return Stage("teacher", "teacher", recipe, train, inputs | ({} if start is None else {"start": start}))


def dream_stage(e: Experiment, teacher: Stage) -> Stage:
    """The dreams that are made before there is a student, so without one to compete with."""
    inversion = replace(e.inversion, competition_weight=0.0)
    recipe = Dreaming(inversion=inversion, spec=e.spec, seed=e.seed, precision=e.options.precision)
    return Stage("dream", "dreams", recipe, dream, {"network": e.network, "teacher": teacher})


def quality_stage(e: Experiment, teacher: Stage, dreams: Stage) -> Stage:
    """What is said of the dreams."""
    verifier = e.verifier
    inputs: dict[str, Stage | Source] = {"teacher_network": e.network, "teacher": teacher, "dreams": dreams}
    if verifier.weights is not None and verifier.network is not None:
        inputs |= {"verifier_network": verifier.network, "verifier_weights": verifier.weights}
    if verifier.extractor is not None:
        inputs["images"] = e.images(Purpose.EVALUATION)
    recipe = Quality(spec=e.spec, extractor=verifier.extractor)
    return Stage("dream_quality", "dream_quality", recipe, assess_dreams, inputs)
