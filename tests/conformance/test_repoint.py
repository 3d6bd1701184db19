"""How PEFT's tests are re-pointed: rows, marks, and the names inside a test's code."""

import types
from typing import Any

import pytest
import torch
from conformance.repoint import NotOursError, functions, names, repoint_code, repoint_marks, repoint_row
from conformance.stand_in import FittingModel, StandIn, lora_only
from peft import IA3Config, LoraConfig, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraLayer, MeloraModel
from melora.registration import register

LORA_ROW = ("MLP 1", "MLP", LoraConfig, {"target_modules": ["lin0"], "init_lora_weights": False})


def test_a_row_of_lora_becomes_ours() -> None:
    name, model, config, kwargs = repoint_row(LORA_ROW)
    assert (name, model, config) == ("MLP 1", "MLP", StandIn)
    assert kwargs == {"target_modules": ["lin0"], "init_weights": False}
    assert LORA_ROW[3] == {"target_modules": ["lin0"], "init_lora_weights": False}  # PEFT's own is left alone
    param = repoint_row(pytest.param(*LORA_ROW, id="first"))
    assert param.id == "first"
    assert param.values[2] is StandIn


def test_a_config_becomes_ours_with_what_it_was_given() -> None:
    _, config = repoint_row(("mixed", LoraConfig(r=16, target_modules=["lin0"], init_lora_weights=False)))
    assert type(config) is StandIn
    assert (config.r, config.n, config.target_modules, config.init_weights) == (16, 2, {"lin0"}, False)
    assert repoint_row(LoraConfig) is StandIn


@pytest.mark.parametrize("row", [("total", True), "auto", 3, ({"a": 1}, None)])
def test_rows_without_a_method_stay(row: Any) -> None:
    assert repoint_row(row) == row


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("IA3", IA3Config, {}), "names another method: IA3Config"),
        (IA3Config(target_modules=["lin0"], feedforward_modules=[]), "names another method"),
        (("DoRA", LoraConfig, {"use_dora": True}), "use_dora"),
        (("DoRA", LoraConfig(use_dora=True)), "use_dora"),
        (("MiCA", LoraConfig, {"init_lora_weights": "mica"}), "init_lora_weights=mica"),
    ],
)
def test_rows_that_can_not_be_ours(row: Any, reason: str) -> None:
    with pytest.raises(NotOursError, match=reason):
        repoint_row(row)


def test_marks_keep_our_rows_alone() -> None:
    @pytest.mark.parametrize("flag", [False, True])
    @pytest.mark.parametrize(("config_cls", "kwargs"), [(LoraConfig, {}), (IA3Config, {}), (LoraConfig, {"r": 4})])
    def some_test() -> None: ...

    repoint_marks(some_test)
    rows = {mark.args[0]: mark.args[1] for mark in some_test.pytestmark}  # type: ignore[attr-defined]  # pytest sets it
    assert rows == {("config_cls", "kwargs"): [(StandIn, {}), (StandIn, {"r": 4})], "flag": [False, True]}


def test_code_names_our_factors() -> None:
    def some_test(layer: Any) -> tuple[Any, ...]:
        inner = [key for key in ("x.lora_A.y", "lora_alpha") if "lora_B" in key or "lora_A" in key]
        return layer.lora_A, layer.lora_embedding_B, inner, repr(layer).startswith("lora.Linear"), layer.lora_alpha

    some_test.__code__ = repoint_code(some_test.__code__)
    some_test.__code__ = repoint_code(some_test.__code__)  # twice is once
    layer = types.SimpleNamespace(melora_A=1, melora_embedding_B=2, lora_alpha=3)
    assert some_test(layer) == (1, 2, ["x.melora_A.y"], False, 3)
    assert {"melora_A", "lora_alpha"} <= names(some_test.__code__)


def test_functions_of_a_module_are_its_own() -> None:
    import conformance.fetch

    assert {f.__name__ for f in functions(conformance.fetch)} >= {"fetch_tests", "download", "unpack"}
    assert "mkdtemp" not in {f.__name__ for f in functions(conformance.fetch)}


def test_stand_in_takes_what_lora_takes() -> None:
    config = StandIn(target_modules=["x"], init_lora_weights="gaussian", use_dora=False)
    assert (config.r, config.n, config.init_weights, config.asked_for_lora) == (8, 2, "gaussian", [])
    assert StandIn(use_dora=True, init_lora_weights="pissa").asked_for_lora == ["init_lora_weights=pissa", "use_dora"]
    assert lora_only({"init_lora_weights": True, "r": 3}) == []
    assert config.use_dora is False  # type: ignore[attr-defined]  # not a field
    assert "use_dora" not in config.to_dict()


def test_what_does_not_fit_is_fitted() -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5), nn.Linear(5, 1))
    register(StandIn, FittingModel)
    try:
        adapted = get_peft_model(model, StandIn(target_modules=["0", "1", "2"]))
    finally:
        register(MeloraConfig, MeloraModel)
    layers = [module for module in adapted.modules() if isinstance(module, MeloraLayer)]
    assert [(layer.n["default"], layer.r["default"]) for layer in layers] == [(2, 8), (5, 4), (1, 4)]
    assert torch.isfinite(adapted(torch.randn(2, 10))).all()
