"""add_weighted_adapter, against the dense updates and against PEFT's LoRA."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, MeloraLayer

X = torch.linspace(-1, 1, 5 * 24).view(5, 24)
TARGETS = ["first", "middle", "head"]
ON_FACTORS = ["linear", "ties", "dare_linear", "dare_ties", "magnitude_prune"]
ON_UPDATES = ["svd", "ties_svd", "dare_linear_svd", "dare_ties_svd", "magnitude_prune_svd"]
WEIGHTS = [0.7, -1.3]


def config(**kwargs: Any) -> MeloraConfig:
    return MeloraConfig(**{"r": 2, "n": 3, "target_modules": TARGETS, "init_weights": False, **kwargs})


def two_adapters(base: nn.Module, first: Any, second: Any) -> Any:
    torch.manual_seed(0)
    model = get_peft_model(base, first, adapter_name="one")
    model.add_adapter("two", second)
    return model.eval()


def layers(model: nn.Module) -> dict[str, MeloraLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, MeloraLayer)}


def dense(layer: MeloraLayer, adapter: str) -> torch.Tensor:
    """The oracle: scaling * blockdiag(B_i A_i), mini by mini, in fp64; 0 where the adapter is not on the layer."""
    if adapter not in layer.scaling:
        return torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
    A, B = (factor.detach().double() for factor in layer.factors(adapter))
    return torch.block_diag(*(B[i] @ A[i] for i in range(A.shape[0]))) * layer.scaling[adapter]


def expected(layer: MeloraLayer) -> torch.Tensor:
    return WEIGHTS[0] * dense(layer, "one") + WEIGHTS[1] * dense(layer, "two")


@pytest.mark.parametrize("n", [1, 2, 6])
def test_cat_is_exact(n: int, make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(
        make_mlp(),
        config(n=n, lora_alpha=3, rank_pattern={"first": 1}),
        config(n=n, r=3, lora_alpha=5, use_rslora=True, alpha_pattern={"head": 7}),
    )
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type="cat")
    for name, layer in layers(model).items():
        assert layer.r["sum"] == layer.r["one"] + layer.r["two"]
        assert layer.n["sum"] == n
        assert layer.scaling["sum"] == 1.0
        torch.testing.assert_close(dense(layer, "sum"), expected(layer), atol=1e-6, rtol=1e-6, msg=name)


def test_cat_of_adapters_on_different_modules(make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(
        make_mlp(), config(target_modules=["first"]), config(target_modules=["first", "head"], n_pattern={"head": 2})
    )
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type="cat")
    assert [name.rpartition(".")[2] for name, layer in layers(model).items() if "sum" in layer.scaling] == [
        "first",
        "head",
    ]
    for layer in layers(model).values():
        torch.testing.assert_close(dense(layer, "sum"), expected(layer), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("selection", [{"exclude_modules": ["head"]}, {"target_modules": "first|middle"}])
def test_modules_that_a_selection_left_out_stay_out(
    selection: dict[str, Any], make_mlp: Callable[..., nn.Module]
) -> None:
    model = two_adapters(make_mlp(), config(**selection), config(target_modules=["first"]))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type="cat")
    for layer in layers(model).values():
        torch.testing.assert_close(dense(layer, "sum"), expected(layer), atol=1e-6, rtol=1e-6)


def test_svd_is_the_nearest_update_of_its_rank_in_each_block(make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(make_mlp(), config(), config(r=3))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "full", svd_rank=5)
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "short", svd_rank=1)
    for layer in layers(model).values():
        torch.testing.assert_close(dense(layer, "full"), expected(layer), atol=1e-5, rtol=1e-5)
        rows, columns = layer.out_features // 3, layer.in_features // 3
        for i in range(3):
            block = (slice(i * rows, (i + 1) * rows), slice(i * columns, (i + 1) * columns))
            S = torch.linalg.svdvals(expected(layer)[block])
            error = torch.linalg.matrix_norm(dense(layer, "short")[block] - expected(layer)[block])
            torch.testing.assert_close(error, S[1:].square().sum().sqrt(), atol=1e-5, rtol=1e-5)  # Eckart-Young


def test_svd_takes_the_largest_rank_by_default(make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(make_mlp(), config(rank_pattern={"head": 1}), config(r=3, rank_pattern={"head": 1}))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")
    assert {name.rpartition(".")[2]: layer.r["sum"] for name, layer in layers(model).items()} == {
        "first": 3,
        "middle": 3,
        "head": 1,
    }


@pytest.mark.parametrize("kind", [*ON_FACTORS, *ON_UPDATES, "cat"])
@pytest.mark.parametrize("options", [{}, {"svd_clamp": 0.9, "majority_sign_method": "frequency"}])
def test_n_1_gives_what_lora_gives(
    kind: str, options: dict[str, Any], make_mlp: Callable[..., nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    # dare drops at random: here by a pattern. LoRA sees a Conv1D's update transposed, where the pattern is another.
    monkeypatch.setattr(torch, "bernoulli", lambda p: (torch.arange(p.numel()) % 5 > 1).view(p.shape).to(p.dtype))
    same: dict[str, Any] = {"r": 4, "target_modules": ["first", "head"] if "dare" in kind else TARGETS}
    ours = two_adapters(make_mlp(), config(n=1, lora_alpha=3, **same), config(n=1, lora_alpha=8, **same))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "fan_in_fan_out")  # the MLP's middle layer is a Conv1D
        theirs = two_adapters(make_mlp(), LoraConfig(lora_alpha=3, **same), LoraConfig(lora_alpha=8, **same))
    for name, layer in layers(ours).items():
        other: Any = theirs.get_submodule(name)
        for adapter in ("one", "two"):
            A, B = layer.factors(adapter)
            other.lora_A[adapter].weight.data.copy_(A[0])
            other.lora_B[adapter].weight.data.copy_(B[0])
    for model in (ours, theirs):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type=kind, density=0.6, **options)
    for name, layer in layers(ours).items():
        other = theirs.get_submodule(name)
        torch.testing.assert_close(
            layer.get_delta_weight("sum"), other.get_delta_weight("sum"), atol=1e-5, rtol=1e-5, msg=f"{name} {kind}"
        )


@pytest.mark.parametrize("kind", ["ties", "magnitude_prune"])
def test_pruned_updates_against_the_dense_oracle(kind: str, make_mlp: Callable[..., nn.Module]) -> None:
    """The density counts the blocks' numbers: of the dense update's, which are n times more, that is density / n."""
    from peft.utils import merge_utils

    model = two_adapters(make_mlp(), config(n=2), config(n=2))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type=f"{kind}_svd", density=0.5, svd_rank=24)
    for layer in layers(model).values():
        updates = [dense(layer, adapter).float() for adapter in ("one", "two")]
        wanted = getattr(merge_utils, kind)(updates, torch.tensor(WEIGHTS), 0.25)
        torch.testing.assert_close(dense(layer, "sum").float(), wanted, atol=1e-5, rtol=1e-5)


def test_one_adapter_is_scaled_exactly(make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(make_mlp(), config(lora_alpha=3, use_rslora=True), config())
    model.add_weighted_adapter(["one"], [-2.0], "scaled")
    for layer in layers(model).values():
        torch.testing.assert_close(dense(layer, "scaled"), -2.0 * dense(layer, "one"), atol=1e-6, rtol=1e-6)


def test_the_new_adapter_is_frozen_and_saves_loads_and_merges(
    make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    model = two_adapters(make_mlp(), config(rank_pattern={"head": 1}), config(r=3, n_pattern={}, lora_alpha=1))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", combination_type="cat")
    assert not any(parameter.requires_grad for name, parameter in model.named_parameters() if ".sum." in name)
    assert model.active_adapters == ["one"]
    model.set_adapter("sum")
    output = model(X)
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    loaded = PeftModel.from_pretrained(make_mlp(), tmp_path / "sum").eval()
    assert torch.equal(loaded(X), output)
    torch.testing.assert_close(loaded.merge_and_unload()(X), output, atol=1e-5, rtol=1e-5)


def test_half_precision_factors_are_combined_in_fp32(make_mlp: Callable[..., nn.Module]) -> None:
    base = make_mlp().to(torch.bfloat16)
    torch.manual_seed(0)
    model = get_peft_model(base, config(), adapter_name="one", autocast_adapter_dtype=False)
    model.add_adapter("two", config(), autocast_adapter_dtype=False)
    for kind in ("svd", "linear", "cat"):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, kind, combination_type=kind, svd_rank=4)
    for layer in layers(model).values():
        for kind in ("svd", "cat"):
            torch.testing.assert_close(dense(layer, kind), expected(layer), atol=0.05, rtol=0.02)


def test_an_existing_name_changes_nothing(make_mlp: Callable[..., nn.Module]) -> None:
    model = two_adapters(make_mlp(), config(), config())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "two")
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"adapters": ["one", "three"]}, r"Adapter three does not exist; loaded: one, two"),
    ({}, {"weights": [1.0]}, r"2 adapters and 1 weights were given: one weight for each"),
    ({}, {"adapters": [], "weights": []}, r"0 adapters and 0 weights"),
    ({}, {"weights": [1.0, float("nan")]}, r"weights must be finite numbers"),
    ({}, {"combination_type": "mean"}, r"Invalid combination_type: mean; choose one of cat, dare_linear"),
    ({}, {"combination_type": "ties"}, r"ties needs density, .* got None"),
    ({}, {"combination_type": "dare_ties_svd", "density": 0.0}, r"needs density"),
    ({}, {"svd_rank": 0}, r"svd_rank must be a whole number"),
    ({}, {"svd_rank": 1000}, r"first: r=1000 is larger than the weight"),
    (
        {"n": 2},
        {"combination_type": "cat"},
        r"first: one has n=3, r=2, two has n=2, r=2; .* equal n, or convert",
    ),
    ({"n": 6}, {"combination_type": "linear"}, r"needs one n"),
    ({"r": 3}, {"combination_type": "linear"}, r"first: one has n=3, r=2, two has n=3, r=3; .* linear needs equal r"),
    ({"r": 47}, {"combination_type": "cat"}, r"first: cat would give r=49, more than .* svd_rank=8, which is exact"),
]


@pytest.mark.parametrize(("second", "arguments", "message"), BAD)
def test_what_can_not_be_combined_is_refused_and_nothing_is_left_behind(
    second: dict[str, Any], arguments: dict[str, Any], message: str, make_mlp: Callable[..., nn.Module]
) -> None:
    model = two_adapters(make_mlp(), config(), config(**second))
    with pytest.raises(MeloraError, match=message) as caught:
        model.add_weighted_adapter(
            **{"adapters": ["one", "two"], "weights": WEIGHTS, "adapter_name": "sum", **arguments}
        )
    assert "\n" not in str(caught.value)
    assert list(model.peft_config) == ["one", "two"]
    assert not any("sum" in name for name in model.state_dict())


def test_one_module_trained_whole_by_both_is_refused(make_mlp: Callable[..., nn.Module]) -> None:
    whole = {"target_modules": ["first"], "modules_to_save": ["head"]}
    model = two_adapters(make_mlp(), config(**whole), config(**whole))
    with pytest.raises(MeloraError, match=r"found 1 such instance\(s\)\. head is trained whole in one, two"):
        model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum")


def test_cat_exact_where_svd_is_offered_instead(make_mlp: Callable[..., nn.Module]) -> None:
    """The way out that the refusal names is as exact as it says."""
    model = two_adapters(make_mlp(), config(), config(r=47))
    model.add_weighted_adapter(["one", "two"], WEIGHTS, "sum", svd_rank=8)
    layer = layers(model)["base_model.model.first"]
    torch.testing.assert_close(dense(layer, "sum"), expected(layer), atol=1e-4, rtol=1e-4)
