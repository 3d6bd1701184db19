import sys
from pathlib import Path

import pytest

from melora import MeloraError
from melora.training.recipe import ModelSpec
from melora.training.source import find_model


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on sys.path to put packages in; the hub is out of reach."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def make_package(folder: Path, name: str, code: str, model: str) -> None:
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(code)
    (folder / name / model).mkdir()
    (folder / name / model / "config.json").write_text("{}")


def test_a_folder(tiny_model: Path) -> None:
    source = find_model(ModelSpec(str(tiny_model)))
    assert (source.kind, source.path) == ("folder", str(tiny_model))
    assert source.options["local_files_only"]


def test_a_package_with_a_folder_named_model(packages: Path) -> None:
    make_package(packages, "carrier_a", "raise RuntimeError('needs no import')", "model")
    source = find_model(ModelSpec("carrier_a"))
    assert source.kind == "package"
    assert Path(source.path) == packages / "carrier_a" / "model"


def test_a_package_that_tells_its_path(packages: Path) -> None:
    code = "import os\ndef get_model_path():\n    return os.path.join(os.path.dirname(__file__), 'weights')\n"
    make_package(packages, "carrier_b", code, "weights")
    source = find_model(ModelSpec("carrier_b"))
    assert Path(source.path) == packages / "carrier_b" / "weights"
    assert source.python() == (["import carrier_b"], "carrier_b.get_model_path()")
    sys.modules.pop("carrier_b")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(MeloraError, match=r"no config\.json in"):
        find_model(ModelSpec(str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "tried"),
    [
        ("nobody/nothing", ["the folder", "the installed package", "the Hugging Face hub (not in its cache"]),
        ("json", ["the folder", "the installed package", "the Hugging Face hub"]),
        ("./no/such/folder", ["the folder", "the installed package"]),
    ],
)
def test_not_found_lists_what_was_tried(packages: Path, name: str, tried: list[str]) -> None:
    with pytest.raises(MeloraError) as caught:
        find_model(ModelSpec(name))
    assert str(caught.value).startswith(f"model.name_or_path: no model {name!r} found; tried ")
    assert "; give a folder with a config.json" in str(caught.value)
    for place in tried:
        assert place in str(caught.value)
