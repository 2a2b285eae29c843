"""The grids of a quantised student in an ONNX graph."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dfkd.deployment.graph import layers_of, needed, prepare
from dfkd.errors import ModelError
from dfkd.quantization import quantized_layers
from dfkd.quantization.grid import integers_of
from dfkd.quantization.layer import LayerQuantizer, detach

CLOSE = 1e-3  # in units of a grid's step


@dataclass(frozen=True)
class Grid:
    """A layer's weight in a graph: `integers` times `scale`, which counts along `axis`."""

    quantizer: LayerQuantizer
    integers: np.ndarray
    scale: np.ndarray
    axis: int


def without_quantizers(student: nn.Module) -> nn.Module:
    """A copy of a quantised student that does not round its layers' inputs; any other network as it is."""
    if not quantized_layers(student):
        return student
    plain = copy.deepcopy(student)
    detach(plain)
    return plain


def grids_of(student: nn.Module, model: Any, nodes: dict[str, str]) -> dict[str, Grid]:
    """The grids of the quantised layers, by the name of their node.

    Batch norm is folded into the weights of `model` by then, which stretches each channel's grid and may mirror it.

    Raises:
        ModelError: a layer has no node, or its weight is not on the grid.
    """
    by_name = {node.name: node for node in model.graph.node}
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    found = {}
    for name, (layer, quantizer) in quantized_layers(student).items():
        node = by_name.get(nodes.get(name, ""))
        if node is None or node.input[1] not in weights:
            raise ModelError(f"The quantised layer {name} is not in the exported graph: keep it in float.")
        weight = needed("onnx").numpy_helper.to_array(weights[node.input[1]])
        integers, axis = integers_of(layer, quantizer).numpy(), int(node.op_type == "ConvTranspose")
        if (weight.ndim == 2 and weight.shape != integers.shape) or _transposed(node):
            integers, axis = integers.T, 1
        others = tuple(each for each in range(weight.ndim) if each != axis)
        squares = (integers.astype(np.float64) ** 2).sum(others, keepdims=True)
        scale = (weight.astype(np.float64) * integers).sum(others, keepdims=True) / np.maximum(squares, 1)
        if np.abs(weight - scale * integers).max() > CLOSE * np.abs(scale).max():
            raise ModelError(f"The weight of the quantised layer {name} is not on its grid in the exported graph.")
        integers = (integers * np.where(scale < 0, -1, 1)).astype(np.int8)
        scale = np.where(scale == 0, 1, np.abs(scale)).astype(np.float32).flatten()
        found[node.name] = Grid(quantizer, integers, scale, axis)
    return found


def _transposed(node: Any) -> bool:
    """Whether a matrix product takes its weight as (inputs, outputs), where torch holds (outputs, inputs)."""
    flags = {attribute.name: attribute.i for attribute in node.attribute}
    return node.op_type == "MatMul" or (node.op_type == "Gemm" and not flags.get("transB", 0))


def write_integers(student: nn.Module, path: Path) -> None:
    """Put the integers of a quantised student, and the rounding of its layers' inputs, into an ONNX file.

    Args:
        student: the network that the file was exported from, by `without_quantizers`.
        path: the file, in place.
    """
    onnx, nodes = needed("onnx"), layers_of(path)
    with tempfile.TemporaryDirectory() as place:
        prepared = Path(place) / "prepared.onnx"
        prepare(path, prepared)
        model = onnx.load(str(prepared))
    graph, rounded = model.graph, []
    grids = grids_of(student, model, nodes)
    for node in graph.node:
        grid = grids.get(node.name)
        if grid is not None:
            rounded += _input(node, grid.quantizer, graph)
            rounded.append(_weight(node, grid, graph))
        rounded.append(node)
    used = {name for node in rounded for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(rounded)
    graph.initializer.extend(kept)
    onnx.save(model, str(path))


def _input(node: Any, quantizer: LayerQuantizer, graph: Any) -> list[Any]:
    onnx, name = needed("onnx"), f"{node.name}.input"
    types = onnx.TensorProto
    kind = types.UINT8 if quantizer.input_bits > 4 else types.UINT4
    if quantizer.input_bits not in (4, 8):
        raise ModelError(f"ONNX has integers of four and eight bits, not of {quantizer.input_bits}.")
    step, zero = quantizer.input_scale.item(), int(quantizer.input_zero.item())
    graph.initializer.append(onnx.helper.make_tensor(f"{name}.scale", types.FLOAT, [], [step]))
    graph.initializer.append(onnx.helper.make_tensor(f"{name}.zero", kind, [], [zero]))
    parameters = [f"{name}.scale", f"{name}.zero"]
    make = onnx.helper.make_node
    nodes = [
        make("QuantizeLinear", [node.input[0], *parameters], [f"{name}.integers"]),
        make("DequantizeLinear", [f"{name}.integers", *parameters], [f"{name}.rounded"]),
    ]
    node.input[0] = f"{name}.rounded"
    return nodes


def _weight(node: Any, grid: Grid, graph: Any) -> Any:
    onnx, name = needed("onnx"), f"{node.name}.weight"
    types = onnx.TensorProto
    kind, content = types.INT8, np.ascontiguousarray(grid.integers)
    if grid.quantizer.weight_bits <= 4:  # two in a byte, the first in its lower half
        pairs = np.pad(content.flatten(), (0, content.size % 2)).view(np.uint8).reshape(-1, 2) & 15
        kind, content = types.INT4, pairs[:, 0] | pairs[:, 1] << 4
    tensor = onnx.helper.make_tensor(f"{name}.integers", kind, grid.integers.shape, content.tobytes(), raw=True)
    graph.initializer.append(tensor)
    graph.initializer.append(onnx.numpy_helper.from_array(grid.scale, f"{name}.scale"))
    node.input[1] = f"{name}.rounded"
    return onnx.helper.make_node(
        "DequantizeLinear", [f"{name}.integers", f"{name}.scale"], [f"{name}.rounded"], axis=grid.axis
    )


def overrides(student: nn.Module, prepared: Path, nodes: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """What onnxruntime's quantisation should take for scales and zero points, by tensor: those that were learned."""
    if not quantized_layers(student):
        return {}
    model, kinds = needed("onnx").load(str(prepared)), needed("onnxruntime.quantization").QuantType
    by_name = {node.name: node for node in model.graph.node}
    found: dict[str, list[dict[str, Any]]] = {}
    for name, grid in grids_of(student, model, nodes).items():
        image, weight = by_name[name].input[:2]
        zero = np.array(int(grid.quantizer.input_zero.item()), dtype=np.uint8)
        step = np.array(grid.quantizer.input_scale.item(), dtype=np.float32)
        found.setdefault(image, [{"quant_type": kinds.QUInt8, "scale": step, "zero_point": zero}])
        found[weight] = [
            {"axis": grid.axis, "quant_type": kinds.QInt8, "scale": np.array(each), "zero_point": np.array(0, np.int8)}
            for each in grid.scale
        ]
    return found


def runs_in_int8(student: nn.Module) -> bool:
    """Whether integers of eight bits hold what the student computes with, as they do not where inputs have fewer."""
    return all(quantizer.input_bits == 8 for _, quantizer in quantized_layers(student).values())
