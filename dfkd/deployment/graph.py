"""ONNX graphs: which node is which layer of the network that was exported."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfkd.errors import ConfigError

MULTIPLY = ("Conv", "ConvTranspose", "Gemm", "MatMul")  # the operators that int8 makes cheaper


def needed(package: str) -> Any:
    """A package of the extra `onnx` (`ConfigError` where it is not installed)."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(f"This needs {error.name}: pip install 'dfkd[onnx]'.") from error


def layers_of(path: Path) -> dict[str, str]:
    """The nodes of an ONNX file that multiply by weights, by the name of their layer."""
    graph = needed("onnx").load(str(path)).graph
    weights = {tensor.name for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        own = [name for name in node.input if name in weights] if node.op_type in MULTIPLY else []
        if own:
            found[own[0].removesuffix(".weight")] = node.name
    return found


def prepare(source: Path, path: Path) -> None:
    """Write an ONNX file with its batch norm folded into convolutions; nodes keep their names."""
    with quiet():
        preparation = needed("onnxruntime.quantization.shape_inference")
        preparation.quant_pre_process(str(source), str(path), skip_symbolic_shape=True)


@contextmanager
def quiet() -> Iterator[None]:
    """Without onnxruntime's advice about its own arguments, which it gives to the root logger."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
