import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, calibrate, preprocess_lora_ga
from melora.diversity import linear_cka, mean_over_pairs
from melora.linear import Linear
from melora.training.data import read_validation
from melora.training.evaluate import restore
from melora.training.mini_outputs import DRAWS, likeness, measure_run


def pearson_squared(scalars: torch.Tensor) -> float:
    """The mean over pairs of columns, pair by pair: what CKA is where minis have rank 1."""
    columns = scalars.double().T.numpy()
    pairs = [(i, j) for i in range(len(columns)) for j in range(i + 1, len(columns))]
    return float(np.mean([np.corrcoef(columns[i], columns[j])[0, 1] ** 2 for i, j in pairs]))


def test_of_rank_1_it_is_the_squared_correlation(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    config = MeloraConfig(n=6, target_modules=["first", "middle"], init_weights=False, lora_dropout=0.5)
    model = get_peft_model(make_mlp(), config).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inputs = {"first": torch.randn(200, 24), "middle": torch.randn(200, 48)}
    found = likeness(model, inputs)
    for name, x in inputs.items():
        A = model.base_model.model.get_submodule(name).factors("default")[0].detach()
        layer = found[name]
        assert layer is not None
        scalars = torch.stack([x.unflatten(1, (6, -1))[:, i] @ A[i, 0] for i in range(6)], 1)
        assert layer.trained == pytest.approx(pearson_squared(scalars), rel=1e-3)
        draws = []
        for seed in range(40):  # other draws of A than melora's: the same mean, within the deviation that it gives
            fresh = 2 * torch.rand(A.shape, generator=torch.Generator().manual_seed(1000 + seed)) - 1
            draws.append(
                pearson_squared(torch.stack([x.unflatten(1, (6, -1))[:, i] @ fresh[i, 0] for i in range(6)], 1))
            )
        assert layer.random == pytest.approx(np.mean(draws), abs=4 * np.std(draws) / math.sqrt(DRAWS))
        assert layer.random_deviation == pytest.approx(np.std(draws), rel=1.0)
        assert layer.tokens == 200
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert likeness(model, inputs) == found


def test_minis_that_do_the_same_are_told_from_chance(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = get_peft_model(make_mlp(), MeloraConfig(r=2, n=6, target_modules=["first"], init_weights=False)).eval()
    A, B = model.base_model.model.first.factors("default")
    with torch.no_grad():
        A.copy_(A[:1].expand_as(A))
        B.copy_(torch.linalg.qr(B).Q)
    found = likeness(model, {"first": torch.randn(300, 4).repeat(1, 6)})["first"]  # one slice, six times
    assert found is not None
    assert found.trained == pytest.approx(1.0)
    assert found.random < 0.8


X = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
X = X @ torch.randn(8, 24, generator=torch.Generator().manual_seed(1))  # channels that go together, neighbours or not

OPTIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "strided": {"permute": "strided"},
    "correlation": {"permute": "correlation"},
    "learned": {"mixing": "learned"},
    "shuffle": {"mixing": "shuffle", "r": 8, "n": 4},
    "learned and strided": {"mixing": "learned", "permute": "strided"},
    "pissa": {"init_weights": "pissa"},
    "olora": {"init_weights": "olora"},
    "lora_ga": {"init_weights": "lora_ga"},
}


def trained(option: str, make_mlp: Callable[..., nn.Module]) -> tuple[PeftModel, Linear]:
    """24 -> 48 channels, with all that is trained moved at random."""
    config = MeloraConfig(**{"r": 2, "n": 4, "target_modules": ["first"], **OPTIONS[option]})
    base = make_mlp()
    if option == "lora_ga":
        preprocess_lora_ga(base, config, gradients={"first": torch.randn(48, 24)})
    model = get_peft_model(base, config).eval()
    if option == "correlation":
        calibrate(model, [{"x": X}])
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    layer = model.base_model.model.first
    assert isinstance(layer, Linear)
    return model, layer


def channels(layer: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """The minis' input and output channels, (n, d_in / n) and (n, d_out / n), from what docs/layers.md says."""
    n = layer.n["default"]
    if layer.permute["default"] == "strided":
        return tuple(torch.stack([torch.arange(i, size, n) for i in range(n)]) for size in (24, 48))
    order = torch.cat([torch.arange(24), torch.arange(48)])
    if layer.permute["default"] == "correlation":
        order = layer.melora_P["default"].weight.long()
    return order[:24].view(n, -1), order[24:].view(n, -1)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_output_is_the_minis_own_block_of_the_update_on_its_own_channels(
    option: str, make_mlp: Callable[..., nn.Module]
) -> None:
    torch.manual_seed(0)
    model, layer = trained(option, make_mlp)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = likeness(model, {"first": X})["first"]
    assert found is not None
    delta = layer.get_delta_weight("default").detach().double()
    reads, writes = channels(layer)
    blocks = [delta[writes[i]][:, reads[i]] for i in range(len(reads))]
    if option in ("none", "strided", "correlation"):
        A, B = layer.melora_A["default"].weight.detach(), layer.melora_B["default"].weight.detach()
        scaled = [layer.scaling["default"] * B[i] @ A[i] for i in range(len(reads))]
        torch.testing.assert_close(torch.stack(blocks).float(), torch.stack(scaled))
    outputs = torch.stack([X.double()[:, reads[i]] @ blocks[i].T for i in range(len(reads))], 1)
    assert found.trained == pytest.approx(mean_over_pairs(linear_cka(outputs)), rel=1e-4)
    # Minis of the same spectra and column spaces that read at random.
    draws = []
    for seed in range(40):
        generator = torch.Generator().manual_seed(1000 + seed)
        rotations = [torch.linalg.qr(torch.randn(6, 6, generator=generator)).Q.double() for _ in reads]
        turned = [X.double()[:, reads[i]] @ (blocks[i] @ rotations[i]).T for i in range(len(reads))]
        draws.append(mean_over_pairs(linear_cka(torch.stack(turned, 1))) or 0.0)
    assert found.random == pytest.approx(np.mean(draws), abs=0.1)
    assert abs(found.random - found.trained) > 1e-3
    assert 0 < found.random_deviation < 0.3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert likeness(model, {"first": X})["first"] == found


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_that_has_not_moved_has_no_outputs(start: str, make_mlp: Callable[..., nn.Module]) -> None:
    config = MeloraConfig(n=4, r=2, target_modules=["first"], init_weights=start)
    assert likeness(get_peft_model(make_mlp(), config).eval(), {"first": X}) == {"first": None}


def test_a_start_wider_than_its_block(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    config = MeloraConfig(n=4, r=5, target_modules=["first"], init_weights="pissa")  # 2 r directions of 6 channels
    model = get_peft_model(make_mlp(), config).eval()
    with torch.no_grad():
        model.base_model.model.first.melora_A["default"].weight.add_(torch.randn(4, 5, 6))
    found = likeness(model, {"first": X})["first"]
    assert found is not None
    assert 0 < found.random < 1
    assert found.random_deviation > 0


@pytest.mark.parametrize(
    "config",
    [
        MeloraConfig(n=1, target_modules=["first"], init_weights=False),  # no pairs
        MeloraConfig(n=6, target_modules=["first"]),  # B = 0
    ],
    ids=["n=1", "untrained"],
)
def test_nothing_to_compare(make_mlp: Callable[..., nn.Module], config: MeloraConfig) -> None:
    model = get_peft_model(make_mlp(), config).eval()
    assert likeness(model, {"first": torch.randn(50, 24)}) == {"first": None}
    assert likeness(model, {"first": torch.randn(1, 24)}) == {"first": None}
    assert likeness(model, {}) == {"first": None}
    assert likeness(get_peft_model(make_mlp(), LoraConfig(target_modules=["first"])), {}) == {}


def test_a_run_on_its_own_rows_without_padding(trained_run: Path) -> None:
    report = measure_run(trained_run, rows=11)
    assert measure_run(trained_run, rows=11) == report
    assert report.rows == 11
    assert report.data.endswith("validation.parquet")
    assert len(report.layers) == 4
    # The first layer's query sees the embeddings' output, token by token: collected here row by row, without padding.
    restored = restore(trained_run)
    model = restored.with_adapter()
    split = read_validation(restored.recipe.data)
    drawn = sorted(np.random.RandomState(0).permutation(len(split))[:11].tolist())
    bert = model.get_base_model().bert
    with torch.no_grad():
        rows = [
            bert.embeddings(restored.tokenizer(split.texts[index][0], return_tensors="pt")["input_ids"])[0]
            for index in drawn
        ]
    x = torch.cat(rows)
    name = "bert.encoder.layer.0.attention.self.query"
    A = model.get_base_model().get_submodule(name).factors("default")[0].detach()
    scalars = torch.stack([x.unflatten(1, (4, -1))[:, i] @ A[i, 0] for i in range(4)], 1)
    found = report.layers[name]
    assert found is not None
    assert found.tokens == len(x)
    assert found.trained == pytest.approx(pearson_squared(scalars), rel=1e-3)
    assert report.to_dict()["layers"][name]["tokens"] == len(x)


def test_other_rows(trained_run: Path, tiny_data: Path) -> None:
    report = measure_run(trained_run, data=tiny_data / "train.csv", rows=20)
    assert (report.rows, report.data) == (20, str(tiny_data / "train.csv"))
    assert all(layer is not None and 0 <= layer.trained <= 1 for layer in report.layers.values())


def test_tokens_are_bounded(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melora.training.mini_outputs.TOKENS", 30)
    report = measure_run(trained_run)
    assert report.rows == 32  # all that there are
    assert {layer.tokens for layer in report.layers.values() if layer is not None} == {30}


def test_what_can_not_be_compared(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match="rows: must be 1 or more, got 0"):
        measure_run(trained_run, rows=0)
    shutil.copytree(trained_run, tmp_path / "other")
    recipe = tmp_path / "other" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("method: melora", "method: lora"))
    with pytest.raises(MeloraError, match="its method is lora, which has no minis"):
        measure_run(tmp_path / "other")
    with pytest.raises(MeloraError, match="no such file"):
        measure_run(trained_run, data=tmp_path / "gone.csv")
    shutil.copytree(trained_run / "adapter", tmp_path / "adapter")
    with pytest.raises(MeloraError, match=r"no recipe\.yaml"):
        measure_run(tmp_path / "adapter")
