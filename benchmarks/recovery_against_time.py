"""How much inversion a student needs: accuracy after recovery against iterations per batch, at equal numbers of dreams.

    python benchmarks/recovery_against_time.py --teacher resnet20.safetensors --data cifar10-jpeg --out runs/curve \
        --points default:50,default:200,paper:2000 --seeds 0

A point is `SETTING:ITERATIONS`; `default` is the default recipe (cosine from 0.2), `paper` the published one (0.05,
constant). Each seed dreams one batch of 256 images and recovers the pruned ResNet-20 on it, at every sparsity. The
teacher, the updates and the seeds are the same at every point. Scores are added to `points.json` in the folder;
batches and scores found there are kept. Test images score and decide nothing: settings were chosen by `dev`, the
accuracy on 3,000 of the images that the *teacher* was trained on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from torch.utils.data import Subset

import dfkd
from dfkd.distillation import DistillationRecipe
from dfkd.distillation.recover import recover_student
from dfkd.dreams import DreamDataModule
from dfkd.evaluation.scores import accuracy, predict
from dfkd.files import write_json
from dfkd.inversion import InversionRecipe
from dfkd.inversion.invert import fill_bank
from dfkd.models import CifarResNet, InputSpec, load_weights
from dfkd.real_data import Purpose, image_folder
from dfkd.real_data.datamodule import random_subset
from dfkd.training.fit import TrainerOptions

SPEC = InputSpec((3, 32, 32), 10, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SETTINGS = {
    "default": {},
    "paper": {"learning_rate": 0.05, "schedule": "constant", "l2_weight": 3e-8, "clip": False},
}


def main() -> None:
    """Measure every point that is not in the folder yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, help="folder with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--points", default="default:50,default:100,default:200,paper:2000")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--sparsities", default="0.75,0.9")
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--accelerator", default="cpu")
    arguments = parser.parse_args()
    options = TrainerOptions(accelerator=arguments.accelerator)
    teacher = CifarResNet(20)
    load_weights(teacher, arguments.teacher)
    images = image_folder(SPEC, arguments.data)
    scored = {
        "dev": random_subset(images.open(Purpose.REAL_DATA_CONTROL), 3000, seed=0),
        "test": images.open(Purpose.EVALUATION),
    }
    for seed in map(int, arguments.seeds.split(",")):
        for point in arguments.points.split(","):
            setting, iterations = point.split(":")
            changes = {"iterations": int(iterations), "flip": True, **SETTINGS[setting]}
            recipe = InversionRecipe(num_images=256, num_held_out=0, batch_size=256, **changes)
            bank = arguments.out / f"{setting}-{iterations}-seed{seed}"
            bank.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            dreams, history = fill_bank(teacher, recipe, SPEC, seed, bank, options)
            seconds = round(time.monotonic() - started, 1)
            for sparsity in map(float, arguments.sparsities.split(",")):
                key = {"setting": setting, "iterations": int(iterations), "seed": seed, "sparsity": sparsity,
                       "updates": arguments.updates}  # fmt: skip
                if any(row.items() >= key.items() for row in _rows(arguments.out)):
                    continue
                student = _recovered(teacher, dreams, sparsity, arguments.updates, seed, options)
                row = {**key, "seconds_to_fill_or_read": seconds, "loss": round(history[-1]["total"], 2)}
                for name, dataset in scored.items():
                    row[name] = _accuracy(student, dataset, options)
                print(json.dumps(row), flush=True)
                write_json(arguments.out / "points.json", {"rows": [*_rows(arguments.out), row]})


def _recovered(teacher, dreams, sparsity: float, updates: int, seed: int, options: TrainerOptions):
    student = dfkd.prune(teacher, sparsity)
    recipe = DistillationRecipe(updates=updates, crop_padding=4, flip=True)
    with tempfile.TemporaryDirectory() as directory:
        data = DreamDataModule(dreams, recipe.batch_size, updates, seed)
        recover_student(student, teacher, data, recipe, seed, Path(directory), options)
    return student


def _accuracy(model, dataset: Subset, options: TrainerOptions) -> float:
    return accuracy(*predict(model, dataset, options.torch_device()), SPEC.num_classes)


def _rows(out: Path) -> list[dict]:
    path = out / "points.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


if __name__ == "__main__":
    main()
