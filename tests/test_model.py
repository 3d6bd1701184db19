"""What a user of PEFT does with an adapted model."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from peft.helpers import rescale_adapter_scale
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from melora import MeloraConfig, MeloraError

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])


def config(**kwargs: Any) -> MeloraConfig:
    return MeloraConfig(
        **{"r": 2, "n": 6, "target_modules": ["first", "middle", "head"], "init_weights": False, **kwargs}
    )


@pytest.fixture
def model(make_mlp: Callable[..., nn.Module]) -> Any:
    return get_peft_model(make_mlp(), config()).eval()


def test_trains_the_adapter_alone(model: Any) -> None:
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 6
    assert all(".melora_A.default.weight" in name or ".melora_B.default.weight" in name for name in trainable)


def test_save_and_load(model: Any, make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path)
    assert torch.equal(loaded(X), model(X))
    for low_cpu_mem_usage in (True, False):
        again = PeftModel.from_pretrained(make_mlp(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage, is_trainable=True)
        assert torch.equal(again(X), model(X))
        assert any(parameter.requires_grad for parameter in again.parameters())


def test_saving_twice_gives_the_same_bytes(model: Any, make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "a")
    PeftModel.from_pretrained(make_mlp(), tmp_path / "a").save_pretrained(tmp_path / "b")
    files = [(tmp_path / name / "adapter_model.safetensors").read_bytes() for name in "ab"]
    assert files[0] == files[1]
    configs = [json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in "ab"]
    assert {k: v for k, v in configs[0].items() if k != "inference_mode"} == {
        k: v for k, v in configs[1].items() if k != "inference_mode"
    }


def test_the_file_holds_the_compact_factors_and_nothing_else(model: Any) -> None:
    tensors = get_peft_model_state_dict(model)
    assert {name: tuple(value.shape) for name, value in tensors.items()} == {
        "base_model.model.first.melora_A.weight": (6, 2, 4),
        "base_model.model.first.melora_B.weight": (6, 8, 2),
        "base_model.model.middle.melora_A.weight": (6, 2, 8),
        "base_model.model.middle.melora_B.weight": (6, 8, 2),
        "base_model.model.head.melora_A.weight": (6, 2, 8),
        "base_model.model.head.melora_B.weight": (6, 1, 2),
    }


LOAD = """
import sys, torch
import melora
from peft import PeftModel
from transformers import AutoModelForSequenceClassification
base = AutoModelForSequenceClassification.from_pretrained(sys.argv[1]).eval()
model = PeftModel.from_pretrained(base, sys.argv[2])
torch.save(model(input_ids=torch.tensor([[3, 4, 5, 6]])).logits, sys.argv[3])
"""


@pytest.mark.parametrize("import_melora", [True, False])
def test_loading_in_a_fresh_process(tiny_bert: Any, tmp_path: Path, import_melora: bool) -> None:
    base, adapter, result = tmp_path / "base", tmp_path / "adapter", tmp_path / "logits.pt"
    tiny_bert.save_pretrained(base)
    model = get_peft_model(
        tiny_bert, MeloraConfig(n=4, init_weights=False, target_modules=["query"], task_type="SEQ_CLS")
    )
    model.save_pretrained(adapter)
    code = LOAD if import_melora else LOAD.replace("import melora\n", "")
    done = subprocess.run([sys.executable, "-c", code, base, adapter, result], capture_output=True, text=True)
    if import_melora:
        assert done.returncode == 0, done.stderr
        expected = model.eval()(input_ids=torch.tensor([[3, 4, 5, 6]])).logits
        torch.testing.assert_close(torch.load(result), expected)
    else:
        # PEFT's own answer to a method that it does not know; the model card says what to do.
        assert "KeyError: 'MELORA'" in done.stderr


@pytest.mark.parametrize("safe_merge", [True, False])
def test_merge_and_unload(model: Any, safe_merge: bool) -> None:
    expected = model(X)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert type(merged).__name__ == "MLP"
    assert not any("melora" in name for name, _ in merged.named_modules())
    torch.testing.assert_close(merged(X), expected)


def test_unload_gives_back_the_base(model: Any, make_mlp: Callable[..., nn.Module]) -> None:
    assert torch.equal(model.unload()(X), make_mlp()(X))


def test_disable_adapter(model: Any, make_mlp: Callable[..., nn.Module]) -> None:
    with model.disable_adapter():
        assert torch.equal(model(X), make_mlp()(X))
    assert not torch.equal(model(X), make_mlp()(X))


def test_several_adapters(model: Any, make_mlp: Callable[..., nn.Module]) -> None:
    first = model(X)
    model.add_adapter("second", config(r=1, n=3))
    assert torch.equal(model(X), first), "a further adapter is not active"
    assert not any(p.requires_grad for name, p in model.named_parameters() if ".second." in name)
    model.set_adapter("second")
    second = model(X)
    assert not torch.equal(second, first)
    assert all(p.requires_grad == (".second." in name) for name, p in model.named_parameters())
    model.set_adapter("default")
    assert torch.equal(model(X), first)

    model.delete_adapter("second")
    assert list(model.peft_config) == ["default"]
    assert not any("second" in name for name, _ in model.named_parameters())
    assert torch.equal(model(X), first)


def test_deleting_the_active_adapter_activates_another(model: Any) -> None:
    model.add_adapter("second", config(r=1))
    model.set_adapter("second")
    with pytest.warns(UserWarning, match="Adapter second was active which is now deleted"):
        model.delete_adapter("second")
    assert model.active_adapters == ["default"]


def test_an_adapter_that_does_not_fit_is_not_added(model: Any) -> None:
    expected = model(X)
    with pytest.raises(MeloraError, match="head: n=4 does not divide"):
        model.add_adapter("second", config(n=4))
    assert list(model.peft_config) == ["default"]
    assert torch.equal(model(X), expected)


def test_layers_of_one_adapter_alone(make_mlp: Callable[..., nn.Module]) -> None:
    """Two adapters on different layers: each layer holds its own, and the other adapter leaves it as it is."""
    model = get_peft_model(make_mlp(), config(target_modules=["first"]))
    model.add_adapter("second", config(target_modules=["head"]))
    model.set_adapter("second")
    inner = model.base_model.model
    assert set(inner.first.scaling) == {"default"}
    assert set(inner.head.scaling) == {"second"}
    assert torch.equal(inner.first(X), inner.first.get_base_layer()(X))


def test_modules_to_save(tiny_bert: Any, tmp_path: Path) -> None:
    base = {key: value.clone() for key, value in tiny_bert.state_dict().items()}
    settings = MeloraConfig(n=4, target_modules=["query"], task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(tiny_bert, settings)
    assert model.peft_config["default"].modules_to_save == ["classifier", "score"]
    model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0).step()
    expected = model.eval()(input_ids=IDS).logits
    model.save_pretrained(tmp_path)

    fresh = type(tiny_bert)(tiny_bert.config)
    fresh.load_state_dict(base)
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS).logits, expected)
    assert not torch.equal(merged.classifier.weight, base["classifier.weight"])


@pytest.mark.parametrize(("bias", "trained"), [("none", 0), ("all", 3), ("melora_only", 2), ("lora_only", 2)])
def test_bias(make_mlp: Callable[..., nn.Module], tmp_path: Path, bias: str, trained: int) -> None:
    model = get_peft_model(make_mlp(), config(bias=bias, target_modules=["first", "middle"]))
    biases = [p for name, p in model.named_parameters() if name.endswith(".bias")]
    assert sum(p.requires_grad for p in biases) == trained
    model(X).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(PeftModel.from_pretrained(make_mlp(), tmp_path)(X), model(X))


def test_bias_all_beside_modules_to_save(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    model = get_peft_model(make_mlp(), config(bias="all", target_modules=["first"], modules_to_save=["head"]))
    model(X).square().sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    model.save_pretrained(tmp_path)
    assert {key.removeprefix("base_model.model.") for key in load_file(tmp_path / "adapter_model.safetensors")} == {
        "first.melora_A.weight",
        "first.melora_B.weight",
        "first.base_layer.bias",
        "middle.bias",
        "head.weight",
        "head.bias",
    }
    torch.testing.assert_close(PeftModel.from_pretrained(make_mlp(), tmp_path)(X), model(X))


def test_conv1d(tiny_gpt2: Any, tmp_path: Path) -> None:
    base = {key: value.clone() for key, value in tiny_gpt2.state_dict().items()}
    model = get_peft_model(tiny_gpt2, MeloraConfig(n=4, target_modules=["c_attn", "c_proj"], init_weights=False)).eval()
    expected = model(input_ids=IDS).logits
    model.save_pretrained(tmp_path)
    fresh = type(tiny_gpt2)(tiny_gpt2.config).eval()
    fresh.load_state_dict(base)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(loaded(input_ids=IDS).logits, expected)
    torch.testing.assert_close(loaded.merge_and_unload()(input_ids=IDS).logits, expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_of_a_transformer(tiny_llama: Any, use_reentrant: bool) -> None:
    settings = MeloraConfig(n=4, target_modules="all-linear", init_weights=False, lora_dropout=0.1)
    model = get_peft_model(tiny_llama, settings).train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.activation_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        torch.manual_seed(0)
        model(input_ids=IDS, labels=IDS).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    assert len(gradients[0]) == 2 * 2 * 7
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient)


def test_rescale_adapter_scale_is_lora_alone(model: Any) -> None:
    """PEFT's helper knows LoraLayer only and says so; scale_layer and set_scale are there for ours."""
    with (
        pytest.raises(ValueError, match="scaling is only supported for models with `LoraLayer`s"),
        rescale_adapter_scale(model, 0.5),
    ):
        pass


def test_injecting_without_a_peft_model(make_mlp: Callable[..., nn.Module], model: Any) -> None:
    tensors = get_peft_model_state_dict(model)
    injected = inject_adapter_in_model(config(), make_mlp())
    result = set_peft_model_state_dict(injected, tensors)
    assert not result.unexpected_keys
    torch.testing.assert_close(injected(X), model(X))
    by_tensors = inject_adapter_in_model(
        config(), make_mlp(), state_dict={key.removeprefix("base_model.model."): v for key, v in tensors.items()}
    )
    set_peft_model_state_dict(by_tensors, tensors)
    torch.testing.assert_close(by_tensors(X), model(X))


def test_status_and_counts(model: Any) -> None:
    status = model.get_model_status()
    assert status.peft_types == {"default": "MELORA"}
    assert status.num_adapter_layers == 3
    trainable, _ = model.get_nb_trainable_parameters()
    assert trainable == 2 * (24 + 48 + 48 + 48 + 48 + 6)


def test_mixed_batch_through_the_model(model: Any, make_mlp: Callable[..., nn.Module]) -> None:
    model.add_adapter("second", config(r=1, n=3))
    rows = {"default": model(X), "__base__": make_mlp()(X)}
    model.set_adapter("second")
    rows["second"] = model(X)
    names = ["second", "__base__", "default", "second", "default"]
    expected = torch.stack([rows[name][i] for i, name in enumerate(names)])
    torch.testing.assert_close(model(X, adapter_names=names), expected)
    with pytest.raises(MeloraError, match=r"non-existing adapter\(s\): third; loaded: default, second"):
        model(X, adapter_names=["third"] * 5)
    with pytest.raises(MeloraError, match="training mode"):
        model.train()(X, adapter_names=names)


def test_a_config_without_model_type(make_mlp: Callable[..., nn.Module]) -> None:
    """diffusers' models have one."""
    base: Any = make_mlp()
    base.config = {"sample_size": 8}
    get_peft_model(base, config())(X)
