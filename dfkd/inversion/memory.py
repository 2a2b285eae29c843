"""How much memory a batch takes on its way through the networks, and in how many parts it therefore goes."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from dfkd.files import size_text
from dfkd.inversion.objective import InversionObjective

log = logging.getLogger(__name__)

SHARE = 0.5  # of the memory that is free, which the saved activations may take
GROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container, and what it uses already
GROUP_USE = Path("/sys/fs/cgroup/memory.current")
FREE = Path("/proc/meminfo")


def parts_for(objective: InversionObjective, image_shape: tuple[int, int, int], images: int) -> int:
    """In how many parts a batch of so many images of a shape (C, H, W) goes through the networks where they are."""
    per_image, device = bytes_per_image(objective, image_shape), next(iter(objective.parameters())).device
    parts = parts_that_fit(images, per_image, free_bytes(device))
    if parts > 1:
        log.info(
            "A batch of %d images would take %s of memory: it goes through the network in %d parts, with the same "
            "result.", images, size_text(images * per_image), parts,
        )  # fmt: skip
    return parts


def bytes_per_image(objective: InversionObjective, image_shape: tuple[int, int, int]) -> int:
    """Bytes that a forward through the networks keeps for the way back, of each image."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {p.untyped_storage().data_ptr() for p in objective.parameters()}
    weight = next(iter(objective.parameters()))
    images = torch.zeros(2, *image_shape, dtype=weight.dtype, device=weight.device, requires_grad=True)
    labels = torch.zeros(2, dtype=torch.long, device=weight.device)
    alive: list[object] = []  # what is freed on the way could be counted under the place of another
    with objective.recorded(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive.append(objective.image_terms(images, labels))
        alive.append([pair for record in objective.records.values() for pair in record])
    return sum(size for place, size in kept.items() if place not in weights) // len(images)


def parts_that_fit(images: int, per_image: int, free: int | None) -> int:
    """In how many parts so many images go through the networks; one where the free bytes are not known."""
    parts = 1
    while free is not None and parts < images and -(-images // parts) * per_image > SHARE * free:
        parts *= 2
    return min(parts, images)


def free_bytes(device: torch.device) -> int | None:
    """Bytes of memory that are free on a device; None where nobody tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    found = []
    if FREE.exists():
        lines = dict(line.split(":", 1) for line in FREE.read_text(encoding="utf-8").splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    if GROUP_LIMIT.exists() and GROUP_LIMIT.read_text(encoding="utf-8").strip() != "max":
        found.append(int(GROUP_LIMIT.read_text(encoding="utf-8")) - int(GROUP_USE.read_text(encoding="utf-8")))
    return min(found, default=None)
