"""The adapted linear layer: against the oracle, against PEFT's LoRA at n = 1, in every state that it can be in."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig, MeloraError
from melora.linear import Linear
from melora.ops import block_lora_reference
from melora.ops.keep_bits import draw, full_mask


def wrap(base: nn.Module, **kwargs: Any) -> Any:
    """A PeftModel around one layer called `layer`, with a random B unless told otherwise."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    settings = {"r": 2, "n": 4, "init_weights": False, "target_modules": ["layer"], **kwargs}
    return get_peft_model(Holder(), MeloraConfig(**settings))


def adapted(model: Any) -> Linear:
    layer = model.base_model.model.layer
    assert isinstance(layer, Linear)
    return layer


def oracle(layer: Linear, x: torch.Tensor) -> torch.Tensor:
    base = layer.get_base_layer()
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    scaling = layer.scaling["default"]
    return block_lora_reference(x, *layer.factors("default"), scaling, weight=weight, bias=base.bias)


@pytest.mark.parametrize("base", [nn.Linear(24, 32), nn.Linear(24, 32, bias=False), Conv1D(32, 24)], ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (2, 5), (2, 3, 5), (0,)])
def test_one_to_four_dimensions(base: nn.Module, leading: tuple[int, ...]) -> None:
    model = wrap(base)
    x = torch.randn(*leading, 24)
    torch.testing.assert_close(model(x), oracle(adapted(model), x))


@pytest.mark.parametrize("base", [nn.Linear(24, 32), Conv1D(32, 24)], ids=str)
def test_non_contiguous_inputs(base: nn.Module) -> None:
    model = wrap(base)
    for x in (torch.randn(24, 5).T, torch.randn(5, 48)[:, ::2], torch.randn(3, 24, 5).transpose(1, 2)):
        assert not x.is_contiguous()
        torch.testing.assert_close(model(x), oracle(adapted(model), x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast_adapter_dtype", [True, False])
def test_dtypes_of_the_base(dtype: torch.dtype, autocast_adapter_dtype: bool) -> None:
    """Adapters of 16-bit bases are kept in fp32 by PEFT's default; the output has the base's dtype either way."""
    torch.manual_seed(0)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 32, dtype=dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    config = MeloraConfig(r=2, n=4, init_weights=False, target_modules=["layer"])
    model = get_peft_model(Holder(), config, autocast_adapter_dtype=autocast_adapter_dtype)
    layer = adapted(model)
    expected_dtype = torch.float32 if autocast_adapter_dtype and dtype.itemsize == 2 else dtype
    assert layer.factors("default")[0].dtype == expected_dtype
    x = torch.randn(5, 24, dtype=dtype)
    y = model(x)
    assert y.dtype == dtype
    y.square().sum().backward()
    assert layer.factors("default")[0].grad.dtype == expected_dtype

    exact = layer.double()
    torch.testing.assert_close(y.double(), oracle(exact, x.double()), rtol=4 * torch.finfo(dtype).eps, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])  # of the input: the layer before may have cast it
@pytest.mark.parametrize("base", [nn.Linear(24, 32), Conv1D(32, 24)], ids=str)
def test_autocast(base: nn.Module, dtype: torch.dtype) -> None:
    model = wrap(base)
    x = torch.randn(5, 24, dtype=dtype, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(x)
        assert y.dtype == adapted(model).get_base_layer()(x).dtype == torch.bfloat16
    y.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    torch.testing.assert_close(y.float(), oracle(adapted(model), x.float()), rtol=0.02, atol=0.2)


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant: bool, dropout: float) -> None:
    model = wrap(nn.Linear(24, 32), lora_dropout=dropout).train()
    x = torch.randn(5, 24, requires_grad=True)
    gradients = []
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=use_reentrant)):
        model.zero_grad()
        x.grad = None
        torch.manual_seed(1)
        run(x).square().sum().backward()
        gradients.append([x.grad, *(p.grad for p in model.parameters() if p.requires_grad)])
    assert len(gradients[0]) == 3
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize("base", [nn.Linear(24, 32), Conv1D(32, 24)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fresh_adapter_gives_the_bases_output_bit_for_bit(base: nn.Module, dtype: torch.dtype) -> None:
    base = base.to(dtype)
    x = torch.randn(3, 5, 24, dtype=dtype)
    expected = base(x)
    for r in (1, 2):
        model = wrap(base, init_weights=True, r=r)
        assert torch.equal(model(x), expected)
        base = model.unload().layer


@pytest.mark.parametrize("r", [1, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_n_1_is_pefts_lora(r: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    base = nn.Linear(24, 32, dtype=dtype)
    ours = wrap(base, r=r, n=1, lora_alpha=8)

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(24, 32, dtype=dtype)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.layer(x)
            return y

    theirs = get_peft_model(Holder(), LoraConfig(r=r, lora_alpha=8, target_modules=["layer"], init_lora_weights=False))
    lora = theirs.base_model.model.layer
    lora.base_layer.load_state_dict(base.state_dict())
    A, B = adapted(ours).factors("default")
    lora.lora_A["default"].weight.data, lora.lora_B["default"].weight.data = A.data[0].clone(), B.data[0].clone()

    results = []
    for model, factors in ((ours, (A, B)), (theirs, (lora.lora_A["default"].weight, lora.lora_B["default"].weight))):
        x = torch.linspace(-1, 1, 5 * 24, dtype=dtype).view(5, 24).requires_grad_()
        y = model(x)
        y.square().sum().backward()
        results.append([y, x.grad, *(f.grad.squeeze(0) if f.grad.dim() == 3 else f.grad for f in factors)])
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    for our, their in zip(*results, strict=True):
        torch.testing.assert_close(our, their, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(adapted(ours).get_delta_weight("default"), lora.get_delta_weight("default"))


@pytest.mark.parametrize("base", [nn.Linear(24, 32), Conv1D(32, 24)], ids=str)
@pytest.mark.parametrize("safe_merge", [True, False])
def test_merge_and_unmerge(base: nn.Module, safe_merge: bool) -> None:
    model = wrap(base.double())
    layer, x = adapted(model), torch.randn(5, 24).double()
    before, expected = base.weight.detach().clone(), model(x)
    model.merge_adapter(safe_merge=safe_merge)
    assert layer.merged
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(base.weight, before + layer.get_delta_weight("default"), rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match="already merged"):
        model.merge_adapter()
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    model.unmerge_adapter()
    torch.testing.assert_close(base.weight, before, rtol=1e-12, atol=1e-12)
    with pytest.warns(UserWarning, match="Already unmerged"):
        model.unmerge_adapter()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merging_into_16_bits_rounds_once(dtype: torch.dtype) -> None:
    base = nn.Linear(24, 32, dtype=dtype)
    model = wrap(base)
    layer = adapted(model)
    A, B = layer.factors("default")
    delta = layer.scaling["default"] * torch.block_diag(*(B.double() @ A.double()))
    expected = (base.weight.double() + delta).to(dtype)
    model.merge_adapter()
    difference = (base.weight - expected).abs()
    # fp32 and fp64 products may round to neighbouring numbers where the exact sum is close to halfway.
    assert (difference > 0).float().mean() < 0.01
    torch.testing.assert_close(base.weight, expected)


def test_safe_merge_of_a_broken_adapter_changes_nothing() -> None:
    base = nn.Linear(24, 32)
    model = wrap(base)
    adapted(model).factors("default")[1].data[0, 0, 0] = torch.nan
    before = base.weight.detach().clone()
    with pytest.raises(MeloraError, match="The adapter default seems to be broken, so nothing was merged"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(base.weight, before)
    assert not adapted(model).merged


def test_disabling_gives_the_base_also_when_merged() -> None:
    base = nn.Linear(24, 32)
    x = torch.randn(5, 24)
    expected = base(x)
    model = wrap(base)
    with model.disable_adapter():
        assert torch.equal(model(x), expected)
    assert not torch.equal(model(x), expected)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(model(x), expected)


def test_several_active_adapters_add_up() -> None:
    model = wrap(nn.Linear(24, 32))
    model.add_adapter("other", MeloraConfig(r=1, n=2, init_weights=False, target_modules=["layer"]))
    x, layer = torch.randn(5, 24), adapted(model)
    layer.set_adapter(["default", "other"])
    updates = sum(layer.get_delta_weight(name) for name in ("default", "other"))
    expected = x @ (layer.get_base_layer().weight + updates).T + layer.get_base_layer().bias
    torch.testing.assert_close(model(x), expected)
    layer.merge()
    assert layer.merged_adapters == ["default", "other"]
    torch.testing.assert_close(model(x), expected)


def test_dropout_works_in_training_alone() -> None:
    model = wrap(nn.Linear(24, 32), lora_dropout=0.5)
    x, layer = torch.randn(64, 24), adapted(model)
    torch.testing.assert_close(model.eval()(x), oracle(layer, x))
    model.train()
    assert not torch.equal(model(x), model(x))
    torch.manual_seed(0)
    y = model(x)
    torch.manual_seed(0)
    dropped = x * full_mask(x, draw(x.numel(), 0.5, x.device)) * 2
    torch.testing.assert_close(y - layer.get_base_layer()(x), oracle(layer, dropped) - layer.get_base_layer()(dropped))


def test_training_leaves_the_base_weight_bit_for_bit() -> None:
    base = nn.Linear(24, 32)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = wrap(base, init_weights=True)
    layer = adapted(model)
    start = [factor.detach().clone() for factor in layer.factors("default")]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(8, 24)).square().mean().backward()
        optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in layer.get_base_layer().state_dict().items())
    assert not any(torch.equal(old, new) for old, new in zip(start, layer.factors("default"), strict=True))
    blocks = layer.get_delta_weight("default").unflatten(0, (4, 8)).unflatten(2, (4, 6)).transpose(1, 2)
    assert not any(blocks[i, j].any() for i in range(4) for j in range(4) if i != j)


def test_adapter_names_need_an_unmerged_model_and_one_name_a_row() -> None:
    layer, x = adapted(wrap(nn.Linear(24, 32)).eval()), torch.randn(2, 24)
    expected = torch.stack([oracle(layer, x[0]), layer.get_base_layer()(x[1])])
    torch.testing.assert_close(layer(x, adapter_names=["default", "__base__"]), expected)
    with pytest.raises(MeloraError, match="should be the same as the number of inputs, but got 3 and 2"):
        layer(x, adapter_names=["default"] * 3)
    layer.merge()
    with pytest.raises(MeloraError, match="merged adapters, please call `unmerge_adapter` first"):
        layer(x, adapter_names=["default"] * 2)
