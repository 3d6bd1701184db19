from collections.abc import Callable
from typing import Any

import pytest
from peft import get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn
from transformers import MambaConfig, MambaForCausalLM

from melora import MeloraConfig, MeloraError
from melora.targets import module_settings


def state(model: nn.Module) -> list[tuple[str, str]]:
    return [(name, type(module).__name__) for name, module in model.named_modules()]


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["frist"], r"no module matches 'frist' \(closest: first\)"),
        (["xyz"], r"'xyz' \(linear layers of this model: first, middle, head\)"),
        (["frist", "heda"], r"'frist' \(closest: first\), 'heda' \(closest: head\)"),
        ("frist", r"Target modules frist not found in the base model\..* no module matches 'frist'"),
    ],
)
def test_unknown_targets_offer_the_closest_names(
    make_mlp: Callable[..., nn.Module], targets: Any, message: str
) -> None:
    model = make_mlp()
    before = state(model)
    with pytest.raises(MeloraError, match=message) as caught:
        get_peft_model(model, MeloraConfig(n=2, target_modules=targets))
    assert isinstance(caught.value, NoMatchingPeftModuleError)
    assert "\n" not in str(caught.value)
    assert state(model) == before


def test_one_unknown_name_among_others_warns(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.warns(UserWarning, match=r"no module of the model matches 'frist' \(closest: first\)"):
        model = get_peft_model(make_mlp(), MeloraConfig(n=2, target_modules=["frist", "head"]))
    assert model.base_model.targeted_module_names == ["head"]


def test_a_module_that_does_not_fit_leaves_the_whole_model_alone(make_mlp: Callable[..., nn.Module]) -> None:
    """n = 4 divides 24 and 48, but not the head's 6: the first layer must not be adapted either."""
    model = make_mlp()
    before = state(model)
    message = r"^head: n=4 does not divide both d_in=48 and d_out=6; choose n from 1, 2, 3, 6"
    with pytest.raises(MeloraError, match=message):
        get_peft_model(model, MeloraConfig(n=4, target_modules=["first", "head"]))
    assert state(model) == before


def test_a_rank_of_a_billion_allocates_nothing(make_mlp: Callable[..., nn.Module]) -> None:
    model = make_mlp()
    with pytest.raises(MeloraError, match=r"^first: r=16000000 is larger than the weight \(48 x 24\)"):
        get_peft_model(model, MeloraConfig(n=4, r=16_000_000, target_modules=["first"]))


def test_unsupported_layers_are_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Bilinear(4, 4, 4))
    with pytest.raises(MeloraError, match=r"^Target module 1 is a Bilinear, which is not supported: melora adapts"):
        get_peft_model(model, MeloraConfig(n=2, target_modules=["0", "1"]))
    assert isinstance(model[0], nn.Linear)


def test_the_config_is_not_changed_by_the_check(make_mlp: Callable[..., nn.Module]) -> None:
    config = MeloraConfig(n=5, target_modules="all-linear")
    with pytest.raises(MeloraError, match="does not divide"):
        get_peft_model(make_mlp(), config)
    assert config.target_modules == "all-linear"


def test_patterns_take_names_and_regular_expressions() -> None:
    config = MeloraConfig(
        r=1,
        n=8,
        lora_alpha=16,
        rank_pattern={"query": 2, r"layer\.1\..*value": 3},
        n_pattern={r"layer\.0\.query": 4},
        alpha_pattern={"value": 1},
    )
    assert module_settings(config, "layer.0.query") == (2, 4, 16)
    assert module_settings(config, "layer.1.query") == (2, 8, 16)
    assert module_settings(config, "layer.1.self.value") == (3, 8, 1)
    assert module_settings(config, "layer.0.key") == (1, 8, 16)


def test_patterns_reach_the_layers(make_mlp: Callable[..., nn.Module]) -> None:
    config = MeloraConfig(
        r=1,
        n=6,
        target_modules="all-linear",
        rank_pattern={"first": 3},
        n_pattern={"head": 2},
        alpha_pattern={"head": 1},
    )
    model = get_peft_model(make_mlp(), config)
    layers = {name: getattr(model.base_model.model, name) for name in ("first", "middle", "head")}
    assert {name: tuple(layer.factors("default")[0].shape) for name, layer in layers.items()} == {
        "first": (6, 3, 4),
        "middle": (6, 1, 8),
        "head": (2, 1, 24),
    }
    assert {name: layer.scaling["default"] for name, layer in layers.items()} == {
        "first": 16 / 3,
        "middle": 16,
        "head": 1,
    }


def test_unused_patterns_warn(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.warns(RuntimeWarning, match="n_pattern keys did not match any targeted module.*tail"):
        get_peft_model(make_mlp(), MeloraConfig(n=2, target_modules=["head"], n_pattern={"tail": 1}))


def test_all_linear_leaves_out_the_classifier(tiny_bert: Any) -> None:
    model = get_peft_model(tiny_bert, MeloraConfig(n=4, target_modules="all-linear", task_type="SEQ_CLS"))
    adapted = {name for name, module in model.named_modules() if hasattr(module, "melora_A")}
    assert len(adapted) == 2 * 6 + 1  # query, key, value, two denses and the output in each layer; the pooler
    assert not any("classifier" in name for name in adapted)


def test_all_linear_matches_for_a_second_adapter_too(make_mlp: Callable[..., nn.Module]) -> None:
    config = {"n": 2, "target_modules": "all-linear", "init_weights": False}
    model = get_peft_model(make_mlp(), MeloraConfig(**config))
    model.add_adapter("second", MeloraConfig(**config))
    assert all(set(m.scaling) == {"default", "second"} for m in model.modules() if hasattr(m, "melora_A"))


@pytest.mark.parametrize(
    ("kwargs", "adapted"),
    [
        ({"exclude_modules": ["1.attention.self.value"]}, ["0.query", "0.value", "1.query"]),
        ({"exclude_modules": r".*\.0\..*query"}, ["0.value", "1.query", "1.value"]),
        ({"layers_to_transform": [1]}, ["1.query", "1.value"]),
        ({"layers_to_transform": 0, "layers_pattern": "layer"}, ["0.query", "0.value"]),
    ],
)
def test_selecting_layers(tiny_bert: Any, kwargs: dict[str, Any], adapted: list[str]) -> None:
    model = get_peft_model(tiny_bert, MeloraConfig(n=4, target_modules=["query", "value"], **kwargs))
    names = [name.split(".") for name in model.base_model.targeted_module_names]
    assert sorted(f"{parts[3]}.{parts[-1]}" for parts in names) == adapted


def test_default_targets_are_loras(tiny_llama: Any) -> None:
    model = get_peft_model(tiny_llama, MeloraConfig(n=4))
    assert {name.rpartition(".")[2] for name in model.base_model.targeted_module_names} == {"q_proj", "v_proj"}


@pytest.mark.parametrize("leaf", ["out_proj", "conv1d"])
def test_what_mambas_kernels_pass_over_is_refused_as_for_lora(leaf: str) -> None:
    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=1))
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(MeloraError, match=rf"mixer\.{leaf}: Module '{leaf}' is incompatible with Mamba-based models"):
        get_peft_model(model, MeloraConfig(n=4, target_modules=["in_proj", leaf]))
    assert [name for name, _ in model.named_modules()] == before
    get_peft_model(model, MeloraConfig(n=4, target_modules=["in_proj"]))
