"""What is special about target_parameters: matching, nesting, and what can't work on a bare parameter."""

from typing import Any

import pytest
import torch
from peft import get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from melora import MeloraConfig, MeloraError
from melora.conversion import export_lora
from melora.parameters import ParamWrapper


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Parameter(torch.randn(3, 12, 8)), nn.Parameter(torch.randn(3, 8, 12))
        self.scale = nn.Parameter(torch.ones(8))
        self.counts = nn.Parameter(torch.ones(3, 12, 8, dtype=torch.int8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        for up, down in zip(self.up, self.down, strict=True):
            y = y + torch.relu(x @ up.T) @ down.T
        return y * self.scale


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = Experts(), nn.Linear(8, 4)
        self.top = nn.Parameter(torch.ones(8, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.experts(x))
        return y


def config(**kwargs: Any) -> MeloraConfig:
    settings = {"n": 4, "target_modules": [], "target_parameters": ["experts.up"], "init_weights": False}
    return MeloraConfig(**{**settings, **kwargs})


def test_every_expert_has_minis_of_its_own() -> None:
    model = get_peft_model(Model(), config(r=2))
    layer = model.base_model.model.experts
    assert isinstance(layer, ParamWrapper)
    A, B = layer.factors("default")
    assert (A.shape, B.shape) == ((4, 3, 2, 2), (4, 3, 3, 2))
    delta = layer.get_delta_weight("default")
    for e in range(3):
        expected = layer.scaling["default"] * torch.block_diag(*(B[:, e] @ A[:, e]))
        torch.testing.assert_close(delta[e], expected)
    assert "parameter_name='up'" in repr(layer)


def test_patterns_name_the_parameter() -> None:
    targets: Any = {"target_parameters": ["experts.up", "experts.down"]}
    patterns: Any = {"rank_pattern": {"experts.down": 3}, "n_pattern": {"experts.up": 2}}
    with pytest.warns(RuntimeWarning, match="rank_pattern keys did not match any targeted module"):  # PEFT's own words
        model = get_peft_model(Model(), config(r=2, **targets, **patterns))
    outer = model.base_model.model.experts
    found = {layer.parameter_name: (layer.n["default"], layer.r["default"]) for layer in (outer, outer.base_layer)}
    assert found == {"up": (2, 2), "down": (4, 3)}


def test_modules_and_parameters_together(tmp_path: Any) -> None:
    model = get_peft_model(Model(), config(target_modules=["head"])).eval()
    x = torch.randn(5, 8)
    expected = model(x)
    model.save_pretrained(tmp_path / "melora")
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert export.modules == 2
    torch.testing.assert_close(model.merge_and_unload()(x), expected)


def test_a_second_adapter_must_target_the_same_parameters() -> None:
    model = get_peft_model(Model(), config())
    model.add_adapter("second", config(r=2))
    with pytest.raises(MeloraError, match="all adapters must target the same set of parameters"):
        model.add_adapter("third", config(target_parameters=["experts.down"]))
    assert list(model.peft_config) == ["default", "second"]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"target_parameters": ["experts.pu"]}, r"no parameter of these names \(closest: experts\.up"),
        ({"target_parameters": "experts.up"}, r"target_parameters must be a list of names, got 'experts\.up'"),
        ({"target_parameters": ["experts.scale"]}, r"experts\.scale: target_parameters takes matrices .* shape \[8\]"),
        ({"target_parameters": ["experts.counts"]}, r"16 bits or more, this one is torch\.int8"),
        ({"lora_dropout": 0.1}, r"target_parameters does not work with lora_dropout=0\.1"),
        ({"fan_in_fan_out": True}, "target_parameters does not work with fan_in_fan_out"),
        (
            {"target_parameters": ["head.weight"], "target_modules": ["head"]},
            r"head\.weight is in target_parameters, and its module head in target_modules: choose one",
        ),
        ({"n": 8}, r"experts\.up: n=8 does not divide both d_in=8 and d_out=12; choose n from 1, 2, 4"),
    ],
)
def test_bad_input_leaves_the_model_alone(kwargs: dict[str, Any], message: str) -> None:
    model = Model()
    before = [(name, type(module)) for name, module in model.named_modules()]
    with pytest.raises(MeloraError, match=message):
        get_peft_model(model, config(**kwargs))
    assert [(name, type(module)) for name, module in model.named_modules()] == before


def test_an_unknown_parameter_is_pefts_error_too() -> None:
    with pytest.raises(NoMatchingPeftModuleError):
        get_peft_model(Model(), config(target_parameters=["nothing"]))


def test_a_parameter_of_the_model_itself_is_refused_as_by_lora() -> None:
    with pytest.raises(ValueError, match="top-level module is not supported"):
        get_peft_model(Model(), config(target_parameters=["experts.up", "top"]))


def test_mixtures_of_experts_of_transformers(tmp_path: Any) -> None:
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    base = MixtralForCausalLM(MixtralConfig(vocab_size=30, num_key_value_heads=1, num_local_experts=4, **sizes))
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    model = get_peft_model(base, config(target_parameters=targets)).eval()
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = model(input_ids=ids).logits
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    with model.disable_adapter():
        assert not torch.allclose(model(input_ids=ids).logits, expected)
    torch.testing.assert_close(model.merge_and_unload()(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-4)
