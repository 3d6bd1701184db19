"""The operators of torch.library: PyTorch's own check of them, export, and equality with eager mode."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig
from melora.ops import add_block_lora, block_lora, registered

TESTS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def tensors(grad: bool, leading: tuple[int, ...] = (7,), r: int = 2) -> dict[str, torch.Tensor]:
    shapes = {
        "x": (*leading, 6),
        "weight": (10, 6),
        "bias": (10,),
        "A": (2, r, 3),
        "B": (2, 5, r),
        "out": (*leading, 10),
    }
    return {name: torch.randn(*shape, dtype=torch.float64, requires_grad=grad) for name, shape in shapes.items()}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(("leading", "r"), [((7,), 2), ((2, 3), 1)])
def test_opcheck(grad: bool, leading: tuple[int, ...], r: int) -> None:
    t = tensors(grad, leading, r)
    check: Any = torch.library.opcheck
    fused, add = torch.ops.melora.block_lora.default, torch.ops.melora.add_block_lora.default
    for weight, bias in ((t["weight"], t["bias"]), (t["weight"], None), (None, None)):
        check(fused, (t["x"], weight, bias, t["A"], t["B"], 0.7, 0.0, None, False), test_utils=TESTS)
    check(add, (t["out"], t["x"], t["A"], t["B"], 0.7, 0.0, None, False), test_utils=TESTS)
    # A mask is drawn anew each time, so that results can't be compared.
    check(fused, (t["x"], None, None, t["A"], t["B"], 0.7, 0.3, None, False), test_utils=TESTS[:3])
    check(add, (t["out"], t["x"], t["A"], t["B"], 0.7, 0.3, None, False), test_utils=TESTS[:3])


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_operators_are_eager_modes_functions(dropout: float) -> None:
    t = tensors(True)
    pairs: list[tuple[Callable[[], torch.Tensor], Callable[[], torch.Tensor]]] = [
        (
            lambda: block_lora(t["x"], t["A"], t["B"], 0.7, weight=t["weight"], bias=t["bias"], dropout=dropout),
            lambda: registered.block_lora(t["x"], t["weight"], t["bias"], t["A"], t["B"], 0.7, dropout),
        ),
        (
            lambda: add_block_lora(t["out"], t["x"], t["A"], t["B"], 0.7, dropout=dropout),
            lambda: registered.add_block_lora(t["out"], t["x"], t["A"], t["B"], 0.7, dropout),
        ),
    ]
    for pair in pairs:
        results = []
        for function in pair:
            torch.manual_seed(0)
            y = function()
            first = torch.autograd.grad(y.square().sum(), list(t.values()), create_graph=True, allow_unused=True)
            second = torch.autograd.grad(first[0].square().sum(), [t["A"], t["B"]])  # a second derivative
            results.append([y, *(value for value in first if value is not None), *second])
        for eager, other in zip(*results, strict=True):
            torch.testing.assert_close(other, eager)


@pytest.mark.parametrize(("hooked", "names"), [(False, ["block_lora"]), (True, ["block_lora", "add_block_lora"])])
def test_export_with_any_number_of_rows(make_mlp: Callable[..., nn.Module], hooked: bool, names: list[str]) -> None:
    config = MeloraConfig(r=2, n=6, target_modules=["first", "middle", "head"], init_weights=False)
    model = get_peft_model(make_mlp(), config).eval().base_model.model
    if hooked:
        model.middle.base_layer.register_forward_hook(lambda *_: None)
    rows = torch.export.Dim("rows", min=2, max=1000)
    with torch.no_grad():
        exported = torch.export.export(model, (torch.randn(5, 24),), dynamic_shapes=({0: rows},), strict=False)
        targets = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
        called = {target for target in targets if target.startswith("melora.")}
        assert called == {f"melora.{name}.default" for name in names}
        for count in (2, 17):
            x = torch.randn(count, 24)
            torch.testing.assert_close(exported.module()(x), model(x))
