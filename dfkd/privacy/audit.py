"""`dfkd audit RUN...`: whether a run's dreams are nearer to the teacher's training images than to test images.

It is an evaluation: it looks at real images after the dreams are made, and nothing that it finds goes back to them.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from dfkd import config
from dfkd.errors import ConfigError, DataError, require
from dfkd.evaluation.quality import features_of
from dfkd.experiment_config import make_experiment
from dfkd.files import write_json
from dfkd.models.input_spec import InputSpec, count_classes
from dfkd.privacy.comparison import COARSE, Pools, View, coarse, compare, standardised
from dfkd.privacy.figure import audit_figure
from dfkd.procedural import pictures
from dfkd.real_data import Purpose, RealImages
from dfkd.real_data.labels import labels_of
from dfkd.real_data.subset import drawn
from dfkd.reporting.figures import save_figure
from dfkd.reporting.run_directory import AUDIT, AUDIT_PICTURE, CONFIG, product_of
from dfkd.seeding import derive_seed
from dfkd.stages.dreams import all_dreams
from dfkd.stages.networks import build
from dfkd.tasks.experiment import Experiment

IMAGES = 2000  # members, and as many others, if there are so many
COLUMNS = {
    "AUC": "auc",
    "distance alone": "distance_auc",
    "control": "control_auc",
    "true positives": "true_positives",
    "dreams by members": "dreams_by_members",
}
VERIFIER = ("verifier.weights=", "verifier.model", "model@verifier.model=")  # how options of the verifier begin


def audit_run(
    run: Path, images: int = IMAGES, seed: int = 0, store: Path | None = None, options: Sequence[str] = ()
) -> dict[str, Any]:
    """Audit the dreams of a run that has made them; the result goes into the run's folder, too (`AUDIT`).

    Args:
        run: its folder.
        images: how many training images to look at at most, and test images.
        seed: of which images, of the control's pictures, and of the bootstrap.
        store: where the dreams are; None: as the run's configuration says.
        options: of the verifier, as a run takes them, in place of the run's own.

    Returns:
        `dreams`, their identity and number; `images`, the data's name and the number of members and of others;
        `verifier`, the name of its weights' file, or None; `opened_for`, what real images were opened for; and by
        distance (`pixels`, `features`) what `compare` finds.

    Raises:
        ConfigError: `run` holds no run, it has no real images, or its dreams are not in the store.
        DfkdError: the verifier or the images cannot be used.
    """
    require(images >= 1, "--images", images, "1 or more")
    e = _experiment(run, options)
    if e.data is None:
        raise ConfigError(f"{run}: data=none: an audit compares dreams with real images. Run it with a data group.")
    product = product_of(run, "dream", store)
    views = _views(e)
    e.data.check(e.spec, Purpose.PRIVACY_AUDIT, Purpose.EVALUATION)
    members, others = _sample(e.data, e.spec, images, seed)
    dreams = e.spec.to_pixels(all_dreams(product).images)
    control = pictures(len(dreams), e.spec.image_shape, derive_seed(seed, "control of an audit"))
    pools = Pools(members, others, dreams, control)
    found = {name: compare(pools, view, seed) for name, view in views.items()}
    result = {
        "dreams": {"artifact": f"{product.kind}/{product.key}", "count": len(dreams)},
        "images": {"data": e.data.name, "members": len(members), "others": len(others)},
        "verifier": None if e.verifier.weights is None else e.verifier.weights.name,
        "seed": seed,
        "opened_for": e.data.opened,
        "distances": {name: each.found for name, each in found.items()},
    }
    save_figure(audit_figure(pools, found), run / AUDIT_PICTURE)
    write_json(run / AUDIT, result)
    return result


def _experiment(run: Path, options: Sequence[str]) -> Experiment:
    """What the run was asked to do, with another verifier where there are options of one."""
    if not (run / CONFIG).is_file():
        raise ConfigError(f"RUN must be the folder of a run, got {run}, which has no {CONFIG}.")
    cfg = config.read(run / CONFIG)
    if options:
        with initialize_config_module("dfkd.conf", version_base="1.3"):
            cfg.verifier = compose("config", overrides=["experiment=custom", *options]).verifier
    return make_experiment(cfg)


def _views(e: Experiment) -> dict[str, View]:
    """What distances are taken of: pixels, fine and coarse, and a verifier's penultimate features if there is one."""
    views: dict[str, View] = {"pixels": standardised}
    if min(e.spec.image_shape[1:]) > COARSE:
        views["coarse pixels"] = lambda pixels: standardised(coarse(pixels))
    if e.verifier.weights is not None and e.verifier.network is not None:
        network = build(e.verifier.network)
        e.verifier.weights.load(network)
        network.to(e.options.torch_device())
        spec = replace(e.spec, num_classes=count_classes(network, e.spec.image_shape))
        features_of(network, torch.zeros(1, *spec.image_shape), spec)  # refuses now a network that has none
        views["features"] = lambda pixels: features_of(network, spec.from_pixels(pixels), spec)
    return views


def _sample(data: RealImages, spec: InputSpec, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Training images, and test images in the same shares of classes, as pixels.

    Where there are few training images, test images are a multiple of them: the AUC's interval is narrower.
    """
    pools = data.open(Purpose.PRIVACY_AUDIT), data.open(Purpose.EVALUATION)
    labels = [labels_of(pool) for pool in pools]
    most = -(-images // spec.num_classes)
    train, test = (each.bincount(minlength=spec.num_classes).clamp(max=most) for each in labels)
    counts = torch.minimum(train, test)
    if not counts.any():
        raise DataError("data: no class has both training and test images, which an audit compares.")
    times = int((test // counts.clamp(min=1))[counts > 0].min())
    wanted = counts.tolist(), (times * counts).tolist()
    chosen = [
        Subset(pool, drawn(each, count, seed).tolist()) for pool, each, count in zip(pools, labels, wanted, strict=True)
    ]
    members, others = (torch.cat([part for part, _ in DataLoader(some, batch_size=256)]) for some in chosen)
    return spec.to_pixels(members), spec.to_pixels(others)


def rows_of(results: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Audits of the same setting as rows of a table, one for each distance, in percent.

    Of one run the AUC stands with its bootstrap interval, of several as mean ± standard deviation over them (n - 1).
    """
    rows = []
    for name in results[0]["distances"]:
        found = [result["distances"][name] for result in results if name in result["distances"]]
        values = {title: [_value(each, key) for each in found] for title, key in COLUMNS.items()}
        row = {"distance": name, **{title: _spread(known) for title, known in values.items()}}
        if len(found) == 1:
            row["AUC"] += " ({:.1f} to {:.1f})".format(*(100 * end for end in found[0]["interval"]))
        rows.append(row)
    return rows


def _value(found: Mapping[str, Any], key: str) -> float | None:
    value: float | None = found[key]["share"] if key == "dreams_by_members" else found[key]
    return value


def _spread(values: Sequence[float | None]) -> str:
    known = [100 * value for value in values if value is not None]
    if not known:
        return ""
    return f"{statistics.mean(known):.1f}" + (f" ± {statistics.stdev(known):.1f}" if len(known) > 1 else "")


def show(results: Sequence[Mapping[str, Any]]) -> None:
    """Print the audits as a table, and what they say."""
    images = results[0]["images"]
    table = Table(
        title=f"{images['members']} training images (members) and {images['others']} test images (others) of "
        f"{images['data']}, beside the dreams of {len(results)} run{'s' if len(results) > 1 else ''}; in percent"
    )
    rows = rows_of(results)
    for column in rows[0]:
        table.add_column(column, justify="left" if column == "distance" else "right")
    for row in rows:
        table.add_row(*row.values())
    Console(width=None if Console().is_terminal else 130).print(table)
    print(verdict(results))
    if results[0]["verifier"] is None:
        print("Only pixels were compared: give a verifier (verifier.weights=FILE) to compare features as well.")


def verdict(results: Sequence[Mapping[str, Any]]) -> str:
    """Whether members were told from others: in how many runs an AUC's interval lies above 50 %, by which distance."""
    distances = results[0]["distances"]
    above = {name: sum(result["distances"][name]["interval"][0] > 0.5 for result in results) for name in distances}
    told = " and ".join(f"{name} in {runs} of {len(results)} runs" for name, runs in above.items() if runs)
    if told:
        return f"Dreams tell training images from test images (by {told}): they hold something of them."
    return "Training images were not told from test images. That is no guarantee: a better attack might."


def main(arguments: Sequence[str]) -> None:
    """Entry point of `dfkd audit`."""
    description = (
        "Whether dreams are nearer to the images that the teacher learned from than to test images. Several runs, of "
        "one setting and several seeds, are told as mean and standard deviation."
    )
    parser = argparse.ArgumentParser(prog="dfkd audit", description=description)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs that have dreamed; and, as to a run, "
                        "verifier.weights=FILE and model@verifier.model=NAME")  # fmt: skip
    parser.add_argument("--images", type=int, default=IMAGES, help=f"of each kind, at most (default: {IMAGES})")
    parser.add_argument("--seed", type=int, default=0, help="of which images, and of the intervals (default: 0)")
    parser.add_argument("--store", type=Path, help="where the dreams are (default: as in each run's configuration)")
    parsed = parser.parse_args(arguments)
    options = [word for word in parsed.runs if word.lstrip("+").startswith(VERIFIER)]
    runs = [Path(word) for word in parsed.runs if word not in options]
    if not runs:
        raise ConfigError("RUN must be the folder of a run, got options alone.")
    show([audit_run(run, parsed.images, parsed.seed, parsed.store, options) for run in runs])
