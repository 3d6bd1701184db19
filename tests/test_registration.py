import subprocess
import sys

import peft
import pytest
from peft import mapping
from peft.utils import hotswap

import melora
from melora import MeloraConfig, MeloraModel, registration


def test_melora_is_registered() -> None:
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["MELORA"] is MeloraConfig
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING["MELORA"] is MeloraModel
    assert mapping.PEFT_TYPE_TO_PREFIX_MAPPING["MELORA"] == "melora_"
    assert "n" in hotswap.CONFIG_KEYS_TO_CHECK["MELORA"]


def test_peft_s_own_enum_is_left_alone() -> None:
    assert "MELORA" not in peft.PeftType.__members__


def test_registering_twice_changes_nothing() -> None:
    before = len(mapping.PEFT_TYPE_TO_TUNER_MAPPING)
    registration.register(MeloraConfig, MeloraModel)
    assert len(mapping.PEFT_TYPE_TO_TUNER_MAPPING) == before


def test_an_older_peft_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", "0.20.0")
    with pytest.raises(ImportError, match=r"melora needs peft >= 0\.21\.0, found 0\.20\.0: run `pip install"):
        registration.register(MeloraConfig, MeloraModel)


def test_importing_melora_pulls_in_no_trainer_and_no_plotting() -> None:
    code = (
        "import sys, melora; heavy = {'matplotlib', 'datasets', 'pandas', 'sklearn', 'jsonargparse', 'rich', 'trl'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    # Whatever PEFT itself imports is not ours to avoid.
    base = code.replace("melora", "peft")
    ours, theirs = (subprocess.run([sys.executable, "-c", c], check=True, capture_output=True) for c in (code, base))
    assert ours.stdout == theirs.stdout


def test_public_names() -> None:
    assert all(hasattr(melora, name) for name in melora.__all__)
