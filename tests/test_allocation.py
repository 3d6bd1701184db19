"""n and r chosen by the gradient: what is written into the config, and that it fits the model."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from melora import (
    Allocation,
    MeloraConfig,
    MeloraError,
    MeloraLayer,
    allocate,
    inspect_adapter,
    load_adapter,
    preprocess_lora_ga,
)
from melora.analysis import effective_rank
from melora.gradients import weight_gradients
from melora.targets import module_settings

IDS = torch.randint(0, 50, (3, 4, 7), generator=torch.Generator().manual_seed(0))
BATCHES = [{"input_ids": ids, "labels": ids[:, 0] % 3} for ids in IDS]
X = torch.linspace(-1, 1, 5 * 24).view(5, 24)


def auto(**kwargs: Any) -> MeloraConfig:
    return MeloraConfig(**{"n": "auto", "target_modules": ["query", "dense"], **kwargs})


def square(model: Any, batch: Any) -> torch.Tensor:
    loss: torch.Tensor = model(batch).square().mean()
    return loss


class Given(nn.Module):
    """Two layers whose gradients have known effective ranks: the loss is <G, W x> with x the identity."""

    def __init__(self, ranks: dict[str, int]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({name: nn.Linear(32, 32, bias=False) for name in ranks})
        self.ranks = ranks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wanted = {name: torch.diag(torch.arange(32.0) < rank) for name, rank in self.ranks.items()}
        parts = [(layer(x) * wanted[name].float()).sum() for name, layer in self.layers.items()]
        return torch.stack(parts).sum()


def given(**ranks: int) -> tuple[Given, list[torch.Tensor], Callable[[Any, Any], torch.Tensor]]:
    return Given(ranks), [torch.eye(32)], lambda model, x: model(x)


def test_known_gradients_give_known_n() -> None:
    model, batches, loss = given(a=8, b=8, c=3, d=32, e=1)
    config, report = allocate(model, auto(target_modules=["a", "b", "c", "d", "e"]), batches, loss=loss)
    assert {m.name: m.n for m in report.modules} == {
        "layers.a": 8,
        "layers.b": 8,
        "layers.c": 2,
        "layers.d": 32,
        "layers.e": 1,
    }
    assert config.n == 8
    assert config.n_pattern == {r"^layers\.c": 2, r"^layers\.d": 32, r"^layers\.e": 1}
    assert [m.effective_rank for m in report.modules] == pytest.approx([8, 8, 3, 32, 1], rel=1e-12)
    assert report.parameters == 5 * 64
    halved, _ = allocate(model, auto(target_modules=["a", "c"], r=2), batches, loss=loss)
    assert (halved.n, halved.n_pattern, halved.r) == (4, {r"^layers\.c": 1}, 2)


def test_a_budget_gives_ranks_in_proportion_and_n_by_them() -> None:
    model, batches, loss = given(a=16, b=8, c=4)
    config, report = allocate(model, auto(target_modules=["a", "b", "c"]), batches, loss=loss, budget=64 * 7 + 5)
    assert {m.name[-1]: (m.r, m.n) for m in report.modules} == {"a": (4, 4), "b": (2, 4), "c": (1, 4)}
    assert (config.n, config.n_pattern) == (4, {})
    assert (config.r, config.rank_pattern) == (4, {r"^layers\.b": 2, r"^layers\.c": 1})
    adapted = get_peft_model(model, config)
    assert adapted.get_nb_trainable_parameters()[0] == report.parameters == 64 * 7
    fixed, report = allocate(given(a=16, b=8)[0], auto(n=2, target_modules=["a", "b"]), batches, loss=loss, budget=192)
    assert (fixed.n, fixed.n_pattern, [m.r for m in report.modules]) == (2, {}, [2, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_models_own_gradients(dtype: torch.dtype, tiny_bert: Any) -> None:
    model = tiny_bert.to(dtype)
    config, report = allocate(model, auto(), BATCHES)
    names = [m.name for m in report.modules]
    assert len(names) == 2 * 4 + 1  # query, three dense layers a block, and the pooler's
    gradients = weight_gradients(model, names, BATCHES)
    for module in report.modules:
        G = gradients[module.name]
        assert (module.d_out, module.d_in) == G.shape
        assert module.effective_rank == effective_rank(torch.linalg.svdvals(G.double()))
        assert module_settings(config, module.name)[:2] == (module.r, module.n)
    assert len({m.n for m in report.modules}) > 1
    again, same = allocate(model, auto(), BATCHES)
    assert (again, same) == (config, report)
    adapted = get_peft_model(model, config)
    layers = {n.removeprefix("base_model.model."): m for n, m in adapted.named_modules() if isinstance(m, MeloraLayer)}
    assert {name: layer.n["default"] for name, layer in layers.items()} == {m.name: m.n for m in report.modules}


def test_a_saved_adapter_has_numbers_and_loads(tiny_bert: Any, tmp_path: Path) -> None:
    config, report = allocate(tiny_bert, auto(init_weights=False), BATCHES, budget=3000)
    assert report.parameters <= 3000
    base = copy.deepcopy(tiny_bert)
    model = get_peft_model(tiny_bert, config).eval()
    model.save_pretrained(tmp_path / "adapter")
    saved = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert isinstance(saved["n"], int)
    assert saved["n_pattern"] == config.n_pattern
    assert saved["rank_pattern"] == config.rank_pattern != {}
    loaded = load_adapter(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(loaded(**BATCHES[0]).logits, model(**BATCHES[0]).logits, rtol=0, atol=0)
    rows = {layer.name: layer for layer in inspect_adapter(tmp_path / "adapter").layers}
    assert {name: (row.n, row.r) for name, row in rows.items()} == {m.name: (m.n, m.r) for m in report.modules}


def test_mixing_counts_its_core_and_shuffle_its_divisors() -> None:
    model, batches, loss = given(a=8, c=3)
    config, report = allocate(model, auto(target_modules=["a", "c"], mixing="learned"), batches, loss=loss)
    assert [(m.n, m.parameters) for m in report.modules] == [(8, 64 + 64), (2, 64 + 4)]
    assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == report.parameters
    model, batches, loss = given(a=32, c=12)
    config, report = allocate(model, auto(target_modules=["a", "c"], mixing="shuffle", r=6), batches, loss=loss)
    assert [m.n for m in report.modules] == [2, 2]
    get_peft_model(model, config)


def test_a_budget_with_n_given_keeps_to_the_minis_blocks() -> None:
    """32 x 32 in 8 blocks of 4 x 4: whatever is spent beyond rank 4 is of no use, and a start could not take it."""
    for init, most in ((True, 4), ("pissa", 4), ("lora_ga", 2)):
        model, batches, loss = given(a=32, b=32)
        wish = MeloraConfig(n=8, target_modules=["a", "b"], init_weights=init)
        config, report = allocate(model, wish, batches, loss=loss, budget=64 * 30)
        assert [m.r for m in report.modules] == [most, most]
        if init == "lora_ga":
            dense = {f"layers.{name}": torch.randn(32, 32) for name in "ab"}
            preprocess_lora_ga(model, config, gradients=dense)
        assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == report.parameters
    model, batches, loss = given(a=32, b=4)
    wish = MeloraConfig(n=8, r=100, target_modules=["a", "b"], n_pattern={"b": 16})  # its r stands for nothing
    _, report = allocate(model, wish, batches, loss=loss, budget=64 * 30)
    assert [m.r for m in report.modules] == [4, 2]


def test_a_budget_for_a_start_by_the_gradient_leaves_it_room() -> None:
    model, batches, loss = given(a=32, b=1)
    wish = auto(target_modules=["a", "b"], init_weights="lora_ga")
    config, report = allocate(model, wish, batches, loss=loss)
    assert [(m.n, m.r) for m in report.modules] == [(16, 1), (1, 1)]
    config, report = allocate(model, wish, batches, loss=loss, budget=64 * 40)
    assert [(m.n, m.r) for m in report.modules] == [(1, 16), (1, 16)]
    preprocess_lora_ga(model, config, gradients={f"layers.{name}": torch.randn(32, 32) for name in "ab"})
    get_peft_model(model, config)


def test_a_budget_with_shuffle_goes_in_steps_of_n() -> None:
    model, batches, loss = given(a=16, b=8, c=32)
    wish = MeloraConfig(n=4, target_modules=["a", "b", "c"], mixing="shuffle", n_pattern={"c": 8})
    config, report = allocate(model, wish, batches, loss=loss, budget=64 * 44)
    assert {m.name[-1]: (m.n, m.r) for m in report.modules} == {"a": (4, 12), "b": (4, 8), "c": (8, 24)}
    assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == report.parameters == 64 * 44
    one = MeloraConfig(n=4, target_modules=["a"], mixing="shuffle")
    _, report = allocate(given(a=32)[0], one, batches, loss=loss, budget=64 * 100)
    assert [m.r for m in report.modules] == [32]  # each of 16 blocks of 8 x 8 has 8 ranks
    with pytest.raises(
        MeloraError, match=r"budget=255 is below 256, what the smallest r \(n, as mixing='shuffle' asks\) takes in"
    ):
        allocate(given(a=32)[0], one, batches, loss=loss, budget=255)


def test_shuffle_is_no_lora_in_silence() -> None:
    model, batches, loss = given(a=32, c=32)
    wish = auto(target_modules=["a", "c"], mixing="shuffle", rank_pattern={"c": 4})
    with pytest.warns(UserWarning, match=r"n=1, plain LoRA, in 1 of 2 modules \(layers.a\): r=1 and both sizes have"):
        _, report = allocate(model, wish, batches, loss=loss)
    assert [m.n for m in report.modules] == [1, 4]
    wish = auto(target_modules=["a", "c"], mixing="shuffle")
    with pytest.warns(UserWarning, match="in 1 of 2 modules .* give more budget, or n a number, which r then goes in"):
        _, report = allocate(model, wish, batches, loss=loss, budget=64 * 3)
    assert [(m.n, m.r) for m in report.modules] == [(2, 2), (1, 1)]
    model, batches, loss = given(a=1)
    allocate(model, auto(target_modules=["a"], mixing="shuffle", r=2), batches, loss=loss)  # one direction, one mini


def test_a_core_grows_no_larger_than_the_factors() -> None:
    model, batches, loss = given(a=32)
    config, report = allocate(model, auto(target_modules=["a"], mixing="learned"), batches, loss=loss)
    assert [(m.n, m.parameters) for m in report.modules] == [(8, 64 + 64)]  # n=32 would take 1,024
    assert get_peft_model(model, config).get_nb_trainable_parameters()[0] == report.parameters


def test_targets_by_default_and_all_linear(tiny_llama: Any) -> None:
    batches = [{"input_ids": ids, "labels": ids} for ids in IDS]
    config, report = allocate(tiny_llama, MeloraConfig(n="auto"), batches)
    assert config.target_modules == {"q_proj", "v_proj"}
    assert len(report.modules) == 4
    config, report = allocate(tiny_llama, MeloraConfig(n="auto", target_modules="all-linear"), batches)
    assert config.target_modules == "all-linear"
    assert len(report.modules) == 14
    get_peft_model(tiny_llama, config)


def test_n_given_by_hand_stays_and_needs_no_gradient(make_mlp: Callable[..., nn.Module]) -> None:
    config, report = allocate(
        make_mlp(), auto(target_modules=["first", "head"], n_pattern={"head": 3}), [X], loss=square
    )
    assert [m.name for m in report.modules] == ["first"]
    assert module_settings(config, "head")[1] == 3
    both = auto(target_modules=["first", "head"], n_pattern={"head": 3})
    config, report = allocate(make_mlp(), both, [X], loss=square, budget=300)
    assert {m.name: m.n for m in report.modules}["head"] == module_settings(config, "head")[1] == 3
    assert config.n_pattern["head"] == 3
    assert both.n == "auto"


def test_an_adapted_model_gets_a_second_adapter(tiny_bert: Any) -> None:
    _, report = allocate(tiny_bert, auto(), BATCHES)
    adapted = get_peft_model(tiny_bert, MeloraConfig(target_modules=["query"]))  # B = 0: the same function
    again, second = allocate(adapted, auto(), BATCHES)
    assert [m.name for m in second.modules] == [m.name for m in report.modules]
    assert [m.n for m in second.modules] == [m.n for m in report.modules]
    adapted.add_adapter("second", again)


def test_names_bind_one_module_each() -> None:
    class Odd(nn.Module):
        """Without escapes the first name, as a regular expression, matches the second, too."""

        def __init__(self) -> None:
            super().__init__()
            self.a = nn.ModuleDict({"q": nn.Linear(32, 32)})
            self.axq = nn.Linear(32, 32)
            self.rest = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.a["q"](x[:1]).sum() + self.axq(x).square().sum()
            return y + torch.stack([layer(x).square().sum() for layer in self.rest]).sum()

    config, report = allocate(
        Odd(), auto(target_modules=["q", "axq", "rest.0", "rest.1", "rest.2"]), [torch.eye(32)], loss=lambda m, x: m(x)
    )
    assert {m.name: m.n for m in report.modules}["a.q"] == 1
    for module in report.modules:
        assert module_settings(config, module.name)[1] == module.n


def test_a_report_survives_json() -> None:
    model, batches, loss = given(a=8, c=3)
    _, report = allocate(model, auto(target_modules=["a", "c"]), batches, loss=loss, budget=300)
    values = json.loads(json.dumps(report.to_dict()))
    assert Allocation.from_dict(values) == report
    assert values["modules"][0]["parameters"] == report.modules[0].parameters
    assert values["parameters"] == report.parameters <= 300


@pytest.mark.parametrize(
    ("config", "budget", "message"),
    [
        (auto(n=4), None, "n=4 is a number, and no budget is given: set n='auto', or a budget"),
        (auto(), 10, r"budget=10 is below [\d,]+, what r=1 takes in these 9 modules; raise it, or"),
        (auto(), 0, "budget must be a whole number from 1"),
        (auto(), 1.5, "budget must be a whole number from 1"),
        (auto(mixing="learned"), 10**6, r"budget: with mixing='learned' a module has r n\^2 parameters more"),
        (auto(rank_pattern={"query": 2}), 10**6, "budget: chooses r for every module, and rank_pattern gives it"),
        (auto(target_modules=["qury"]), None, r"no module matches 'qury' \(closest: query"),
        (
            auto(mixing="shuffle"),
            None,
            "mixing='shuffle' with n='auto': n divides r, so that with r=1 it is 1 everywhere",
        ),
        (
            auto(mixing="shuffle", r=3),
            None,
            "with r=3 it is 1 everywhere, plain LoRA: choose r=2 or 4 or 8, or a multiple",
        ),
        (auto(r=1000), None, "r=1000 is larger than the weight"),
        (auto(n_pattern={"query|dense": 2}), None, "n_pattern names every target, so there is nothing to choose"),
        (auto(n_pattern={"query": 5}), None, "n=5 does not divide"),
        (auto(target_modules=["word_embeddings"]), None, "word_embeddings is a Embedding, and gradients are taken of"),
        (auto(target_parameters=["weight"]), None, "target_parameters: gradients are taken of linear layers alone"),
    ],
)
def test_what_is_refused_before_the_pass(config: MeloraConfig, budget: Any, message: str, tiny_bert: Any) -> None:
    def never() -> Any:
        raise AssertionError("a batch was asked for")
        yield

    before = dict(vars(config))
    with pytest.raises(MeloraError, match=message) as caught:
        allocate(tiny_bert, config, never(), budget=budget)
    assert "\n" not in str(caught.value)
    assert vars(config) == before


def test_the_smallest_budget_is_one_everywhere(tiny_bert: Any) -> None:
    with pytest.raises(MeloraError, match="is below") as caught:
        allocate(tiny_bert, auto(), BATCHES, budget=10)
    smallest = int(str(caught.value).split("below ")[1].split(", what")[0].replace(",", ""))
    _, report = allocate(tiny_bert, auto(), BATCHES, budget=smallest)
    assert {m.r for m in report.modules} == {1}
    with pytest.raises(MeloraError, match="is below"):
        allocate(tiny_bert, auto(), BATCHES, budget=smallest - 1)


def test_no_default_targets(make_mlp: Callable[..., nn.Module]) -> None:
    with pytest.raises(MeloraError, match="target_modules: PEFT has no default for model_type 'None'; name"):
        allocate(make_mlp(), MeloraConfig(n="auto"), [X], loss=square)


@pytest.mark.parametrize("pinned", [{}, {"first": 2}])
def test_an_unresolved_config_is_refused_by_the_model_and_by_files(
    pinned: dict[str, int], make_mlp: Callable[..., nn.Module], tmp_path: Path
) -> None:
    config = auto(target_modules=["first"], n_pattern=pinned)
    model = make_mlp()
    before = {name for name, _ in model.named_modules()}
    with pytest.raises(MeloraError, match=r"n='auto' is no number yet: .*melora.allocate\(model, config, batches\)"):
        get_peft_model(model, config)
    assert {name for name, _ in model.named_modules()} == before
    with pytest.raises(MeloraError, match="n='auto' is no number yet"):
        config.save_pretrained(tmp_path / "config")
    assert not (tmp_path / "config").exists()
    assert config.equivalent_rank is None
    assert "auto" in repr(config)
    saved = get_peft_model(make_mlp(), MeloraConfig(n=2, target_modules=["first"]))
    saved.save_pretrained(tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "n": "auto", "n_pattern": pinned}))
    for read in (inspect_adapter, lambda path: load_adapter(make_mlp(), path)):
        with pytest.raises(MeloraError, match=r"adapter_config.json: n='auto' is no number yet"):
            read(tmp_path / "adapter")
    with pytest.raises(MeloraError, match="n='auto' is no number yet"):
        PeftModel.from_pretrained(make_mlp(), tmp_path / "adapter")
