"""Rows through adapters of their own against the loop, outputs and gradients."""

import pytest
import torch

from melora.ops import block_lora_reference, grouped_block_lora


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3)])
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("order", [[2, 0, 2, 1, 0, 2], None], ids=["shared", "one row each"])
def test_equals_each_adapter_on_its_rows(leading: tuple[int, ...], r: int, order: list[int] | None) -> None:
    torch.manual_seed(0)
    index = None if order is None else torch.tensor(order)
    owners = [0, 1, 2, 3] if order is None else order
    x = torch.randn(len(owners), *leading, 12).double().requires_grad_()
    A, B = (torch.randn(*shape).double().requires_grad_() for shape in ((4, 4, r, 3), (4, 4, 2, r)))
    scaling = torch.tensor([0.5, 1.0, 2.0, 4.0]).double()
    y = grouped_block_lora(x, A, B, scaling, index)
    rows = [block_lora_reference(x[j], A[k], B[k], float(scaling[k])) for j, k in enumerate(owners)]
    expected = torch.stack(rows)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    every = zip(torch.autograd.grad(y, [x, A, B], grad), torch.autograd.grad(expected, [x, A, B], grad), strict=True)
    for value, want in every:
        torch.testing.assert_close(value, want)
