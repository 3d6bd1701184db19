"""Every method that a study may compare is trained, chosen and scored as any other."""

from collections.abc import Callable
from typing import Any

import pytest

from melora import MeloraError
from melora.compare.check import check_study
from melora.compare.jobs import cells
from melora.compare.known import Known
from melora.compare.study import Study
from melora.compare.worker import make

QV: dict[str, Any] = {"target_modules": ["query", "value"]}
NO_LAYERS: dict[str, Any] = {"target_modules": None}
METHODS: dict[str, dict[str, Any]] = {
    "MELoRA": {"method": "melora", "n": 4, "r": 1, **QV},
    "LoRA": {"method": "lora", "r": 4, **QV},
    "rsLoRA": {"method": "lora", "r": 4, "use_rslora": True, **QV},
    "DoRA": {"method": "lora", "r": 4, "use_dora": True, **QV},
    "AdaLoRA": {"method": "adalora", "init_r": 4, "target_r": 2, **QV},
    "GraLoRA": {"method": "gralora", "r": 4, "gralora_k": 2, **QV},
    "BD-LoRA": {
        "method": "lora",
        "r": 4,
        "use_bdlora": {"target_modules_bd_a": ["query", "value"], "nblocks": 2},
        **QV,
    },
    "VeRA": {"method": "vera", "r": 8, **QV},
    "RandLoRA": {"method": "randlora", "r": 4, **QV},
    "MiSS": {"method": "miss", "r": 4, **QV},
    "LoKr": {"method": "lokr", "r": 4, **QV},
    "IA3": {"method": "ia3", "feedforward_modules": [], **QV},
    "bias only": {"method": "bias", **NO_LAYERS},
    "head only": {"method": "head", **NO_LAYERS},
    "full": {"method": "full", **NO_LAYERS},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_trained_and_scored(name: str, make_study: Callable[..., Study]) -> None:
    study = make_study(reference=name, methods={name: {"adapter": METHODS[name]}}, seeds=[0], search={"extend": 0})
    check_study(study, cells(study))
    (cell,) = cells(study)
    job = cell.job({"training.learning_rate": 0.02}, 0)
    make(job, score=True)
    record = Known().record(job, chosen=True)
    assert record.status == "done"
    assert record.validation_score is not None
    assert record.test_score is not None
    assert record.peft_method == METHODS[name]["method"]
    assert (record.parameters or 0) > 0 or name == "head only"
    ranked = {"MELoRA": 4, "LoRA": 4, "rsLoRA": 4, "DoRA": 4, "GraLoRA": 4, "BD-LoRA": 4}
    assert record.equivalent_rank == ranked.get(name)


def test_a_method_without_layers_is_refused(make_study: Callable[..., Study]) -> None:
    adapter = {"method": "prompt_tuning", "num_virtual_tokens": 4, **NO_LAYERS}
    study = make_study(reference="prompts", methods={"prompts": {"adapter": adapter}})
    with pytest.raises(MeloraError, match=r"task rating, method prompts: adapter.method: .*prompt_tuning.*lora"):
        check_study(study, cells(study))
