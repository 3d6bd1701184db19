"""The pieces of the operation that docs/performance.md times by themselves, on this machine's CPU.

    python benchmarks/pieces.py products --output benchmarks/results/DATE-pieces-products.csv
    python benchmarks/pieces.py dropout --output benchmarks/results/DATE-pieces-dropout.csv
    python benchmarks/pieces.py passes --output benchmarks/results/DATE-pieces-passes.csv
    python benchmarks/pieces.py cold --output benchmarks/results/DATE-pieces-cold.csv
    python benchmarks/pieces.py draw --output benchmarks/results/DATE-pieces-draw.csv
    python benchmarks/pieces.py encoder --output benchmarks/results/DATE-pieces-encoder.csv
    python benchmarks/pieces.py step

products: a block-diagonal factor by its blocks and with blocks merged; dropout: the masked products by chunk size; both
the median of 25 calls in ms, on warm data. passes: the time that the memory alone asks of an adapter, beside the frozen
layer's step, in turns: MELoRA without dropout reads x and g twice each, and reads and writes y and grad_x, as much as
four passes that read and write one of them. cold: two ways into the ranks, on rows that are not in the caches. draw:
which elements dropout keeps, the bytes to remember it by, and the time to read them back. encoder: a training step of
16 rows of a model of MiniLM-L6's shape, MELoRA 8x1 on query and value, one thread: its own dropout of 0.1 by PyTorch
and by melora.training.fast_dropout, over the step without dropout, in turns. step: where a training step
of SmolLM2 with all linear layers spends its time, MELoRA 8x1 and LoRA r=8, by torch.profiler. How saving or loading
spends it (FOLDER is an empty folder):

    echo go | python -m cProfile -o FILE -m melora.bench.disk_worker load FOLDER melora 64 4096 8 16 2
"""

import argparse
import csv
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.profiler import profile
from transformers import AutoModelForSequenceClassification, BertConfig

from melora import MeloraConfig
from melora.bench.models import MODELS
from melora.bench.peers import Peer
from melora.bench.row import Facts
from melora.bench.suites import model as suite
from melora.bench.timing import interleave
from melora.ops import keep_bits, products
from melora.ops.block_diagonal import BlockDiagonal, choose_groups
from melora.ops.plain import minis
from melora.training.environment import describe_machine
from melora.training.fast_dropout import fast_dropout

TOKENS = 2048
DTYPES = (torch.float32, torch.bfloat16)
WIDTHS = (768, 2048)
PAIRS = ((8, 1), (8, 8), (32, 1), (64, 1))
PASSES = 4  # x and g read twice, y and grad_x read and written: 8 streams of T x d, two to a pass
CHUNKS = (2**17, 2**18, 2**19)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=("products", "dropout", "passes", "cold", "draw", "encoder", "step"))
    parser.add_argument("--output", type=Path, help="the CSV file to write (all but step)")
    args = parser.parse_args()
    if args.piece == "step":
        _step()
        return
    if args.output is None:
        parser.error(f"{args.piece}: --output FILE.csv is missing")
    torch.manual_seed(0)
    if args.piece == "encoder":
        torch.set_num_threads(1)
    where = {"machine": describe_machine(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    pieces = {
        "products": _products,
        "dropout": _dropout,
        "passes": _passes,
        "cold": _cold,
        "draw": _draw,
        "encoder": _encoder,
    }
    rows = [{**where, **row} for row in pieces[args.piece]()]
    with args.output.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _products() -> Iterator[dict[str, Any]]:
    for dtype, d, (n, r) in itertools.product(DTYPES, WIDTHS, PAIRS):
        x, out = torch.randn(TOKENS, d).to(dtype), torch.zeros(TOKENS, d, dtype=dtype)
        blocks = torch.randn(n, r, d // n).to(dtype)
        for groups in sorted({n, min(n, 8), 1}, reverse=True):
            factor = BlockDiagonal(blocks, groups)
            u = factor.project(x)
            yield {
                "d": d, "dtype": str(dtype).removeprefix("torch."), "n": n, "r": r, "groups": groups,
                "chosen": groups == choose_groups(x, n, r),
                "making": _ms(lambda groups=groups, blocks=blocks: BlockDiagonal(blocks, groups)),
                "into_ranks": _ms(lambda factor=factor, x=x: factor.project(x)),
                "out_of_ranks": _ms(lambda factor=factor, u=u, out=out: factor.accumulate(out, u, 1e-9)),
                "over_tokens": _ms(lambda factor=factor, u=u, x=x: factor.summed(u, x)),
            }  # fmt: skip


def _dropout() -> Iterator[dict[str, Any]]:
    for dtype, d, chunk in itertools.product(DTYPES, WIDTHS, CHUNKS):
        keep_bits._CHUNK["cpu"] = chunk
        x, grad_x = torch.randn(TOKENS, d).to(dtype), torch.zeros(TOKENS, d, dtype=dtype)
        into = BlockDiagonal(torch.randn(8, 1, d // 8).to(dtype), choose_groups(x, 8, 1))
        u, bits = products._project_kept(x, into, 0.05)
        forward = _ms(lambda x=x, into=into: products._project_kept(x, into, 0.05))
        backward = _ms(
            lambda x=x, into=into, grad_x=grad_x, u=u, bits=bits: products._backward_kept(
                grad_x, u, x, into, bits, need_A=True
            )
        )
        name = str(dtype).removeprefix("torch.")
        yield {"d": d, "dtype": name, "n": 8, "r": 1, "chunk": chunk, "forward": forward, "backward": backward}


def _passes() -> Iterator[dict[str, Any]]:
    for dtype, d, tokens in itertools.product(DTYPES, (768, 2048, 4096), (512, 2048, 8192)):
        weight = torch.randn(d, d).to(dtype)
        x, grad = torch.randn(tokens, d).to(dtype).requires_grad_(True), torch.randn(tokens, d).to(dtype)
        four = [torch.zeros(tokens, d, dtype=dtype) for _ in range(PASSES)]  # apart, as x, g, y and grad_x are

        def base(x: torch.Tensor = x, weight: torch.Tensor = weight, grad: torch.Tensor = grad) -> None:
            torch.autograd.grad(torch.nn.functional.linear(x, weight), x, grad)

        def passes(four: list[torch.Tensor] = four) -> None:
            for tensor in four:
                tensor.add_(1.0)

        (of_base, of_passes), _ = interleave([base, passes], 20)
        yield {
            "d": d, "tokens": tokens, "dtype": str(dtype).removeprefix("torch."),
            "base_ms": round(of_base.ms_p50, 4), "passes_ms": round(of_passes.ms_p50, 4),
            "ratio_p20": round(of_passes.ratio_p20, 4), "ratio_p50": round(of_passes.ratio_p50, 4),
            "ratio_p80": round(of_passes.ratio_p80, 4),
        }  # fmt: skip


def _cold() -> Iterator[dict[str, Any]]:
    for d, (n, r) in itertools.product(WIDTHS, ((8, 1), (8, 8))):
        many = [torch.randn(TOKENS, d) for _ in range(int(140e6 / (4 * TOKENS * d)))]
        blocks = torch.randn(n, r, d // n)
        slices = [minis(x, n) for x in many]
        yield {
            "d": d, "n": n, "r": r,
            "tokens_as_rows": _ms(_each(slices, lambda x, blocks=blocks: torch.bmm(x, blocks.transpose(1, 2)))),
            "tokens_as_columns": _ms(_each(slices, lambda x, blocks=blocks: torch.bmm(blocks, x.transpose(1, 2)))),
            "in_place": _ms(_each(many, lambda x: x.add_(1e-3))),
        }  # fmt: skip


def _draw() -> Iterator[dict[str, Any]]:
    d, p = WIDTHS[0], 0.05
    x = torch.randn(TOKENS, d)
    kept = torch.empty(TOKENS, d, dtype=torch.bool)
    ways: dict[str, Callable[[], torch.Tensor]] = {
        "native_dropout": lambda: torch.native_dropout(x, p, train=True)[1],
        "bernoulli_": lambda: kept.bernoulli_(1 - p),
        "bits": lambda: keep_bits.draw(x.numel(), p, x.device),
    }
    for name, draw in ways.items():
        mask = draw()
        read = _ms(lambda mask=mask: [*keep_bits.masks(x, mask)]) if name == "bits" else ""
        size = mask.numel() * mask.element_size()
        yield {"d": d, "tokens": TOKENS, "p": p, "way": name, "draw": _ms(draw), "bytes": size, "read": read}


def _encoder() -> Iterator[dict[str, Any]]:
    config = BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536, num_labels=2
    )
    base = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager")
    model = get_peft_model(base, MeloraConfig(n=8, r=1, target_modules=["query", "value"]))
    for dtype, tokens in itertools.product(DTYPES, (25, 85)):
        ids = torch.randint(config.vocab_size, (16, tokens))
        bf16 = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)

        def step(train: bool, mask: Callable[[], Any], ids: Any = ids, autocast: Any = bf16) -> None:
            model.train(train)
            with mask():
                with autocast:
                    loss = model(input_ids=ids, labels=torch.zeros(16, dtype=torch.long)).loss
                loss.backward()
            model.zero_grad()

        ways = {"none": (False, nullcontext), "PyTorch": (True, nullcontext), "fast_dropout": (True, fast_dropout)}
        timings, _ = interleave([partial(step, *way) for way in ways.values()], 20)
        for name, timing in zip(ways, timings, strict=True):
            told = {key: round(value, 4) for key, value in asdict(timing).items()}
            yield {"dtype": str(dtype).removeprefix("torch."), "tokens": tokens, "dropout": name, **told}


def _each(tensors: list[torch.Tensor], call: Callable[[torch.Tensor], object]) -> Callable[[], object]:
    endless = itertools.cycle(tensors)
    return lambda: call(next(endless))


def _step() -> None:
    facts = Facts("model", "smollm2 all-linear", tokens=256, batch=4, dtype="float32")
    peers = (Peer("melora", 8, 1, 8), Peer("lora", 1, 8, 8))
    built = suite._build(facts, "smollm2", MODELS["smollm2"].targets["all-linear"], peers, "cpu")
    for peer, one in zip(peers, built, strict=True):
        one.step()
        with profile() as found:
            one.step()
        print(peer.label)
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=12, max_name_column_width=40))


def _ms(call: Callable[[], object], calls: int = 25) -> float:
    seconds = []
    for _ in range(calls + 2):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return round(1e3 * statistics.median(seconds[2:]), 4)


if __name__ == "__main__":
    main()
