"""The recommended preset fits any model, and is what the documents say."""

from collections.abc import Callable
from typing import Any

import pytest
from peft import get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.recommended import ALPHA, N, R


def test_it_is_the_preset_on_the_model_s_usual_targets(tiny_bert: nn.Module, tiny_llama: nn.Module) -> None:
    for model, targets in ((tiny_bert, {"query", "value"}), (tiny_llama, {"q_proj", "v_proj"})):
        config = MeloraConfig.recommended(model)
        assert (config.n, config.r, config.lora_alpha, set(config.target_modules or ())) == (N, R, ALPHA, targets)
        assert get_peft_model(model, config).get_nb_trainable_parameters()[0] > 0


def test_n_fits_every_target(make_mlp: Callable[..., Any]) -> None:
    model = make_mlp()
    config = MeloraConfig.recommended(model, target_modules=["first", "head"])
    assert config.n == N
    odd = nn.Sequential(nn.Linear(9, 15), nn.Linear(15, 4))
    assert MeloraConfig.recommended(odd, target_modules=["0"]).n == 1
    get_peft_model(odd, MeloraConfig.recommended(odd, target_modules="all-linear"))


def test_what_is_given_stays(tiny_bert: nn.Module) -> None:
    config = MeloraConfig.recommended(tiny_bert, n=8, r=1, lora_alpha=4, mixing="learned", target_modules=["key"])
    assert (config.n, config.r, config.lora_alpha, config.mixing) == (8, 1, 4, "learned")


def test_a_model_without_targets_is_refused(make_mlp: Callable[..., Any]) -> None:
    with pytest.raises((MeloraError, ValueError), match="target_modules"):
        MeloraConfig.recommended(make_mlp())
    with pytest.raises(MeloraError, match="missing"):
        MeloraConfig.recommended(make_mlp(), target_modules=["missing"])
