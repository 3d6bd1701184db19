"""melora export"""

import argparse
import shutil
import sys
from pathlib import Path

from rich.console import Console

from ..conversion import export_lora, new_folder
from ..errors import MeloraError
from ..training.folder import ADAPTER, RECIPE
from ..training.saved import TASK

# What a tokenizer's save_pretrained writes, of any kind.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
)


def run(args: argparse.Namespace, console: Console) -> int:
    source = Path(args.run)
    adapter = source / ADAPTER if (source / RECIPE).is_file() else source
    output = Path(args.output) if args.output else source / args.to
    if args.allow_quantized and args.to != "merged":
        raise MeloraError("--allow-quantized: is for --to merged; an export to lora does not touch the base model")
    if args.to == "merged":
        from ..training.merged import export_merged  # all of transformers, which an export to LoRA does not need

        merged = export_merged(source, output, allow_quantized=args.allow_quantized)
        console.print(f"merged model  {merged.path}", markup=False)
        console.print(
            f"drift         at most {merged.drift:.2e} in outputs up to {merged.scale:.2f}, on {merged.measured_on}: "
            "the written model, loaded again, against base and adapter"
        )
        return 0
    _export_lora(adapter, output, console)
    return 0


def _export_lora(adapter: Path, output: Path, console: Console) -> None:
    with new_folder(output) as folder:
        folder.rmdir()  # export_lora makes it
        done = export_lora(adapter, folder)
        for name in (*_TOKENIZER_FILES, TASK):
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
    console.print(f"LoRA adapter  {output}: {done.modules} modules of rank {done.rank}, exact", markup=False)
    if done.vllm_max_lora_rank is not None:
        console.print(f"vLLM          needs --max-lora-rank {done.vllm_max_lora_rank}")
    for warning in done.warnings:
        print(f"warning: {warning}", file=sys.stderr)
