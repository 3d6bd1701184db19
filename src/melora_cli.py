"""The command `melora`: the parser, and nothing heavy.

A module of its own beside the package: importing `melora` registers the method with PEFT and so loads torch, which
takes seconds. Help, version and mistyped options need none of it; a command's body (melora.cli.<command>) is imported
when it runs.
"""

import argparse
import importlib
import logging
import os
import sys
from importlib import metadata
from typing import NoReturn

_RECIPE_HELP = "YAML recipe, e.g. recipes/quickstart.yaml; `melora train --keys` lists every key"
_OVERRIDES_HELP = "change a key of the recipe, e.g. training.learning_rate=1e-3 adapter.n=4 (values are YAML)"
_DEBUG_HELP = "show tracebacks and the libraries' own warnings"


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, like all of melora's."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; `{self.prog} --help` shows what there is\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands but bench, whose options belong to melora.bench."""
    parser = Parser(
        prog="melora",
        description="Fine-tune, evaluate, export, import, inspect, time and compare MELoRA adapters (mini-ensemble "
        "low-rank adapters).",
        epilog="exit codes: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 stopped by SIGTERM",
    )
    parser.add_argument("--version", action="version", version=f"melora {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_import(commands)
    _add_inspect(commands)
    _add_push(commands)
    _add_compare(commands)
    commands.add_parser("bench", help="time one layer: frozen base, PEFT's LoRA, MELoRA", add_help=False)
    for command in commands.choices.values():
        command.allow_abbrev = False
        command.add_argument("--debug", action="store_true", help=_DEBUG_HELP)
    return parser


def _add_train(commands: "argparse._SubParsersAction[Parser]") -> None:
    train = commands.add_parser(
        "train",
        help="train an adapter from a recipe",
        description="Train an adapter and write a run folder: the adapter with its card, scores, curves, and all that "
        "is needed to repeat the run.",
        epilog="example: melora train recipes/quickstart.yaml output=runs/n4 adapter.n=4",
    )
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help=_RECIPE_HELP)
    train.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_OVERRIDES_HELP)
    train.add_argument(
        "--dry-run", action="store_true", help="check everything and show what would run; writes nothing"
    )
    train.add_argument("--overwrite", action="store_true", help="replace an existing run folder")
    train.add_argument(
        "--resume", action="store_true", help="go on with an interrupted run from its newest checkpoint that is whole"
    )
    train.add_argument(
        "--push-to-hub", metavar="REPO", help="upload the finished adapter there; the token is checked before training"
    )
    train.add_argument("--private", action="store_true", help="with --push-to-hub: make the repository private")
    train.add_argument("--keys", action="store_true", help="list every key of a recipe, with defaults, and stop")


def _add_evaluate(commands: "argparse._SubParsersAction[Parser]") -> None:
    evaluate = commands.add_parser(
        "evaluate",
        help="score a finished run again, from its files",
        description="Rebuild the model from a run folder, check that it is the one that was trained, and score it: on "
        "the recipe's validation rows, or with --tasks on benchmarks of lm-eval.",
        epilog="example: melora evaluate runs/dolly-smollm2 --tasks mmlu,bbh_fewshot --data-folder ../shared/data "
        "--limit 4",
    )
    evaluate.add_argument("run", metavar="RUN", help="a run folder that `melora train` made")
    evaluate.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help=_OVERRIDES_HELP)
    evaluate.add_argument("--data", metavar="FILE", help="score on this file instead of the recipe's validation data")
    evaluate.add_argument(
        "--predictions", metavar="FILE", help="write the predictions to this new .csv or .parquet file"
    )
    group = evaluate.add_argument_group("benchmarks of language models (needs `pip install 'melora[eval]'`)")
    group.add_argument("--tasks", metavar="NAME,...", help="lm-eval's tasks, e.g. mmlu,bbh,drop,humaneval")
    group.add_argument(
        "--data-folder",
        metavar="FOLDER",
        help="take the rows of mmlu, bbh, gsm8k and humaneval from Parquet files in it, not from the hub",
    )
    group.add_argument("--num-fewshot", type=int, metavar="K", help="shots in the prompt (default: the task's own)")
    group.add_argument("--limit", type=int, metavar="N", help="only the first N rows of every task")
    group.add_argument(
        "--batch-size", type=int, metavar="N", help="rows at a time to start from; halved if memory ends (default: 16)"
    )
    group.add_argument("--baseline", action="store_true", help="score the base model without the adapter too")
    group.add_argument("--chat", action="store_true", help="put the questions into the model's chat template")
    group.add_argument(
        "--run-code", action="store_true", help="let humaneval run the code that the model writes; it is not sandboxed"
    )


def _add_export(commands: "argparse._SubParsersAction[Parser]") -> None:
    export = commands.add_parser(
        "export",
        help="write a plain LoRA adapter, or a merged model",
        description="Write an adapter in a form that needs no melora: an exact plain LoRA for any server that loads "
        "LoRA, or base model and adapter merged into one plain transformers model.",
    )
    export.add_argument("run", metavar="RUN", help="a run folder, or an adapter folder")
    export.add_argument("--to", choices=("lora", "merged"), required=True, help="what to write")
    export.add_argument("--output", metavar="FOLDER", help="the folder to make (default: RUN/lora or RUN/merged)")
    export.add_argument(
        "--allow-quantized", action="store_true", help="merge into a quantised base, which rounds the update"
    )


def _add_import(commands: "argparse._SubParsersAction[Parser]") -> None:
    import_ = commands.add_parser(
        "import",
        help="write the nearest MELoRA of an existing LoRA adapter",
        description="Write the nearest MELoRA of a LoRA adapter (per diagonal block, by SVD) and report how much of "
        "the update it keeps, layer by layer. What lies outside the blocks is lost: a poor import is refused.",
    )
    import_.add_argument("adapter", metavar="LORA_ADAPTER", help="the LoRA adapter's folder")
    import_.add_argument("--n", type=int, required=True, help="number of minis; must divide both sizes of every module")
    import_.add_argument("--r", type=int, help="rank of one mini (default: the LoRA's rank / n, at least 1)")
    import_.add_argument("--output", metavar="FOLDER", help="the folder to make (default: LORA_ADAPTER-melora)")
    import_.add_argument(
        "--min-energy",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="refuse to keep less than this share of the update's squared norm (default: 0.9; 0 takes anything)",
    )


def _add_inspect(commands: "argparse._SubParsersAction[Parser]") -> None:
    inspect = commands.add_parser(
        "inspect",
        help="measure an adapter layer by layer",
        description="Per layer: shape, n, r, equivalent rank, measured rank and effective rank of dW, norm and "
        "parameters; and totals against a LoRA of equal rank. On request, how different the minis are. Needs no base "
        "model but for --outputs.",
        epilog="example: melora inspect runs/quickstart --diversity --outputs --plot diversity.png",
    )
    inspect.add_argument("run", metavar="RUN_OR_ADAPTER", help="a run folder, or an adapter folder")
    inspect.add_argument(
        "--diversity",
        action="store_true",
        help="a second table: the share of dW off the diagonal blocks, and the angles between the minis' subspaces "
        "beside chance",
    )
    inspect.add_argument(
        "--blocks",
        type=int,
        metavar="N",
        help="measure the share off the diagonal against N blocks, for a LoRA say (default: each module's own n)",
    )
    inspect.add_argument(
        "--outputs",
        action="store_true",
        help="run the base model on a batch, on the CPU, and compare the minis' outputs; needs a run folder",
    )
    inspect.add_argument(
        "--data", metavar="FILE", help="with --outputs: rows of this file instead of the recipe's validation data"
    )
    inspect.add_argument("--rows", type=int, metavar="N", help="with --outputs: at most so many rows (default: 64)")
    inspect.add_argument("--plot", metavar="FILE.png", help="draw the diversity layer by layer")
    inspect.add_argument(
        "--json", action="store_true", help="print JSON, with all that was measured, instead of tables"
    )


def _add_push(commands: "argparse._SubParsersAction[Parser]") -> None:
    push = commands.add_parser(
        "push",
        help="upload a run's adapter to the Hugging Face hub",
        description="Upload a finished run's adapter folder, with its model card, as a model repository.",
    )
    push.add_argument("run", metavar="RUN", help="a run folder that `melora train` made")
    push.add_argument("repo", metavar="REPO", help="OWNER/NAME of the repository; it is made if there is none")
    push.add_argument("--private", action="store_true", help="make the repository private")


def _add_compare(commands: "argparse._SubParsersAction[Parser]") -> None:
    compare = commands.add_parser(
        "compare",
        help="compare methods over tasks, seeds and learning rates",
        description="Run a study: each method on each task at several learning rates, chosen on held-out rows, then at "
        "the best one with every seed, scored once on the untouched split. Finished runs are never made again. Writes "
        "report.html, report.md, plots and results.parquet.",
        epilog="example: melora compare studies/quick.yaml --jobs 2",
    )
    compare.add_argument("study", metavar="STUDY", help="YAML study, e.g. studies/quick.yaml")
    compare.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="change a key of the study, e.g. seeds=[0,1]"
    )
    compare.add_argument(
        "--dry-run", action="store_true", help="check everything, time one step of each method and show the hours"
    )
    compare.add_argument("--report", action="store_true", help="only write the report of the runs that are there")
    compare.add_argument("--retry-failed", action="store_true", help="make failed runs again")
    compare.add_argument("--jobs", type=int, metavar="N", help="runs at a time on this machine (default: 1)")
    compare.add_argument("--threads", type=int, metavar="N", help="of each run (default: the cores divided by --jobs)")
    compare.add_argument(
        "--ray",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="hand the runs to Ray: one started here, or the cluster at ADDRESS, which must share the study's folder",
    )
    compare.add_argument("--cpus", type=float, metavar="N", help="with --ray: processors of a run (default: 1)")
    compare.add_argument("--gpus", type=float, metavar="N", help="with --ray: GPUs of a run (default: 0)")


def _version() -> str:
    try:
        return metadata.version("melora")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 1 failed, 2 bad input, 130 interrupted, 143 for SIGTERM."""
    argv = sys.argv[1:] if argv is None else argv
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if hasattr(args, "overrides"):  # argparse leaves positionals that follow an option to us
        args.overrides += [word for word in rest if not word.startswith("-")]
        rest = [word for word in rest if word.startswith("-")]
    if rest and args.command != "bench":
        parser.error(f"{args.command}: unknown argument {rest[0]!r}")
    # A worker of the tokenizer's pool after a fork prints a warning; the Trainer's loader forks.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if not args.debug:
        # It warns as it is imported, on CPUs with AVX512-BF16 each time: PEFT does that, before the frame is there.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        frame = importlib.import_module("melora.cli.frame")
        return int(frame.run_command(args, rest))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
