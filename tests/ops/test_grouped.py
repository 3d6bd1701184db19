"""Rows through adapters of their own against the loop, outputs and gradients."""

import pytest
import torch

from melora.ops import block_lora_reference, grouped_block_lora, routed_block_lora


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


@pytest.mark.parametrize("leading", [(), (3,)])
@pytest.mark.parametrize(
    "rows_of",
    [[[4, 1], [0, 2], [6, 3]], [[5], [0, 2], [6, 3]], [[0, 1, 2, 3, 4], [6], [5]], [[6], [0], [3]]],
    ids=["even", "filled up", "one has most", "one each"],
)
@pytest.mark.parametrize("mixing", ["none", "learned", "shuffle"])
def test_rows_in_any_order_and_number(rows_of: list[list[int]], leading: tuple[int, ...], mixing: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, *leading, 6).double().requires_grad_()
    A, B = (torch.randn(*shape).double().requires_grad_() for shape in ((3, 2, 2, 3), (3, 2, 4, 2)))
    core = torch.randn(3, 2, 2, 2).double().requires_grad_() if mixing == "learned" else None
    scaling = torch.tensor([0.5, 2.0, 4.0]).double()
    shuffle = mixing == "shuffle"
    rows, y = routed_block_lora(x, rows_of, A, B, scaling, dtype=torch.float64, core=core, shuffle=shuffle)
    assert rows.tolist() == [row for some in rows_of for row in some]
    expected = torch.stack(
        [
            block_lora_reference(
                x[i], A[k], B[k], float(scaling[k]), core=None if core is None else core[k], shuffle=shuffle
            )
            for k, some in enumerate(rows_of)
            for i in some
        ]
    )
    torch.testing.assert_close(y, expected)
    grad, leaves = torch.randn_like(y), [x, A, B, *([] if core is None else [core])]
    every = zip(torch.autograd.grad(y, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True)
    for value, want in every:
        torch.testing.assert_close(value, want)
