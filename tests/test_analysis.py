import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from melora import MeloraConfig
from melora.analysis import effective_rank, inspect_adapter, numerical_rank, singular_values


def test_singular_values_are_the_dense_updates() -> None:
    torch.manual_seed(0)
    A, B = torch.randn(3, 2, 5), torch.randn(3, 4, 2)
    dense = -1.5 * torch.block_diag(*(B.double() @ A.double()))
    expected = torch.linalg.svdvals(dense)
    torch.testing.assert_close(singular_values(A, B, -1.5), expected[:6])
    assert expected[6:].max() < 1e-12


def test_singular_values_where_r_exceeds_a_block() -> None:
    A, B = torch.randn(4, 3, 2), torch.randn(4, 5, 3)
    dense = torch.block_diag(*(B.double() @ A.double()))
    torch.testing.assert_close(singular_values(A, B, 1.0), torch.linalg.svdvals(dense)[:8])


def test_effective_rank() -> None:
    assert effective_rank(torch.ones(5, dtype=torch.float64)) == pytest.approx(5)
    assert effective_rank(torch.tensor([1.0, 0.0, 0.0])) == 1
    assert effective_rank(torch.zeros(3)) == 0
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor([3.0, 1.0], dtype=torch.float64)) == pytest.approx(math.exp(entropy))


def test_numerical_rank() -> None:
    assert numerical_rank(torch.tensor([1.0, 1e-3, 1e-9]), 10, torch.float32) == 2
    assert numerical_rank(torch.zeros(3), 10, torch.float32) == 0
    assert numerical_rank(torch.empty(0), 10, torch.float32) == 0


def test_reports_every_layer_and_the_totals(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = MeloraConfig(
        r=2, n=6, target_modules=["first", "head"], init_weights=False, n_pattern={"head": 3}, lora_alpha=4
    )
    model = get_peft_model(make_mlp(), config)
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    assert report.method == "MELORA"
    assert [(layer.name, layer.n, layer.r, layer.equivalent_rank) for layer in report.layers] == [
        ("first", 6, 2, 12),
        ("head", 3, 2, 6),
    ]
    for layer in report.layers:
        delta = getattr(model.base_model.model, layer.name).get_delta_weight("default").detach()
        assert (layer.d_out, layer.d_in) == delta.shape
        assert layer.norm == pytest.approx(delta.norm().item(), rel=1e-5)
        assert layer.rank == torch.linalg.matrix_rank(delta) == layer.equivalent_rank
        assert 1 <= layer.effective_rank <= layer.rank
    assert report.parameters == model.get_nb_trainable_parameters()[0] == 2 * (24 + 48) + 2 * (48 + 6)
    assert report.lora_parameters == 12 * (24 + 48) + 6 * (48 + 6)
    assert report.other_parameters == 0
    assert report.to_dict()["layers"][0]["name"] == "first"


def test_a_fresh_adapter_has_rank_0(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    get_peft_model(make_mlp(), MeloraConfig(n=6, target_modules=["first"])).save_pretrained(tmp_path)
    (layer,) = inspect_adapter(tmp_path).layers
    assert (layer.rank, layer.effective_rank, layer.norm) == (0, 0.0, 0.0)


def test_a_lora_is_reported_as_one_mini(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = LoraConfig(r=3, target_modules=["first"], init_lora_weights=False)
    model = get_peft_model(make_mlp(), config)
    model.save_pretrained(tmp_path)
    report = inspect_adapter(tmp_path)
    (layer,) = report.layers
    delta = model.base_model.model.first.get_delta_weight("default")
    assert (report.method, layer.n, layer.r, layer.rank) == ("LORA", 1, 3, 3)
    assert layer.norm == pytest.approx(delta.norm().item(), rel=1e-5)
    assert report.parameters == report.lora_parameters == 3 * (24 + 48)
