"""Judging networks: accuracy on real test images, agreement with the teacher on held-out dreams."""

from dfkd.evaluation.scores import Scores, accuracy, agreement, predict

__all__ = ["Scores", "accuracy", "agreement", "predict"]
