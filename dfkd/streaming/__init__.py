"""Dreams made while the student learns, against the student as it is then: Adaptive DeepInversion, streamed."""

from dfkd.streaming.datamodule import Dreamer, StreamingDreamDataModule
from dfkd.streaming.recipe import StreamingRecipe

__all__ = ["Dreamer", "StreamingDreamDataModule", "StreamingRecipe"]
