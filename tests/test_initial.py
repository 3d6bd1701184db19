"""Starts from weights: every block by a loop, the output unchanged, and n=1 against PEFT's own PiSSA and OLoRA."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.initial import joined, start_factors

TARGETS = ["first", "middle", "head"]  # the middle one is a Conv1D


def config(init: str, **kwargs: Any) -> MeloraConfig:
    return MeloraConfig(**{"r": 2, "n": 2, "lora_alpha": 3, "target_modules": TARGETS, "init_weights": init, **kwargs})


def blocks(weight: torch.Tensor, n: int, permute: str = "none") -> list[torch.Tensor]:
    """The minis' blocks of a (d_out, d_in) weight, by a loop."""
    if permute == "strided":
        return [weight[i::n, i::n] for i in range(n)]
    rows, columns = weight.shape[0] // n, weight.shape[1] // n
    return [weight[i * rows : (i + 1) * rows, i * columns : (i + 1) * columns] for i in range(n)]


def dense(model: PeftModel, name: str) -> torch.Tensor:
    """The base weight as (d_out, d_in)."""
    weight: torch.Tensor = model.base_model.model.get_submodule(name).get_base_layer().weight.detach()
    return weight.T if name == "middle" else weight


def weights(model: PeftModel, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    A, B = model.base_model.model.get_submodule(name).mini_factors("default")
    return A.weight.detach(), B.weight.detach()


def train(model: nn.Module, steps: int = 3, rate: float = 0.05) -> None:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    dtype = parameters[0].dtype
    x = torch.randn(16, 24, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    optimizer = torch.optim.SGD(parameters, lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - 1).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_8", "olora"])
@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("permute", ["none", "strided"])
def test_output_is_unchanged_and_the_base_too(
    make_mlp: Callable[..., nn.Module], init: str, rslora: bool, permute: str
) -> None:
    base = make_mlp().double()
    x = torch.randn(5, 24, dtype=torch.float64)
    wanted, before = base(x), copy.deepcopy(base.state_dict())
    own = config(init, use_rslora=rslora, permute=permute, n_pattern={"first": 4}, rank_pattern={"head": 1})
    model = get_peft_model(base, own)
    assert torch.equal(model(x), wanted)
    train(model)
    assert (model(x) - wanted).abs().max() > 1e-3
    with model.disable_adapter():
        assert torch.equal(model(x), wanted)
    after = model.unload().state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("permute", ["none", "strided"])
def test_pissa_is_the_best_approximation_of_every_block(
    make_mlp: Callable[..., nn.Module], rslora: bool, permute: str
) -> None:
    own = config("pissa", use_rslora=rslora, permute=permute, n_pattern={"first": 4})
    model = get_peft_model(make_mlp(), own)
    for name in TARGETS:
        layer = model.base_model.model.get_submodule(name)
        A, B = weights(model, name)
        n = layer.n["default"]
        assert len(A) == n == (4 if name == "first" else 2)
        for i, block in enumerate(blocks(dense(model, name), n, permute)):
            U, S, Vt = np.linalg.svd(block.double().numpy())
            best = (U[:, :2] * S[:2]) @ Vt[:2]
            scaling = 3 / 2**0.5 if rslora else 3 / 2
            np.testing.assert_allclose(scaling * (B[i] @ A[i]).numpy(), best, atol=1e-6)
            np.testing.assert_allclose(A[i].norm(dim=1), (S[:2] / scaling) ** 0.5, rtol=1e-5)
            np.testing.assert_allclose(B[i].norm(dim=0), (S[:2] / scaling) ** 0.5, rtol=1e-5)


def test_olora_is_the_qr_decomposition_of_every_block(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp(), config("olora"))
    for name in TARGETS:
        A, B = weights(model, name)
        for i, block in enumerate(blocks(dense(model, name), 2)):
            Q, R = np.linalg.qr(block.numpy())
            np.testing.assert_allclose(A[i], R[:2], atol=1e-6)
            np.testing.assert_allclose(B[i], Q[:, :2], atol=1e-6)


def test_iterations_come_near_the_exact_start(make_mlp: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    exact, near = (get_peft_model(make_mlp(), config(init)) for init in ("pissa", "pissa_niter_16"))
    for name in TARGETS:
        matrices = torch.stack(blocks(dense(near, name), 2))
        best, found = ((matrices - 3 / 2 * B @ A).norm() for A, B in (weights(model, name) for model in (exact, near)))
        assert best * (1 - 1e-6) <= found <= best * 1.01


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 16)
        self.head = nn.Linear(16, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(torch.tanh(self.first(x)))
        return y


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_one_mini_is_pefts_own(init: str) -> None:
    torch.manual_seed(0)
    base = Two()
    x = torch.randn(5, 24)
    settings = {"r": 2, "lora_alpha": 3, "target_modules": ["first", "head"]}
    theirs = get_peft_model(copy.deepcopy(base), LoraConfig(**settings, init_lora_weights=init))
    ours = get_peft_model(copy.deepcopy(base), MeloraConfig(**settings, n=1, init_weights=init))
    for name in ("first", "head"):
        lora = theirs.base_model.model.get_submodule(name)
        A, B = weights(ours, name)
        torch.testing.assert_close(A[0], lora.lora_A["default"].weight.detach())
        torch.testing.assert_close(B[0], lora.lora_B["default"].weight.detach())
        residual = dense(ours, name) - 3 / 2 * B[0] @ A[0]
        torch.testing.assert_close(residual, lora.get_base_layer().weight.detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-6, rtol=1e-5)
    for model in (ours, theirs):
        train(model, steps=5)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
    for name in ("first", "head"):
        lora = theirs.base_model.model.get_submodule(name)
        torch.testing.assert_close(weights(ours, name)[0][0], lora.lora_A["default"].weight.detach(), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=30)
@given(
    n=st.integers(1, 3),
    r=st.integers(1, 3),
    rows=st.integers(3, 6),
    columns=st.integers(3, 6),
    scaling=st.floats(0.1, 16.0),
    init=st.sampled_from(["pissa", "olora"]),
    seed=st.integers(0, 1000),
)
def test_a_full_rank_start_is_the_matrix_itself(
    n: int, r: int, rows: int, columns: int, scaling: float, init: str, seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    low = torch.randn(n, rows, r, generator=draw, dtype=torch.float64)
    matrices = low @ torch.randn(n, r, columns, generator=draw, dtype=torch.float64)  # of rank r
    A, B = start_factors(init, matrices, r, scaling)
    product = B @ A * (scaling if init == "pissa" else 1.0)
    torch.testing.assert_close(product, matrices, atol=1e-8, rtol=1e-8)


def test_joined_is_differentiable() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, 3, 4), (2, 5, 3), (2, 3, 4), (2, 5, 3)]
    A, B, A0, B0 = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)

    def update(A: torch.Tensor, B: torch.Tensor) -> torch.Tensor:
        longer_A, longer_B = joined(A, B, A0, B0)
        return longer_B @ longer_A

    torch.testing.assert_close(update(A, B), B @ A - B0 @ A0)
    assert torch.autograd.gradcheck(update, (A.requires_grad_(), B.requires_grad_()))


def test_bf16_keeps_moves_that_are_small_beside_the_start(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp().bfloat16(), config("pissa"))
    layer = model.base_model.model.first
    A, B = layer.mini_factors("default")
    assert A.weight.dtype == A.start.dtype == torch.float32  # PEFT's autocast_adapter_dtype
    x = torch.randn(4, 24, dtype=torch.bfloat16)
    assert torch.equal(model(x), make_mlp().bfloat16()(x))
    with torch.no_grad():
        A.weight.add_(2.0**-12)  # an eighth of what bf16 can tell beside numbers around 0.3
    wanted = sum(
        3 / 2 * x[:, i * 12 : (i + 1) * 12].float() @ (A.weight[i] - A.start[i]).T @ B.start[i].T for i in range(1)
    )
    got = layer.adapter_output("default", x)[:, :24].float()
    torch.testing.assert_close(got, wanted, rtol=0.05, atol=2e-5)
    assert wanted.abs().max() > 1e-4


def test_only_a_and_b_are_trained(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp(), config("pissa"))
    plain = get_peft_model(make_mlp(), config(True))  # type: ignore[arg-type]
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, parameter in plain.named_parameters() if parameter.requires_grad}
    model.add_adapter("other", config("olora"))
    model.set_adapter("other")
    model.set_adapter("default")
    model.set_requires_grad("other", True)
    starts = [parameter for name, parameter in model.named_parameters() if name.endswith("start")]
    assert len(starts) == 12
    assert not any(parameter.requires_grad for parameter in starts)


def test_a_second_adapter_and_combinations_are_exact(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp().double(), config("pissa"))
    train(model)
    x = torch.randn(5, 24, dtype=torch.float64)
    base = make_mlp().double()
    first = model(x).detach()
    model.add_adapter("other", config("olora", r=1))
    model.set_adapter("other")
    assert torch.equal(model(x), base(x))  # the base is the original one for it, too
    train(model)
    second = model(x).detach()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.add_weighted_adapter(["default", "other"], [0.7, 0.4], "both", combination_type="cat")
    delta = [model.base_model.model.middle.get_delta_weight(name) for name in ("default", "other", "both")]
    torch.testing.assert_close(delta[2], 0.7 * delta[0] + 0.4 * delta[1])
    assert model.peft_config["both"].init_weights is True
    model.eval()
    mixed = model(x, adapter_names=["default", "other", "__base__", "other", "default"])
    wanted = torch.stack([first[0], second[1], base(x)[2], second[3], first[4]])
    torch.testing.assert_close(mixed, wanted)
    model.set_adapter("default")
    model.delete_adapter("both")
    model.delete_adapter("other")
    torch.testing.assert_close(model(x), first)


def test_mixed_batches_tell_a_start_from_a_plain_adapter_of_the_same_r(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp(), config("pissa"))
    model.add_adapter("plain", config(False))  # type: ignore[arg-type]
    train(model)
    model.eval()
    x = torch.randn(2, 24)
    mixed = model(x, adapter_names=["default", "plain"])
    for row, name in enumerate(("default", "plain")):
        model.set_adapter(name)
        torch.testing.assert_close(mixed[row], model(x)[row])


def test_merges_and_unmerges(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp().double(), config("pissa"))
    train(model)
    x = torch.randn(5, 24, dtype=torch.float64)
    wanted = model(x).detach()
    model.merge_adapter(safe_merge=True)
    torch.testing.assert_close(model(x), wanted)
    model.unmerge_adapter()
    torch.testing.assert_close(model(x), wanted)
    torch.testing.assert_close(model.merge_and_unload()(x), wanted)


def test_scaling_the_layer_scales_the_update_alone(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp().double(), config("pissa"))
    train(model)
    layer = model.base_model.model.first
    before = layer.get_delta_weight("default")
    layer.scale_layer(0.5)
    torch.testing.assert_close(layer.get_delta_weight("default"), before / 2)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"n": 6, "r": 2},
            r"^head: init_weights='pissa' takes 2 .* r=2, and a block is 1 x 8: choose r up to 1 \(rank",
        ),
        ({"n": 6, "r": 1, "init_weights": "lora_ga"}, r"^head: .* takes 2 .* a block is 1 x 8: a smaller n, or"),
    ],
)
def test_a_block_too_small_is_refused(make_mlp: Callable[..., nn.Module], kwargs: dict[str, Any], message: str) -> None:
    base = make_mlp()
    with pytest.raises(MeloraError, match=message):
        get_peft_model(base, MeloraConfig(**{"target_modules": TARGETS, "init_weights": "pissa", **kwargs}))
    assert type(base.first) is nn.Linear  # the first targets fit, and are untouched


def test_a_weight_that_is_not_finite_is_refused(
    make_mlp: Callable[..., nn.Module],
) -> None:
    base = make_mlp()
    with torch.no_grad():
        base.head.weight[0, 0] = torch.inf
    with pytest.raises(MeloraError, match=r"^head: init_weights='olora' reads the weight, and it holds NaN"):
        get_peft_model(base, config("olora"))
    assert type(base.first) is nn.Linear


def test_on_the_meta_device_there_are_shapes_alone(make_mlp: Callable[..., nn.Module]) -> None:
    model = get_peft_model(make_mlp().to("meta"), config("pissa"))
    A, _ = model.base_model.model.first.mini_factors("default")
    assert A.start.is_meta
    model = inject_adapter_in_model(config("lora_ga", r=1), make_mlp(), low_cpu_mem_usage=True)
    A, _ = model.first.mini_factors("default")
    assert A.start.is_meta
