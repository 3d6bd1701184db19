"""Files of the reference code, written here by an independent re-implementation of its layer and of what it saves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from torch import nn

from melora import MeloraError, load_adapter
from melora.reference_files import convert_reference


class ReferenceLinear(nn.Module):
    """PAPER.md's layer as that code has it: a loop over minis, on the base layer's own weight and bias."""

    def __init__(self, base: nn.Linear, ranks: list[int], alphas: list[int]) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.block = base.in_features // len(ranks)
        self.scaling = [alpha / rank for alpha, rank in zip(alphas, ranks, strict=False)]
        rows = base.out_features // len(ranks)
        self.lora_A = nn.ModuleList([nn.Linear(self.block, rank, bias=False) for rank in ranks])
        self.lora_B = nn.ModuleList([nn.Linear(rank, rows, bias=False) for rank in ranks])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = [
            B(A(x[..., i * self.block : (i + 1) * self.block])) * self.scaling[i]
            for i, (A, B) in enumerate(zip(self.lora_A, self.lora_B, strict=True))
        ]
        return nn.functional.linear(x, self.weight, self.bias) + torch.cat(outputs, dim=-1)


def train(model: Any, names: list[str], ranks: list[int], alphas: list[int]) -> None:
    for name in names:
        parent, _, leaf = name.rpartition(".")
        owner = model.get_submodule(parent)
        setattr(owner, leaf, ReferenceLinear(getattr(owner, leaf), ranks, alphas))


def save(model: Any, path: Path, file: str = "adapter_model.safetensors", bias: bool = False, **config: Any) -> None:
    path.mkdir()
    tensors = {f"base_model.model.{k}": v.clone() for k, v in model.state_dict().items() if ".lora_" in k}
    if bias:
        stems = {key.split(".lora_")[0] for key in tensors}
        tensors |= {f"{stem}.bias": model.get_submodule(stem[17:]).bias.detach().clone() for stem in stems}
    tensors |= config.pop("extra", {})
    if file.endswith(".bin"):
        torch.save(tensors, path / file)
    else:
        save_file(tensors, path / file)
    values = {
        "peft_type": "MELORA",
        "mode": "me",
        "auto_mapping": None,
        "base_model_name_or_path": "some/base",
        "fan_in_fan_out": False,
        "bias": "lora_only" if bias else "none",
        "lora_dropout": 0.05,
        "init_lora_weights": True,
        "modules_to_save": None,
        "task_type": None,
        "inference_mode": True,
        "layers_to_transform": None,
        "layers_pattern": None,
        "revision": None,
        **config,
    }
    (path / "adapter_config.json").write_text(json.dumps(values))


X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
ALIKE = {"r": [2] * 6, "lora_alpha": [16] * 6}


def trained(make_mlp: Callable[..., nn.Module], r: list[int], lora_alpha: list[int]) -> Any:
    torch.manual_seed(0)
    model = make_mlp()
    train(model, ["first", "head"], r, lora_alpha)
    return model


@pytest.mark.parametrize(
    "lists",
    [
        ALIKE,
        {"r": [1], "lora_alpha": [8]},
        {"r": [1, 2, 3], "lora_alpha": [16, 16, 16]},
        {"r": [2, 2], "lora_alpha": [4, 7, 9]},
        {"r": [3, 1], "lora_alpha": [5, 8]},
    ],
    ids=str,
)
def test_computes_the_same(make_mlp: Callable[..., nn.Module], tmp_path: Path, lists: dict[str, list[int]]) -> None:
    model = trained(make_mlp, **lists)
    save(model, tmp_path / "old", target_modules=["first", "head"], **lists)
    assert convert_reference(tmp_path / "old", tmp_path / "new") == tmp_path / "new"
    loaded = load_adapter(make_mlp(), tmp_path / "new").eval()
    torch.testing.assert_close(loaded(X), model(X), rtol=1e-5, atol=1e-5)
    config = loaded.peft_config["default"]
    assert (config.n, config.r, config.lora_dropout) == (len(lists["r"]), max(lists["r"]), 0.05)
    assert config.base_model_name_or_path == "some/base"


def test_padding_stays_zero_in_training(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    lists = {"r": [1, 3], "lora_alpha": [16, 16]}
    save(trained(make_mlp, **lists), tmp_path / "old", target_modules=["first", "head"], **lists)
    model = PeftModel.from_pretrained(
        make_mlp(), convert_reference(tmp_path / "old", tmp_path / "new"), is_trainable=True
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(X).square().sum().backward()
        optimizer.step()
    A, B = model.base_model.model.first.factors("default")
    assert not A[0, 1:].any()
    assert not B[0, :, 1:].any()
    assert A[1].all()


def test_biases(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = trained(make_mlp, **ALIKE)
    for name in ("first", "head"):
        model.get_submodule(name).bias.data.add_(1.0)
    save(model, tmp_path / "old", bias=True, target_modules=["first", "head"], **ALIKE)
    convert_reference(tmp_path / "old", tmp_path / "new")
    torch.testing.assert_close(load_adapter(make_mlp(), tmp_path / "new").eval()(X), model(X), rtol=1e-5, atol=1e-5)


def test_the_trained_head_of_a_classifier(tiny_bert: Any, tmp_path: Path) -> None:
    """That code stores the head twice, and its config does not list it."""
    base = {key: value.clone() for key, value in tiny_bert.state_dict().items()}
    names = [f"bert.encoder.layer.{i}.attention.self.query" for i in range(2)]
    torch.manual_seed(0)
    train(tiny_bert, names, [1] * 4, [16] * 4)
    old = {
        f"base_model.model.classifier.original_module.{k}": v.clone()
        for k, v in tiny_bert.classifier.state_dict().items()
    }
    tiny_bert.classifier.weight.data.add_(1.0)
    new = {f"base_model.model.classifier.{k}": v.clone() for k, v in tiny_bert.classifier.state_dict().items()}
    lists = {"r": [1] * 4, "lora_alpha": [16] * 4}
    save(tiny_bert, tmp_path / "old", target_modules=["query"], task_type="SEQ_CLS", extra={**old, **new}, **lists)
    convert_reference(tmp_path / "old", tmp_path / "new")
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = tiny_bert(input_ids=ids).logits
    fresh = type(tiny_bert)(tiny_bert.config)
    fresh.load_state_dict(base)
    torch.testing.assert_close(load_adapter(fresh, tmp_path / "new").eval()(input_ids=ids).logits, expected)


def test_a_pickle_is_read_on_demand_only(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = trained(make_mlp, **ALIKE)
    save(model, tmp_path / "old", "adapter_model.bin", target_modules=["first", "head"], **ALIKE)
    with pytest.raises(MeloraError, match=r"adapter_model\.bin: is a pickle, .* allow_pickle=True\) reads it"):
        convert_reference(tmp_path / "old", tmp_path / "new")
    convert_reference(tmp_path / "old", tmp_path / "new", allow_pickle=True)
    torch.testing.assert_close(load_adapter(make_mlp(), tmp_path / "new").eval()(X), model(X), rtol=1e-5, atol=1e-5)


def test_loading_it_as_it_is_says_what_to_do(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    save(trained(make_mlp, **ALIKE), tmp_path / "old", target_modules=["first", "head"], **ALIKE)
    with pytest.raises(MeloraError, match=r"melora\.reference_files\.convert_reference\(FOLDER, NEW_FOLDER\) rewrites"):
        load_adapter(make_mlp(), tmp_path / "old")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"r": [2, 0], "lora_alpha": [16, 16]}, "a mini of rank 0 can't be loaded by the reference code either"),
        ({"r": [2, 2], "lora_alpha": [16]}, "one whole number above 0 is needed for each mini"),
        ({"r": [], "lora_alpha": []}, "one whole number above 0"),
        ({"r": 2, "lora_alpha": 16}, "is no config of the reference code"),
        ({"r": [2] * 5, "lora_alpha": [16] * 5}, r"has lora_A of minis \[0, 1, 2, 3, 4, 5\], and r lists 5 minis"),
        ({"r": [3] * 6, "lora_alpha": [16] * 6}, r"lora_A\.0\.weight has shape \[2, 4\] at rank 3"),
        ({**ALIKE, "lora_dropout": 2.0}, "lora_dropout must be"),
    ],
)
def test_what_does_not_fit(
    make_mlp: Callable[..., nn.Module], tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    save(trained(make_mlp, **ALIKE), tmp_path / "old", **{"target_modules": ["first", "head"], **config})
    with pytest.raises(MeloraError, match=message) as caught:
        convert_reference(tmp_path / "old", tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "new").exists()
