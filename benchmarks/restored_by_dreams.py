"""What a second of inversion buys: accuracy that dreams alone give back to a pruned network's batch norm.

    python benchmarks/restored_by_dreams.py --teacher resnet20.safetensors --data cifar10-jpeg

Each setting dreams `--images` images for a ResNet-20, one setting after the other in one process; the student is the
teacher pruned by global magnitude, its batch norm re-estimated on them, with no other training. Test images score and
decide nothing. Written to `benchmarks/restored_by_dreams.json`; `seconds_per_image` holds everything from the start
of the inversion to stored dreams, `cpu_seconds_per_image` what the processor spent on it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

import dfkd
from dfkd.distillation import reestimate_batch_norm
from dfkd.evaluation.scores import accuracy, predict
from dfkd.files import write_json
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.models import CifarResNet, InputSpec, load_weights
from dfkd.real_data import Purpose, image_folder
from dfkd.training.fit import TrainerOptions, Workplace

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
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, help="folder with test/CLASS/*")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    teacher = CifarResNet(20)
    load_weights(teacher, arguments.teacher)
    test = image_folder(SPEC, arguments.data).open(Purpose.EVALUATION)
    rows = []
    for seed in map(int, arguments.seeds.split(",")):
        for name in SETTINGS:
            rows.append(measured(name, teacher, arguments.images, seed, test))
            print(json.dumps(rows[-1]), flush=True)
            hardware = {"torch": torch.__version__, "threads": torch.get_num_threads()}
            write_json(arguments.out, {"hardware": hardware, "rows": rows})


def measured(name: str, teacher: nn.Module, images: int, seed: int, test) -> dict:
    """Seconds per image of a setting, how many dreams the teacher sees as their label, and what they give back."""
    recipe = InversionRecipe(num_images=images, num_held_out=0, flip=True, **SETTINGS[name])
    with tempfile.TemporaryDirectory() as directory:
        clock, processor = time.monotonic(), time.process_time()
        dreams, _ = fill_bank(teacher, recipe, SPEC, seed, Workplace(Path(directory), OPTIONS))
        seconds, spent = time.monotonic() - clock, time.process_time() - processor
    row = {"setting": name, "images": images, "iterations": recipe.iterations, "seed": seed,
           "seconds_per_image": round(seconds / images, 4), "cpu_seconds_per_image": round(spent / images, 4),
           "seen_as_label": round(dreams.teacher_accuracy, 4)}  # fmt: skip
    for sparsity in SPARSITIES:
        student = dfkd.prune(teacher, sparsity)
        reestimate_batch_norm(student, [part.float() for part in dreams.images.split(recipe.batch_size)])
        row[f"test_{sparsity}"] = accuracy(*predict(student, test, torch.device("cpu")), SPEC.num_classes)
    return row


if __name__ == "__main__":
    main()
