from pathlib import Path

import pytest
import torch

from melora import MeloraError
from melora.training.base import load_base
from melora.training.recipe import ModelSpec
from melora.training.source import find_model
from melora.training.tasks.classification import Classification


@pytest.mark.parametrize("on_meta", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_is_computed_as_the_recipe_says(tiny_model: Path, attention: str, on_meta: bool) -> None:
    spec = ModelSpec(str(tiny_model), attn_implementation=attention)  # type: ignore[arg-type]
    model = load_base(find_model(spec), spec, Classification(["a", "b"]), on_meta=on_meta).model
    assert model.config._attn_implementation == attention


@pytest.mark.skipif(torch.cuda.is_available(), reason="flash_attention_2 may load where there is a GPU")
def test_an_attention_that_is_not_installed_is_told(tiny_model: Path) -> None:
    spec = ModelSpec(str(tiny_model), attn_implementation="flash_attention_2")
    with pytest.raises(MeloraError, match=r"can't be loaded as .*[Ff]lash"):
        load_base(find_model(spec), spec, Classification(["a", "b"]))
