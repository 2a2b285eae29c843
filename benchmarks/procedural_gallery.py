"""A gallery of procedural pictures, and how many a second one core makes.

    python benchmarks/procedural_gallery.py [OUT.png]      docs/images/procedural.png if left out

One row of 64-pixel pictures and two of 32 for each family, all of seed 0.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dfkd.procedural import FAMILIES, pictures

WIDTH = 12  # of the gallery, in 64-pixel pictures


def rate(family: str, size: int, count: int) -> float:
    """Pictures of a family per second."""
    started = time.perf_counter()
    pictures(count, (3, size, size), 1, [family])
    return count / (time.perf_counter() - started)


def gallery(family: str) -> Tensor:
    """The rows of a family, (3, 128, 64 WIDTH)."""
    large = pictures(WIDTH, (3, 64, 64), 0, [family])
    small = pictures(4 * WIDTH, (3, 32, 32), 0, [family])
    rows = [large, *small.chunk(2)]
    return torch.cat([row.permute(1, 2, 0, 3).flatten(2) for row in rows], 1)


def main(path: Path) -> None:
    """Write the gallery and print the rates."""
    torch.set_num_threads(1)
    for family in FAMILIES:
        small, large = rate(family, 32, 2048), rate(family, 224, 64)
        print(f"{family}: {small:.0f} pictures a second of 32x32 pixels, {large:.0f} of 224x224")
    sheet = torch.cat([gallery(family) for family in FAMILIES], 1)
    Image.fromarray((255 * sheet).round().byte().permute(1, 2, 0).numpy()).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1] / "docs" / "images" / "procedural.png")
