"""Minis on permuted channels (permute="strided", "correlation") through all that a linear layer's adapter does."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from peft.utils import set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn

from melora import MeloraConfig, MeloraError, MeloraLayer, inspect_adapter, load_adapter
from melora.conversion import export_lora
from melora.permutation import placed, strided

from .test_initial_layers import step
from .test_layer_types import CASES, Case, layers
from .test_mixing import CONV1D, LINEAR, NEAR, SETTINGS, update_by_loops

MIXINGS = {"none": {"n": 4, "r": 2}, **SETTINGS}
STARTED: dict[str, Any] = {"n": 4, "r": 1, "permute": "strided", "init_weights": "pissa"}


@pytest.fixture(params=["strided", "correlation"])
def permute(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=MIXINGS)
def mixed(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MIXINGS[request.param]


@pytest.fixture(params=[LINEAR, CONV1D], ids=["Linear", "Conv1D"])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param  # type: ignore[no-any-return]


def ordered(model: Any, seed: int = 5, name: str = "default") -> Any:
    """The model with a random order in place of a calibrated one, where one is called for."""
    generator = torch.Generator().manual_seed(seed)
    for layer in layers(model).values():
        if layer.permute[name] == "correlation":
            sizes = layer.in_features, layer.out_features
            layer.set_order(name, torch.cat([torch.randperm(size, generator=generator) for size in sizes]))
    return model


def orders(layer: MeloraLayer, name: str = "default") -> tuple[torch.Tensor, torch.Tensor]:
    order = layer.order(name)
    if order is None:
        return strided(layer.in_features, layer.n[name]), strided(layer.out_features, layer.n[name])
    of_in, of_out = order.long().split([layer.in_features, layer.out_features])
    return of_in, of_out


def update(layer: MeloraLayer) -> torch.Tensor:
    """dW entry by entry: place (p, q) of the matrix of blocks is channel (order_out[p], order_in[q])."""
    in_places = update_by_loops(layer) if layer.mixing["default"] != "none" else blocks(layer)
    result, (of_in, of_out) = torch.zeros_like(in_places), orders(layer)
    for p in range(len(of_out)):
        for q in range(len(of_in)):
            result[of_out[p], of_in[q]] = in_places[p, q]
    return result


def blocks(layer: MeloraLayer) -> torch.Tensor:
    A, B = layer.factors("default")
    dense: torch.Tensor = torch.block_diag(*(b @ a for a, b in zip(A, B, strict=True)))
    return dense * layer.scaling["default"]


def test_the_strided_order_is_what_it_says() -> None:
    assert strided(6, 2).tolist() == [0, 2, 4, 1, 3, 5]


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 5), width=st.integers(1, 5), columns=st.integers(1, 3), seed=st.integers(0, 99))
def test_rows_go_to_their_channels(n: int, width: int, columns: int, seed: int) -> None:
    torch.manual_seed(seed)
    t = torch.randn(n * width, columns)
    torch.testing.assert_close(placed(t, n, None), placed(t, n, strided(n * width, n)), rtol=0, atol=0)
    order = torch.randperm(n * width)
    torch.testing.assert_close(placed(t, n, order)[order], t, rtol=0, atol=0)


def test_the_update_is_that_of_minis_on_permuted_channels(case: Case, permute: str, mixed: dict[str, Any]) -> None:
    model, base, x = ordered(case.model(permute=permute, **mixed)), case.base(), case.inputs()
    (layer,) = layers(model).values()
    dense = update(layer)
    torch.testing.assert_close(model(x), base(x) + x @ dense.T, **NEAR)
    delta = layer.get_delta_weight("default")
    torch.testing.assert_close(delta.T if case is CONV1D else delta, dense, **NEAR)
    if mixed.get("mixing", "none") == "none":
        plain = case.model(**mixed)
        of_in, of_out = orders(layer)
        y = base(x) - base(torch.zeros_like(x))
        y[..., of_out] = (plain(x[..., of_in]) - base(x[..., of_in])).clone()
        torch.testing.assert_close(model(x) - base(x), y, **NEAR)


def test_gradients_reach_every_factor(permute: str, mixed: dict[str, Any]) -> None:
    model, x = ordered(LINEAR.model(permute=permute, **mixed)), LINEAR.inputs().requires_grad_()
    (layer,) = layers(model).values()
    core = layer.core("default")
    leaves = [x, *layer.factors("default"), *([] if core is None else [core])]
    weights = torch.randn(3, 5, 16, dtype=torch.float64)
    got = torch.autograd.grad((model(x) * weights).sum(), leaves)
    wanted = torch.autograd.grad(((LINEAR.base()(x) + x @ update(layer).T) * weights).sum(), leaves)
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, **NEAR)


def test_merge_save_load_and_export(case: Case, permute: str, mixed: dict[str, Any], tmp_path: Path) -> None:
    model, x = ordered(case.model(permute=permute, **mixed)), case.inputs()
    expected = model(x)
    model.save_pretrained(tmp_path / "a")
    assert any("melora_P" in key for key in load_file(tmp_path / "a" / "adapter_model.safetensors")) == (
        permute == "correlation"
    )
    for load in (load_adapter, PeftModel.from_pretrained):
        torch.testing.assert_close(load(case.base(), str(tmp_path / "a"))(x), expected, **NEAR)
    meta = PeftModel.from_pretrained(case.base(), str(tmp_path / "a"), low_cpu_mem_usage=True)
    torch.testing.assert_close(meta(x), expected, **NEAR)
    assert inspect_adapter(tmp_path / "a").parameters == model.get_nb_trainable_parameters()[0]
    export = export_lora(tmp_path / "a", tmp_path / "lora")
    assert export.rank == 8
    torch.testing.assert_close(PeftModel.from_pretrained(case.base(), str(tmp_path / "lora"))(x), expected, **NEAR)
    for safe_merge in (True, False):
        model.merge_adapter(safe_merge=safe_merge)
        torch.testing.assert_close(model(x), expected, **NEAR)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), expected, **NEAR)


def test_mixed_batches_and_several_adapters(permute: str, mixed: dict[str, Any]) -> None:
    model, x = ordered(LINEAR.model(permute=permute, **mixed)), LINEAR.inputs()
    model.add_adapter("second", model.peft_config["default"])
    ordered(model, 6, "second")
    model.add_adapter("plain", MeloraConfig(n=4, r=2, init_weights=False, target_modules=["layer"]))
    names = ["second", "plain", "default"]
    y = model(x, adapter_names=names)
    for row, adapter in enumerate(names):
        model.set_adapter(adapter)
        torch.testing.assert_close(y[row], model(x)[row], **NEAR)
    model.base_model.set_adapter(names)
    y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), y, **NEAR)


def test_minis_that_start_from_permuted_blocks_do_all_the_same(case: Case, tmp_path: Path) -> None:
    model, base, x = case.model(**STARTED), case.base(), case.inputs()
    step(model)
    (layer,) = layers(model).values()
    dense, expected = update(layer), model(x)
    torch.testing.assert_close(expected, base(x) + x @ dense.T, **NEAR)
    model.save_pretrained(tmp_path / "a")
    plain = tmp_path / "plain"
    model.save_pretrained(plain, path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    for folder in (tmp_path / "a", plain):
        for load in (load_adapter, PeftModel.from_pretrained):
            torch.testing.assert_close(load(case.base(), str(folder))(x), expected, **NEAR)
    assert inspect_adapter(tmp_path / "a").parameters == model.get_nb_trainable_parameters()[0]
    assert export_lora(tmp_path / "a", tmp_path / "lora").rank == 8
    torch.testing.assert_close(PeftModel.from_pretrained(case.base(), str(tmp_path / "lora"))(x), expected, **NEAR)
    swapped = case.model(**STARTED)
    hotswap_adapter(swapped, str(tmp_path / "a"), adapter_name="default")
    torch.testing.assert_close(swapped(x), expected, **NEAR)
    for safe_merge in (True, False):
        model.merge_adapter(safe_merge=safe_merge)
        torch.testing.assert_close(model(x), expected, **NEAR)
        model.unmerge_adapter()
    model.load_adapter(str(tmp_path / "a"), "second")
    model.add_weighted_adapter(["default", "second"], [0.5, 2.0], "sum", combination_type="cat")
    model.set_adapter("sum")
    torch.testing.assert_close(model(x), base(x) + 2.5 * (expected - base(x)), **NEAR)


def test_a_mixed_batch_of_minis_that_start_from_permuted_blocks() -> None:
    model, x = LINEAR.model(**STARTED), LINEAR.inputs()
    step(model)
    model.add_adapter("plain", MeloraConfig(n=4, r=2, init_weights=False, target_modules=["layer"]))
    names = ["default", "__base__", "plain"]
    y = model(x, adapter_names=names)
    torch.testing.assert_close(y[0], model(x)[0], **NEAR)
    torch.testing.assert_close(y[1], LINEAR.base()(x)[1], **NEAR)
    model.set_adapter("plain")
    torch.testing.assert_close(y[2], model(x)[2], **NEAR)


def compiled(model: Any) -> Any:
    torch.compiler.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


def test_compiled_and_in_16_bits(permute: str, mixed: dict[str, Any]) -> None:
    model, x = ordered(LINEAR.model(permute=permute, **mixed)), LINEAR.inputs()
    y = compiled(model)(x)  # before any eager call, which could leave behind what compiled code can't find out
    expected = model(x)
    torch.testing.assert_close(y, expected)
    low = model.to(torch.bfloat16)
    torch.testing.assert_close(low(x.bfloat16()).double(), expected, rtol=0.1, atol=0.1)
    low.merge_adapter()
    torch.testing.assert_close(low(x.bfloat16()).double(), expected, rtol=0.1, atol=0.1)


def loaded_by_hand(folder: Path) -> Any:
    fresh = LINEAR.model(permute="correlation", n=4)
    set_peft_model_state_dict(fresh, load_file(folder / "adapter_model.safetensors"))
    return fresh


def hotswapped(folder: Path, old: Any) -> Any:
    hotswap_adapter(old, str(folder), adapter_name="default")
    return old


WAYS: dict[str, Callable[[Any, Path], Any]] = {
    "set": lambda model, folder: model,
    "copied": lambda model, folder: copy.deepcopy(model),
    "pickled": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "load_adapter": lambda model, folder: load_adapter(LINEAR.base(), folder),
    "from_pretrained": lambda model, folder: PeftModel.from_pretrained(LINEAR.base(), str(folder)),
    "from the meta device": lambda model, folder: PeftModel.from_pretrained(
        LINEAR.base(), str(folder), low_cpu_mem_usage=True
    ),
    "set_peft_model_state_dict": lambda model, folder: loaded_by_hand(folder),
    "hotswapped for none": lambda model, folder: hotswapped(folder, LINEAR.model(permute="correlation", n=4)),
    "hotswapped": lambda model, folder: hotswapped(folder, ordered(LINEAR.model(permute="correlation", n=4), 9)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dynamic", [False, True])
def test_an_order_is_known_before_the_first_call(way: str, dynamic: bool, tmp_path: Path) -> None:
    """A compiled forward pass can't ask a tensor whether it holds an order."""
    model, x = ordered(LINEAR.model(permute="correlation", n=4)), LINEAR.inputs()
    model.save_pretrained(tmp_path)
    got = WAYS[way](model, tmp_path).eval()
    torch.compiler.reset()
    y = torch.compile(got, backend="eager", fullgraph=True, dynamic=dynamic)(x)
    torch.testing.assert_close(y, model(x), **NEAR)
    assert got.base_model.model.layer.is_ordered("default")


def test_load_state_dict_says_whether_there_is_an_order() -> None:
    model, fresh = ordered(LINEAR.model(permute="correlation", n=4)), LINEAR.model(permute="correlation", n=4)
    none, x = {k: v.clone() for k, v in fresh.state_dict().items()}, LINEAR.inputs()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(compiled(fresh)(x), model(x), **NEAR)
    fresh.load_state_dict(none)
    assert not fresh.base_model.model.layer.is_ordered("default")
    with pytest.raises(MeloraError, match="needs an order"):
        fresh(x)
    fresh.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(fresh(x), model(x), **NEAR)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_no_order_in_compiled_code_is_told(fullgraph: bool) -> None:
    torch.compiler.reset()
    model = torch.compile(LINEAR.model(permute="correlation", n=4), backend="eager", fullgraph=fullgraph)
    error = Exception if fullgraph else MeloraError  # without a way out of the graph, PyTorch's own error around it
    with pytest.raises(error, match=r"adapter 'default': permute='correlation' needs an order .* melora.calibrate"):
        model(LINEAR.inputs())


def test_weighted_adapters() -> None:
    model, x = LINEAR.model(permute="strided", n=4, r=2), LINEAR.inputs()
    model.add_adapter("second", model.peft_config["default"])
    base, shares = LINEAR.base()(x), []
    for name in ("default", "second"):
        model.set_adapter(name)
        shares.append(model(x) - base)
    model.add_weighted_adapter(["default", "second"], [0.5, -2.0], "both", "cat")
    model.set_adapter("both")
    torch.testing.assert_close(model(x) - base, 0.5 * shares[0] - 2.0 * shares[1], **NEAR)
    with pytest.raises(MeloraError, match="svd does not take adapters with permute=strided: convert each"):
        model.add_weighted_adapter(["default", "second"], [1.0, 1.0], "third", "svd")


def test_what_can_t_be_permuted_is_refused(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.raises(MeloraError, match="permute must be one of none, strided, correlation, got 'random'"):
        MeloraConfig(permute="random")  # type: ignore[arg-type]
    for name in ("embedding", "conv2d", "attention"):
        with pytest.raises(MeloraError, match=r"layer: permute='strided' is for linear layers, this is a "):
            CASES[name].model(n=2, permute="strided")
    with pytest.raises(MeloraError, match=r"layer.up: permute='strided' is for linear layers"):
        CASES["experts"].model(n=2, permute="strided")
    model = get_peft_model(make_mlp(), MeloraConfig(n=2, permute="correlation", target_modules=["first"]))
    for use in (lambda: model(torch.ones(2, 24)), model.merge_adapter):
        with pytest.raises(MeloraError, match=r"permute='correlation' needs an order .* melora.calibrate"):
            use()


def test_a_damaged_order_is_refused(tmp_path: Path) -> None:
    ordered(LINEAR.model(permute="correlation", n=4)).save_pretrained(tmp_path)
    file, key = tmp_path / "adapter_model.safetensors", "base_model.model.layer.melora_P.weight"
    tensors = load_file(file)
    for bad in (torch.zeros_like(tensors[key]), tensors[key] + 1, tensors[key] - 1000):
        save_file({**tensors, key: bad}, file)
        with pytest.raises(MeloraError, match="order"):
            PeftModel.from_pretrained(LINEAR.base(), str(tmp_path))(LINEAR.inputs())
        with pytest.raises(MeloraError, match="the order of its input channels does not name each of them once"):
            export_lora(tmp_path, tmp_path / "lora")
    save_file({**tensors, key: tensors[key][:-1].clone()}, file)
    with pytest.raises(MeloraError, match=r"melora_P.weight has shape \[23\]"):
        load_adapter(LINEAR.base(), tmp_path)


def test_a_new_adapter_of_an_old_name_needs_an_order_of_its_own() -> None:
    model, x = ordered(LINEAR.model(permute="correlation", n=4)), LINEAR.inputs()
    model(x)
    config = model.peft_config["default"]
    model.add_adapter("other", config)
    model.set_adapter("other")
    model.delete_adapter("default")
    model.add_adapter("default", config)
    model.set_adapter("default")
    with pytest.raises(MeloraError, match="needs an order"):
        model(x)


def test_hotswap_brings_the_order(tmp_path: Path) -> None:
    model, x = ordered(LINEAR.model(permute="correlation", n=4)), LINEAR.inputs()
    other = ordered(LINEAR.model(permute="correlation", n=4), seed=9)
    model(x)
    other.save_pretrained(tmp_path)
    hotswap_adapter(model, str(tmp_path), adapter_name="default")
    torch.testing.assert_close(model(x), other(x), **NEAR)
