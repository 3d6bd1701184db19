"""Every suite, whole, at tiny sizes: who takes part, and which figures come out."""

from pathlib import Path
from typing import cast

import pytest
import torch
from peft import PeftModel
from torch import nn

from melora.bench import disk_worker
from melora.bench.attach import Stack, attach
from melora.bench.peers import Peer
from melora.bench.row import Environment, Row
from melora.bench.suites import multi
from melora.errors import MeloraError

from .conftest import groups

TIMES = ("ms_min", "ms_p50", "ratio_min", "ratio_p20", "ratio_p50", "ratio_p80")


def measured(suite: str, *words: str) -> list[Row]:
    return [row for group in groups(suite, *words) for row in group.measure(2, Environment.here())]


def timed(row: Row) -> bool:
    return all((getattr(row, name) or 0) > 0 for name in TIMES)


def test_layer_shares_one_base_among_all_n_and_r() -> None:
    rows = measured("layer", "--n", "2", "4", "--r", "1", "2", "--peers", "lora", "--dropout", "0", "0.1")
    first = [(row.contestant, row.n, row.r, row.rank) for row in rows if not row.dropout]
    assert first == [
        ("base", 0, 0, 0),
        *(("melora", n, r, n * r) for n in (2, 4) for r in (1, 2)),
        *(("lora", 1, rank, rank) for rank in (2, 4, 8)),
    ]
    assert len(rows) == 2 * len(first)
    assert all(timed(row) and row.saved_bytes is not None for row in rows)
    assert rows[0].saved_bytes == 0


def test_compile_runs_everyone_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("melora.bench.suites.compiled.BACKEND", "aot_eager")
    rows = measured("compile", "--peers", "lora")
    assert [(row.contestant, row.setting) for row in rows] == [
        (method, setting) for setting in ("", "compiled") for method in ("base", "melora", "lora")
    ]
    assert all(map(timed, rows))


def test_model_is_a_whole_step_of_each_set_of_targets() -> None:
    rows = measured("model")
    assert [row.contestant for row in rows] == ["base", "melora", "lora", "gralora", "bdlora"] * 2
    assert {row.case for row in rows} == {"tiny query+value", "tiny all-linear"}
    assert all(timed(row) and (row.peak_bytes or 0) > 0 for row in rows)
    query_and_value = 2 * 2 * (64 + 64)  # 2 layers of 2 weights
    assert [row.parameters for row in rows[:3]] == [0, query_and_value, 4 * query_and_value]


def test_a_model_step_moves_the_adapter_and_nothing_else() -> None:
    from melora.bench.suites import model

    group = groups("model")[0]
    found = {}
    real, model_attach = model.attach, {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "attach", lambda *args: model_attach.setdefault(args[0].method, real(*args)))
        built = group.build()
    for one, (method, contestant) in zip(built, model_attach.items(), strict=True):
        before = {name: value.clone() for name, value in contestant.module.state_dict().items()}
        one.step()
        moved = [name for name, value in contestant.module.state_dict().items() if not torch.equal(value, before[name])]
        trained = {name for name, value in contestant.module.named_parameters() if value.requires_grad}
        found[method] = len(moved)
        assert len(moved) == len(trained)
        assert not any("base_layer" in name or "embed" in name for name in moved)
        assert not contestant.trainable or contestant.trainable[0].grad is None
    assert found["base"] == 0
    assert found["melora"] == 8


def test_decode_has_a_layer_and_a_model_unmerged_and_merged() -> None:
    rows = measured("decode", "--batch", "1", "3", "--peers", "lora")
    assert [(row.contestant, row.setting) for row in rows] == [
        ("base", ""), ("melora", ""), ("lora", ""), ("melora", "merged")
    ] * 4  # fmt: skip
    assert [(row.case, row.tokens, row.batch) for row in rows[::4]] == [
        ("decoding layer", 1, 1),
        ("decoding tiny query+value", 1, 1),
        ("decoding layer", 3, 1),
        ("decoding tiny query+value", 1, 3),
    ]
    assert all(map(timed, rows))


def test_multi_has_as_many_rows_for_every_number_of_adapters() -> None:
    rows = measured("multi", "--adapters", "1", "3")
    assert [(row.contestant, row.adapters, row.tokens) for row in rows] == [
        ("base", 1, 3), ("melora", 1, 3), ("melora", 3, 3), ("lora", 1, 3), ("lora", 3, 3)
    ]  # fmt: skip
    assert rows[2].parameters == 3 * rows[1].parameters
    assert all(map(timed, rows))


@pytest.mark.parametrize("peer", [Peer("melora", 4, 1, 4), Peer("lora", 1, 4, 4)], ids=lambda peer: peer.method)
def test_every_adapter_of_a_mixed_batch_has_an_update_of_its_own(peer: Peer) -> None:
    base = Stack([nn.Linear(8, 8)])
    model = multi._with_adapters(cast(PeftModel, attach(peer, base, 0.0, ["proj"]).module), peer, 3)
    x = torch.randn(1, 8).expand(4, 8)
    with torch.no_grad():
        rows = model(x, adapter_names=["__base__", "default", "1", "2"])
    assert len({tuple(row.tolist()) for row in rows}) == 4


def test_memory_is_exact_and_not_timed() -> None:
    words = ("--peers", "lora", "--n", "4", "--dropout", "0", "0.1")
    first, second = ([g for g in groups("memory", *words) if g.measure_instead is None] for _ in range(2))
    rows = [row for group in first for row in group.measure(2, Environment.here())]
    again = [row for group in second for row in group.measure(2, Environment.here())]
    assert [(row.saved_bytes, row.peak_bytes) for row in rows] == [(row.saved_bytes, row.peak_bytes) for row in again]
    assert not any(timed(row) for row in rows)
    assert rows[1].saved_bytes == 16 * 4 * 4
    assert rows[0].peak_bytes >= 16 * 32 * 4 * 2  # y and the gradient of x


def test_an_adapter_file_is_saved_loaded_and_exported_in_a_process_of_its_own() -> None:
    rows = [row for group in groups("memory")[1:] for row in group.measure(2, Environment.here())]
    assert [(row.case, row.contestant) for row in rows] == [
        (f"adapter file, {action}", contestant)
        for action in ("save", "load", "export")
        for contestant in ("plain", "melora")
    ]
    numbers = 2 * 16 * (128 + 128)
    assert all(row.parameters == numbers for row in rows[1::2])
    assert all(map(timed, rows))
    assert 4 * numbers < rows[1].saved_bytes < 4 * numbers + 2000
    assert 8 * 4 * numbers < rows[5].saved_bytes < 8 * 4 * numbers + 2000  # a LoRA of rank n * r


def test_scaling_varies_one_size_at_a_time() -> None:
    found = groups("scaling", "--peers", "lora")
    n, *rest = found
    assert [peer.n for peer in n.peers if peer.method == "melora"] == [1, 2, 4, 8, 16, 32]  # 64 does not divide 32
    assert [(group.facts.case, group.facts.tokens, group.facts.layers) for group in rest] == [
        *(("tokens", tokens, 1) for tokens in (4, 8, 16, 32, 64)),
        *(("layers", 16, layers) for layers in (1, 2, 4, 8)),
    ]
    rows = rest[-1].measure(2, Environment.here())
    assert rows[1].parameters == 8 * (32 + 32)
    assert all(map(timed, rows))


def test_a_model_that_cannot_have_n_is_an_error_before_it_is_made() -> None:
    with pytest.raises(MeloraError, match=r"bench model tiny, .*n=128 does not divide"):
        groups("model", "--n", "128", "--d-in", "128")


def test_lora_saves_and_loads_as_many_numbers_beside_it(tmp_path: Path) -> None:
    save, load, export = groups("memory", "--model", "minilm")[-3:]
    assert [peer.method for peer in save.peers] == [peer.method for peer in load.peers] == ["plain", "melora", "lora"]
    assert [peer.method for peer in export.peers] == ["plain", "melora"]
    melora, lora = save.peers[1:]
    done = [disk_worker.actions("load", tmp_path / peer.method, 2, 128, peer) for peer in (melora, lora)]
    assert done[0][3] == done[1][3] == 2 * 16 * (128 + 128)
    adapted = done[1][1]()
    assert isinstance(adapted, PeftModel)
    assert adapted.peft_config["default"].r == 16
