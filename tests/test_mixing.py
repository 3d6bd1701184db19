"""Ranks mixed across blocks (mixing="learned", "shuffle") in every layer type and every feature that MELoRA has."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import GraloraConfig, PeftModel, get_peft_model
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from melora import MeloraConfig, MeloraError, load_adapter
from melora.analysis import inspect_adapter
from melora.conversion import export_lora
from melora.layer import MeloraLayer
from melora.permutation import strided

from .test_layer_types import BY_ROW, CASES, LAYER, Case, Holder, _x, half, layers

LINEAR = Case(lambda: nn.Linear(8, 16), _x(3, 5, 8), lambda n: 2 * (8 + 16), LAYER)
CONV1D = Case(lambda: Conv1D(16, 8), _x(3, 5, 8), lambda n: 2 * (8 + 16), {**LAYER, "fan_in_fan_out": True})
EVERY = {"linear": LINEAR, "Conv1D": CONV1D, **CASES}
NEAR = {"rtol": 1e-11, "atol": 1e-11}
SETTINGS = {"learned": {"n": 4, "r": 2, "mixing": "learned"}, "shuffle": {"n": 2, "r": 4, "mixing": "shuffle"}}


@pytest.fixture(params=EVERY)
def case(request: pytest.FixtureRequest) -> Case:
    return EVERY[request.param]


@pytest.fixture(params=SETTINGS)
def mixed(request: pytest.FixtureRequest) -> dict[str, Any]:
    return SETTINGS[request.param]


def update_by_loops(layer: MeloraLayer) -> torch.Tensor:
    """dW of a linear layer, block by block and rank by rank."""
    return dense_by_loops(*layer.factors("default"), layer.core("default")) * layer.scaling["default"]


def dense_by_loops(A: torch.Tensor, B: torch.Tensor, core: torch.Tensor | None) -> torch.Tensor:
    """dW / s of A (n, r, d_in / n) and B (n, d_out / n, r), with a core or else shuffled."""
    (n, r, _), rows = A.shape, []
    for i in range(n):
        blocks = []
        for j in range(n):
            block = torch.zeros(B.shape[1], A.shape[2], dtype=A.dtype)
            if core is not None:
                for k in range(r):
                    block += core[k, i, j] * torch.outer(B[i, :, k], A[j, k])
            else:
                q = r // n
                for p in range(q):
                    block += torch.outer(B[i, :, j * q + p], A[j, i * q + p])
            blocks.append(block)
        rows.append(torch.cat(blocks, 1))
    return torch.cat(rows)


@pytest.mark.parametrize("kind", ["linear", "Conv1D"])
def test_a_linear_layer_adds_what_the_loops_do(kind: str, mixed: dict[str, Any]) -> None:
    case = EVERY[kind]
    model, x = case.model(**mixed), case.inputs()
    (layer,) = layers(model).values()
    update = update_by_loops(layer)
    torch.testing.assert_close(layer.get_delta_weight("default"), update.T if case is CONV1D else update)
    torch.testing.assert_close(model(x), case.base()(x) + x @ update.T)
    assert torch.linalg.matrix_rank(update) == 8


def test_merge_and_unmerge(case: Case, mixed: dict[str, Any]) -> None:
    model, base, x = case.model(**mixed), case.base(), case.inputs()
    expected, plain = model(x), base(x)
    assert not torch.allclose(expected, plain)
    for safe_merge in (True, False):
        model.merge_adapter(safe_merge=safe_merge)
        torch.testing.assert_close(model(x), expected, **NEAR)
        model.unmerge_adapter()
        torch.testing.assert_close(model(x), expected, **NEAR)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), plain, **NEAR)
    torch.testing.assert_close(model.merge_and_unload()(x), expected, **NEAR)


def test_a_merge_that_fails_leaves_all_as_it_was(case: Case, mixed: dict[str, Any]) -> None:
    model, x = case.model(**mixed), case.inputs()
    model.add_adapter("broken", model.peft_config["default"])
    for layer in layers(model).values():
        layer.factors("broken")[1].data.fill_(float("nan"))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(MeloraError, match="NaNs detected"):
        model.merge_adapter(adapter_names=["default", "broken"], safe_merge=True)
    torch.testing.assert_close(dict(model.state_dict()), before, equal_nan=True, **NEAR)
    assert torch.isfinite(model(x)).all()


def test_every_factor_gets_the_gradient_of_the_dense_update(case: Case, mixed: dict[str, Any]) -> None:
    """Against autograd through the base with W + dW in place of W."""
    model, x = case.model(**mixed), case.inputs()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert any("melora_C" in name for name in trained) == (mixed["mixing"] == "learned")
    model(x).square().sum().backward()
    grads = {name: p.grad.clone() for name, p in trained.items()}
    steps = {name: torch.randn_like(p) * 1e-6 for name, p in trained.items()}

    def merged_loss(sign: float) -> float:
        with torch.no_grad():
            for name, p in trained.items():
                p.add_(steps[name], alpha=sign)
            model.merge_adapter()
            loss = float(model(x).square().sum())
            model.unmerge_adapter()
            for name, p in trained.items():
                p.sub_(steps[name], alpha=sign)
        return loss

    slope = sum(float((grads[name] * steps[name]).sum()) for name in trained)
    assert (merged_loss(1.0) - merged_loss(-1.0)) / 2 == pytest.approx(slope, rel=1e-4, abs=1e-12)


def test_a_learned_core_starts_as_plain_melora(case: Case) -> None:
    x = case.inputs()
    plain, mixing = (case.model(n=4, r=2, init_weights=True, mixing=m) for m in ("none", "learned"))
    (core,) = {layer.core("default").shape[-3:] for layer in layers(mixing).values()}  # type: ignore[union-attr]
    assert core == (2, 4, 4)
    for (name, layer), other in zip(layers(plain).items(), layers(mixing).values(), strict=True):
        first, second = layer.factors("default"), other.factors("default")
        zero = 0 if "embedding" in layer.adapter_layer_names[0] else 1
        with torch.no_grad():
            first[zero].normal_(generator=torch.Generator().manual_seed(len(name)))
            for mine, theirs in zip(second, first, strict=True):
                mine.copy_(theirs)
    torch.testing.assert_close(mixing(x), plain(x), **NEAR)
    extra = mixing.get_nb_trainable_parameters()[0] - plain.get_nb_trainable_parameters()[0]
    assert extra == sum(layer.core("default").numel() for layer in layers(mixing).values())  # type: ignore[union-attr]


def test_save_and_load(case: Case, mixed: dict[str, Any], tmp_path: Path) -> None:
    model, x = case.model(**mixed), case.inputs()
    expected = model(x)
    model.save_pretrained(tmp_path / "a")
    for load in (load_adapter, PeftModel.from_pretrained):
        torch.testing.assert_close(load(case.base(), str(tmp_path / "a"))(x), expected, **NEAR)
    report = inspect_adapter(tmp_path / "a")
    assert report.parameters == model.get_nb_trainable_parameters()[0]
    for layer in report.layers:
        assert layer.rank <= layer.equivalent_rank


def test_the_export_is_a_lora_of_the_same_outputs(
    case: Case, mixed: dict[str, Any], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, x = case.model(**mixed), case.inputs()
    model.save_pretrained(tmp_path / "melora")
    export = export_lora(tmp_path / "melora", tmp_path / "lora")
    assert export.rank == 8
    lora = PeftModel.from_pretrained(case.base(), str(tmp_path / "lora")).eval()
    for name, layer in layers(model).items():
        delta = lora.get_submodule(name).get_delta_weight("default")
        torch.testing.assert_close(delta, layer.get_delta_weight("default"), **NEAR)
    if case is EVERY["attention"]:
        half(lora.base_model.model.layer.base_layer.out_proj.lora_B["default"].weight)
    torch.testing.assert_close(lora(x), model(x), **NEAR)
    recwarn.clear()  # PEFT's remarks on LoRA for these layers


@pytest.mark.parametrize("name", ["linear", "Conv1D", *BY_ROW])
def test_mixed_batches(name: str, mixed: dict[str, Any]) -> None:
    case = EVERY[name]
    model, x = case.model(**mixed), case.inputs()
    model.add_adapter("second", model.peft_config["default"])
    model.add_adapter("plain", MeloraConfig(n=4, r=2, init_weights=False, target_modules=["layer"]))
    names = ["second", "__base__" if name in BY_ROW else "plain", "default"]
    y = model(x, adapter_names=names)
    for row, adapter in enumerate(names):
        if adapter == "__base__":
            expected = case.base()(x)
        else:
            model.set_adapter(adapter)
            expected = model(x)
        torch.testing.assert_close(y[row], expected[row], **NEAR)


@pytest.mark.parametrize("first", [*SETTINGS, "none"])
@pytest.mark.parametrize("second", [*SETTINGS, "none"])
def test_two_active_adapters_of_different_mixing(case: Case, first: str, second: str) -> None:
    settings = {**SETTINGS, "none": {"n": 4, "r": 2}}
    model, base, x = case.model(**settings[first]), case.base(), case.inputs()
    model.add_adapter("second", MeloraConfig(init_weights=False, **settings[second], **case.targets))
    assert not any(p.requires_grad for key, p in model.named_parameters() if "second" in key)
    expected = []
    for name, mixing in (("default", first), ("second", second)):
        model.set_adapter(name)
        for layer in layers(model).values():
            assert (layer.core(name) is not None) == (mixing == "learned")
        expected.append(model(x))
    assert not torch.allclose(*expected)
    model.base_model.set_adapter(["default", "second"])
    y = model(x)
    model.merge_adapter()
    torch.testing.assert_close(model(x), y, **NEAR)
    model.unmerge_adapter()
    model.set_adapter("default")
    model.delete_adapter("second")
    torch.testing.assert_close(model(x), expected[0], **NEAR)
    assert not torch.allclose(y, base(x))


@pytest.mark.parametrize(("k", "r"), [(2, 4), (4, 8), (4, 4)])
def test_the_shuffle_is_peft_s_gralora(k: int, r: int) -> None:
    """Same numbers, same dW, same outputs, same gradients."""
    ours = LINEAR.model(n=k, r=r, mixing="shuffle", lora_alpha=3)
    config = GraloraConfig(r=r, gralora_k=k, alpha=3, target_modules=["layer"], init_weights=False)
    theirs = get_peft_model(LINEAR.base(), config).eval()
    (layer,) = layers(ours).values()
    A, B = layer.factors("default")
    gralora = theirs.get_submodule("base_model.model.layer")
    gralora.gralora_A["default"].data = A.detach().transpose(1, 2).clone()
    gralora.gralora_B["default"].data = B.detach().transpose(1, 2).clone()
    torch.testing.assert_close(layer.get_delta_weight("default"), gralora.get_delta_weight("default"))
    x = LINEAR.inputs()
    torch.testing.assert_close(ours(x), theirs(x))
    for model in (ours, theirs):
        model(x).square().sum().backward()
    torch.testing.assert_close(A.grad.transpose(1, 2), gralora.gralora_A["default"].grad)
    torch.testing.assert_close(B.grad.transpose(1, 2), gralora.gralora_B["default"].grad)


def test_hotswap(mixed: dict[str, Any], tmp_path: Path) -> None:
    model, x = LINEAR.model(**mixed), LINEAR.inputs()
    other = LINEAR.model(**mixed)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    other.save_pretrained(tmp_path / "other")
    hotswap_adapter(model, str(tmp_path / "other"), adapter_name="default")
    torch.testing.assert_close(model(x), other(x), **NEAR)
    LINEAR.model(n=mixed["n"], r=mixed["r"]).save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="mixing"):
        hotswap_adapter(model, str(tmp_path / "plain"), adapter_name="default")


def combined(mixed: dict[str, Any], kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The output of the combined adapter less the base's, and the weighted sum of what each adds."""
    model, x = LINEAR.model(**mixed), LINEAR.inputs()
    model.add_adapter("second", model.peft_config["default"])
    base, shares = LINEAR.base()(x), []
    for name in ("default", "second"):
        model.set_adapter(name)
        shares.append(model(x) - base)
    model.add_weighted_adapter(["default", "second"], [0.5, -2.0], "both", kind)
    model.set_adapter("both")
    return model(x) - base, 0.5 * shares[0] - 2.0 * shares[1]


def test_weighted_adapters() -> None:
    y, expected = combined(SETTINGS["learned"], "cat")
    torch.testing.assert_close(y, expected, **NEAR)
    with pytest.raises(MeloraError, match=r"cat does not take .*mixing='shuffle': choose dare_linear, .*melora export"):
        combined(SETTINGS["shuffle"], "cat")
    with pytest.raises(MeloraError, match=r"svd does not take .*mixing='learned': choose cat"):
        combined(SETTINGS["learned"], "svd")
    model = LINEAR.model(**SETTINGS["learned"])
    model.add_adapter("second", MeloraConfig(target_modules=["layer"], **SETTINGS["shuffle"]))
    with pytest.raises(MeloraError, match="have mixing=learned and shuffle"):
        model.add_weighted_adapter(["default", "second"], [1, 1], "both", "cat")
    y = model(LINEAR.inputs())
    model.add_weighted_adapter(["default"], [1.0], "copy")
    model.set_adapter("copy")
    torch.testing.assert_close(model(LINEAR.inputs()), y, **NEAR)


@pytest.mark.parametrize("permute", ["none", "strided"])
def test_linear_mixes_the_factors_of_shuffled_adapters(permute: str) -> None:
    """Each factor gets the root of weight and scaling, B without the sign: PEFT's rule for LoRA."""
    model, x = LINEAR.model(**SETTINGS["shuffle"], permute=permute), LINEAR.inputs()
    model.add_adapter("second", MeloraConfig(**SETTINGS["shuffle"], permute=permute, init_weights=False, **LAYER))
    (layer,) = layers(model).values()
    assert layer.scaling["default"] != layer.scaling["second"]
    mixed_A, mixed_B = 0.0, 0.0
    for name, weight in (("default", 0.5), ("second", -2.0)):
        A, B = layer.factors(name)
        root = abs(weight * layer.scaling[name]) ** 0.5
        mixed_A, mixed_B = mixed_A + (-root if weight < 0 else root) * A, mixed_B + root * B
    model.add_weighted_adapter(["default", "second"], [0.5, -2.0], "both", "linear")
    model.set_adapter("both")
    dense = dense_by_loops(mixed_A, mixed_B, None)  # type: ignore[arg-type]
    if permute == "strided":
        dense, places = torch.empty_like(dense), dense
        dense[strided(16, 2)[:, None], strided(8, 2)] = places
    torch.testing.assert_close(model(x), LINEAR.base()(x) + x @ dense.T, **NEAR)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_and_low_precision(mixed: dict[str, Any], dtype: torch.dtype) -> None:
    model = LINEAR.model(torch.float32, **mixed)
    x = LINEAR.inputs(torch.float32)
    expected = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    assert model.to(dtype)(x.to(dtype)).dtype == dtype


def test_dropout_and_compile(mixed: dict[str, Any]) -> None:
    model, x = LINEAR.model(**mixed, lora_dropout=0.5), LINEAR.inputs()
    expected = model(x)
    model.train()
    torch.manual_seed(0)
    first = model(x)
    assert not torch.allclose(first, expected)
    torch.manual_seed(0)
    torch.testing.assert_close(model(x), first)
    model.eval()
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_deletion_leaves_the_others(mixed: dict[str, Any]) -> None:
    model, x = LINEAR.model(**mixed), LINEAR.inputs()
    expected = model(x)
    model.add_adapter("second", model.peft_config["default"])
    model.delete_adapter("second")
    assert not any("second" in key for key in model.state_dict())
    torch.testing.assert_close(model(x), expected)
    assert model.get_nb_trainable_parameters()[0] == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_what_does_not_fit_is_refused_before_anything_is_made(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.raises(MeloraError, match="mixing must be one of none, learned, shuffle, got 'full'"):
        MeloraConfig(mixing="full")  # type: ignore[arg-type]
    model = make_mlp()
    with pytest.raises(MeloraError, match=r"first: mixing='shuffle' .* n=4 does not divide r=6: choose r=8 "):
        get_peft_model(model, MeloraConfig(n=4, r=6, mixing="shuffle", target_modules=["first"]))
    assert not any(isinstance(module, MeloraLayer) for module in model.modules())
    grouped = Holder(nn.Conv2d(8, 8, 3, groups=2))
    for mixing in ("learned", "shuffle"):
        with pytest.raises(MeloraError, match=r"layer: mixing='.*' would mix .* with groups=2"):
            get_peft_model(grouped, MeloraConfig(n=2, r=2, mixing=mixing, target_modules=["layer"]))  # type: ignore[arg-type]
    with pytest.raises(MeloraError, match=r"layer.up: mixing='shuffle'"):
        CASES["experts"].model(n=4, r=2, mixing="shuffle")


def test_a_damaged_core_in_a_file_is_refused(tmp_path: Path) -> None:
    model = LINEAR.model(**SETTINGS["learned"])
    model.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    tensors = load_file(file)
    key = "base_model.model.layer.melora_C.weight"
    for bad, match in (
        (tensors[key][:1].clone(), r"melora_C.weight has shape \[1, 4, 4\]"),
        (None, "melora_C.weight is m"),
    ):
        save_file({k: v for k, v in {**tensors, key: bad}.items() if v is not None}, file)
        with pytest.raises(MeloraError, match=match):
            load_adapter(LINEAR.base(), tmp_path)
        with pytest.raises((MeloraError, RuntimeError)):
            PeftModel.from_pretrained(LINEAR.base(), str(tmp_path))
    save_file(tensors, file)
    config = tmp_path / "adapter_config.json"
    config.write_text(config.read_text().replace('"learned"', '"none"'))
    with pytest.raises(MeloraError, match=r"unexpected tensor .*melora_C"):
        load_adapter(LINEAR.base(), tmp_path)
