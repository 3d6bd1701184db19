"""What every layer type has in common: states, dtypes, files, export, and PEFT's LoRA at n=1."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, load_adapter
from melora.adapted import AdaptedLayer
from melora.analysis import inspect_adapter
from melora.conversion import export_lora

EXACT = {"rtol": 1e-12, "atol": 1e-12}


class Holder(nn.Module):
    """A model of one layer, called `layer`; of an attention layer it answers the output alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.layer, nn.MultiheadAttention) or hasattr(self.layer, "in_proj_weight"):
            y: torch.Tensor = self.layer(x, x, x)[0]
        else:
            y = self.layer(x)
        return y


class Experts(nn.Module):
    """Two stacked weights and a plain one, as mixture-of-experts modules have them."""

    def __init__(self, is_transposed: bool) -> None:
        super().__init__()
        shapes = ((3, 8, 12), (3, 12, 8)) if is_transposed else ((3, 12, 8), (3, 8, 12))
        self.up, self.down = (nn.Parameter(torch.randn(shape)) for shape in shapes)
        self.plain = nn.Parameter(torch.randn(8, 8))
        self.is_transposed = is_transposed

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros_like(x)
        for up, down in zip(self.up, self.down, strict=True):
            y = y + torch.tanh(x @ (up if self.is_transposed else up.T)) @ (down if self.is_transposed else down.T)
        return y @ self.plain.T


@dataclass(frozen=True)
class Case:
    """A layer type: how to make one, what goes in, where it stands in the config, and how many parameters r=2 takes."""

    make: Callable[[], nn.Module]
    x: torch.Tensor
    parameters: Callable[[int], int]
    targets: dict[str, Any]

    def model(self, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
        torch.manual_seed(0)
        config = MeloraConfig(**{"r": 2, "init_weights": False, "lora_alpha": 3, **self.targets, **kwargs})
        return get_peft_model(self.base(dtype), config).eval()

    def base(self, dtype: torch.dtype = torch.float64) -> Holder:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return Holder(self.make()).to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        return self.x.to(dtype) if self.x.is_floating_point() else self.x


def _x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


LAYER: dict[str, Any] = {"target_modules": ["layer"]}
STACK: dict[str, Any] = {"target_modules": [], "target_parameters": ["layer.up", "layer.down", "layer.plain"]}
IDS = torch.tensor([[1, 2, 0, 9], [3, 3, 4, 5], [7, 0, 1, 6]])
CASES = {
    "embedding": Case(lambda: nn.Embedding(10, 8), IDS, lambda n: n * 2 * 10 + 2 * 8, LAYER),
    "conv1d": Case(lambda: nn.Conv1d(8, 16, 3, 2, 1), _x(3, 8, 10), lambda n: 2 * (8 * 3 + 16), LAYER),
    "conv2d": Case(lambda: nn.Conv2d(8, 16, (3, 2), 2, 2), _x(3, 8, 7, 9), lambda n: 2 * (8 * 6 + 16), LAYER),
    "conv3d": Case(lambda: nn.Conv3d(8, 4, 2, bias=False), _x(3, 8, 4, 5, 3), lambda n: 2 * (8 * 8 + 4), LAYER),
    "attention": Case(
        lambda: nn.MultiheadAttention(8, 2, batch_first=True), _x(3, 5, 8), lambda n: 2 * (8 + 24 + 8 + 8), LAYER
    ),
    "experts": Case(lambda: Experts(False), _x(3, 5, 8), lambda n: 2 * (2 * 3 * (8 + 12) + 8 + 8), STACK),
    "experts, transposed": Case(lambda: Experts(True), _x(3, 5, 8), lambda n: 2 * (2 * 3 * (8 + 12) + 8 + 8), STACK),
}
# Layers that see the batch's rows, and so can send each through an adapter of its own.
BY_ROW = ["embedding", "conv1d", "conv2d", "conv3d"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def layers(model: nn.Module) -> dict[str, AdaptedLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLayer)}


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_parameters_are_as_documented(case: Case, n: int) -> None:
    trainable, _ = case.model(n=n).get_nb_trainable_parameters()
    assert trainable == case.parameters(n)


def test_a_fresh_adapter_changes_nothing(case: Case) -> None:
    model = case.model(n=4, init_weights=True)
    torch.testing.assert_close(model(case.inputs()), case.base()(case.inputs()), **EXACT)


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("safe_merge", [True, False])
def test_merge_and_unmerge(case: Case, n: int, safe_merge: bool) -> None:
    """The merged base computes what base and adapter do, so forward and get_delta_weight agree."""
    model, base, x = case.model(n=n), case.base(), case.inputs()
    expected, plain = model(x), base(x)
    assert not torch.allclose(expected, plain)
    model.merge_adapter(safe_merge=safe_merge)
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-11, atol=1e-11)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), plain, rtol=1e-11, atol=1e-11)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    torch.testing.assert_close(merged(x), expected, rtol=1e-11, atol=1e-11)
    assert [(k, v.shape) for k, v in merged.state_dict().items()] == [
        (k, v.shape) for k, v in base.state_dict().items()
    ]


def test_unload_gives_back_the_base_bit_for_bit(case: Case) -> None:
    unloaded = case.model(n=4).unload()
    assert {name: type(module) for name, module in unloaded.named_modules()} == {
        name: type(module) for name, module in case.base().named_modules()
    }
    for name, value in case.base().state_dict().items():
        assert torch.equal(unloaded.state_dict()[name], value)


def test_disabling_while_merged_unmerges(case: Case) -> None:
    model, x = case.model(n=2), case.inputs()
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), case.base()(x), rtol=1e-11, atol=1e-11)


def test_safe_merge_of_a_broken_adapter_changes_nothing(case: Case) -> None:
    model = case.model(n=2)
    layer = next(iter(layers(model).values()))
    layer.factors("default")[1].data.flatten()[0] = torch.nan
    before = layer.get_base_weight().clone()
    with pytest.raises(MeloraError, match="nothing was merged"):
        layer.merge(safe_merge=True)
    assert torch.equal(layer.get_base_weight(), before)


def test_several_adapters_add_up(case: Case) -> None:
    """Each adapter's update is linear in the weight, so merging both adds both."""
    model, x = case.model(n=2), case.inputs()
    first = model(x)
    model.add_adapter("second", MeloraConfig(r=1, n=4, init_weights=False, **case.targets))
    assert torch.equal(model(x), first)
    model.base_model.set_adapter(["default", "second"])
    both = model(x)
    assert not torch.allclose(both, first)
    model.merge_adapter()
    torch.testing.assert_close(model(x), both, rtol=1e-11, atol=1e-11)
    model.unmerge_adapter()
    model.set_adapter("default")
    torch.testing.assert_close(model(x), first, rtol=1e-11, atol=1e-11)
    model.delete_adapter("second")
    assert all(set(layer.scaling) == {"default"} for layer in layers(model).values())


def test_mixed_batches(case: Case, request: pytest.FixtureRequest) -> None:
    model, x = case.model(n=2), case.inputs()
    model.add_adapter("second", MeloraConfig(r=1, n=4, init_weights=False, **case.targets))
    names = ["second", "__base__", "default"]
    if request.node.callspec.params["case"] not in BY_ROW:
        with pytest.raises(MeloraError, match="with LoRA neither; call the model once for each adapter"):
            model(x, adapter_names=names)
        return
    rows = {"default": model(x), "__base__": case.base()(x)}
    model.set_adapter("second")
    rows["second"] = model(x)
    expected = torch.stack([rows[name][i] for i, name in enumerate(names)])
    torch.testing.assert_close(model(x, adapter_names=names), expected, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_dtypes_and_gradients(case: Case, dtype: torch.dtype, autocast: bool) -> None:
    """Adapters of 16-bit bases are fp32; the output has the base's dtype, autocast's under autocast."""
    model, base, x = case.model(dtype, n=2), case.base(dtype), case.inputs(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = model(x)
        assert y.dtype == base(x).dtype
    y.float().square().sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype == torch.float32
            assert parameter.grad is not None, name
            assert parameter.grad.any(), name
    exact = case.model(n=2)
    scale = exact(case.inputs()).abs().max().item()
    precision = 2.0**-8 if autocast or dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(y.double(), exact(case.inputs()), rtol=0, atol=40 * precision * scale)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_gradients_are_the_merged_weights(case: Case, n: int) -> None:
    """d loss / d factors through forward, against the same through W + get_delta_weight."""
    model, x = case.model(n=n), case.inputs()
    model(x).square().sum().backward()
    factors = [p for p in model.parameters() if p.requires_grad]
    found = [p.grad.clone() for p in factors]
    model.zero_grad()

    adapted = layers(model)
    updated = {}
    for name, layer in adapted.items():
        delta = layer.get_delta_weight("default")
        key = name.removeprefix("base_model.model.").replace(".base_layer", "")
        own = "in_proj_weight" if hasattr(layer, "in_proj_weight") else getattr(layer, "parameter_name", "weight")
        updated[f"{key}.{own}"] = layer.get_base_weight() + delta
    y = torch.func.functional_call(case.base(), updated, (x,))
    y.square().sum().backward()
    for gradient, parameter in zip(found, factors, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_save_load_inspect_and_export(case: Case, n: int, tmp_path: Path) -> None:
    model, x = case.model(torch.float32, n=n, use_rslora=True), case.inputs(torch.float32)
    expected = model(x)
    model.save_pretrained(tmp_path / "melora")
    for load in (load_adapter, PeftModel.from_pretrained):
        assert torch.equal(load(case.base(torch.float32), tmp_path / "melora").eval()(x), expected)
    loaded = PeftModel.from_pretrained(case.base(torch.float32), tmp_path / "melora", low_cpu_mem_usage=True).eval()
    assert torch.equal(loaded(x), expected)

    report = inspect_adapter(tmp_path / "melora")
    assert report.parameters == case.parameters(n)
    adapted = {name.removeprefix("base_model.model."): layer for name, layer in layers(model).items()}
    assert {layer.name for layer in report.layers} == set(adapted)
    for layer in report.layers:
        delta = adapted[layer.name].get_delta_weight("default").detach().double()
        assert layer.norm == pytest.approx(delta.norm().item(), rel=1e-5)
        assert 1 <= layer.effective_rank <= layer.rank + 1e-9 <= layer.equivalent_rank + 1e-9

    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert export.rank == 2 * n
    lora = PeftModel.from_pretrained(case.base(torch.float32), tmp_path / "lora").eval()
    for name, layer in layers(model).items():
        ours, theirs = layer.get_delta_weight("default"), lora.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-5)
    if any("nn.MultiheadAttention" in warning for warning in export.warnings):
        half(lora.base_model.model.layer.base_layer.out_proj.lora_B["default"].weight)
    torch.testing.assert_close(lora(x), expected, rtol=1e-4, atol=1e-4)


def half(weight: torch.Tensor) -> None:
    """PEFT 0.21 applies the update of MultiheadAttention's out_proj twice (huggingface/peft, pull request 3774)."""
    weight.data.mul_(0.5)


def lora_layout(A: torch.Tensor, B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A MELoRA's tensors at n = 1, or their gradients, in the order of LoRA's."""
    if A.dim() == B.dim() == 4:  # experts: LoRA's columns of B are ordered by rank, then by expert
        return A[0].flatten(0, 1), B[0].permute(1, 2, 0).flatten(1)
    return A[0], B[0]


def lora_factors_of(lora: Any) -> tuple[nn.Parameter, nn.Parameter]:
    if lora.lora_embedding_A:
        return lora.lora_embedding_A["default"], lora.lora_embedding_B["default"]
    return lora.lora_A["default"].weight, lora.lora_B["default"].weight


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_n_1_is_pefts_lora(case: Case, dtype: torch.dtype) -> None:
    """Delta weights, outputs, and gradients of input and factors."""
    ours = case.model(dtype, n=1)
    config = LoraConfig(r=2, lora_alpha=3, init_lora_weights=False, **case.targets)
    theirs = get_peft_model(case.base(dtype), config).eval()
    for name, layer in layers(ours).items():
        lora = theirs.get_submodule(name)
        for factor, values in zip(lora_factors_of(lora), lora_layout(*layer.factors("default")), strict=True):
            factor.data = values.detach().reshape(factor.shape).clone()
        torch.testing.assert_close(layer.get_delta_weight("default"), lora.get_delta_weight("default"))
        if name.endswith("out_proj"):
            half(lora.lora_B["default"].weight)

    results: list[list[torch.Tensor]] = []
    for model in (ours, theirs):
        x = case.inputs(dtype).clone().requires_grad_(case.x.is_floating_point())
        y = model(x)
        y.square().sum().backward()
        results.append([y] if x.grad is None else [y, x.grad])
    for name, layer in layers(ours).items():
        if not name.endswith("out_proj"):  # halved above
            A, B = layer.factors("default")
            results[0] += lora_layout(A.grad, B.grad)
            results[1] += (factor.grad for factor in lora_factors_of(theirs.get_submodule(name)))
    tolerance = 1e-11 if dtype == torch.float64 else 1e-4
    for our, their in zip(*results, strict=True):
        torch.testing.assert_close(our, their.reshape(our.shape), rtol=tolerance, atol=tolerance)


def test_a_shape_that_does_not_fit_leaves_the_model_alone(case: Case) -> None:
    base = case.base()
    before = [(name, type(module)) for name, module in base.named_modules()]
    with pytest.raises(MeloraError, match=r"n=5 does not divide .* choose n from 1, 2, 4"):
        get_peft_model(base, MeloraConfig(n=5, **case.targets))
    with pytest.raises(MeloraError, match="r=16000000 is larger than the weight"):
        get_peft_model(base, MeloraConfig(n=2, r=16_000_000, **case.targets))
    assert [(name, type(module)) for name, module in base.named_modules()] == before
