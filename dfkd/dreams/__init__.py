"""Dreams: synthetic images with their labels, kept on disk batch by batch and streamed to the student."""

from dfkd.dreams.bank import DreamBank, Dreams
from dfkd.dreams.datamodule import DreamDataModule

__all__ = ["DreamBank", "DreamDataModule", "Dreams"]
