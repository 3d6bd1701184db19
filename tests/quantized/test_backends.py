"""Quantised linear layers, with the real packages on the CPU: every back end whose package is installed.

bitsandbytes is in the dev extra. torchao, HQQ and gptqmodel (GPTQ, AWQ) are not, for what they do to every other test
by being installed (docs/layers.md); with them in the environment the same tests take them in:
`pip install torchao hqq gptqmodel optimum`, then `python -m pytest -W default tests/quantized`.
"""

import copy
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from bitsandbytes.functional import _convert_weight_packed_for_cpu
from peft import PeftModel, get_peft_model
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend
from torch import nn

from melora import MeloraConfig, MeloraError, calibrate, load_adapter, preprocess_lora_ga
from melora.drift import merge_drift


class Model(nn.Module):
    """One layer called `layer`, and, as in models of transformers, what torchao quantised it with."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        if hasattr(layer, "torchao_config"):
            config = SimpleNamespace(get_apply_tensor_subclass=layer.torchao_config)
            self.hf_quantizer = SimpleNamespace(quantization_config=config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


def dense(dtype: torch.dtype) -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(64, 128, dtype=dtype)


def bnb_8bit(dtype: torch.dtype) -> nn.Module:
    layer = bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False)
    layer.load_state_dict(dense(dtype).state_dict())
    return layer.to("cpu")


def bnb_4bit(dtype: torch.dtype, quant_type: str = "nf4") -> nn.Module:
    layer = bnb.nn.Linear4bit(64, 128, compute_dtype=dtype, quant_type=quant_type)
    layer.load_state_dict(dense(dtype).state_dict())
    return layer.to("cpu")


def bnb_fp4(dtype: torch.dtype) -> nn.Module:
    return bnb_4bit(dtype, "fp4")


def torchao_int8(dtype: torch.dtype) -> nn.Module:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    holder = nn.Sequential(dense(dtype))
    quantize_(holder, Int8WeightOnlyConfig())
    holder[0].torchao_config = Int8WeightOnlyConfig
    return holder[0]


def hqq_4bit(dtype: torch.dtype) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    return HQQLinear(dense(dtype), BaseQuantizeConfig(nbits=4, group_size=64), compute_dtype=dtype, device="cpu")


def round_to_nearest(linear: nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points (d_out, groups) of 4 bits in groups of 32: enough of GPTQ and AWQ for one layer."""
    groups = linear.weight.detach().unflatten(1, (-1, 32))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = (high - low) / 15
    return scales, (-low / scales).round().clamp(0, 15)


GROUPED: dict[str, Any] = {
    "bits": 4,
    "group_size": 32,
    "sym": False,
    "desc_act": False,
    "in_features": 64,
    "out_features": 128,
    "bias": True,
}


def gptq(dtype: torch.dtype) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    linear, layer = dense(torch.float32), TorchLinear(**GROUPED)
    layer.pack_original(linear, *round_to_nearest(linear), torch.arange(64) // 32)
    layer.post_init()
    return layer


def awq(dtype: torch.dtype) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear

    linear, layer = dense(torch.float32), AwqTorchLinear(**GROUPED)
    layer.pack(linear, *round_to_nearest(linear))
    layer.post_init()
    return layer


@dataclass(frozen=True)
class Backend:
    """How to make a layer of 64 to 128 features, and the bound on a merge's error, as a share of the largest weight."""

    package: str
    make: Callable[[torch.dtype], nn.Module]
    bound: float | None  # about twice what was measured; None where PEFT can't merge
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)


BACKENDS = {
    "bitsandbytes 8 bits": Backend("bitsandbytes", bnb_8bit, 0.01),
    "bitsandbytes nf4": Backend("bitsandbytes", bnb_4bit, 0.3),
    "bitsandbytes fp4": Backend("bitsandbytes", bnb_fp4, 0.35),
    "torchao int8": Backend("torchao", torchao_int8, 0.01),
    "HQQ 4 bits": Backend("hqq", hqq_4bit, 0.15),
    "GPTQ 4 bits": Backend("gptqmodel", gptq, None, (torch.bfloat16,)),
    "AWQ 4 bits": Backend("gptqmodel", awq, None, (torch.bfloat16,)),
}
INSTALLED = {name: backend for name, backend in BACKENDS.items() if importlib.util.find_spec(backend.package)}
MERGING = {name: backend for name, backend in INSTALLED.items() if backend.bound is not None}


@pytest.fixture(params=INSTALLED)
def backend(request: pytest.FixtureRequest) -> Backend:
    return INSTALLED[request.param]


@pytest.fixture(params=MERGING)
def merging(request: pytest.FixtureRequest) -> Backend:
    return MERGING[request.param]


def adapt(layer: nn.Module, **kwargs: Any) -> Any:
    torch.manual_seed(1)
    settings = {"r": 2, "n": 4, "lora_alpha": 1, "init_weights": False, "target_modules": ["layer"], **kwargs}
    return get_peft_model(Model(layer), MeloraConfig(**settings))


def x_of(dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(2)).to(dtype)


def test_forward_is_the_quantised_base_plus_the_update(backend: Backend) -> None:
    for dtype in backend.dtypes:
        model, x = adapt(backend.make(dtype)).eval(), x_of(dtype)
        layer = model.base_model.model.layer
        with torch.no_grad():
            expected = backend.make(dtype).eval()(x).float() + x.float() @ layer.get_delta_weight("default").float().T
            y = model(x)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=1e-5 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("mixing", ["learned", "shuffle"])
def test_ranks_mixed_across_blocks(merging: Backend, mixing: str) -> None:
    """Forward adds the whole dense update, and a merge reaches the blocks off the diagonal too."""
    dtype = merging.dtypes[0]
    model, x = adapt(merging.make(dtype), r=4, mixing=mixing).train(), x_of(dtype)
    layer = model.base_model.model.layer
    with torch.no_grad():
        update = layer.get_delta_weight("default").float()
        assert update[:16, 16:].any()
        expected = merging.make(dtype).train()(x).float() + x.float() @ update.T
        torch.testing.assert_close(model(x).float(), expected, rtol=0.02, atol=1e-5)
        exact = layer.get_base_weight().float() + update
        with pytest.warns(UserWarning, match="differ from the exact sum"):
            model.merge_adapter()
        assert (layer.get_base_weight() - exact).abs().max() < merging.bound * exact.abs().max()


@pytest.mark.parametrize("mixing", ["none", "shuffle"])
@pytest.mark.parametrize("permute", ["strided", "correlation"])
def test_minis_on_permuted_channels(merging: Backend, permute: str, mixing: str, tmp_path: Path) -> None:
    """The order is found without a change to the base; forward, files and merge are those of the permuted update."""
    dtype = merging.dtypes[0]
    model, x = adapt(merging.make(dtype), r=4, permute=permute, mixing=mixing).train(), x_of(dtype)
    layer = model.base_model.model.layer
    with torch.no_grad():
        base = layer.get_base_weight().clone()
        columns = [torch.arange(size).view(-1, 4).T.flatten() for size in (64, 128)]
        if permute == "correlation":
            assert calibrate(model, [{"x": x}]) == 1
            assert torch.equal(layer.get_base_weight(), base)
            columns = list(layer.order("default").long().split([64, 128]))
        plain = adapt(merging.make(dtype), r=4, mixing=mixing).base_model.model.layer  # of the same factors
        update = torch.zeros(128, 64)
        update[columns[1][:, None], columns[0]] = plain.get_delta_weight("default").float()
        expected = merging.make(dtype).train()(x).float() + x.float() @ update.T
        torch.testing.assert_close(model(x).float(), expected, rtol=0.02, atol=1e-5)
        model.save_pretrained(tmp_path)
        torch.testing.assert_close(load_adapter(Model(merging.make(dtype)), tmp_path).train()(x), model(x))
        exact = base.float() + update
        with pytest.warns(UserWarning, match="differ from the exact sum"):
            model.merge_adapter()
        assert (layer.get_base_weight() - exact).abs().max() < merging.bound * exact.abs().max()


def test_calibrating_beside_a_merged_adapter_leaves_the_quantised_weight(merging: Backend) -> None:
    model = adapt(merging.make(merging.dtypes[0])).train()
    model.add_adapter("second", MeloraConfig(n=4, permute="correlation", target_modules=["layer"]))
    layer = model.base_model.model.layer
    with pytest.warns(UserWarning, match="differ from the exact sum"):
        model.merge_adapter(["default"])
    before = layer.get_base_weight().clone()
    with pytest.raises(MeloraError, match="layer: adapter 'default' is merged"):
        calibrate(model, [{"x": x_of(merging.dtypes[0])}], "second")
    assert torch.equal(layer.get_base_weight(), before)


def test_backward_trains_the_adapter_and_reaches_the_input(backend: Backend) -> None:
    make, dtype = backend.make, backend.dtypes[0]
    model, x = adapt(make(dtype), init_weights=True).train(), x_of(dtype).requires_grad_()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert x.grad is not None
    assert x.grad.any()
    assert losses[-1] < 0.9 * losses[0]


def test_save_and_load(backend: Backend, tmp_path: Path) -> None:
    make, dtype = backend.make, backend.dtypes[0]
    model, x = adapt(make(dtype)).eval(), x_of(dtype)
    with torch.no_grad():
        expected = model(x)
        model.save_pretrained(tmp_path)
        for load in (load_adapter, PeftModel.from_pretrained):
            torch.testing.assert_close(load(Model(make(dtype)), tmp_path).eval()(x), expected)


@pytest.mark.parametrize("safe_merge", [True, False])
def test_merging_says_how_far_the_weights_are_off(merging: Backend, safe_merge: bool) -> None:
    make, dtype = merging.make, merging.dtypes[0]
    model, x = adapt(make(dtype)).train(), x_of(dtype)
    layer = model.base_model.model.layer
    with torch.no_grad():
        exact = layer.get_base_weight().float() + layer.get_delta_weight("default")
        expected = model(x)
        with pytest.warns(
            UserWarning, match=r"merged into 1 quantised layer\(s\), .* differ from the exact sum by up to"
        ):
            model.merge_adapter(safe_merge=safe_merge)
        error = (layer.get_base_weight() - exact).abs().max().item()
        drift = merge_drift(model)
        assert list(drift) == ["base_model.model.layer"]
        (measured,) = drift.values()
        assert measured.error == pytest.approx(error, rel=1e-3)
        assert measured.update == pytest.approx(layer.get_delta_weight("default").abs().max().item(), rel=1e-3)
        assert 0 < error < merging.bound * exact.abs().max()
        assert layer.get_base_layer().bias is not None
        torch.testing.assert_close(model(x), expected, rtol=0, atol=64 * error)
        model.unmerge_adapter()
        assert merge_drift(model) == {}
        torch.testing.assert_close(model(x), expected, rtol=0, atol=2 * 64 * error)


def test_merge_and_unload(merging: Backend) -> None:
    make, dtype = merging.make, merging.dtypes[0]
    model, x = adapt(make(dtype)).train(), x_of(dtype)
    with torch.no_grad():
        expected = model(x)
        with pytest.warns(UserWarning, match=r"\(layer, where the update is up to"):
            merged = model.merge_and_unload()
        assert type(merged.layer) is type(make(dtype))
        torch.testing.assert_close(merged(x), expected, rtol=0, atol=64 * merging.bound * 0.2)


def test_safe_merge_of_a_broken_adapter_changes_nothing(merging: Backend) -> None:
    make, dtype = merging.make, merging.dtypes[0]
    model, x = adapt(make(dtype)).train(), x_of(dtype)
    layer = model.base_model.model.layer
    layer.factors("default")[1].data[0, 0, 0] = torch.nan
    with torch.no_grad():
        before = layer.get_base_layer()(x)
        with pytest.raises(MeloraError, match="nothing was merged"):
            model.merge_adapter(safe_merge=True)
        assert torch.equal(layer.get_base_layer()(x), before)


def test_mixed_batches_and_disabling(backend: Backend) -> None:
    make, dtype = backend.make, backend.dtypes[0]
    model, x = adapt(make(dtype)).eval(), x_of(dtype)
    with torch.no_grad():
        adapted = model(x)
        with model.disable_adapter():
            plain = model(x)
        names = ["default", "__base__", "default", "__base__", "default"]
        picked = torch.tensor([name == "default" for name in names])
        expected = torch.where(picked[:, None], adapted, plain)
        torch.testing.assert_close(model(x, adapter_names=names), expected)


def test_a_4_bit_weight_that_is_repacked_for_the_cpu_is_not_merged() -> None:
    """bitsandbytes does this in the first forward call in eval mode, on CPUs with AVX512-BF16."""
    model = adapt(bnb_4bit(torch.bfloat16)).eval()
    layer = model.base_model.model.layer
    weight = layer.get_base_layer().weight
    weight.data, weight.quant_state = _convert_weight_packed_for_cpu(weight.data, weight.quant_state)
    packed = weight.data.clone()
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(
            MeloraError, match=r"layer: bitsandbytes has repacked this 4-bit weight .* load the model again"
        ):
            merge()
    assert torch.equal(layer.get_base_layer().weight.data, packed)
    assert not layer.merged


def test_a_backend_without_requantisation_is_refused_before_anything_is_merged() -> None:
    """GPTQ, AWQ and others: PEFT runs them forward only. Here bitsandbytes' layer under PEFT's backend for those."""
    model = adapt(bnb_8bit(torch.float32))
    layer = model.base_model.model.layer
    layer.quantization_backend = ForwardOnlyQuantizationBackend("gptq")
    before = copy.deepcopy(layer.get_base_layer().weight.data)
    with pytest.raises(
        MeloraError, match=r"layer: a base quantised by gptq can't be merged into: .* without quantisation"
    ):
        model.merge_adapter()
    assert torch.equal(layer.get_base_layer().weight.data, before)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_starts_from_the_weight_as_it_is_read_back(merging: Backend, init: str, tmp_path: Path) -> None:
    make, dtype = merging.make, merging.dtypes[0]
    x = x_of(dtype)
    with torch.no_grad():
        expected = Model(make(dtype)).train()(x)  # in eval mode bitsandbytes repacks 4 bits
    model = adapt(make(dtype), init_weights=init).train()
    layer = model.base_model.model.layer
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    A, B = layer.mini_factors("default")
    for start_A, start_B, block in zip(A.start, B.start, layer.blocks_of(layer.get_base_weight(), 4), strict=True):
        U, S, Vh = torch.linalg.svd(block.float())
        Q, R = torch.linalg.qr(block.float())
        wanted = (U[:, :2] * S[:2]) @ Vh[:2] if init == "pissa" else Q[:, :2] @ R[:2]
        scaling = layer.scaling["default"] if init == "pissa" else 1.0
        torch.testing.assert_close(scaling * start_B @ start_A, wanted, rtol=1e-3, atol=1e-5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    loaded = load_adapter(Model(make(dtype)), tmp_path).train()
    torch.testing.assert_close(loaded(x), model(x))
    assert not torch.equal(loaded(x), expected)


def test_a_start_from_a_repacked_weight_is_refused() -> None:
    base = bnb_4bit(torch.float32)
    base.weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(
        MeloraError, match=r"^layer: init_weights='pissa' reads .* quantised by .*; load the model anew"
    ):
        adapt(base, init_weights="pissa")


def test_gradients_of_a_quantised_layer(backend: Backend) -> None:
    make, dtype = backend.make, backend.dtypes[0]
    model, x = Model(make(dtype)), x_of(dtype)
    config = MeloraConfig(r=2, n=4, target_modules=["layer"], init_weights="lora_ga")
    gradients = preprocess_lora_ga(model, config, [x], loss=lambda model, x: model(x).square().mean())
    assert gradients["layer"].shape == (128, 64)
    with torch.no_grad():
        expected = Model(make(dtype)).train()(x)
    torch.testing.assert_close(get_peft_model(model, config).train()(x), expected, rtol=0, atol=0)
