"""An average of the weights that a training goes through, which then is what was trained."""

from __future__ import annotations

from lightning.pytorch.callbacks import EMAWeightAveraging


class Average(EMAWeightAveraging):
    """Lightning's exponential moving average, in a form that can be handed to other processes.

    w_average <- decay w_average + (1 - decay) w after every update but the first, which it starts from; statistics of
    batch norm included.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)
        self.decay = decay

    def __reduce__(self) -> tuple[type, tuple[float]]:
        return type(self), (self.decay,)
