"""Weights in eight bits: torchao's fp8, one scale a row. Lossy, so never without being asked for."""

from typing import Any

from torch import Tensor, nn


def quantised(weight: Tensor) -> Tensor:
    """A linear's weight (out, in) in fp8 (e4m3) with one scale a row; what is multiplied with it is quantised as well.

    On a CPU it is weights alone: there is no kernel for both. Raises ImportError without torchao.
    """
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import PerRow
    from torchao.quantization.quantize_.workflows.float8.float8_tensor import Float8Tensor, QuantizeTensorToFloat8Kwargs

    activations = QuantizeTensorToFloat8Kwargs(granularity=PerRow()) if weight.is_cuda else None
    made: Tensor = Float8Tensor.from_hp(
        weight,
        granularity=PerRow(),
        # What torchao's own `Float8DynamicActivationFloat8WeightConfig` sets.
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=activations,
    )
    return made


def should_quantise(name: str, module: nn.Module) -> bool:
    """Whether a module of the transformer is a linear of its blocks that all tokens pass.

    The modulations of a block see one vector a step: there is nothing to gain.
    """
    return isinstance(module, nn.Linear) and name.startswith("transformer_blocks.") and "_mod." not in name


def quantise(module: Any) -> nn.Parameter:
    """Put the quantised weight in the place of a linear's weight, which lives on with whoever holds it."""
    module.weight = nn.Parameter(quantised(module.weight.detach()), requires_grad=False)
    weight: nn.Parameter = module.weight
    return weight
