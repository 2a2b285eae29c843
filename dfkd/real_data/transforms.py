"""From pixels to the network's input."""

from __future__ import annotations

from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from dfkd.models.input_spec import InputSpec
from dfkd.real_data.pixels import as_array, to_tensor


class Normalise(nn.Module):
    """Pixels in [0, 1], (..., C, h, w), resized and normalised: (..., C, H, W)."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__()
        self.resize = v2.Resize(list(spec.image_shape[1:]), antialias=True)
        self.normalise = v2.Normalize(list(spec.mean), list(spec.std))

    def forward(self, pixels: Tensor) -> Tensor:
        normalised: Tensor = self.normalise(self.resize(pixels))
        return normalised


class NormalisePicture(Normalise):
    """A PIL image, in colours that become the network's, as its input (C, H, W)."""

    def __init__(self, spec: InputSpec) -> None:
        super().__init__(spec)
        self.channels = spec.image_shape[0]

    def forward(self, image: Image.Image) -> Tensor:  # type: ignore[override]
        return super().forward(to_tensor(as_array(image, self.channels)))
