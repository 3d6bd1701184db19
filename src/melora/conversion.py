"""MELoRA to LoRA: exact, without SVD, in the one form that every server takes.

A MELoRA is a LoRA of rank n * r whose factors are block-diagonal. Servers differ in what they read of a LoRA config
(vLLM ignores patterns, SGLang ignores rsLoRA, llama.cpp scales by the tensor's own rank), so the export leaves nothing
to read: the scaling is in B, r = lora_alpha = the tensors' own rank, and all modules have the same, padded by zeros.
"""

import math
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from peft import LoraConfig
from safetensors.torch import save_file

from .adapter_files import PREFIX, WEIGHTS_FILE, AdapterFiles, ModuleFactors, read_adapter
from .errors import MeloraError
from .file_modules import OUT_PROJ
from .lora_layout import lora_tensors

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


def export_lora(adapter: str | Path, output: str | Path, groups: Mapping[str, int] | None = None) -> LoraExport:
    """Write a MELoRA adapter as a plain LoRA adapter that stock PEFT loads. Needs no base model.

    Args:
        adapter: the MELoRA adapter's folder.
        output: the folder to make; it must not exist.
        groups: {module: groups of its convolution}, for those that have more than one: LoRA's tensors there depend on
            it, and the adapter's files do not hold it.

    Raises:
        MeloraError: the adapter is damaged or no MELoRA, `groups` does not fit it, or `output` exists. Nothing is
            written then.
    """
    files = read_adapter(adapter)
    if str(files.config.peft_type.value) != "MELORA":
        raise MeloraError(f"{adapter}: is a {files.config.peft_type.value} adapter already; only MELoRA is converted")
    groups = {module.name: _groups(module, groups or {}) for module in files.modules}
    multiple = math.lcm(*groups.values())  # LoRA on a convolution needs a rank that its groups divide
    rank = math.ceil(max(module.equivalent_rank for module in files.modules) / multiple) * multiple
    tensors = files.load()
    converted = {key: tensors[key].contiguous() for key in files.other_keys()}
    for module in files.modules:
        extra = files.core(tensors, module), files.order(tensors, module)
        factors = lora_tensors(module, *files.factors(tensors, module), rank, groups[module.name], *extra)
        converted.update({f"{PREFIX}{module.name}.{key}": tensor for key, tensor in factors.items()})
    with new_folder(output) as folder:
        save_file(converted, folder / WEIGHTS_FILE, metadata={"format": "pt"})
        _lora_config(files, rank).save_pretrained(str(folder))
    bucket = next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)
    return LoraExport(Path(output), rank, bucket, len(files.modules), _warnings(files, rank, bucket))


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
        target_parameters=source.target_parameters,
        base_model_name_or_path=source.base_model_name_or_path,
        revision=source.revision,
        task_type=source.task_type,
        inference_mode=True,
    )
    config.target_modules = _target_modules(files)  # as a list: LoraConfig would make a set, written in random order
    return config


def _groups(module: ModuleFactors, groups: Mapping[str, int]) -> int:
    """Groups of the base layer, as far as they are known: a mini that spans several tells them by itself."""
    spanned = module.r // module.B_shape[2] if module.kind == "convolution" else 1
    return groups.get(module.name, module.n * spanned if spanned > 1 else 1)


def _target_modules(files: AdapterFiles) -> list[str]:
    """The config's own short names where they alone chose the modules, else the modules' full names."""
    source = files.config
    if source.target_parameters and all(module.kind == "parameter" for module in files.modules):
        return []
    selected = source.exclude_modules or source.layers_to_transform is not None
    if isinstance(source.target_modules, str) or selected or not source.target_modules:
        # A MultiheadAttention brings its output projection with it; parameters are named in target_parameters.
        return [m.name for m in files.modules if m.kind != "parameter" and not m.name.endswith(OUT_PROJ)]
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
    if any(module.kind == "attention" for module in files.modules):
        found.append(
            "PEFT up to 0.21 applies LoRA's update of an nn.MultiheadAttention's output projection twice (its pull "
            "request 3774): use a PEFT with that fixed, or merge instead"
        )
    if config.bias != "none":
        found.append(f"bias={config.bias} is rejected by vLLM; PEFT loads it")
    return found
