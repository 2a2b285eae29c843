"""Judging networks: accuracy on real test images, agreement with the teacher on held-out dreams."""

from dfkd.evaluation.scores import Marks, accuracy, agreement, predict, score

__all__ = ["Marks", "accuracy", "agreement", "predict", "score"]
