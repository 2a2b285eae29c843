"""Real images, for teacher training, evaluation, audits, the real-data control and new classes alone (see `access`)."""

from dfkd.real_data.access import Purpose, RealImages, Split
from dfkd.real_data.folder import image_folder
from dfkd.real_data.sources import cifar, digits, no_data

__all__ = ["Purpose", "RealImages", "Split", "cifar", "digits", "image_folder", "no_data"]
