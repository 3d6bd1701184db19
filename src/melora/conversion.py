"""MELoRA to LoRA: exact, without SVD, in the one form that every server takes.

A MELoRA is a LoRA of rank n * r whose factors are block-diagonal. Servers differ in what they read of a LoRA config
(vLLM ignores patterns, SGLang ignores rsLoRA, llama.cpp scales by the tensor's own rank), so the export leaves nothing
to read: the scaling is in B, r = lora_alpha = the tensors' own rank, and all modules have the same, padded by zeros.
"""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import save_file

from .adapter_files import PREFIX, WEIGHTS_FILE, AdapterFiles, read_adapter
from .errors import MeloraError

# The values that vLLM accepts for --max-lora-rank.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


@dataclass(frozen=True)
class LoraExport:
    """What `export_lora` wrote.

    Attributes:
        path: the LoRA adapter's folder.
        rank: the common rank R of all modules, the largest n * r.
        vllm_max_lora_rank: the smallest --max-lora-rank of vLLM that admits R, or None if none does.
        modules: number of adapted modules.
        warnings: what some servers will not take, one sentence each.
    """

    path: Path
    rank: int
    vllm_max_lora_rank: int | None
    modules: int
    warnings: list[str] = field(default_factory=list)


def export_lora(adapter: str | Path, output: str | Path) -> LoraExport:
    """Write a MELoRA adapter as a plain LoRA adapter that stock PEFT loads. Needs no base model.

    Args:
        adapter: the MELoRA adapter's folder.
        output: the folder to make; it must not exist.

    Raises:
        MeloraError: the adapter is damaged or no MELoRA, or `output` exists. Nothing is written then.
    """
    files = read_adapter(adapter)
    if str(files.config.peft_type.value) != "MELORA":
        raise MeloraError(f"{adapter}: is a {files.config.peft_type.value} adapter already; only MELoRA is converted")
    rank = max(module.equivalent_rank for module in files.modules)
    tensors = files.load()
    converted = {key: tensors[key].contiguous() for key in files.other_keys()}
    for module in files.modules:
        A, B = lora_factors(*files.factors(tensors, module), module.scaling, rank)
        converted[f"{PREFIX}{module.name}.lora_A.weight"] = A
        converted[f"{PREFIX}{module.name}.lora_B.weight"] = B
    with new_folder(output) as folder:
        save_file(converted, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        _lora_config(files, rank).save_pretrained(str(folder))
    bucket = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    return LoraExport(Path(output), rank, bucket, len(files.modules), _warnings(files, rank, bucket))


def lora_factors(A: torch.Tensor, B: torch.Tensor, scaling: float, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dense LoRA factors with lora_B @ lora_A = scaling * blockdiag(B_i A_i).

    Args:
        A: (n, r, d_in / n).
        B: (n, d_out / n, r).
        scaling: goes into lora_B. Factors of 16 bits become fp32 where theirs would round the product.
        rank: rows of lora_A and columns of lora_B, at least n * r; those beyond n * r are zero.

    Returns:
        lora_A (rank, d_in) and lora_B (d_out, rank), contiguous.
    """
    scaled = B.to(torch.float64) * scaling
    dtype = B.dtype
    if dtype in (torch.float16, torch.bfloat16) and not torch.equal(scaled.to(dtype).to(torch.float64), scaled):
        dtype = torch.float32
    missing = rank - A.shape[0] * A.shape[1]
    lora_A = torch.nn.functional.pad(torch.block_diag(*A), (0, 0, 0, missing)).to(dtype)
    lora_B = torch.nn.functional.pad(torch.block_diag(*scaled), (0, missing)).to(dtype)
    return lora_A.contiguous(), lora_B.contiguous()


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path`, renamed to `path` when the block ends well and removed when it does not.

    Raises:
        MeloraError: `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise MeloraError(f"{path}: exists already; choose another folder or remove it first")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp makes it private, which a server running as another user could not read
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _lora_config(files: AdapterFiles, rank: int) -> LoraConfig:
    """A LoraConfig that names exactly the adapted modules and leaves a server nothing else to interpret."""
    source = files.config
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=source.lora_dropout,
        use_rslora=False,
        fan_in_fan_out=source.fan_in_fan_out,
        modules_to_save=source.modules_to_save,
        bias="lora_only" if source.bias == "melora_only" else source.bias,
        trainable_token_indices=source.trainable_token_indices,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        task_type=source.task_type,
        inference_mode=True,
    )
    config.target_modules = _target_modules(files)  # as a list: LoraConfig would make a set, written in random order
    return config


def _target_modules(files: AdapterFiles) -> list[str]:
    """The config's own short names where they alone chose the modules, else the modules' full names."""
    source = files.config
    selected = source.exclude_modules or source.layers_to_transform is not None
    if isinstance(source.target_modules, str) or selected or not source.target_modules:
        return [module.name for module in files.modules]
    return sorted(source.target_modules)


def _warnings(files: AdapterFiles, rank: int, bucket: int | None) -> list[str]:
    config, found = files.config, []
    if bucket is None:
        found.append(f"rank {rank} is above {VLLM_RANKS[-1]}, the largest that vLLM takes: merge instead")
    too_high = [m.name for m in files.modules if m.equivalent_rank > min(m.d_in, m.d_out)]
    if too_high:
        found.append(f"n * r exceeds the weight's own rank in {too_high[0]} and {len(too_high) - 1} more: lower n or r")
    if config.modules_to_save:
        found.append(
            f"modules_to_save ({', '.join(sorted(config.modules_to_save))}) is rejected by vLLM; PEFT loads it"
        )
    if config.bias != "none":
        found.append(f"bias={config.bias} is rejected by vLLM; PEFT loads it")
    return found
