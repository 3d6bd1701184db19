import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig, PeftConfig

from melora import MeloraConfig, MeloraError


def test_defaults_are_the_reference_scale_and_one_rank_a_mini() -> None:
    config = MeloraConfig()
    assert (config.r, config.n, config.lora_alpha, config.equivalent_rank) == (1, 8, 16, 8)
    assert config.peft_type == "MELORA"
    assert config.peft_type.value == "MELORA"


def test_switching_from_lora_is_one_line() -> None:
    kwargs: dict[str, Any] = {
        "r": 2,
        "lora_alpha": 4,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["lm_head"],
        "fan_in_fan_out": False,
        "bias": "lora_only",
        "use_rslora": True,
        "modules_to_save": ["score"],
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
        "rank_pattern": {"q_proj": 4},
        "alpha_pattern": {"q_proj": 8},
        "task_type": "SEQ_CLS",
        "inference_mode": False,
        "revision": None,
        "trainable_token_indices": None,
    }
    lora, melora = LoraConfig(**kwargs), MeloraConfig(**kwargs)
    for key in kwargs:
        assert getattr(melora, key) == getattr(lora, key), key


@pytest.mark.parametrize("name", ["r", "n"])
@pytest.mark.parametrize("value", [0, -1, 10**9, "8", 1.5, True, None, math.nan])
def test_bad_ranks_and_numbers_of_minis(name: str, value: Any) -> None:
    with pytest.raises(MeloraError, match=rf"^{name} must be a whole number .* got .*: choose") as caught:
        MeloraConfig(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0, -1, "16", None])
def test_bad_alpha(value: Any) -> None:
    with pytest.raises(MeloraError, match=r"^lora_alpha must be a finite number above 0, got"):
        MeloraConfig(lora_alpha=value)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"rank_pattern": {"query": 0}}, r"rank_pattern\['query'\] must be"),
        ({"n_pattern": {"query": "x"}}, r"n_pattern\['query'\] must be"),
        ({"alpha_pattern": {"query": math.nan}}, r"alpha_pattern\['query'\] must be"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1, got 1.0"),
        ({"lora_dropout": -0.1}, "lora_dropout must be"),
        ({"lora_dropout": math.nan}, "lora_dropout must be"),
        ({"bias": "some"}, "bias must be one of none, all, melora_only"),
        ({"init_weights": "orthogonal"}, "init_weights must be True, False, 'gaussian', 'pissa', .* got 'orthogonal'"),
        ({"init_weights": "pissa_niter_"}, "'pissa_niter_N' .* got 'pissa_niter_'"),
        ({"init_weights": 1}, "init_weights must be .* got 1"),
        (
            {"init_weights": "pissa", "mixing": "learned"},
            "starts from the minis' own blocks, and mixing='learned' adds",
        ),
        ({"init_weights": "lora_ga", "mixing": "shuffle", "r": 8}, "and mixing='shuffle' adds others: set mixing"),
        ({"init_weights": "olora", "permute": "correlation"}, "permute='correlation' finds only later: set permute to"),
        ({"layers_pattern": "layers"}, "`layers_to_transform` must also be specified"),
        (
            {"target_modules": ".*q", "layers_pattern": "h"},
            "`layers_pattern` cannot be used when `target_modules` is a",
        ),
        (
            {"target_modules": ".*q", "layers_to_transform": [1]},
            "`layers_to_transform` cannot be used when `target_modules` is a str",
        ),
        ({"r": [1, 1], "lora_alpha": [16, 16]}, "the format of the authors' reference code"),
    ],
)
def test_other_bad_values(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MeloraError, match=message):
        MeloraConfig(**kwargs)


def test_saves_and_loads(tmp_path: Path) -> None:
    config = MeloraConfig(r=2, n=4, target_modules=["v", "q"], n_pattern={"q": 2}, init_weights="gaussian")
    config.save_pretrained(str(tmp_path))
    loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, MeloraConfig)
    assert loaded.to_dict() == config.to_dict()
    assert json.loads((tmp_path / "adapter_config.json").read_text())["peft_type"] == "MELORA"


def test_the_saved_file_does_not_depend_on_the_hash_seed(tmp_path: Path) -> None:
    code = (
        "import sys; from melora import MeloraConfig;"
        "MeloraConfig(target_modules=['q', 'k', 'v', 'o', 'up'], exclude_modules=['a', 'b', 'c'])"
        ".save_pretrained(sys.argv[1])"
    )
    files = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        subprocess.run(
            [sys.executable, "-c", code, str(folder)], check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        )
        files.append((folder / "adapter_config.json").read_bytes())
    assert files[0] == files[1]


def test_from_lora_takes_over_every_shared_field() -> None:
    values: dict[str, Any] = {
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.1,
        "target_modules": ["q_proj", "v_proj"],
        "exclude_modules": ["lm_head"],
        "bias": "lora_only",
        "use_rslora": True,
        "modules_to_save": ["score"],
        "layers_to_transform": [0, 1],
        "layers_pattern": "layers",
        "alpha_pattern": {"q_proj": 8},
        "task_type": "SEQ_CLS",
        "base_model_name_or_path": "some-base",
        "revision": "main",
        "trainable_token_indices": [3],
    }
    config = MeloraConfig.from_lora(LoraConfig(**values, rank_pattern={"q_proj": 4}, init_lora_weights="gaussian"), n=8)
    assert (config.r, config.n, config.equivalent_rank) == (2, 8, 16)
    assert config.rank_pattern == {"q_proj": 1}
    assert config.init_weights == "gaussian"
    for key in values.keys() - {"r"}:
        wanted = set(values[key]) if key in ("target_modules", "exclude_modules") else values[key]
        assert getattr(config, key) == wanted, key
    shared = {f.name for f in dataclasses.fields(LoraConfig)} & {f.name for f in dataclasses.fields(MeloraConfig)}
    unchecked = {"peft_type", "peft_version", "auto_mapping", "inference_mode", "fan_in_fan_out", "rank_pattern", "r"}
    assert shared - values.keys() - unchecked <= {"target_parameters", "ensure_weight_tying"}


def test_from_lora_with_own_values() -> None:
    config = MeloraConfig.from_lora(LoraConfig(r=8, lora_alpha=4), n=4, r=8, lora_alpha=2, lora_dropout=0.5)
    assert (config.r, config.n, config.lora_alpha, config.lora_dropout) == (8, 4, 2, 0.5)
    assert MeloraConfig.from_lora(LoraConfig(r=2)).r == 1


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "lora_ga"])
def test_from_lora_takes_over_a_start(start: str) -> None:
    assert MeloraConfig.from_lora(LoraConfig(init_lora_weights=start)).init_weights == start  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"use_dora": True}, "MELoRA has no use_dora=True: take it out of the LoraConfig, or stay with LoRA"),
        ({"layer_replication": [(0, 2), (1, 3)]}, "MELoRA has no layer_replication="),
        ({"init_lora_weights": "orthogonal"}, "MELoRA has no init_lora_weights='orthogonal'"),
        ({"init_lora_weights": "orthogonal", "use_dora": True}, "no use_dora=True, no init_lora_weights='orthogonal'"),
        ({"lora_bias": True}, "MELoRA has no lora_bias=True"),
    ],
)
def test_from_lora_names_what_melora_has_not(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MeloraError, match=message):
        MeloraConfig.from_lora(LoraConfig(**kwargs))


def test_from_lora_wants_a_lora() -> None:
    with pytest.raises(MeloraError, match=r"a peft\.LoraConfig is needed, got a MeloraConfig"):
        MeloraConfig.from_lora(MeloraConfig())  # type: ignore[arg-type]
