import torch

from melora.ops import block_lora_reference


def test_equals_the_dense_block_diagonal_matrix() -> None:
    torch.manual_seed(0)
    n, r, d_in, d_out = 4, 3, 20, 12
    A, B = torch.randn(n, r, d_in // n).double(), torch.randn(n, d_out // n, r).double()
    W, b, x = torch.randn(d_out, d_in).double(), torch.randn(d_out).double(), torch.randn(5, d_in).double()
    dense = 0.7 * torch.block_diag(*[B[i] @ A[i] for i in range(n)])

    torch.testing.assert_close(block_lora_reference(x, A, B, 0.7), x @ dense.T)
    torch.testing.assert_close(block_lora_reference(x, A, B, 0.7, weight=W, bias=b), x @ (W + dense).T + b)


def test_each_output_slice_sees_its_own_input_slice_alone() -> None:
    A, B = torch.ones(2, 1, 3), torch.ones(2, 2, 1)
    x = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 30.0])
    assert block_lora_reference(x, A, B, 1.0).tolist() == [6.0, 6.0, 60.0, 60.0]
