"""Seconds of a bfloat16 training step on a CPU, with depthwise convolutions with a stride in bfloat16 and in float32.

    python benchmarks/depthwise.py

One process, the two in turn, medians of seven steps (forward and backward, channels-last), as many threads as PyTorch
takes. Written to `benchmarks/depthwise.json`.
"""

from __future__ import annotations

import platform
import statistics
import time
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F

from dfkd.files import write_json
from dfkd.models import torchvision_model
from dfkd.models.depthwise import strided_depthwise_in_float32
from dfkd.reporting.report import markdown

OUT = Path(__file__).with_suffix(".json")
STEPS = 7
CASES = (  # network, batch, pixels, the stem for small images
    ("mobilenet_v2", 128, 32, True),
    ("shufflenet_v2_x1_0", 128, 32, True),
    ("mobilenet_v3_small", 64, 96, False),
    ("efficientnet_b0", 16, 112, False),
    ("mobilenet_v2", 16, 112, False),
)


def measured(name: str, batch: int, pixels: int, small_image_stem: bool) -> dict:
    """Medians of both ways."""
    torch.manual_seed(0)
    model = torchvision_model(name, 10, small_image_stem=small_image_stem).to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, pixels, pixels).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,))
    seconds: dict[str, list[float]] = {"bfloat16": [], "float32": []}
    for step in range(STEPS + 1):
        for way, found in seconds.items():
            with strided_depthwise_in_float32(model) if way == "float32" else nullcontext():
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(model(images), labels)
                loss.backward()
                if step:  # the first chooses kernels
                    found.append(time.perf_counter() - start)
    medians = {way: statistics.median(found) for way, found in seconds.items()}
    return {"network": name, "batch": batch, "pixels": pixels} | medians


def table(rows: list[dict]) -> str:
    """A row for each network: seconds, and what is left of them."""
    table = pd.DataFrame(rows)
    table["share"] = (table["float32"] / table["bfloat16"]).map("{:.2f}".format)
    for way in ("bfloat16", "float32"):
        table[way] = table[way].map("{:.2f}".format)
    return markdown(table)


def main() -> None:
    rows = [measured(*case) for case in CASES]
    write_json(OUT, {"torch": torch.__version__, "threads": torch.get_num_threads(),
                     "device": platform.processor() or platform.machine(), "rows": rows})  # fmt: skip
    print(table(rows))


if __name__ == "__main__":
    main()
