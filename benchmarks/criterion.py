"""How well what is known without real images ranks students: rank correlation with their accuracy on test images.

    python benchmarks/criterion.py RUN [RUN ...]

Of every finished recovery it takes the three students that the run chose from (pruned, batch norm re-estimated alone,
distilled) from the run's store, and measures how far each is from its teacher: by total variation (`dfkd.evaluation.
criterion`) and by the KL divergence on procedural pictures, and by agreement and KL on the run's held-out dreams.
Accuracy, relative to the teacher's, is that of the run's `result.json`. A student that several runs share counts once.
Written to `benchmarks/criterion.json`, after what is there: `new` marks students that were made after the criterion had
been chosen.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from dfkd import config, load_dreams
from dfkd.deployment.finished import finished_run
from dfkd.evaluation.criterion import unseen_pictures
from dfkd.files import write_json
from dfkd.reporting.run_directory import RESULT, product_of
from dfkd.stages.networks import load

OUT = Path(__file__).with_suffix(".json")
STUDENTS = {"prune": "pruned", "batchnorm": "batchnorm", "recover": "distilled"}
MEASURES = ("total_variation_pictures", "agreement_dreams", "kl_dreams", "kl_pictures")


def measured(run: Path) -> list[dict]:
    """A row for each of the run's three students."""
    e, result = finished_run(run), json.loads((run / RESULT).read_text())
    accuracies = {**{name: result[name]["accuracy"] for name in ("pruned", "distilled")}, **result["controls"]}
    images = {
        "pictures": unseen_pictures(e.spec.image_shape, *e.spec.valid_range(), e.seed),
        "dreams": load_dreams(run).held_out.images.float(),
    }
    teacher = load(e.network, product_of(run, "teacher")).eval()
    rows = []
    for stage, name in STUDENTS.items():
        student = load(e.student, product_of(run, stage)).eval()
        found = {kind: distances(student, teacher, each) for kind, each in images.items()}
        marks = {f"{measure}_{kind}": value for kind, each in found.items() for measure, value in each.items()}
        relative = accuracies[name] / result["teacher"]["accuracy"]
        rows.append({"student": result["artifacts"][stage], "relative_accuracy": relative, "new": True}
                    | {measure: marks[measure] for measure in MEASURES})  # fmt: skip
    return rows


@torch.inference_mode()
def distances(student: nn.Module, teacher: nn.Module, images: Tensor) -> dict[str, float]:
    """Total variation, KL(teacher || student) and agreement on images."""
    logits = {name: torch.cat([network(part) for part in images.split(128)]).log_softmax(1)
              for name, network in (("student", student), ("teacher", teacher))}  # fmt: skip
    own, expected = logits["student"], logits["teacher"]
    return {
        "total_variation": (own.exp() - expected.exp()).abs().sum(1).mean().item() / 2,
        "kl": F.kl_div(own, expected, reduction="batchmean", log_target=True).item(),
        "agreement": (own.argmax(1) == expected.argmax(1)).float().mean().item(),
    }


def correlations(rows: list[dict]) -> list[str]:
    """The size of each measure's rank correlation (Spearman) with relative accuracy, in the order of `MEASURES`."""
    accuracy = [row["relative_accuracy"] for row in rows]
    return [f"{abs(spearmanr([row[measure] for row in rows], accuracy).statistic):.3f}" for measure in MEASURES]


def main() -> None:
    """Measure the students of some runs and write them down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    config.register()
    known = {row["student"]: row for row in json.loads(OUT.read_text())["rows"]} if OUT.exists() else {}
    for run in parser.parse_args().runs:
        known |= {row["student"]: row for row in measured(run) if row["student"] not in known}
        write_json(OUT, {"rows": list(known.values())})
    for title, rows in (("all", list(known.values())), ("new", [row for row in known.values() if row["new"]])):
        print(f"{title}, {len(rows)} students: {dict(zip(MEASURES, correlations(rows), strict=True))}")


if __name__ == "__main__":
    main()
