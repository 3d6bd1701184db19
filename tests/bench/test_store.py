from collections.abc import Callable
from pathlib import Path

import pytest

from melora.bench.group import row
from melora.bench.peers import BASE, Peer
from melora.bench.row import Environment, Facts, Row
from melora.bench.store import Store, read_rows
from melora.errors import MeloraError


def rows(tokens: int) -> list[Row]:
    facts = Facts("layer", "layer", 32, 32, tokens, dropout=0.05)
    common = {"adapters": 1, "parameters": 0, "repetitions": 20, "calls": 1, "ms_min": 1.23456789}
    return [row(Environment.here(), facts, peer, **common) for peer in (BASE, Peer("melora", 4, 1, 4))]


def test_rows_come_back_under_the_names_they_had(tmp_path: Path) -> None:
    Store(tmp_path / "a.csv", resume=False).add("layer", rows(16))
    found = read_rows(tmp_path / "a.csv")
    assert [(one["title"], one["label"]) for one in found] == [
        ("layer 32 -> 32, 16 tokens, float32, dropout 0.05", label) for label in ("frozen base", "MELoRA 4x1")
    ]
    assert (found[0]["ms_min"], found[0]["ms_p50"]) == ("1.2346", "")


def test_a_group_is_there_only_on_the_same_machine_commit_and_versions(tmp_path: Path) -> None:
    Store(tmp_path / "a.csv", resume=False).add("layer", rows(16))
    store, here = Store(tmp_path / "a.csv", resume=True), Environment.here()
    title = "layer 32 -> 32, 16 tokens, float32, dropout 0.05"
    assert store.has("layer", title, ["frozen base", "MELoRA 4x1"], here)
    assert not store.has("layer", title, ["MELoRA 8x1"], here)
    assert not store.has("layer", title.replace("16", "8"), ["frozen base"], here)
    for name in ("commit", "machine", "torch"):
        assert not store.has("layer", title, ["frozen base"], Environment(**{**vars(here), name: "other"}))


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "out", resume=False)
    store.add("layer", rows(16))
    before = (tmp_path / "out" / "layer.csv").read_text()
    monkeypatch.setattr("melora.bench.store.os.fsync", lambda _: (_ for _ in ()).throw(OSError("no space left")))
    with pytest.raises(OSError, match="no space left"):
        store.add("layer", rows(8))
    assert (tmp_path / "out" / "layer.csv").read_text() == before


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-40], lambda text: text + "1,2\n", lambda text: text.replace(",", ";")]
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[str], str]) -> None:
    file = tmp_path / "a.csv"
    Store(file, resume=False).add("layer", rows(16))
    file.write_text(damage(file.read_text()))
    with pytest.raises(MeloraError, match=r"a\.csv: (a row has too few|has no column)"):
        read_rows(file)
