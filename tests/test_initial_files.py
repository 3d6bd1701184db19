"""What a saved adapter with a start holds, on the original base model: loading, going on, converting, swapping."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from melora import MeloraConfig, MeloraError, export_lora, inspect_adapter, load_adapter
from melora.adapter_files import read_adapter

from .test_initial import config, train

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
PATTERNS: dict[str, Any] = {"rank_pattern": {"head": 1}, "alpha_pattern": {"first": 5}, "n_pattern": {"middle": 4}}
SETTINGS: list[dict[str, Any]] = [{}, PATTERNS, {"use_rslora": True}, {"use_rslora": True, **PATTERNS}]


@pytest.fixture
def trained(make_mlp: Callable[..., nn.Module]) -> Callable[..., PeftModel]:
    def make(init: str = "pissa", **kwargs: Any) -> PeftModel:
        model = get_peft_model(make_mlp(), config(init, **kwargs))
        train(model, steps=10, rate=0.5)
        return model.eval()

    return make


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_the_saved_adapter_is_right_on_the_original_base(
    trained: Callable[..., PeftModel],
    make_mlp: Callable[..., nn.Module],
    tmp_path: Path,
    init: str,
    settings: dict[str, Any],
) -> None:
    model = trained(init, **settings)
    wanted = model(X).detach()
    assert (wanted - make_mlp()(X)).abs().max() > 1e-3
    model.save_pretrained(tmp_path / "saved")
    for load in (PeftModel.from_pretrained, load_adapter):
        assert torch.equal(load(make_mlp(), tmp_path / "saved")(X), wanted)
    small = PeftModel.from_pretrained(make_mlp(), tmp_path / "saved", low_cpu_mem_usage=True)
    assert torch.equal(small(X), wanted)
    exported = export_lora(tmp_path / "saved", tmp_path / "lora")
    assert exported.rank == 2 * max(2 * 2, 4 * 2 if settings.get("n_pattern") else 0)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # PEFT asks for one value, and there are both kinds
        as_lora = PeftModel.from_pretrained(make_mlp(), tmp_path / "lora")
    torch.testing.assert_close(as_lora(X), wanted)


def test_it_holds_both_factors_and_both_starts(trained: Callable[..., PeftModel], tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    stem = "base_model.model.first.melora_"
    shapes = {"A.weight": (2, 2, 12), "A.start": (2, 2, 12), "B.weight": (2, 24, 2), "B.start": (2, 24, 2)}
    assert {key.removeprefix(stem): tuple(value.shape) for key, value in tensors.items() if "first" in key} == shapes
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_weights"] == "pissa"
    files = read_adapter(tmp_path)
    assert files.other_keys() == []
    report = inspect_adapter(tmp_path)
    assert report.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert [(layer.n, layer.r, layer.equivalent_rank) for layer in report.layers] == [(2, 2, 8)] * 3
    assert {layer.name: layer.rank for layer in report.layers}["first"] == 8
    update = model.base_model.model.middle.get_delta_weight("default").detach()
    assert {layer.name: layer.norm for layer in report.layers}["middle"] == pytest.approx(
        float(update.norm()), rel=1e-5
    )


def test_training_goes_on_from_a_saved_adapter(
    trained: Callable[..., PeftModel], make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path, is_trainable=True)
    again = get_peft_model(make_mlp(), config("pissa"))  # as a trainer resumes: into a fresh adapter of that name
    again.load_adapter(str(tmp_path), "default", is_trainable=True)
    for other in (loaded, again):
        assert not any(p.requires_grad for name, p in other.named_parameters() if name.endswith("start"))
        train(other)
    train(model)
    for other in (loaded, again):
        assert torch.equal(other(X), model(X))


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_plain_form_is_an_ordinary_melora_of_twice_the_rank(
    trained: Callable[..., PeftModel], make_mlp: Callable[..., nn.Module], tmp_path: Path, settings: dict[str, Any]
) -> None:
    fresh = get_peft_model(make_mlp(), config("pissa", **settings))
    fresh.save_pretrained(tmp_path / "initial")
    before = (tmp_path / "initial" / "adapter_config.json").read_text()
    model = trained(**settings)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert model.peft_config["default"].init_weights == "pissa"
    assert json.loads((tmp_path / "initial" / "adapter_config.json").read_text()) == json.loads(before)
    written = MeloraConfig.from_pretrained(str(tmp_path / "plain"))
    assert (written.init_weights, written.r) == (True, 4)
    assert not any("start" in key for key in load_file(tmp_path / "plain" / "adapter_model.safetensors"))
    torch.testing.assert_close(load_adapter(make_mlp(), tmp_path / "plain")(X), model(X), atol=1e-6, rtol=1e-5)


def test_there_is_no_plain_form_of_a_plain_adapter(trained: Callable[..., PeftModel], tmp_path: Path) -> None:
    model = trained(True)  # type: ignore[arg-type]
    with pytest.raises(MeloraError, match="init_weights=True has no start to be joined into A and B"):
        model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))


def test_hotswap(trained: Callable[..., PeftModel], make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    kinds = {"pissa": trained("pissa"), "olora": trained("olora"), "plain": trained("gaussian")}
    for name, model in kinds.items():
        model.save_pretrained(tmp_path / name)
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path / "pissa")
    for name in ("olora", "plain", "pissa"):  # a plain one's start is 0
        hotswap_adapter(loaded, str(tmp_path / name), adapter_name="default", torch_device="cpu")
        torch.testing.assert_close(loaded(X), kinds[name](X))
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path / "plain")
    with pytest.raises(RuntimeError, match="unexpected keys found"):
        hotswap_adapter(loaded, str(tmp_path / "pissa"), adapter_name="default", torch_device="cpu")


@pytest.mark.parametrize(
    ("init", "change", "message"),
    [
        (
            "pissa",
            lambda t: t.pop("base_model.model.head.melora_B.start"),
            "head.melora_B.start is missing, for init_w",
        ),
        (
            "pissa",
            lambda t: t.update({"base_model.model.head.melora_A.start": torch.zeros(2, 2, 5)}),
            r"head.melora_A.start has shape \[2, 2, 5\] instead of \[2, 2, 24\]",
        ),
        (
            "gaussian",
            lambda t: t.update({"base_model.model.head.melora_A.start": torch.zeros(2, 2, 24)}),
            "head.melora_A.start is not expected, for init_weights='gaussian'",
        ),
    ],
)
def test_a_file_that_does_not_fit_its_config_is_refused(
    trained: Callable[..., PeftModel],
    make_mlp: Callable[..., nn.Module],
    tmp_path: Path,
    init: str,
    change: Callable[[dict[str, torch.Tensor]], Any],
    message: str,
) -> None:
    trained(init).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(MeloraError, match=message):
        load_adapter(make_mlp(), tmp_path)
    with pytest.raises(MeloraError, match=r"head\.melora_"):
        PeftModel.from_pretrained(make_mlp(), tmp_path)
