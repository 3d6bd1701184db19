"""Rows of one batch through different adapters: forward, generate, beams, encoder-decoders, heads, bad names."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftMixedModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.layer import MeloraLayer
from melora.mixed_batch import _layers

from .conftest import small_bart, small_t5

NAMES = ["__base__", "one", "two", "two", "__base__", "one"]
IDS = torch.tensor([[3, 4, 5, 6], [7, 8, 9, 2], [3, 4, 5, 6], [9, 9, 4, 3], [7, 8, 9, 2], [5, 4, 3, 6]])


def two_adapters(base: nn.Module, *targets: str, **kwargs: Any) -> Any:
    """Adapters large enough to change what is generated; the second has another n and r."""
    config = {"target_modules": list(targets), "init_weights": False, "lora_alpha": 64, **kwargs}
    torch.manual_seed(1)
    model = get_peft_model(base, MeloraConfig(r=2, n=4, **config), adapter_name="one")
    model.add_adapter("two", MeloraConfig(r=3, n=2, **config))
    return model.eval()


def by_adapter(model: Any, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The oracle: the whole batch with each adapter active, and of each the rows that NAMES gives it.

    Not row by row: a beam search ends when all rows of its batch have, so that its rows differ from those rows alone.
    """
    with model.disable_adapter():
        outputs = {"__base__": call()}
    for name in ("one", "two"):
        model.set_adapter(name)
        outputs[name] = call()
    return torch.stack([outputs[name][i] for i, name in enumerate(NAMES)])


@torch.no_grad()
def test_forward(tiny_llama: Any) -> None:
    model = two_adapters(tiny_llama, "q_proj", "down_proj")
    expected = by_adapter(model, lambda: model(IDS).logits)
    torch.testing.assert_close(model(IDS, adapter_names=NAMES).logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("leading", [(), (3,)])
def test_many_adapters_of_few_shapes_are_grouped_and_differentiated(leading: tuple[int, ...]) -> None:
    shapes = {"p": (2, 4), "q": (2, 4), "s": (3, 2), "t": (2, 4), "u": (3, 2), "v": (1, 8)}
    model: Any = None
    for name, (r, n) in shapes.items():
        config = MeloraConfig(r=r, n=n, target_modules=["0"], init_weights=False, lora_alpha=ord(name) - 96)
        if model is None:
            model = get_peft_model(nn.Sequential(nn.Linear(8, 16)), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
    layer = model.eval().double().base_model.model[0]
    for factor in layer.parameters():
        factor.requires_grad_()
    names = ["q", "p", "__base__", "s", "v", "q", "u", "t", "q"]
    x = torch.randn(len(names), *leading, 8).double().requires_grad_()
    rows = []
    for row, name in zip(x, names, strict=True):
        y = layer.base_layer(row)
        rows.append(y if name == "__base__" else y + layer.adapter_output(name, row))
    expected = torch.stack(rows)
    y = layer(x, adapter_names=names)
    torch.testing.assert_close(y, expected)
    leaves = [x, *layer.parameters()]
    grad = torch.randn_like(y)
    for got, want in zip(*(torch.autograd.grad(value, leaves, grad) for value in (y, expected)), strict=True):
        torch.testing.assert_close(got, want)


@torch.no_grad()
@pytest.mark.parametrize("hooked", [False, True])
def test_rows_are_added_into_the_bases_output_where_nobody_else_holds_it(hooked: bool) -> None:
    model = two_adapters(nn.Sequential(nn.Linear(8, 16)), "0")
    layer = model.base_model.model[0]
    x, kept = torch.randn(len(NAMES), 8), []
    if hooked:
        layer.base_layer.register_forward_hook(lambda _module, _args, output: kept.append(output))
    expected = by_adapter(model, lambda: model(x))
    before = layer.base_layer(x)
    kept.clear()
    torch.testing.assert_close(model(x, adapter_names=NAMES), expected)
    assert all(torch.equal(output, before) for output in kept)
    assert len(kept) == hooked


@torch.no_grad()
def test_base_alone_is_the_base(tiny_llama: Any) -> None:
    model = two_adapters(tiny_llama, "q_proj")
    with model.disable_adapter():
        expected = model(IDS).logits
    assert torch.equal(model(IDS, adapter_names=["__base__"] * 6).logits, expected)


def generated(model: Any, ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    """What is generated in fp64, where no tie between tokens hangs on the batch size; padded to 14 columns."""
    tokens = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False, pad_token_id=0, **kwargs)
    return torch.nn.functional.pad(tokens, (0, 14 - tokens.shape[1]))


SEQ2SEQ: dict[str, Callable[[], nn.Module]] = {"t5": small_t5, "bart": lambda: small_bart(forced_eos_token_id=None)}


@torch.no_grad()
@pytest.mark.parametrize("num_beams", [1, 3])
@pytest.mark.parametrize("name", ["llama", *SEQ2SEQ])
def test_generate(name: str, num_beams: int, tiny_llama: Any) -> None:
    torch.manual_seed(0)
    base = tiny_llama if name == "llama" else SEQ2SEQ[name]()
    model = two_adapters(base, *(["q", "v"] if name == "t5" else ["q_proj", "v_proj"]))
    model = model.double()
    expected = by_adapter(model, lambda: generated(model, IDS, num_beams=num_beams))
    assert not torch.equal(expected[0], expected[2])  # rows 0 and 2 are one prompt: the adapters matter
    assert torch.equal(generated(model, IDS, num_beams=num_beams, adapter_names=NAMES), expected)


@torch.no_grad()
def test_heads_trained_whole_are_mixed_too(tiny_bert: Any) -> None:
    model = two_adapters(tiny_bert, "query", modules_to_save=["classifier"])
    for name in ("one", "two"):
        nn.init.normal_(model.base_model.model.classifier.modules_to_save[name].weight)
    expected = by_adapter(model, lambda: model(IDS).logits)
    torch.testing.assert_close(model(IDS, adapter_names=NAMES).logits, expected, atol=1e-4, rtol=1e-4)


def test_what_is_refused(tiny_llama: Any) -> None:
    model = two_adapters(tiny_llama, "q_proj")
    with pytest.raises(MeloraError, match=r"non-existing adapter\(s\): four, three; loaded: one, two$"):
        model(IDS, adapter_names=["one", "three", "four", "two", "__base__", "one"])
    with pytest.raises(MeloraError, match="training mode"):
        model.train()(IDS, adapter_names=NAMES)
    model.eval()
    with pytest.raises(MeloraError, match="should be the same as the number of inputs, but got 2 and 6"):
        model(IDS, adapter_names=["one", "two"])
    model.merge_adapter(["one"])
    with pytest.raises(MeloraError, match="merged adapters, please call `unmerge_adapter` first"):
        model(IDS, adapter_names=NAMES)


def test_no_hook_stays_behind(tiny_llama: Any) -> None:
    model = two_adapters(tiny_llama, "q_proj")
    with pytest.raises(MeloraError):
        model(IDS, adapter_names=["one"])
    model(IDS, adapter_names=NAMES)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_different_methods_in_one_model_are_refused_by_peft(make_mlp: Callable[..., nn.Module]) -> None:
    """PeftMixedModel takes a closed list of types, which no plug-in can join."""
    config = MeloraConfig(n=2, target_modules=["first"])
    for make in (lambda: PeftMixedModel(make_mlp(), config), lambda: get_peft_model(make_mlp(), config, mixed=True)):
        with pytest.raises(ValueError, match="'MELORA' is not compatible with the `PeftMixedModel`"):
            make()


def test_modules_that_share_or_hold_each_other_are_told_once() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), MeloraConfig(r=1, n=2, target_modules=["0"]))
    (adapted,) = (module for module in model.modules() if isinstance(module, MeloraLayer))
    circle = nn.Sequential(adapted, nn.Sequential(adapted))
    circle[1].above = circle
    assert list(_layers(circle)) == [adapted]
