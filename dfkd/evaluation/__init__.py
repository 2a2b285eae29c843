"""Evaluation: of networks by accuracy and agreement with the teacher, and of the quality of dreams."""

from dfkd.evaluation.scores import Scores, accuracy, agreement, predict, score

__all__ = ["Scores", "accuracy", "agreement", "predict", "score"]
