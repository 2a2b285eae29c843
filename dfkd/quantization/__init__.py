"""Quantisation: layers that compute with weights and inputs of few bits, and keep learning while they do."""

from dfkd.quantization.layer import quantized_layers
from dfkd.quantization.quantize import quantize
from dfkd.quantization.recipe import QuantizationRecipe

__all__ = ["QuantizationRecipe", "quantize", "quantized_layers"]
