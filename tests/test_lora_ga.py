"""LoRA-GA: the gradients come first, and one step of gradient descent goes where the paper says."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, preprocess_lora_ga

from .test_initial import blocks

TARGETS = ["first", "middle", "head"]  # the middle one is a Conv1D


def config(**kwargs: Any) -> MeloraConfig:
    settings = {"r": 1, "n": 3, "lora_alpha": 2, "target_modules": TARGETS, "init_weights": "lora_ga"}
    return MeloraConfig(**{**settings, **kwargs})


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(32, 24, generator=draw, dtype=torch.float64), torch.randn(32, 6, generator=draw).double())
        for _ in range(2)
    ]


def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    x, wanted = batch
    found: torch.Tensor = model(x)
    return (found - wanted).square().mean()


def mean_loss(model: nn.Module) -> torch.Tensor:
    return torch.stack([loss(model, batch) for batch in batches()]).mean()


@pytest.fixture
def base(make_mlp: Callable[..., nn.Module]) -> nn.Module:
    return make_mlp().double()


def true_gradient(base: nn.Module, name: str) -> torch.Tensor:
    """By autograd, with every weight trainable, as (d_out, d_in)."""
    free = copy.deepcopy(base)
    mean_loss(free).backward()
    gradient: torch.Tensor = free.get_submodule(name).weight.grad
    return gradient.T if name == "middle" else gradient


def diagonal(matrix: torch.Tensor, n: int, permute: str) -> list[np.ndarray]:
    return [block.detach().numpy() for block in blocks(matrix, n, permute)]


@pytest.mark.parametrize("permute", ["none", "strided"])
def test_starts_are_singular_vectors_of_the_gradient(base: nn.Module, permute: str) -> None:
    plain = copy.deepcopy(base)
    wanted = base(batches()[0][0])
    preprocess_lora_ga(base, config(permute=permute), batches(), loss=loss)
    model = get_peft_model(base, config(permute=permute))
    assert torch.equal(model(batches()[0][0]), wanted)
    for name in TARGETS:
        A, B = model.base_model.model.get_submodule(name).mini_factors("default")
        for i, block in enumerate(diagonal(true_gradient(plain, name), 3, permute)):
            U, _, Vt = np.linalg.svd(block)
            scale = block.shape[0] ** 0.25 / 4
            for found, vector in ((A.weight[i, 0], Vt[0]), (B.weight[i, :, 0], U[:, 1])):
                sign = np.sign(found.detach().numpy() @ vector)
                np.testing.assert_allclose(found.detach().numpy(), sign * scale * vector, atol=1e-5)


@pytest.mark.parametrize("permute", ["none", "strided"])
def test_the_first_step_goes_along_the_best_rank_2r_part_of_the_gradient(base: nn.Module, permute: str) -> None:
    """The paper's theorem: with one small step of gradient descent, each block moves along -G_ii cut to rank 2r."""
    plain = copy.deepcopy(base)
    preprocess_lora_ga(base, config(permute=permute), batches(), loss=loss)
    ours = get_peft_model(base, config(permute=permute))
    usual = get_peft_model(copy.deepcopy(plain), config(permute=permute, init_weights=True))
    cosines: dict[str, list[float]] = {"ours": [], "usual": []}
    for kind, model in (("ours", ours), ("usual", usual)):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(parameters, lr=1e-6)
        mean_loss(model).backward()
        optimizer.step()
        for name in TARGETS:
            layer = model.base_model.model.get_submodule(name)
            update = layer.get_delta_weight("default")
            found = diagonal(update.T if name == "middle" else update, 3, permute)
            for moved, block in zip(found, diagonal(true_gradient(plain, name), 3, permute), strict=True):
                U, S, Vt = np.linalg.svd(block, full_matrices=False)
                best = -(U[:, :2] * S[:2]) @ Vt[:2]
                cosines[kind].append(float((moved * best).sum() / np.linalg.norm(moved) / np.linalg.norm(best)))
    assert min(cosines["ours"]) > 0.999
    assert max(cosines["usual"]) < 0.9


def test_given_gradients_are_as_good_as_batches_and_used_once(base: nn.Module) -> None:
    other = copy.deepcopy(base)
    measured = preprocess_lora_ga(base, config(), batches(), loss=loss)
    returned = preprocess_lora_ga(other, config(), gradients=measured)
    assert returned.keys() == measured.keys() == set(TARGETS)
    first, second = get_peft_model(base, config()), get_peft_model(other, config())
    for name in TARGETS:
        pairs = zip(
            *(model.base_model.model.get_submodule(name).mini_factors("default") for model in (first, second)),
            strict=True,
        )
        assert all(torch.equal(ours.weight, theirs.weight) for ours, theirs in pairs)
    with pytest.raises(MeloraError, match="there is none"):
        get_peft_model(first.unload(), config())


def test_default_targets_of_the_architecture(tiny_bert: nn.Module) -> None:
    ids = torch.arange(12).view(3, 4)
    batch = {"input_ids": ids, "labels": torch.tensor([0, 1, 2])}
    settings = MeloraConfig(n=4, init_weights="lora_ga", task_type="SEQ_CLS")
    gradients = preprocess_lora_ga(tiny_bert, settings, [batch])
    assert {name.rpartition(".")[2] for name in gradients} == {"query", "value"}
    wanted = tiny_bert(**batch).logits
    assert settings.target_modules is None
    torch.testing.assert_close(get_peft_model(tiny_bert, settings)(**batch).logits, wanted)


@pytest.mark.parametrize("trainable", [False, True])
def test_a_saved_adapter_loads_without_gradients(base: nn.Module, tmp_path: Path, trainable: bool) -> None:
    other = copy.deepcopy(base)
    preprocess_lora_ga(base, config(), batches(), loss=loss)
    model = get_peft_model(base, config())
    mean_loss(model).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
    model.save_pretrained(str(tmp_path))
    loaded = PeftModel.from_pretrained(other, str(tmp_path), is_trainable=trainable)
    x = batches()[0][0]
    assert torch.equal(loaded(x), model(x))
    assert any(parameter.requires_grad for parameter in loaded.parameters()) == trainable


def test_without_gradients_it_says_how(base: nn.Module) -> None:
    with pytest.raises(MeloraError, match=r"^first: .* call melora\.preprocess_lora_ga\(model, config, batches\)"):
        get_peft_model(base, config())
    assert type(base.first) is nn.Linear  # type: ignore[comparison-overlap]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.pop("head"), r"gradients has none for head; give one of shape \[6, 48\]"),
        (lambda g: g.update(first=g["first"].T), r"^first: its gradient has shape \[24, 48\] and must have \[48, 24\]"),
        (lambda g: g["head"].fill_(torch.nan), "^head: its gradient holds NaN"),
        (lambda g: g["head"][2:4, 16:32].zero_(), "^head: the gradient is 0 on the block of mini 1"),
    ],
)
def test_bad_gradients_are_refused(
    base: nn.Module, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    gradients = {name: true_gradient(base, name).clone() for name in TARGETS}
    change(gradients)
    with pytest.raises(MeloraError, match=message):
        preprocess_lora_ga(base, config(), gradients=gradients)
    with pytest.raises(MeloraError, match="there is none"):
        get_peft_model(base, config())


def test_a_gradient_that_is_0_on_a_permuted_block_is_refused(base: nn.Module) -> None:
    gradients = {name: true_gradient(base, name).clone() for name in TARGETS}
    gradients["head"][2:4, 16:32] = 0.0
    preprocess_lora_ga(copy.deepcopy(base), config(permute="strided"), gradients=gradients)
    gradients["head"][1::3, 1::3] = 0.0
    with pytest.raises(MeloraError, match=r"^head: the gradient is 0 on the block of mini 1"):
        preprocess_lora_ga(base, config(permute="strided"), gradients=gradients)


def test_bad_arguments_are_refused(base: nn.Module) -> None:
    with pytest.raises(MeloraError, match="the config has init_weights='pissa', which needs no gradients"):
        preprocess_lora_ga(base, config(init_weights="pissa"), batches(), loss=loss)
    with pytest.raises(MeloraError, match="give either batches or gradients"):
        preprocess_lora_ga(base, config())
    with pytest.raises(MeloraError, match="PEFT has no default for model_type"):
        preprocess_lora_ga(base, config(target_modules=None), batches(), loss=loss)
    with pytest.raises(
        MeloraError, match=r"^0: init_weights='lora_ga' takes gradients of linear layers alone, and this is"
    ):
        preprocess_lora_ga(nn.Sequential(nn.Embedding(6, 6)), config(target_modules=["0"]), batches(), loss=loss)
