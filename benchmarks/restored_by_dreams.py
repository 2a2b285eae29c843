"""What a second of inversion buys: accuracy that dreams alone give back to a pruned network's batch norm.

    python benchmarks/restored_by_dreams.py --teacher resnet20.safetensors --data cifar10-jpeg

(without options, on what lies in `../shared`, or not at all where nothing does).

Each setting dreams `--images` images for a ResNet-20, one setting after the other in one process; the student is the
teacher pruned by global magnitude, its batch norm re-estimated on them, with no other training. Test images score and
decide nothing. Where Sony's Model Compression Toolkit is installed (`pip install model-compression-toolkit`), its data
generation stands beside them. Written to `benchmarks/restored_by_dreams.json`; `seconds_per_image` holds everything
from the start of the inversion to stored dreams, `cpu_seconds_per_image` what the processor spent on it.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import dfkd
from dfkd.distillation import reestimate_batch_norm
from dfkd.evaluation.scores import accuracy, predict
from dfkd.files import write_json
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.models import CifarResNet, InputSpec, load_weights
from dfkd.real_data import Purpose, image_folder
from dfkd.training.fit import TrainerOptions, Workplace

CPU = torch.device("cpu")
SHARED = Path(__file__).resolve().parents[2] / "shared"
SPEC = InputSpec((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPTIONS = TrainerOptions(accelerator="cpu")
NOISE = {"start": "noise", "iterations": 150, "restarts": 0, "jitter": 2, "learning_rate": 0.3, "beta1": 0.8,
         "beta2": 0.99, "label_weight": 1.0,
         "feature_form": "norm", "feature_weight": 10.0, "tv_l2_weight": 2.5e-5}  # fmt: skip
SETTINGS = {"deepinversion": {}, "deepinversion_noise": NOISE}
SPARSITIES = (0.75, 0.9)


def main() -> None:
    """Measure every setting and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, default=SHARED / "teachers" / "resnet20-cifar10-jpeg.safetensors")
    parser.add_argument("--data", type=Path, help="folder with test/CLASS/*")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if not arguments.teacher.exists() or not (arguments.data or SHARED / "data").exists():
        print("Left out: there is no teacher, or there are no images. Give --teacher FILE and --data FOLDER.")
        return
    teacher = CifarResNet(20)
    load_weights(teacher, arguments.teacher)
    makers: dict[str, Callable[[int, int], tuple[Tensor, Tensor | None]]]
    makers = {name: partial(dreamt, teacher, name) for name in SETTINGS}
    if importlib.util.find_spec("model_compression_toolkit") is not None:
        makers["mct"] = partial(generated_by_mct, teacher)
    rows = []
    with test_images(arguments.data) as test:
        for seed in map(int, arguments.seeds.split(",")):
            for name, make in makers.items():
                rows.append(measured(name, make, teacher, arguments.images, seed, test))
                print(json.dumps(rows[-1]), flush=True)
                hardware = {"torch": torch.__version__, "threads": torch.get_num_threads()}
                write_json(arguments.out, {"hardware": hardware, "rows": rows})


@contextlib.contextmanager
def test_images(folder: Path | None) -> Iterator[Dataset]:
    """The test images in a folder, or those of the shared archive."""
    with tempfile.TemporaryDirectory() as place:
        if folder is None:
            with tarfile.open(SHARED / "data" / "cifar10-jpeg.tar.xz") as archive:
                archive.extractall(place, filter="data")
        yield image_folder(SPEC, str(folder or place)).open(Purpose.EVALUATION)


def dreamt(teacher: nn.Module, name: str, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Dreams of a setting and their labels."""
    recipe = InversionRecipe(num_images=images, num_held_out=0, batch_size=256, flip=True, **SETTINGS[name])
    with tempfile.TemporaryDirectory() as directory:
        dreams, _ = fill_bank(teacher, recipe, SPEC, seed, Workplace(Path(directory), OPTIONS))
    return dreams.images.float(), dreams.labels


def generated_by_mct(teacher: nn.Module, images: int, seed: int) -> tuple[Tensor, None]:
    """What the Model Compression Toolkit generates by its defaults, in as many iterations as from noise. No labels."""
    from model_compression_toolkit import data_generation

    torch.manual_seed(seed)
    config = data_generation.get_pytorch_data_generation_config(
        n_iter=NOISE["iterations"], data_gen_batch_size=min(images, 128), extra_pixels=4
    )
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar
        made = data_generation.pytorch_data_generation_experimental(teacher, images, SPEC.image_shape[1:], config)
    return torch.cat([image.detach().cpu().reshape(-1, *SPEC.image_shape) for image in made])[:images], None


def measured(name: str, make: Callable, teacher: nn.Module, images: int, seed: int, test) -> dict:
    """Seconds per image of a setting, how many images the teacher sees as their label, and what they give back."""
    clock, processor = time.monotonic(), time.process_time()
    made, labels = make(images, seed)
    seconds, spent = time.monotonic() - clock, time.process_time() - processor
    seen = None if labels is None else accuracy(*predict(teacher, TensorDataset(made, labels), CPU), SPEC.num_classes)
    row = {"setting": name, "images": images, "seed": seed, "seconds_per_image": round(seconds / images, 4),
           "cpu_seconds_per_image": round(spent / images, 4), "seen_as_label": seen}  # fmt: skip
    for sparsity in SPARSITIES:
        student = dfkd.prune(teacher, sparsity)
        reestimate_batch_norm(student, made.split(256))
        row[f"test_{sparsity}"] = accuracy(*predict(student, test, CPU), SPEC.num_classes)
    return row


if __name__ == "__main__":
    main()
