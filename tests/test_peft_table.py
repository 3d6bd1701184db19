"""docs/peft.md says what LoRA, GraLoRA and MELoRA can do under PEFT; here each cell of that table is tried.

A probe is given a method and raises where the feature is missing. The table must say yes exactly where it does not.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GraloraConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import convert_to_lora
from peft.utils import get_peft_model_state_dict, hotswap
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig, export_lora

TABLE = Path(__file__).parents[1] / "docs" / "peft.md"
X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2]])
PROBES: dict[str, Callable[["Method", Path], None]] = {}


class Method:
    """Makes configs of one method, at settings that mean the same: rank 4, two blocks."""

    def __init__(self, name: str) -> None:
        self.name = name

    def config(self, *targets: str, **kwargs: Any) -> Any:
        common = {"target_modules": list(targets) or ["first", "last"], **kwargs}
        if self.name == "LoRA":
            return LoraConfig(**{"r": 4, "init_lora_weights": False, **common})
        if self.name == "GraLoRA":
            renamed = {{"lora_dropout": "gralora_dropout"}.get(key, key): value for key, value in common.items()}
            return GraloraConfig(**{"r": 4, "gralora_k": 2, "init_weights": False, **renamed})
        return MeloraConfig(**{"r": 2, "n": 2, "init_weights": False, **common})

    def model(self, base: nn.Module, *targets: str, **kwargs: Any) -> Any:
        return get_peft_model(base, self.config(*targets, **kwargs)).eval()


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(24, 48)
        self.last = nn.Linear(48, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.last(torch.relu(self.first(x)))
        return y


class Wrapped(nn.Module):
    """One layer called `layer`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *args: Any) -> Any:
        return self.layer(*args)


def gpt2() -> Any:
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
    ).eval()


def probe(feature: str) -> Callable[[Callable[[Method, Path], None]], Callable[[Method, Path], None]]:
    def add(function: Callable[[Method, Path], None]) -> Callable[[Method, Path], None]:
        PROBES[feature] = function
        return function

    return add


def merges(model: Any, *inputs: Any) -> None:
    """The adapter changes the output, and merging keeps that change."""
    expected = model(*inputs)
    with model.disable_adapter():
        assert not torch.allclose(expected, model(*inputs), atol=1e-3)
    torch.testing.assert_close(model.merge_and_unload(safe_merge=True)(*inputs), expected, rtol=1e-4, atol=1e-4)


@probe("nn.Linear: train, save, load, merge")
def linear(method: Method, path: Path) -> None:
    model = method.model(MLP())
    model.save_pretrained(path)
    torch.testing.assert_close(PeftModel.from_pretrained(MLP(), path)(X), model(X))
    merges(model, X)


@probe("transformers' Conv1D")
def conv1d(method: Method, path: Path) -> None:
    torch.manual_seed(0)
    merges(method.model(Wrapped(Conv1D(48, 24)), "layer", fan_in_fan_out=True), X)


@probe("nn.Embedding")
def embedding(method: Method, path: Path) -> None:
    merges(method.model(Wrapped(nn.Embedding(10, 24)), "layer"), torch.arange(10))


@probe("nn.Conv1d, Conv2d, Conv3d")
def conv(method: Method, path: Path) -> None:
    for kind, size in ((nn.Conv1d, (2, 4, 8)), (nn.Conv2d, (2, 4, 8, 8)), (nn.Conv3d, (2, 4, 6, 6, 6))):
        merges(method.model(Wrapped(kind(4, 8, 3)), "layer"), torch.randn(*size))


@probe("nn.MultiheadAttention")
def attention(method: Method, path: Path) -> None:
    model = method.model(Wrapped(nn.MultiheadAttention(24, 4, batch_first=True)), "layer")
    x = torch.randn(2, 5, 24)
    expected = model(x, x, x)[0]
    torch.testing.assert_close(model.merge_and_unload()(x, x, x)[0], expected, rtol=1e-4, atol=1e-4)


@probe("target_parameters (expert weights)")
def parameters(method: Method, path: Path) -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 24, 8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.einsum("ti,eio->teo", x, self.weight)

    model = method.model(Wrapped(Experts()), target_modules=[], target_parameters=["layer.weight"])
    with model.disable_adapter():
        base = model(X)
    assert not torch.allclose(model(X), base)


@probe("rank_pattern, alpha_pattern")
def patterns(method: Method, path: Path) -> None:
    model = method.model(MLP(), rank_pattern={"first": 6}, alpha_pattern={"last": 3})
    assert model.base_model.model.first.r["default"] == 6


@probe("exclude_modules")
def exclude(method: Method, path: Path) -> None:
    assert method.model(MLP(), exclude_modules=["last"]).base_model.targeted_module_names == ["first"]


@probe("rank-stabilised scaling (use_rslora)")
def rslora(method: Method, path: Path) -> None:
    scaled = method.model(MLP(), use_rslora=True).base_model.model.first.scaling["default"]
    assert scaled != method.model(MLP()).base_model.model.first.scaling["default"]


@probe("modules_to_save, bias, dropout")
def extras(method: Method, path: Path) -> None:
    model = method.model(MLP(), "first", modules_to_save=["last"], bias="all", lora_dropout=0.5)
    model.save_pretrained(path)
    torch.testing.assert_close(PeftModel.from_pretrained(MLP(), path)(X), model(X))


@probe("trainable_token_indices")
def tokens(method: Method, path: Path) -> None:
    base = gpt2()
    before = base(IDS).logits
    model = method.model(base, "c_attn", fan_in_fan_out=True, trainable_token_indices={"wte": [3, 4]})
    assert any("trainable_tokens_delta" in name for name, p in model.named_parameters() if p.requires_grad)
    assert model(IDS).logits.shape == before.shape


@probe("several adapters, active one by one")
def several(method: Method, path: Path) -> None:
    model = method.model(MLP())
    first = model(X)
    model.add_adapter("second", method.config())
    model.set_adapter("second")
    assert not torch.allclose(model(X), first)
    model.delete_adapter("second")


@probe("mixed batch (adapter_names)")
def mixed(method: Method, path: Path) -> None:
    model = method.model(MLP())
    own = model(X)
    with model.disable_adapter():
        base = model(X)
    got = model(X, adapter_names=["default", "__base__", "default", "__base__", "default"])
    torch.testing.assert_close(got, torch.stack([own[0], base[1], own[2], base[3], own[4]]))


@probe("add_weighted_adapter, concatenation exact")
def weighted(method: Method, path: Path) -> None:
    model = method.model(MLP())
    model.add_adapter("second", method.config())
    model.add_weighted_adapter(["default", "second"], [0.3, -0.7], "sum", combination_type="cat")
    layer = model.base_model.model.first
    expected = 0.3 * layer.get_delta_weight("default") - 0.7 * layer.get_delta_weight("second")
    torch.testing.assert_close(layer.get_delta_weight("sum"), expected)


@probe("hotswap")
def hotswapped(method: Method, path: Path) -> None:
    other = method.model(MLP())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.01 if parameter.requires_grad else 0.0)
    other.save_pretrained(path)
    model = method.model(MLP())
    hotswap.hotswap_adapter(model, str(path), "default")
    torch.testing.assert_close(model(X), other(X))


@probe("low_cpu_mem_usage")
def low_memory(method: Method, path: Path) -> None:
    model = method.model(MLP())
    model.save_pretrained(path)
    torch.testing.assert_close(PeftModel.from_pretrained(MLP(), path, low_cpu_mem_usage=True)(X), model(X))


@probe("conversion to LoRA of rank n r, without SVD")
def conversion(method: Method, path: Path) -> None:
    model = method.model(MLP())
    model.save_pretrained(path / "own")
    if method.name == "MELoRA":
        export_lora(path / "own", path / "lora")
        lora = PeftModel.from_pretrained(MLP(), path / "lora")
        assert lora.peft_config["default"].r == 4
        torch.testing.assert_close(lora(X), model(X), rtol=0, atol=1e-5)
    else:
        # PEFT's own way is an SVD of the dense update; a LoRA is one already.
        assert method.name == "LoRA", convert_to_lora.__doc__


@probe("an adapter file with a missing tensor is refused")
def strict(method: Method, path: Path) -> None:
    method.model(MLP()).save_pretrained(path)
    tensors = load_file(path / "adapter_model.safetensors")
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="missing"):
        PeftModel.from_pretrained(MLP(), path)


@probe("a misspelt target offers the closest name")
def closest(method: Method, path: Path) -> None:
    with pytest.raises(ValueError, match="closest: first"):
        method.model(MLP(), "frist")


@probe("torch.compile, one graph")
def compiled(method: Method, path: Path) -> None:
    model = method.model(MLP())
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(X), model(X))


@probe("PeftMixedModel")
def mixed_model(method: Method, path: Path) -> None:
    get_peft_model(MLP(), method.config(), mixed=True)


@probe("DoRA")
def dora(method: Method, path: Path) -> None:
    method.model(MLP(), use_dora=True)


@probe("checkpoint bytes that are the same under any hash seed")
def deterministic(method: Method, path: Path) -> None:
    config = method.config("first", "last")
    assert not any(isinstance(value, set) for value in config.to_dict().values())
    assert get_peft_model_state_dict(method.model(MLP()))


def table() -> dict[str, dict[str, str]]:
    """feature -> {method: yes or no}, read off docs/peft.md."""
    rows = {}
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        cells = [re.sub(r"\[(.*?)\]\(.*?\)", r"\1", cell.strip()) for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[1] in ("yes", "no"):
            rows[cells[0]] = dict(zip(("LoRA", "GraLoRA", "MELoRA"), cells[1:], strict=True))
    return rows


def test_the_table_has_every_probe_and_no_other_row() -> None:
    assert list(table()) == list(PROBES)


@pytest.mark.parametrize("method", ["LoRA", "GraLoRA", "MELoRA"])
@pytest.mark.parametrize("feature", list(PROBES))
def test_each_cell(feature: str, method: str, tmp_path: Path) -> None:
    expected = table()[feature][method]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer warns of is not at issue here
        try:
            PROBES[feature](Method(method), tmp_path)
            found, reason = "yes", ""
        except (Exception, pytest.fail.Exception) as error:
            found, reason = "no", f"{type(error).__name__}: {error}"
    assert found == expected, reason
