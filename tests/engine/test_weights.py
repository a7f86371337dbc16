"""Adapters come and go in the weights: exact, in place, and without a trace."""

import random

import pytest
import torch
from torch import Tensor, nn

from serve_app.engine.deltas import Adapter, Full, Hadamard, Kronecker, LowRank
from serve_app.engine.merged_weights import MergedWeights

DTYPES = [torch.float32, torch.bfloat16]


def transformer(dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    linears = {"a": nn.Linear(32, 48), "b": nn.Linear(48, 32, bias=False), "c": nn.Linear(32, 32)}
    return nn.ModuleDict(linears | {"norm": nn.LayerNorm(32)}).to(dtype)


def adapters(dtype: torch.dtype) -> dict[str, Adapter]:
    """One of each kind and some overlaps; "other" is in another dtype than the weights."""
    torch.manual_seed(1)
    other = torch.float16 if dtype == torch.bfloat16 else torch.bfloat16

    def low_rank(out: int, into: int, rank: int, dtype: torch.dtype = dtype) -> LowRank:
        return LowRank(torch.randn(out, rank).to(dtype), torch.randn(rank, into).to(dtype), 0.5)

    made = {
        "A": {"a.weight": low_rank(48, 32, 4), "b.weight": low_rank(32, 48, 2)},
        "B": {"a.weight": low_rank(48, 32, 8), "c.weight": low_rank(32, 32, 4)},
        "kron": {"b.weight": Kronecker((torch.randn(4, 4),), (torch.randn(8, 2), torch.randn(2, 12)), 0.25)},
        "full": {
            "a.weight": Full(torch.randn(48, 32)),
            "a.bias": Full(torch.randn(48)),
            "c.bias": Full(torch.randn(32), 0.25),
        },
        "loha": {
            "b.weight": Hadamard(
                (torch.randn(32, 2), torch.randn(2, 48)), (torch.randn(32, 2), torch.randn(2, 48)), 0.5
            )
        },
        "norm": {"norm.weight": Full(torch.randn(32)), "norm.bias": Full(torch.randn(32))},
        "other": {"a.weight": low_rank(48, 32, 4, other)},
    }
    return {name: Adapter(deltas, pinned=False) for name, deltas in made.items()}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(params=DTYPES, ids=["fp32", "bf16"])
def dtype(request) -> torch.dtype:
    return request.param


def fresh(dtype: torch.dtype, **scales: float) -> dict[str, Tensor]:
    """The weights after one application to an untouched model."""
    model, known = transformer(dtype), adapters(dtype)
    MergedWeights(model, "device").apply({name: (known[name], scale) for name, scale in scales.items()})
    return state(model)


def test_weights_are_the_definition_rounded_once(dtype):
    model, known = transformer(dtype), adapters(dtype)
    before = state(model)
    uses = {"A": 0.7, "B": -0.3, "full": 0.5}
    MergedWeights(model, "device").apply({name: (known[name], scale) for name, scale in uses.items()})
    exact = before["a.weight"].double()
    for name, scale in uses.items():
        exact = exact + scale * known[name].deltas["a.weight"].weight(torch.float64)
    if dtype == torch.bfloat16:
        # The nearest bf16 to the exact sum, but for sums that fp32 puts on the other side of a tie.
        assert (model["a"].weight != exact.to(dtype)).float().mean() < 0.002
    else:
        assert torch.allclose(model["a"].weight.double(), exact, rtol=1e-5, atol=1e-6)
    bias = before["a.bias"].double() + 0.5 * known["full"].deltas["a.bias"].weight(torch.float64)
    assert torch.allclose(model["a"].bias.double(), bias, rtol=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_single_adapter_is_rounded_once(dtype):
    model, known = transformer(dtype), adapters(dtype)
    exact = model["a"].weight.double() + 0.7 * known["A"].deltas["a.weight"].weight(torch.float64)
    MergedWeights(model, "device").apply({"A": (known["A"], 0.7)})
    if dtype == torch.bfloat16:
        assert (model["a"].weight != exact.to(dtype)).float().mean() < 0.002
    else:
        assert torch.allclose(model["a"].weight.double(), exact, rtol=1e-5, atol=1e-6)


STACKS = {
    "bf16": (torch.bfloat16,),
    "fp16": (torch.float16,),
    "fp32": (torch.float32,),
    "fp8": (torch.float8_e4m3fn,),
    "bf16+bf16": (torch.bfloat16, torch.bfloat16),
    "bf16+fp16+fp32": (torch.bfloat16, torch.float16, torch.float32),
}


def excess(weight: Tensor, original: Tensor, deltas: list[tuple[LowRank, float]]) -> float:
    """By how much a bf16 weight is off beyond its last rounding, as a share of what was added up (largest)."""
    exact, size = original.double(), original.double().abs()
    for delta, scale in deltas:
        exact = exact + scale * delta.weight(torch.float64)
        size += abs(scale * delta.factor) * (delta.up.double().abs() @ delta.down.double().abs())
    half_of_last_place = torch.exp2(exact.abs().log2().floor() - 8)
    return (((weight.double() - exact).abs() - half_of_last_place) / size).max().item()


@pytest.mark.parametrize("dtypes", STACKS.values(), ids=STACKS.keys())
def test_stack_of_any_dtypes_is_rounded_once_in_bf16(dtypes, monkeypatch):
    """More linears than are prepared at once, each with a factor of its own."""
    monkeypatch.setattr("serve_app.engine.merging.LINEARS_PER_BATCH", 4)
    torch.manual_seed(2)
    model = nn.ModuleDict({str(n): nn.Linear(24, 40, bias=False) for n in range(10)}).bfloat16()
    before, uses = state(model), {}
    for number, dtype in enumerate(dtypes):
        deltas = {
            f"{name}.weight": LowRank(torch.randn(40, 5).to(dtype), torch.randn(5, 24).to(dtype), 0.1 + index / 7)
            for index, name in enumerate(model)
        }
        uses[f"file {number}"] = (Adapter(deltas, pinned=False), 0.7 / (number + 1))
    MergedWeights(model, "device").apply(uses)
    for name, linear in model.items():
        deltas = [(adapter.deltas[f"{name}.weight"], scale) for adapter, scale in uses.values()]
        assert excess(linear.weight, before[f"{name}.weight"], deltas) < 2**-16


def test_copies_in_host_memory_are_made_at_the_start(dtype):
    model, known = transformer(dtype), adapters(dtype)
    weights = MergedWeights(model, "host")
    for module in model.values():
        module.weight.data.zero_()
    weights.apply({"A": (known["A"], 1.0)})
    assert torch.equal(model["a"].weight, fresh(dtype, A=1.0)["a.weight"])


@pytest.mark.parametrize("name", ["A", "kron", "loha", "full", "norm", "other"])
def test_scales_in_a_row_give_what_fresh_loads_give(dtype, name):
    model, known = transformer(dtype), adapters(dtype)
    weights, before = MergedWeights(model, "device"), state(model)
    for scale in (0.5, 1.0, 0.8, 0.0):
        weights.apply({name: (known[name], scale)})
        assert same(state(model), fresh(dtype, **{name: scale}))
    assert same(state(model), before)


def test_a_then_b_then_both_then_none_ends_where_it_began(dtype):
    model, known = transformer(dtype), adapters(dtype)
    weights, before = MergedWeights(model, "device"), state(model)
    for stack in ({"A": 1.0}, {"B": 0.5}, {"A": 1.0, "B": 0.5}, {}):
        weights.apply({name: (known[name], scale) for name, scale in stack.items()})
        assert same(state(model), fresh(dtype, **stack))
    assert same(state(model), before)


def test_five_hundred_swaps_leave_no_trace(dtype):
    model, known = transformer(dtype), adapters(dtype)
    weights, before = MergedWeights(model, "device"), state(model)
    dice = random.Random(3)
    for _ in range(500):
        names = dice.sample(sorted(known), dice.randint(0, 3))
        weights.apply({name: (known[name], dice.choice((1.0, 0.5, -0.25))) for name in names})
    weights.apply({"A": (known["A"], 0.5)})
    assert same(state(model), fresh(dtype, A=0.5))
    weights.apply({})
    assert same(state(model), before)


def test_nothing_is_done_twice(dtype):
    model, known = transformer(dtype), adapters(dtype)
    weights = MergedWeights(model, "device")
    assert weights.apply({"A": (known["A"], 1.0)}) == 2
    assert weights.apply({"A": (known["A"], 1.0)}) == 0
    # "b" stays as it is: only what B touches is rewritten.
    assert weights.apply({"A": (known["A"], 1.0), "B": (known["B"], 1.0)}) == 2
    assert weights.apply({"A": (known["A"], 1.0)}) == 2
    assert weights.apply({}) == 2
    assert weights.apply({}) == 0


def test_parameters_are_rewritten_in_place(dtype):
    """Compiled code and graphs hold on to the memory."""
    model, known = transformer(dtype), adapters(dtype)
    places = {name: value.data_ptr() for name, value in model.state_dict().items()}
    weights = MergedWeights(model, "device")
    for name in known:
        weights.apply({name: (known[name], 1.0)})
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == places


def test_failed_application_of_adapters_is_repaired_by_the_next(dtype):
    model, known = transformer(dtype), adapters(dtype)
    weights, before = MergedWeights(model, "device"), state(model)
    weights.apply({"A": (known["A"], 1.0)})

    class Half:
        """Its second module cannot be applied."""

        def __init__(self) -> None:
            self.deltas = {"a.weight": known["B"].deltas["a.weight"], "c.weight": "not a change"}

        def copy_to(self, device):
            return self.deltas

    with pytest.raises(AttributeError):
        weights.apply({"half": (Half(), 1.0)})
    weights.apply({"B": (known["B"], 1.0)})
    assert same(state(model), fresh(dtype, B=1.0))
    weights.apply({})
    assert same(state(model), before)
