"""Gradients of weights without autograd's own, held against autograd's own on the same model with its weights free."""

import copy
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import BertConfig, BertForSequenceClassification
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig, MeloraError
from melora.gradients import weight_gradients

IDS = torch.randint(0, 50, (3, 4, 7), generator=torch.Generator().manual_seed(0))
TEXT = [{"input_ids": ids, "labels": ids[:, 0] % 3} for ids in IDS]
LANGUAGE = [{"input_ids": ids, "labels": ids} for ids in IDS]
X = torch.linspace(-1, 1, 5 * 24, dtype=torch.float64).view(5, 24)


def square(model: Any, batch: Any) -> torch.Tensor:
    loss: torch.Tensor = model(batch).square().mean()
    return loss


def by_autograd(model: nn.Module, names: list[str], batches: Any, loss: Any = None) -> dict[str, torch.Tensor]:
    """The same by weight.grad, on a copy whose weights are free; (d_out, d_in)."""
    free = copy.deepcopy(model).requires_grad_(True).eval()
    loss = loss or (lambda model, batch: model(**batch).loss)
    for batch in batches:
        loss(free, batch).backward()
    modules = {name: free.get_submodule(name) for name in names}
    grads = {name: m.weight.grad / len(batches) for name, m in modules.items()}
    return {name: grad.T if isinstance(modules[name], Conv1D) else grad for name, grad in grads.items()}


def linear_layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]


def state(model: nn.Module) -> dict[str, Any]:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "grads": {name: p.grad for name, p in model.named_parameters()},
        "free": {name: p.requires_grad for name, p in model.named_parameters()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: len(m._forward_hooks) + len(m._forward_pre_hooks) for name, m in model.named_modules()},
        "random": torch.get_rng_state(),
        "buffers": {name: value.clone() for name, value in model.named_buffers()},
        "fast": torch.backends.mha.get_fastpath_enabled(),
    }


def same(before: dict[str, Any], after: dict[str, Any]) -> None:
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("checkpointing", [None, False, True])  # off, and by its use_reentrant
@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_it_is_autograds_gradient(
    kind: str, checkpointing: bool | None, frozen: bool, request: pytest.FixtureRequest
) -> None:
    model: Any = request.getfixturevalue(f"tiny_{kind}").double().requires_grad_(not frozen)
    names = linear_layers(model)
    if kind == "gpt2":
        names.remove("lm_head")  # its weight is the embedding's too, of which autograd's gradient has both shares
    batches = TEXT if kind == "bert" else LANGUAGE
    expected = by_autograd(model, names, batches)
    runs: dict[str, int] = {}
    if checkpointing is not None:
        model.activation_checkpointing_enable({"use_reentrant": checkpointing})
        for name in names:
            count = lambda *_, name=name: runs.update({name: runs.get(name, 0) + 1})  # noqa: E731
            model.get_submodule(name).register_forward_pre_hook(count)
    before = state(model.train())
    got = weight_gradients(model, names, batches)
    assert list(got) == names
    same(before, state(model))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-15)
    if checkpointing is not None:  # it was on: layers within it ran twice
        assert max(runs.values()) == 2 * len(batches)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_checkpoint_still_drops_the_inputs(checkpointing: bool, tiny_llama: Any) -> None:
    names = [name for name in linear_layers(tiny_llama) if "down_proj" in name]
    inputs: list[StorageWeakRef] = []
    for name in names:
        keep = lambda _, args: inputs.append(StorageWeakRef(args[0].untyped_storage()))  # noqa: E731
        tiny_llama.get_submodule(name).register_forward_pre_hook(keep)
    if checkpointing:
        tiny_llama.activation_checkpointing_enable({"use_reentrant": False})

    def loss(model: Any, batch: Any) -> torch.Tensor:
        value: torch.Tensor = model(**batch).loss
        assert [ref.expired() for ref in inputs] == [checkpointing] * len(names)
        return value

    weight_gradients(tiny_llama, names, LANGUAGE[:1], loss=loss)


def test_modules_may_be_called_often_and_named_twice() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(24, 24, dtype=torch.float64)
            self.two = self.one
            self.conv = Conv1D(6, 24).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(x=torch.tanh(self.two(input=torch.relu(self.one(x)))))
            return y

    model = Shared().requires_grad_(False)
    got = weight_gradients(model, ["one", "two", "conv"], [X, 2 * X], loss=square)
    expected = by_autograd(model, ["one", "two", "conv"], [X, 2 * X], square)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    assert got["one"].abs().max() > 0


def test_in_place_operations_on_either_side() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(24, 24, dtype=torch.float64)
            self.last = nn.Linear(24, 24, dtype=torch.float64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.first(x).relu_()).mul_(3).tanh_()
            return y

    model = InPlace().requires_grad_(False)
    got = weight_gradients(model, {"a": model.first, "b": model.last}, [X], loss=square)
    expected = by_autograd(model, ["first", "last"], [X], square)
    torch.testing.assert_close(list(got.values()), list(expected.values()), rtol=1e-12, atol=0)


def test_the_fused_path_of_torchs_own_encoder_is_kept_shut() -> None:
    model = nn.TransformerEncoderLayer(24, 2, 32, batch_first=True, dtype=torch.float64).requires_grad_(False).eval()
    got = weight_gradients(model, ["linear1", "linear2"], [X[None]], loss=square)
    torch.testing.assert_close(got, by_autograd(model, ["linear1", "linear2"], [X[None]], square))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside torch.compile
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_model_is_run_as_it_was_written(in_place: bool, make_mlp: Callable[..., nn.Module]) -> None:
    model = make_mlp().double().requires_grad_(False)
    expected = by_autograd(model, ["first", "middle"], [X], square)
    compiled: Any = torch.compile(model, backend="eager")
    if in_place:
        model.compile(backend="eager")
        compiled = model
    compiled(X)
    got = weight_gradients(compiled, {"first": model.first, "middle": model.middle}, [X], loss=square)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)


def test_bfloat16_is_summed_in_fp32(tiny_bert: Any) -> None:
    names = linear_layers(tiny_bert)
    exact = by_autograd(tiny_bert.double(), names, TEXT)
    plain = by_autograd(tiny_bert.bfloat16(), names, TEXT)
    got = weight_gradients(tiny_bert.requires_grad_(False), names, TEXT, device="cpu")
    for name in names:
        assert got[name].dtype == torch.float32
        norm = exact[name].norm()
        assert (got[name] - exact[name]).norm() / norm <= 2 * (plain[name] - exact[name]).norm() / norm + 1e-6


def test_under_autocast_the_products_stay_in_fp32(tiny_bert: Any) -> None:
    names = linear_layers(tiny_bert)
    exact = by_autograd(tiny_bert, names, TEXT)
    with torch.autocast("cpu", torch.bfloat16):
        got = weight_gradients(tiny_bert.requires_grad_(False), names, TEXT)
        plain = by_autograd(tiny_bert, names, TEXT)
    for name in names:
        assert got[name].dtype == torch.float32
        assert (got[name] - exact[name]).norm() <= 2 * (plain[name] - exact[name]).norm() + 1e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base(bits: int) -> None:
    torch.manual_seed(0)
    dense = nn.Linear(64, 128)
    if bits == 4:
        layer: nn.Module = bnb.nn.Linear4bit(64, 128, compute_dtype=torch.float32, quant_type="nf4")
    else:
        layer = bnb.nn.Linear8bitLt(64, 128, has_fp16_weights=False)
    layer.load_state_dict(dense.state_dict())
    model = nn.Sequential(nn.Linear(64, 64), layer.to("cpu"), nn.Tanh(), nn.Linear(128, 6)).requires_grad_(False).eval()
    x = torch.linspace(-1, 1, 5 * 64).view(5, 64)
    model(x.requires_grad_())  # 8 bits: moved into its state
    packed = model[1].weight.data.clone()
    got = weight_gradients(model, ["1", "3"], [x], loss=square)
    # The output does not depend on how the weight is stored: its gradient follows from x and g of the same forward.
    inner = model[0](x).detach()
    model[1].train()  # 8 bits: eval mode would not quantise the input, as training does
    out = model[1](inner).detach().requires_grad_()
    model[1].eval()
    model[3](torch.tanh(out)).square().mean().backward()
    assert out.grad is not None
    torch.testing.assert_close(got["1"], out.grad.T @ inner, rtol=1e-4, atol=1e-6)
    assert torch.equal(model[1].weight.data, packed)
    assert getattr(getattr(model[1].weight, "quant_state", None), "packing_format_for_cpu", False) is False
    assert not model[1].training


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_checkpoints_of_a_quantised_base_change_nothing(bits: int, use_reentrant: bool, tiny_llama: Any) -> None:
    names = [name for name in linear_layers(tiny_llama) if "lm_head" not in name]
    for name in names:
        dense = tiny_llama.get_submodule(name)
        sizes = dense.in_features, dense.out_features
        if bits == 4:
            layer: nn.Module = bnb.nn.Linear4bit(*sizes, bias=False, compute_dtype=torch.float32, quant_type="nf4")
        else:
            layer = bnb.nn.Linear8bitLt(*sizes, bias=False, has_fp16_weights=False)
        layer.load_state_dict(dense.state_dict())
        tiny_llama.set_submodule(name, layer.to("cpu"))
    tiny_llama.train()
    plain = weight_gradients(tiny_llama, names, LANGUAGE)
    tiny_llama.activation_checkpointing_enable({"use_reentrant": use_reentrant})
    torch.testing.assert_close(weight_gradients(tiny_llama, names, LANGUAGE), plain, rtol=0, atol=0)


@pytest.mark.parametrize("config", [MeloraConfig(n=4, r=2, init_weights=False), LoraConfig(init_lora_weights=False)])
def test_an_adapted_layer_gives_its_base_weights_gradient(config: Any, make_mlp: Callable[..., nn.Module]) -> None:
    names = ["first", "head" if isinstance(config, LoraConfig) else "middle"]
    config.target_modules = names
    model = get_peft_model(make_mlp().double(), config, autocast_adapter_dtype=False).base_model.model.double()
    got = weight_gradients(model, names, [X], loss=square)
    expected = by_autograd(model, [f"{name}.base_layer" for name in names], [X], square)
    torch.testing.assert_close(list(got.values()), list(expected.values()), rtol=1e-10, atol=1e-14)


class Moody(nn.Module):
    """Has all that a forward pass may disturb: dropout, batch norm, a counter, random numbers; fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(24, 24, dtype=torch.float64)
        self.rest = nn.Sequential(nn.BatchNorm1d(24, dtype=torch.float64), nn.Dropout(0.5))
        self.register_buffer("calls", torch.zeros(()))
        self.calls: torch.Tensor

    def forward(self, x: torch.Tensor, fail: bool = False) -> torch.Tensor:
        self.calls += 1
        self.seen = torch.rand(3)
        y: torch.Tensor = self.rest(self.linear(x))
        if fail:
            raise KeyError("failed in the middle")
        return y


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_left_as_it_was(fail: bool) -> None:
    model = Moody().train()
    model.rest.eval()
    model.rest[0].weight.requires_grad_(False)
    square(model, X).backward()
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    before = state(model)

    def loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = model(batch, fail=fail).square().mean()
        return value

    if fail:
        with pytest.raises(KeyError, match="failed in the middle"):
            weight_gradients(model, ["linear"], [X], loss=loss)
    else:
        first = weight_gradients(model, ["linear"], [X], loss=loss)
        seen = model.seen
        torch.rand(7)
        before["random"] = torch.get_rng_state()
        torch.testing.assert_close(weight_gradients(model, ["linear"], [X], loss=loss), first, rtol=0, atol=0)
        assert torch.equal(seen, model.seen)  # the seed's numbers, each time
    same(before, state(model))
    same(grads, {name: p.grad for name, p in model.named_parameters()})


def test_gradients_are_taken_under_no_grad_too() -> None:
    model = nn.Sequential(nn.Linear(24, 6, dtype=torch.float64))
    with torch.no_grad():
        got = weight_gradients(model, "0", [X], loss=square)
        assert not torch.is_grad_enabled()
    torch.testing.assert_close(got, by_autograd(model, ["0"], [X], square))


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(24, 6), nn.Linear(24, 6)
        self.words, self.conv = nn.Embedding(5, 24), nn.Conv1d(24, 24, 1)
        self.attention, self.norm = nn.MultiheadAttention(24, 2), nn.LayerNorm(24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.used(x)
        return y


X32 = X.float()


@pytest.mark.parametrize(
    ("names", "batches", "loss", "message"),
    [
        (["used"], [], square, "there are no batches; give at least one"),
        ([], [X32], square, "no module is named"),
        (["usde"], [X32], square, "the model has no module 'usde'; give names as"),
        (["used", "unused"], [X32], square, "no gradient reached unused: the forward pass does not use it"),
        (["words"], [X32], square, "words is a Embedding, and gradients are taken of linear layers alone; leave it"),
        (["conv"], [X32], square, "conv is a Conv1d, and"),
        (["attention"], [X32], square, "attention is a MultiheadAttention, and"),
        (["norm"], [X32], square, "Target module norm is a LayerNorm, which is not supported"),
        (["used"], [X32, X32 * float("nan")], square, "batch 2: the loss is nan; it must be one finite number"),
        (["used"], [X32], lambda model, x: model(x), r"batch 1: the loss is of shape \[5, 6\]"),
        (["used"], [X32], lambda model, x: None, "batch 1: the model's output has no loss; put labels"),
        (["used"], [X32], lambda model, x: model(x).detach().mean(), "no gradient reached used"),
        # A finite loss with a gradient that is not: the square root's at 0.
        (
            ["used"],
            [X32, X32],
            lambda model, x: (model(x) * 0).sqrt().sum(),
            "used: the gradient of its weight is not finite in batch 1",
        ),
    ],
)
def test_what_is_refused(names: list[str], batches: Any, loss: Any, message: str) -> None:
    model = Several()
    before = state(model)
    with pytest.raises(MeloraError, match=message) as caught:
        weight_gradients(model, names, batches, loss=loss)
    assert "\n" not in str(caught.value)
    same(before, state(model))


def test_a_model_without_weights_is_refused() -> None:
    with torch.device("meta"):
        model = BertForSequenceClassification(BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(MeloraError, match=r"query: has no weights \(they are on the meta device\)"):
        weight_gradients(model, ["bert.encoder.layer.0.attention.self.query"], TEXT)


def test_a_forward_pass_without_labels_is_refused(tiny_bert: Any) -> None:
    with pytest.raises(MeloraError, match="batch 1: the model's output has no loss; put labels into the batches"):
        weight_gradients(tiny_bert, ["classifier"], [{"input_ids": IDS[0]}])
