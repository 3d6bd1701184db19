import pytest
import torch

from melora.training.failures import TrainingError
from melora.training.moved import check_moved, module_of, snapshot, unmoved

Q, V = "base_model.model.x.q.melora_{}.default.weight", "base_model.model.x.v.melora_{}.default.weight"


@pytest.fixture
def before() -> dict[str, torch.Tensor]:
    """Two modules of a MELoRA with 3 minis: A (3, 1, 4) random, B (3, 2, 1) zero."""
    torch.manual_seed(0)
    return {
        name.format(factor): torch.randn(3, 1, 4) if factor == "A" else torch.zeros(3, 2, 1)
        for name in (Q, V)
        for factor in "AB"
    }


def check(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], **options: object) -> None:
    check_moved(before, after, **{"steps": 5, "rate": 0.1, **options})  # type: ignore[arg-type]


def test_every_block_moved(before: dict[str, torch.Tensor]) -> None:
    after = {name: value + 1 for name, value in before.items()}
    assert unmoved(before, after) == {}
    check(before, after)


def test_the_blocks_whose_b_is_still_are_named(before: dict[str, torch.Tensor]) -> None:
    after = snapshot(before)
    after[Q.format("B")] += 1
    after[V.format("B")][1] += 1
    after[V.format("A")] *= 0.99  # weight decay alone
    assert unmoved(before, after) == {"x.v": [0, 2]}
    told = r"1 of 2 adapted modules did not change in 5 steps, no gradient reaches them: x\.v \(mini block 0, 2\); the"
    with pytest.raises(TrainingError, match=told):
        check(before, after)


def test_a_module_that_is_still_is_named_without_blocks(before: dict[str, torch.Tensor]) -> None:
    after = snapshot(before)
    after[Q.format("B")] += 1
    with pytest.raises(
        TrainingError, match=r"reaches them: x\.v; the usual causes: gradient checkpointing with use_re"
    ):
        check(before, after)
    check(before, after, idle_modules=[r"\.v$"])
    with pytest.raises(TrainingError, match=r"reaches them: x\.v"):
        check(before, after, idle_modules=["y"])


def test_nothing_moved(before: dict[str, torch.Tensor]) -> None:
    with pytest.raises(TrainingError, match=r"no gradient reached x\.q, x\.v in 5 steps, or the learning rate \(0\.1,"):
        check(before, before, idle_modules=["x"])
    with pytest.raises(TrainingError, match="no step had a learning rate above 0"):
        check(before, before, steps=0)


def test_where_b_does_not_start_at_zero_a_counts(before: dict[str, torch.Tensor]) -> None:
    start = {name: (torch.ones_like(value) if "B" in name else value) for name, value in before.items()}
    after = snapshot(start)
    after[Q.format("A")] += 1
    after[V.format("B")] += 1
    assert unmoved(start, after) == {}


def test_of_other_methods_any_parameter_counts() -> None:
    names = [f"base_model.model.x.{module}.lora_{factor}.default.weight" for module in "qv" for factor in "AB"]
    before = {name: torch.zeros(2, 2) for name in [*names, "base_model.model.x.norm.bias"]}
    after = snapshot(before)
    after[names[0]] += 1
    assert unmoved(before, after) == {"x.v": []}  # a bias beside the adapter need not move
    assert unmoved({"base_model.model.x.bias": before[names[0]]}, {"base_model.model.x.bias": before[names[0]]}) == {
        "x": []
    }


def test_the_module_of_a_parameter() -> None:
    assert module_of(Q.format("A")) == "x.q"
    assert module_of("base_model.model.h.0.ia3_l.default") == "h.0"


def test_biases_alone_may_rest_but_not_all_of_them() -> None:
    names = [f"base_model.model.x.{module}.{part}" for module in ("key", "query") for part in ("bias", "weight")]
    before = snapshot({name: torch.zeros(3) for name in names})
    moved = snapshot({name: torch.ones(3) for name in names})
    biases = [name for name in names if name.endswith("bias")]
    alone = {name: before[name] for name in biases}
    check(alone, {**alone, biases[1]: moved[biases[1]]})
    with pytest.raises(TrainingError, match=r"no gradient reached x\.key, x\.query"):
        check(alone, alone)
    with pytest.raises(TrainingError, match=r"1 of 2 adapted modules did not change .*: x\.key;"):
        check(before, {**moved, names[0]: before[names[0]], names[1]: before[names[1]]})


def test_a_snapshot_of_the_base_models_own_weights_is_a_digest_that_any_change_changes() -> None:
    weight = torch.zeros(1000, 100, dtype=torch.bfloat16)
    before = snapshot({"base_model.model.x.weight": weight})
    assert before["base_model.model.x.weight"].numel() == 16
    assert unmoved(before, snapshot({"base_model.model.x.weight": weight})) == {"x": []}
    weight[7, 9] = 1e-3
    assert unmoved(before, snapshot({"base_model.model.x.weight": weight})) == {}
