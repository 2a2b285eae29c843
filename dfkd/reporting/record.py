"""What a run has to tell when it is done: all that reporting is given of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dfkd.dreams import Dreams
from dfkd.evaluation import Scores
from dfkd.models.input_spec import InputSpec
from dfkd.store import Product


@dataclass(frozen=True)
class Record:
    """A run that went through all its stages.

    Attributes:
        experiment, task, seed, choices: as in `dfkd.tasks.Experiment`.
        settings: of the student and of the dreams, equal for runs that differ in nothing but the seed and controls.
        spec: the teacher's input and classes.
        facts: of the task, in words.
        parts: names of the stages, by the part of the run that they belong to.
        products: of the stages, by name.
        scores: of the networks, by their name in the result.
        warnings: what is doubtful about the scores.
        quality: of the dreams.
        choice: which student became the result, and by what; empty where there was none to choose from.
        iterations: of the inversion of a batch, on average.
        dreams: those that were made before the student learned.
        streamed: those that were made while it learned, batch by batch.
        student: the network that the run is about.
        data: names of the real images, and what they were opened for.
        device: where it was computed.
    """

    experiment: str
    task: str
    seed: int
    choices: Mapping[str, str]
    settings: Mapping[str, str]
    spec: InputSpec
    facts: Mapping[str, Any]
    parts: Mapping[str, Sequence[str]]
    products: Mapping[str, Product]
    scores: Mapping[str, Scores]
    warnings: Sequence[str]
    quality: Mapping[str, Any]
    choice: Mapping[str, Any]
    iterations: int
    dreams: Dreams
    streamed: Sequence[Dreams]
    student: nn.Module
    data: Mapping[str, Any]
    device: torch.device
