"""inject_adapter_in_model and the state-dict functions, as diffusers and transformers use them: names and shapes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

from melora import MeloraConfig, MeloraLayer, calibrate

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)


def config(**kwargs: Any) -> MeloraConfig:
    return MeloraConfig(**{"r": 2, "n": 6, "target_modules": ["first", "head"], "init_weights": False, **kwargs})


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"target_modules": "first|head"}, {"n_pattern": {"head": 2}, "rank_pattern": {"first": 5}}],
)
def test_injecting_what_a_state_dict_names(
    kwargs: dict[str, Any], low_cpu_mem_usage: bool, make_mlp: Callable[..., nn.Module]
) -> None:
    saved = get_peft_model_state_dict(inject_adapter_in_model(config(**kwargs), make_mlp()))
    model = inject_adapter_in_model(config(**kwargs), make_mlp(), state_dict=saved, low_cpu_mem_usage=low_cpu_mem_usage)
    devices = {p.device.type for name, p in model.named_parameters() if "melora_" in name}
    assert devices == {"meta" if low_cpu_mem_usage else "cpu"}
    set_peft_model_state_dict(model, saved, low_cpu_mem_usage=low_cpu_mem_usage)
    again = get_peft_model_state_dict(model)
    assert again.keys() == saved.keys()
    assert all(torch.equal(again[name], saved[name]) for name in saved)
    assert torch.isfinite(model(X)).all()


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"target_modules": ["first", "middle", "head"]}, r"PEFT config contained these additional .*\['middle'\]"),
        ({"target_modules": ["first"]}, r"state_dict contained these additional target modules: \['head'\]"),
    ],
)
def test_a_state_dict_beside_another_config_wins_with_a_warning(
    kwargs: dict[str, Any], words: str, make_mlp: Callable[..., nn.Module]
) -> None:
    saved = get_peft_model_state_dict(inject_adapter_in_model(config(), make_mlp()))
    with pytest.warns(RuntimeWarning, match=words):
        model = inject_adapter_in_model(config(**kwargs), make_mlp(), state_dict=saved)
    assert get_peft_model_state_dict(model).keys() == saved.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
def test_injecting_into_a_compiled_model(make_mlp: Callable[..., nn.Module]) -> None:
    saved = get_peft_model_state_dict(inject_adapter_in_model(config(), make_mlp()))
    compiled: Any = torch.compile(make_mlp())
    model = inject_adapter_in_model(config(), compiled, state_dict=saved)
    names = {name.removeprefix("_orig_mod.") for name in get_peft_model_state_dict(model)}
    assert names == saved.keys()


class Awkward(nn.Module):
    """Modules named like parts of PEFT's own keys."""

    def __init__(self) -> None:
        super().__init__()
        self.melora_A = nn.Linear(24, 24)
        self.weight = nn.Linear(24, 24)
        self.bias = nn.Linear(24, 24)
        self.default = nn.Linear(24, 24)
        self.base_layer = nn.Linear(24, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.melora_A, self.weight, self.bias, self.default, self.base_layer):
            x = layer(x)
        return x


@pytest.mark.parametrize("adapter_name", ["default", "weight", "other"])
@pytest.mark.parametrize("targets", [["weight", "bias"], ["default", "base_layer"], ["weight", "default"]])
def test_awkward_module_names_round_trip(targets: list[str], adapter_name: str) -> None:
    torch.manual_seed(0)
    model = get_peft_model(Awkward(), config(target_modules=targets), adapter_name=adapter_name).eval()
    saved = get_peft_model_state_dict(model, adapter_name=adapter_name)
    assert sorted(saved) == sorted(
        f"base_model.model.{target}.melora_{factor}.weight" for target in targets for factor in "AB"
    )
    torch.manual_seed(0)
    other = get_peft_model(Awkward(), config(target_modules=targets, init_weights=True)).eval()
    set_peft_model_state_dict(other, saved)
    assert torch.equal(other(X), model(X))


def test_a_frozen_module_named_like_a_factor_is_not_saved() -> None:
    model = get_peft_model(Awkward(), config(target_modules=["bias"]))
    assert list(get_peft_model_state_dict(model)) == [
        "base_model.model.bias.melora_A.weight",
        "base_model.model.bias.melora_B.weight",
    ]


def test_what_is_set_is_left_alone(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp(), config(modules_to_save=["middle"]))
    saved = get_peft_model_state_dict(model)
    before = {name: tensor.clone() for name, tensor in saved.items()}
    set_peft_model_state_dict(model, saved)
    assert list(saved) == list(before)
    assert all(torch.equal(saved[name], before[name]) for name in saved)


def test_a_head_named_like_the_adapter_is_refused(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.raises(
        ValueError, match=r"is a child of .*melora.* does not conflict with any of the targeted modules"
    ):
        get_peft_model(make_mlp(), config(modules_to_save=["other"]), adapter_name="other")


@pytest.mark.parametrize("mixing", ["none", "learned"])
@pytest.mark.parametrize("permute", ["strided", "correlation"])
def test_permuted_channels_in_add_adapter_of_transformers(
    permute: Any, mixing: Any, tiny_llama: Any, tmp_path: Path
) -> None:
    """No PeftModel around the model: the file, and what is loaded from it, hold the order and compute the same."""
    fresh, ids = copy.deepcopy(tiny_llama), torch.arange(1, 15).view(2, 7)
    plain = tiny_llama(ids).logits
    targets = ["q_proj", "down_proj"]
    tiny_llama.add_adapter(
        MeloraConfig(n=4, r=2, permute=permute, mixing=mixing, init_weights=False, target_modules=targets)
    )
    if permute == "correlation":
        assert calibrate(tiny_llama, [{"input_ids": ids}]) == 4
    expected = tiny_llama(ids).logits
    assert not torch.allclose(expected, plain)
    dense = copy.deepcopy(fresh)
    with torch.no_grad():
        for name, layer in tiny_llama.named_modules():
            if isinstance(layer, MeloraLayer):
                dense.get_submodule(name).weight += permuted(layer)
    torch.testing.assert_close(dense(ids).logits, expected)
    tiny_llama.save_pretrained(tmp_path)
    fresh.load_adapter(str(tmp_path))
    assert torch.equal(fresh(ids).logits, expected)
    fresh.disable_adapters()
    assert torch.equal(fresh(ids).logits, plain)


def permuted(layer: MeloraLayer) -> torch.Tensor:
    """The update: that of the same factors on neighbours, its rows and columns put where the order says."""
    n, (d_in, d_out), order = layer.n["default"], (layer.in_features, layer.out_features), layer.order("default")
    (A, B), core = layer.factors("default"), layer.core("default")
    mixed = torch.eye(A.shape[0] * A.shape[1])
    if core is not None:
        mixed = torch.einsum("kij,kl->ikjl", core, torch.eye(A.shape[1])).reshape(mixed.shape)
    places = torch.block_diag(*B) @ mixed @ torch.block_diag(*A) * layer.scaling["default"]
    columns = [torch.arange(size).view(-1, n).T.flatten() for size in (d_in, d_out)]
    of_in, of_out = columns if order is None else order.long().split([d_in, d_out])
    update = torch.empty_like(places)
    update[of_out[:, None], of_in] = places
    return update
