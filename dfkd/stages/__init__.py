"""The stages of all tasks: each a recipe, and the function that makes its product of that recipe and named inputs."""

from dfkd.stages.stage import Recipe, Runner, Source, Stage

__all__ = ["Recipe", "Runner", "Source", "Stage"]
