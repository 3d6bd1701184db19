import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from melora import MeloraConfig
from melora.training import fast_dropout as module
from melora.training.fast_dropout import fast_dropout
from melora.training.trainer import AdapterTrainer

LARGE = (64, 257)


def bert(attention: str) -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=64
    )
    model: nn.Module = transformers.AutoModel.from_config(config, attn_implementation=attention).train()
    return model


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(1, 70), min_size=1, max_size=4).filter(lambda sizes: math.prod(sizes) < 2**19),
    p=st.floats(0.01, 0.95),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31),
)
def test_an_element_is_dropped_or_scaled_and_so_is_its_gradient(
    shape: list[int], p: float, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = (torch.rand(shape) + 0.5).to(dtype).requires_grad_()
    with pytest.MonkeyPatch.context() as patch, fast_dropout():
        patch.setattr(module, "_LEAST", 1)
        y = F.dropout(x, p)
        (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    kept = y != 0
    wanted = torch.where(kept, x.detach().double() / (1 - p), 0.0)
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), wanted, rtol=tolerance, atol=0)
    torch.testing.assert_close(grad.double(), kept.double() / (1 - p), rtol=tolerance, atol=0)
    assert y.dtype == grad.dtype == dtype


@pytest.mark.parametrize("p", [0.02, 0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(p: float) -> None:
    torch.manual_seed(0)
    count = 2**22
    with fast_dropout():
        dropped = (F.dropout(torch.ones(count), p) == 0).sum().item()
    assert abs(dropped - count * p) < 5 * math.sqrt(count * p * (1 - p))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """Root mean square error to the product in fp32: at most twice PyTorch's, + 1e-6."""
    torch.manual_seed(0)
    x = torch.randn(256, 512, dtype=dtype)

    def error(dropped: torch.Tensor) -> float:
        wanted = torch.where(dropped != 0, x.float() / 0.9, 0.0)
        return (dropped.float() - wanted).square().mean().sqrt().item()

    plain = error(F.dropout(x, 0.1))
    with fast_dropout():
        assert error(F.dropout(x, 0.1)) <= 2 * plain + 1e-6


def test_gradients_of_both_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LEAST", 1)
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)

    def drop(values: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        with fast_dropout():
            return F.dropout(values, 0.4)

    assert (drop(x) == 0).any()
    assert torch.autograd.gradcheck(drop, x)
    assert torch.autograd.gradgradcheck(drop, x)


def test_columns_of_a_transposed_tensor() -> None:
    x = torch.arange(1.0, 1 + math.prod(LARGE)).view(LARGE).t()
    with fast_dropout():
        y = F.dropout(x, 0.5)
    torch.testing.assert_close(y[y != 0], 2 * x[y != 0])
    assert y.shape == x.shape


@pytest.mark.parametrize(
    ("x", "options"),
    [
        (torch.randn(10), {}),
        (torch.randn(LARGE), {"training": False}),
        (torch.randn(LARGE), {"p": 0.0}),
        (torch.randn(LARGE), {"p": 1.0}),
        (torch.randn(LARGE), {"inplace": True}),
        (torch.tensor(2.0), {}),
    ],
)
def test_what_is_left_to_pytorch(x: torch.Tensor, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    wanted = F.dropout(x.clone(), **options)
    torch.manual_seed(0)
    with fast_dropout():
        assert torch.equal(F.dropout(x, **options), wanted)


@pytest.mark.parametrize("p", [-0.1, 1.5])
def test_a_probability_that_is_none_is_pytorchs_error(p: float) -> None:
    with fast_dropout(), pytest.raises(ValueError, match="has to be between 0 and 1"):
        F.dropout(torch.randn(LARGE), p)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_models_dropout_is_replaced_within_and_not_after(attention: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    plain = module.draw
    monkeypatch.setattr(module, "draw", lambda count, *rest: drawn.append(count) or plain(count, *rest))
    model, ids = bert(attention), torch.ones(8, 40, dtype=torch.long)
    with fast_dropout():
        model(ids).last_hidden_state.sum().backward()
    scores, hidden = 8 * 4 * 40 * 40, 8 * 40 * 64
    assert drawn.count(hidden) == 5
    assert drawn.count(scores) == (2 if attention == "eager" else 0)  # sdpa's own is out of reach
    drawn.clear()
    model(ids)
    assert not drawn


def test_a_seed_decides_and_recomputed_activations_drop_the_same() -> None:
    layer = nn.Sequential(nn.Linear(257, 257), nn.Dropout(0.3), nn.Linear(257, 257))

    def gradient(recomputed: bool) -> torch.Tensor:
        torch.manual_seed(3)
        x = torch.ones(LARGE, requires_grad=True)
        with fast_dropout():
            y = checkpoint(layer, x, use_reentrant=False) if recomputed else layer(x)
            (grad,) = torch.autograd.grad(y.sum(), x)
        return grad

    assert torch.equal(gradient(False), gradient(False))
    assert torch.equal(gradient(True), gradient(False))


class Told(nn.Module):
    """A model that says which dropout it was called under."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.told: list[bool] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        self.told.append(F.dropout is module._dropout)
        return {"loss": (self.layer(x) - labels[:, None]).square().mean()}


@pytest.mark.parametrize("compiled", [False, True])
def test_training_steps_use_it_unless_they_are_compiled(tmp_path: Path, compiled: bool) -> None:
    plain = F.dropout
    base = Told()
    model = get_peft_model(base, MeloraConfig(n=2, r=1, target_modules=["layer"]))
    arguments = transformers.TrainingArguments(
        str(tmp_path), use_cpu=True, max_steps=1, report_to=[], disable_tqdm=True, save_strategy="no"
    )
    trainer = AdapterTrainer(model=model, args=arguments, train_dataset=[{"x": [1.0, 2.0], "labels": 1.0}] * 8)
    trainer.must_move = False
    arguments.torch_compile = compiled  # set late: nothing need be compiled here
    trainer.train()
    assert base.told == [not compiled]
    assert F.dropout is plain


def test_pytorchs_dropout_is_back_after_an_error() -> None:
    plain = F.dropout
    with pytest.raises(RuntimeError, match="on purpose"), fast_dropout():
        raise RuntimeError("on purpose")
    assert F.dropout is plain
