"""Quantised weights: torchao's fp8 with one scale per row. Lossy, so only if the config asks for it."""

from typing import Any

from torch import Tensor, nn

# The scale of a row is its largest absolute value, but at least this, divided by the largest number in e4m3. Otherwise
# a row of zeros would have the scale 0, and its values would be 0 / 0. A power of two that bf16 represents, whose 448th
# part is a normal number.
LEAST_LARGEST = 2.0**-100


def quantised(weight: Tensor) -> Tensor:
    """A linear's weight (out, in) in fp8 (e4m3) with one scale per row; its inputs are quantised as well.

    On a CPU only the weight is: there is no kernel for both. Raises ImportError without torchao.
    """
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor

    made: Tensor = Float8Tensor.from_hp(
        weight,
        granularity=PerRow(),
        # As torchao's `Float8DynamicActivationFloat8WeightConfig` sets it.
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=of_inputs() if weight.is_cuda else None,
        hp_value_lb=LEAST_LARGEST,
    )
    return made


def of_inputs() -> Any:
    """How the inputs of a quantised linear are quantised: with one scale per token. Raises ImportError."""
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import QuantizeTensorToFloat8Kwargs

    return QuantizeTensorToFloat8Kwargs(granularity=PerRow(), hp_value_lb=LEAST_LARGEST)


def should_quantise(name: str, module: nn.Module) -> bool:
    """Whether a module of the transformer is a linear of its blocks that processes all tokens.

    A block's modulations process one vector per step: quantising them saves nothing.
    """
    return isinstance(module, nn.Linear) and name.startswith("transformer_blocks.") and "_mod." not in name


def quantise(module: Any) -> nn.Parameter:
    """Replace a linear's weight by the quantised weight, and return that. The old tensor stays unchanged."""
    module.weight = nn.Parameter(quantised(module.weight.detach()), requires_grad=False)
    weight: nn.Parameter = module.weight
    return weight
