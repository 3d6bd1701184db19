"""One process alone; what several do is in test_distributed.py, over a real group."""

import pytest
import torch

from melora import MeloraError
from melora.cli import frame
from melora.training import fsdp, ranks
from melora.training.sharded import is_sharded, whole, whole_state


def test_alone_nothing_waits_or_changes() -> None:
    assert (ranks.rank(), ranks.world_size(), ranks.is_main()) == (0, 1, True)
    ranks.join(use_cpu=True)
    assert ranks.gather("value") == ["value"]
    assert ranks.any_rank(True)
    assert not ranks.any_rank(False)
    assert ranks.in_turns(lambda: 3) == 3
    ranks.leave()


def test_an_error_of_all_ranks_is_marked_as_told_by_the_main_one() -> None:
    with pytest.raises(OSError, match="disk full") as caught, ranks.together():
        raise OSError("disk full")
    assert ranks.is_shared(caught.value)
    assert not ranks.is_shared(OSError("disk full"))


def test_the_main_rank_alone_works_and_its_error_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []
    ranks.main_only(lambda: done.append(1))
    monkeypatch.setenv("RANK", "1")
    ranks.main_only(lambda: done.append(2))
    assert done == [1]


def test_other_ranks_are_silent_unless_they_alone_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frame, "_LET_MAIN_SPEAK", 0.0)
    monkeypatch.setenv("RANK", "3")
    assert frame._fail("error: bad key", 2, False, told_by_main=True) == 2
    assert capsys.readouterr().err == ""
    assert frame._fail("error: out of\nmemory", 1, False) == 1
    assert capsys.readouterr().err == "rank 3: error: out of memory\n"
    frame.make_console().print("hello")
    assert capsys.readouterr().out == ""


def test_commands_that_need_one_process_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from melora_cli import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["inspect", "somewhere"]) == 2
    assert capsys.readouterr().err == "error: melora inspect: runs in one process; start it without accelerate launch\n"


def test_what_is_not_sharded_is_left_to_peft() -> None:
    model = torch.nn.Linear(3, 2)
    assert not is_sharded(model.weight)
    assert whole_state(model) is None
    copies = whole(dict(model.named_parameters()))
    assert torch.equal(copies["weight"], model.weight)
    assert copies["weight"].data_ptr() != model.weight.data_ptr()


def test_what_is_to_be_trained_gets_storage_and_the_frozen_rest_none() -> None:
    with torch.device("meta"):
        model = torch.nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    fsdp.give_storage(model)
    assert (model.weight.is_meta, model.bias.is_meta) == (False, True)
    assert model.weight.shape == (2, 3)
    assert model.weight.requires_grad


def test_errors_of_bad_input_stay_what_they_are() -> None:
    with pytest.raises(MeloraError, match="bad key"), ranks.together():
        raise MeloraError("bad key")
