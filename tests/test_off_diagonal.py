from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, inspect_adapter
from melora.adapter_files import read_adapter
from melora.file_modules import ModuleFactors
from melora.off_diagonal import off_diagonal_share, update_pieces

from .test_layer_types import Holder, layers


def linear(n: int, r: int, d_in: int, d_out: int, **changes: Any) -> ModuleFactors:
    A, B = (n, r, d_in // n), (n, d_out // n, r)
    return ModuleFactors("layer", "A", "B", A, B, n, r, d_in, d_out, 2.0, **changes)


def share_by_loops(dense: torch.Tensor, blocks: int) -> float:
    """Entry by entry: an entry is outside if its row and its column lie in blocks of other numbers."""
    height, width = dense.shape[0] // blocks, dense.shape[1] // blocks
    outside = total = 0.0
    for row, numbers in enumerate(dense.tolist()):
        for column, number in enumerate(numbers):
            square = number**2
            total += square
            outside += square * (row // height != column // width)
    return outside / total


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_share_is_that_of_the_dense_matrix(data: st.DataObject) -> None:
    n, blocks = data.draw(st.sampled_from([1, 2, 3, 4, 6])), data.draw(st.sampled_from([2, 3, 4, 6, 12]))
    d_in, d_out = 12 * data.draw(st.integers(1, 2)), 12 * data.draw(st.integers(1, 2))
    r = data.draw(st.integers(1, 15))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    A, B = torch.randn(n, r, d_in // n), torch.randn(n, d_out // n, r)
    dense = torch.block_diag(*(B.double() @ A.double()))
    found = off_diagonal_share(linear(n, r, d_in, d_out), A, B, blocks)
    assert found == pytest.approx(share_by_loops(dense, blocks), abs=1e-12)
    if n % blocks == 0:
        assert found == 0.0  # every mini lies inside one block: exactly


def test_a_random_lora_lies_outside_by_one_minus_one_over_n() -> None:
    torch.manual_seed(0)
    for blocks in (2, 4, 8, 16):
        shares = []
        for _ in range(40):
            A, B = torch.randn(1, 4, 64), torch.randn(1, 64, 4)
            share = off_diagonal_share(linear(1, 4, 64, 64), A, B, blocks)
            assert share is not None
            shares.append(share)
        assert sum(shares) / 40 == pytest.approx(1 - 1 / blocks, abs=0.01)


def test_a_lora_that_is_block_diagonal_fits(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = get_peft_model(make_mlp(), LoraConfig(r=6, target_modules=["first"], init_lora_weights=False))
    layer = model.base_model.model.first
    with torch.no_grad():
        for factor, dimension in ((layer.lora_A["default"].weight, 1), (layer.lora_B["default"].weight, 0)):
            minis = factor.unflatten(dimension, (3, -1)).clone()
            for i in range(3):
                rest = [k for k in range(6) if k // 2 != i]
                if dimension == 1:
                    minis[rest, i] = 0.0
                else:
                    minis[i][:, rest] = 0.0
            factor.copy_(minis.flatten(dimension, dimension + 1))
    model.save_pretrained(tmp_path)
    assert inspect_adapter(tmp_path).off_diagonal is None  # n = 1: nothing to measure against
    report = inspect_adapter(tmp_path, blocks=3)
    assert report.off_diagonal == pytest.approx(0.0, abs=1e-12)
    assert report.layers[0].blocks == 3
    assert (inspect_adapter(tmp_path, blocks=6).off_diagonal or 0.0) > 0.1


def test_all_layers_together_are_weighted_by_their_norm(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["first", "head"], init_lora_weights=False, alpha_pattern={"head": 80})
    model = get_peft_model(make_mlp(), config)
    model.save_pretrained(tmp_path)
    outside = total = 0.0
    for name in ("first", "head"):
        delta = getattr(model.base_model.model, name).get_delta_weight("default").detach()
        square = float(delta.square().sum())
        outside, total = outside + share_by_loops(delta, 6) * square, total + square
    report = inspect_adapter(tmp_path, blocks=6)
    assert report.off_diagonal == pytest.approx(outside / total, rel=1e-5)
    assert report.to_dict()["off_diagonal"] == report.off_diagonal


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 2)


@pytest.mark.parametrize("blocks", [2, 3, 6])
@pytest.mark.parametrize("method", ["lora", "melora"])
@pytest.mark.filterwarnings("ignore:Unsupported layer type")
def test_query_key_and_value_are_three_matrices(tmp_path: Path, method: str, blocks: int) -> None:
    config = (
        LoraConfig(r=2, target_modules=["attention"], init_lora_weights=False)
        if method == "lora"
        else MeloraConfig(r=2, n=3, target_modules=["attention"], init_weights=False)
    )
    torch.manual_seed(0)
    model = get_peft_model(Attention(), config)
    model.save_pretrained(tmp_path)
    layer = inspect_adapter(tmp_path, blocks=blocks).layers
    by_name = {one.name: one for one in layer}
    attention = model.base_model.model.attention
    delta = attention.get_delta_weight("default").detach()
    squares = [float(part.square().sum()) for part in delta.chunk(3)]
    shares = [share_by_loops(part, blocks) for part in delta.chunk(3)]
    expected = sum(x * y for x, y in zip(squares, shares, strict=True)) / sum(squares)
    assert by_name["attention"].off_diagonal == pytest.approx(expected, rel=1e-5, abs=1e-12)
    (out,) = [one for name, one in by_name.items() if name.endswith("out_proj")]
    delta = attention.get_base_layer().out_proj.get_delta_weight("default").detach()
    assert out.off_diagonal == pytest.approx(share_by_loops(delta, blocks), rel=1e-5, abs=1e-12)


class Convolution(nn.Module):
    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(12, 24, (3, 2), groups=groups)


@pytest.mark.parametrize("blocks", [2, 4, 6])
def test_a_convolution_has_blocks_of_channels(tmp_path: Path, blocks: int) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Convolution(), MeloraConfig(r=3, n=2, target_modules=["conv"], init_weights=False))
    model.save_pretrained(tmp_path)
    delta = model.base_model.model.conv.get_delta_weight("default").detach()
    found = inspect_adapter(tmp_path, blocks=blocks).off_diagonal
    assert found == pytest.approx(share_by_loops(delta.flatten(1), blocks), rel=1e-5, abs=1e-12)


@pytest.mark.filterwarnings("ignore:.*can't be merged")
def test_minis_that_span_groups_stay_inside_their_blocks(tmp_path: Path) -> None:
    config = MeloraConfig(r=4, n=3, target_modules=["conv"], init_weights=False)
    get_peft_model(Convolution(groups=6), config).save_pretrained(tmp_path)
    assert inspect_adapter(tmp_path).off_diagonal == 0.0
    assert inspect_adapter(tmp_path, blocks=6).off_diagonal == pytest.approx(0.5, abs=0.2)


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8, 12))
        self.config = {"model_type": "none"}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.einsum("eoi,ti->teo", self.weight, x)


def test_experts_are_added_up(tmp_path: Path) -> None:
    model = nn.ModuleDict({"experts": Experts()})
    config = MeloraConfig(r=2, n=2, target_modules=[], target_parameters=["experts.weight"], init_weights=False)
    adapted = get_peft_model(model, config)
    adapted.save_pretrained(tmp_path)
    delta = adapted.base_model.model.experts.get_delta_weight("default").detach()
    squares = [float(expert.square().sum()) for expert in delta]
    expected = sum(share_by_loops(expert, 4) * square for expert, square in zip(delta, squares, strict=True))
    assert inspect_adapter(tmp_path).off_diagonal == 0.0
    assert inspect_adapter(tmp_path, blocks=4).off_diagonal == pytest.approx(expected / sum(squares), rel=1e-5)


def test_nothing_to_measure() -> None:
    A, B = torch.randn(4, 2, 3), torch.zeros(4, 3, 2)
    assert off_diagonal_share(linear(4, 2, 12, 12), A, B, 4) is None  # untrained: dW = 0
    assert off_diagonal_share(linear(1, 2, 12, 12), A[:1].expand(1, 2, 3), B[:1], 1) is None
    embedding = ModuleFactors("e", "A", "B", (4, 2, 9), (4, 3, 2), 4, 2, 9, 12, 1.0, "embedding")
    assert update_pieces(embedding, torch.randn(4, 2, 9), torch.randn(4, 3, 2)) == []
    assert off_diagonal_share(embedding, torch.randn(4, 2, 9), torch.randn(4, 3, 2), 4) is None


def test_blocks_that_do_not_fit(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    get_peft_model(make_mlp(), LoraConfig(r=3, target_modules=["first"])).save_pretrained(tmp_path)
    with pytest.raises(
        MeloraError, match="blocks=7: first is 48 x 24, and 7 does not divide both; choose from 1, 2, 3"
    ):
        inspect_adapter(tmp_path, blocks=7)
    with pytest.raises(MeloraError, match="blocks must be a whole number from 1"):
        inspect_adapter(tmp_path, blocks=0)


def test_pieces_are_the_update(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = MeloraConfig(r=2, n=6, target_modules=["first"], init_weights=False, use_rslora=True)
    model = get_peft_model(make_mlp(), config)
    model.save_pretrained(tmp_path)
    files = read_adapter(tmp_path)
    (module,) = files.modules
    dense = torch.zeros(48, 24, dtype=torch.float64)
    for piece in update_pieces(module, *files.factors(files.load(), module)):
        product = piece.B @ piece.A
        dense[piece.row : piece.row + product.shape[0], piece.column : piece.column + product.shape[1]] += product
    delta = model.base_model.model.first.get_delta_weight("default")
    torch.testing.assert_close(dense.float(), delta)


@pytest.mark.parametrize(
    "config",
    [
        {"n": 4, "r": 2, "mixing": "learned"},
        {"n": 2, "r": 4, "mixing": "shuffle"},
        {"n": 4, "r": 2, "permute": "strided"},
        {"n": 2, "r": 4, "mixing": "shuffle", "permute": "strided"},
    ],
)
def test_mixed_ranks_and_permuted_channels(make_mlp: Callable[..., nn.Module], tmp_path: Path, config: Any) -> None:
    model = get_peft_model(make_mlp(), MeloraConfig(target_modules=["first"], init_weights=False, **config))
    model.save_pretrained(tmp_path)
    delta = model.base_model.model.first.get_delta_weight("default").detach().double()
    for blocks in (None, 3):
        (layer,) = inspect_adapter(tmp_path, blocks=blocks).layers
        assert layer.off_diagonal == pytest.approx(share_by_loops(delta, blocks or config["n"]), abs=1e-6)
        assert layer.off_diagonal > 0.1
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
        assert layer.rank == 8


@pytest.mark.parametrize("mixing", ["learned", "shuffle"])
def test_the_three_matrices_of_a_mixing_attention(mixing: Any, tmp_path: Path) -> None:
    attention = Holder(nn.MultiheadAttention(8, 2))
    model = get_peft_model(
        attention, MeloraConfig(n=2, r=2, mixing=mixing, init_weights=False, target_modules=["layer"])
    )
    model.save_pretrained(tmp_path)
    deltas = {name: layer.get_delta_weight("default").detach().double() for name, layer in layers(model).items()}
    for layer in inspect_adapter(tmp_path).layers:
        delta = deltas[f"base_model.model.{layer.name}"]
        parts = delta.split(8)
        shares = sum(share_by_loops(part, 2) * float(part.square().sum()) for part in parts)
        assert layer.off_diagonal == pytest.approx(shares / float(delta.square().sum()), abs=1e-6)
        assert layer.norm == pytest.approx(float(delta.norm()), rel=1e-5)
