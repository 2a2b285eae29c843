"""Seconds and memory of an inversion step: the engine, the published formulation, and what cannot be undercut.

    make bench                                                  # on the CPU, a few minutes
    python benchmarks/inversion_step.py --device cuda --dollars-per-hour 2.5

All ways are timed in turn, round after round, in one process, and compared by the median of their seconds. Two lower
bounds stand beside them: the network's convolutions one by one, forward and back to their input, each in the faster
memory format; and the network without its batch norms, forward and back to the images. Peak memory is what one step
adds to a process of its own. The results go to `benchmarks/results.json`, the table to `docs/benchmarks.md` and the
plot to `docs/images/benchmarks.png`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import matplotlib.pyplot as plt
import torch
from published import PUBLISHED, PublishedInversion
from torch import nn

from dfkd.dreams import DreamBank
from dfkd.files import write_json, write_text
from dfkd.inversion import InversionModule, InversionRecipe, inversion_objective, optimise
from dfkd.inversion.gradient import ObjectiveGradient
from dfkd.inversion.plan import PlannedBatch
from dfkd.models import CifarResNet, InputSpec, torchvision_model
from dfkd.training.fit import TrainerOptions
from dfkd.training.processes import quiet_lightning

ROOT = Path(__file__).parents[1]
ITERATIONS = 3  # of the engine at a time, so that its start and its checks weigh as little as they do in a run
RECIPE = InversionRecipe(**PUBLISHED, iterations=ITERATIONS, learning_rate=0.05, schedule="constant", clip=False)
ENGINE = ("eager", "compiled")
WAYS = ("published", "eager", "compiled", "without batch norm", "convolutions")

# Name, network, batch, pixels, ways. The first case is the one that claims are made of.
CIFAR_STEM = ("resnet18", "mobilenet_v2", "vgg11_bn", "densenet121")
CPU_CASES = [
    ("resnet20", 256, 32, WAYS),
    *[(name, 16, 32, ("published", "eager", "without batch norm", "convolutions")) for name in CIFAR_STEM],
]
GPU_CASES = [("resnet34", 256, 32, WAYS), ("resnet20", 256, 32, WAYS), *[(n, 128, 32, WAYS) for n in CIFAR_STEM]]
GROWTH = [
    *[("resnet20", batch, 32) for batch in (16, 64, 256)],
    *[(name, 64, 32) for name in ("resnet32", "resnet56")],
    *[("resnet20", 64, pixels) for pixels in (16, 64)],
    *[(name, 4, 32) for name in CIFAR_STEM],
    *[(name, 4, 64) for name in CIFAR_STEM],
]


def network(name: str) -> nn.Module:
    """A network of random weights, in eval mode, with running statistics of noise."""
    torch.manual_seed(0)
    if name.startswith("resnet") and int(name.removeprefix("resnet")) in (20, 32, 56):
        model: nn.Module = CifarResNet(int(name.removeprefix("resnet")))
    else:
        model = torchvision_model(name, 10, small_image_stem=True)
    model.train()
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))
    return model.eval()


@contextmanager
def step(way: str, name: str, batch: int, pixels: int, device: str) -> Iterator[Callable[[], object]]:
    """Iterations of the inversion of a batch, the given way: `ITERATIONS` of the engine, one of the other ways."""
    model = network(name).to(device)
    images = torch.randn(batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(0)).to(device)
    labels = (torch.arange(batch) % 10).to(device)
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        if way == "published":
            yield PublishedInversion(model, images, labels, RECIPE, generator).step
        elif way in ENGINE:
            objective = stack.enter_context(inversion_objective(model, RECIPE))
            gradient = ObjectiveGradient(objective, batch if way == "compiled" else None)
            yield lambda: optimise(images, labels, gradient, generator)
            if way == "compiled" and gradient.compiled is None:
                raise RuntimeError("compiling failed: what was timed is the eager way")
        elif way == "without batch norm":
            model.requires_grad_(False).to(memory_format=torch.channels_last)
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.forward = lambda x: x
            images.requires_grad_(True)
            yield lambda: torch.autograd.grad(model(images).sum(), images)
        else:
            yield _fastest_convolutions(model, images)


def _fastest_convolutions(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    model.requires_grad_(False)
    seen: list[tuple[nn.Module, torch.Tensor]] = []
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: seen.append((module, inputs[0].detach().clone())))
        for module in convolutions
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()

    def prepared(module: nn.Module, x: torch.Tensor, memory_format: torch.memory_format) -> Callable[[], object]:
        x = x.contiguous(memory_format=memory_format).requires_grad_(True)
        weight = module.weight.contiguous(memory_format=memory_format)
        arguments = (weight, module.bias, module.stride, module.padding, module.dilation, module.groups)
        gradient = torch.randn_like(torch.nn.functional.conv2d(x, *arguments))
        return lambda: torch.autograd.grad(torch.nn.functional.conv2d(x, *arguments), x, gradient)

    formats = (torch.contiguous_format, torch.channels_last)
    choices = [[prepared(module, x, memory_format) for memory_format in formats] for module, x in seen]
    fastest = [min(ways, key=lambda way: min(_seconds(way, images.device.type) for _ in range(3))) for ways in choices]
    return lambda: [way() for way in fastest]


def _seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(name: str, batch: int, pixels: int, ways: tuple[str, ...], device: str, rounds: int) -> dict[str, Any]:
    """Median seconds of a step by each way, all ways in turn in every round."""
    case: dict[str, Any] = {"network": name, "batch": batch, "pixels": pixels, "rounds": rounds}
    with ExitStack() as stack:
        steps = {way: stack.enter_context(step(way, name, batch, pixels, device)) for way in ways}
        case["first_step_seconds"] = {way: round(_seconds(work, device), 3) for way, work in steps.items()}
        for work in steps.values():
            work()
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, work in steps.items():
                times[way].append(_seconds(work, device) / (ITERATIONS if way in ENGINE else 1))
    case["seconds"] = {way: round(statistics.median(values), 5) for way, values in times.items()}
    case["published_over"] = {
        way: round(case["seconds"]["published"] / case["seconds"][way], 3) for way in ways if way != "published"
    }
    print(json.dumps(case), flush=True)
    return case


def peak_memory(way: str, name: str, batch: int, pixels: int, device: str) -> float:
    """MiB that three steps add to a process at their highest, measured in a process of its own."""
    arguments = ["--memory-of", way, name, str(batch), str(pixels), "--device", device]
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _measure_memory(way: str, name: str, batch: int, pixels: int, device: str) -> None:
    with step(way, name, batch, pixels, device) as work:
        if device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        else:
            work()  # the compiler's own memory is not the step's
            ctypes.CDLL(None).malloc_trim(0)  # what it freed goes back to the system
            Path("/proc/self/clear_refs").write_text("5")  # which forgets the highest so far
        base = _resident("VmRSS")
        for _ in range(3):
            work()
        peak = torch.cuda.max_memory_allocated() - before if device.startswith("cuda") else _resident("VmHWM") - base
    print(round(peak / 2**20, 1))


def _resident(field: str) -> int:
    """Bytes of this process now (`VmRSS`) or at its highest (`VmHWM`), on Linux."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


SPEC = InputSpec((3, 32, 32), 10, (0.0,) * 3, (1.0,) * 3)


def lightning_overhead(directory: Path, rounds: int = 3) -> dict[str, float]:
    """Seconds that Lightning and the bank add to a batch, beside the bare loop over the same batches."""
    model = network("resnet20")
    recipe = InversionRecipe(num_images=32 * 8, num_held_out=0, batch_size=32, iterations=10, clip=False)
    batches = [PlannedBatch(number, torch.arange(32) % 10, number) for number in range(8)]

    def bare() -> None:
        with inversion_objective(model, recipe) as objective:
            for batch in batches:
                generator = torch.Generator().manual_seed(batch.seed)
                optimise(torch.randn(32, 3, 32, 32, generator=generator), batch.labels, objective, generator)

    def fitted() -> None:
        module = InversionModule(model, recipe, SPEC, DreamBank(directory), batches, 8, compile="never")
        with quiet_lightning():
            TrainerOptions(accelerator="cpu").make_trainer(max_epochs=1).fit(module)

    pairs = [(_seconds(bare, "cpu"), _seconds(fitted, "cpu")) for _ in range(rounds)]
    medians = [statistics.median(values) for values in zip(*pairs, strict=True)]
    added = (medians[1] - medians[0]) / len(batches)
    return {"bare_seconds": round(medians[0], 3), "lightning_seconds": round(medians[1], 3),
            "added_seconds_per_batch": round(added, 4)}  # fmt: skip


def hardware(device: str) -> dict[str, Any]:
    """What was measured on."""
    found = {"torch": torch.__version__, "lightning": lightning.__version__, "python": platform.python_version()}
    if device.startswith("cuda"):
        return found | {"device": torch.cuda.get_device_name(), "tf32": torch.backends.cuda.matmul.allow_tf32}
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found | {"device": names[0] if names else platform.processor(), "threads": torch.get_num_threads()}


def main() -> None:
    """Measure everything and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dollars-per-hour", type=float, default=0.0, help="adds images per dollar")
    parser.add_argument("--memory-of", nargs=4, metavar=("WAY", "NETWORK", "BATCH", "PIXELS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.memory_of:
        way, name, batch, pixels = arguments.memory_of
        return _measure_memory(way, name, int(batch), int(pixels), device)

    results: dict[str, Any] = {"hardware": hardware(device)}
    cases = CPU_CASES if device == "cpu" else GPU_CASES
    results["steps"] = [measure(*case, device, arguments.rounds) for case in cases]
    name, batch, pixels, _ = cases[0]
    memory_ways = ("published", "eager", "compiled")
    results["peak_memory_mib"] = {way: peak_memory(way, name, batch, pixels, device) for way in memory_ways}
    growth = [(*case, ("published", "eager"), device, 3) for case in GROWTH]
    results["growth"] = [measure(*case) for case in growth]
    results["lightning"] = lightning_overhead(ROOT / "runs" / "bench")
    if device != "cpu":
        rate = batch / results["steps"][0]["seconds"]["compiled"] / 2000
        results["images_per_second_at_2000_iterations"] = round(rate, 3)
        if arguments.dollars_per_hour:
            results["images_per_dollar"] = round(rate * 3600 / arguments.dollars_per_hour)
    suffix = "" if device == "cpu" else "_gpu"
    write_json(ROOT / "benchmarks" / f"results{suffix}.json", results)
    write_text(ROOT / "docs" / f"benchmarks{suffix}.md", table(results))
    plot(results, ROOT / "docs" / "images" / f"benchmarks{suffix}.png")
    return None


def table(results: dict[str, Any]) -> str:
    """The results for a reader, as Markdown."""
    machine = ", ".join(f"{key} {value}" for key, value in results["hardware"].items())
    lines = [
        "# Seconds of an inversion step",
        "",
        f"Written by `make bench`; medians, all ways in turn in one process. {machine}.",
        "`benchmarks/inversion_step.py` defines the ways, `benchmarks/published.py` the published formulation.",
        "",
        "| network | batch | pixels | " + " | ".join(WAYS) + " | published / eager | published / compiled |",
        "|---|---|---|" + "---|" * (len(WAYS) + 2),
    ]
    for case in results["steps"] + results["growth"]:
        seconds = [f"{case['seconds'][way]:.3f}" if way in case["seconds"] else "" for way in WAYS]
        ratios = [f"{case['published_over'].get(way, 0):.2f}" if way in case["seconds"] else "" for way in WAYS[1:3]]
        cells = [case["network"], str(case["batch"]), str(case["pixels"]), *seconds, *ratios]
        lines.append("| " + " | ".join(cells) + " |")
    first = results["steps"][0]
    over = {bound: first["seconds"]["compiled"] / first["seconds"][bound] for bound in WAYS[3:]}
    memory = ", ".join(f"{way} {value:.0f} MiB" for way, value in results["peak_memory_mib"].items())
    lines += [
        "",
        f"{first['network']} at batch {first['batch']}, compiled: {over[WAYS[3]]:.2f} times the network without batch "
        f"norm, {over[WAYS[4]]:.2f} times its convolutions alone. The first "
        f"compiled step took {first['first_step_seconds']['compiled']:.0f} s; it takes several times as long where "
        "PyTorch has not compiled the same before.",
        "",
        f"Peak memory that a step adds, {first['network']} at batch {first['batch']}: {memory}.",
        "",
        f"Lightning and the bank add {results['lightning']['added_seconds_per_batch'] * 1000:.0f} ms to a batch of any "
        "number of iterations.",
        "",
    ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """The steps' seconds as bars, by network."""
    cases = results["steps"]
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    width = 0.8 / len(WAYS)
    for position, way in enumerate(WAYS):
        at = [(index, case["seconds"][way]) for index, case in enumerate(cases) if way in case["seconds"]]
        axes.bar([index + position * width for index, _ in at], [value for _, value in at], width, label=way)
    names = [f"{case['network']}\nbatch {case['batch']}" for case in cases]
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(cases))], names)
    axes.set_ylabel("seconds per iteration")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
