"""What determines how a student is quantised."""

from __future__ import annotations

from dataclasses import dataclass, field

from dfkd.errors import ConfigError, require

BITS = range(2, 9)


@dataclass(frozen=True, kw_only=True)
class QuantizationRecipe:
    """In how many bits the convolutions and linear layers of a student compute.

    Attributes:
        weight_bits: of the weights, symmetric, one scale for each output channel; None: the student is not quantised.
        input_bits: of the layers' inputs (the activations), one scale and zero point for each layer.
        edge_bits: of weights and inputs of the first and the last layer, where `weight_bits` or `input_bits` are fewer;
            images have eight bits as they come, and these two layers hold few of the weights. None: as all others.
        in_float: names of layers that are not quantised.
    """

    weight_bits: int | None = None
    input_bits: int = 8
    edge_bits: int | None = 8
    in_float: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for option, may_be_none in (("weight_bits", True), ("input_bits", False), ("edge_bits", True)):
            value = getattr(self, option)
            allowed = f"in [{BITS[0]}, {BITS[-1]}]" + (", or null" if may_be_none else "")
            require(value in BITS or (may_be_none and value is None), f"quantization.{option}", value, allowed)

    def bits(self, edge: bool) -> tuple[int, int]:
        """Bits of a layer's weight and input; of the first and last layer where `edge`."""
        if self.weight_bits is None:
            raise ConfigError(f"quantization.weight_bits must be in [{BITS[0]}, {BITS[-1]}] to quantise, got None.")
        least = self.edge_bits or 0 if edge else 0
        return max(self.weight_bits, least), max(self.input_bits, least)
