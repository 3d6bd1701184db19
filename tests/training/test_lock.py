from pathlib import Path

from melora.training.lock import FileLock


def test_one_holds_it_and_the_others_know(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    first, second = FileLock(file), FileLock(file)
    assert not first.is_taken()  # there is no file
    file.write_text("model: x")
    assert first.take()
    assert second.is_taken()
    assert not second.take()
    first.release()
    first.release()
    assert not second.is_taken()
    assert second.take()
    second.release()
    assert file.read_text() == "model: x"
