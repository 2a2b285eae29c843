"""A finished run's student on its way to a device: files that other programs run, in int8, and what they cost there."""

from dfkd.deployment.export import export_pytorch, export_run
from dfkd.deployment.onnx_file import OnnxFile, export_onnx

__all__ = ["OnnxFile", "export_onnx", "export_pytorch", "export_run"]
