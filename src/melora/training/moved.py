"""Whether training moves every part of an adapter: a part that no gradient reaches is one that does nothing."""

import hashlib
import re
from collections.abc import Iterable, Mapping

import torch
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

from .failures import TrainingError

_B = "melora_B"


def module_of(parameter: str) -> str:
    """The adapted module that an adapter's parameter belongs to, under the base model's own name.

    PEFT's layers keep their parameters in children whose names start with the method's prefix (lora_A, melora_B, ...).
    """
    parts = parameter.removeprefix("base_model.model.").split(".")
    return ".".join(parts[: _prefixed(parts)])


def _prefixed(parts: list[str]) -> int:
    prefixes = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())
    return next((index for index, part in enumerate(parts) if part.startswith(prefixes)), len(parts) - 1)


def snapshot(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What to compare the parameters by later, on the CPU: copies of an adapter's, digests of all others.

    The others are as large as the model where its own weights are trained: copies would add that much to the run.
    """
    return {
        name: parameter.detach().to("cpu", copy=True) if _is_adapters(name) else _digest(parameter)
        for name, parameter in parameters.items()
    }


def _is_adapters(parameter: str) -> bool:
    """Whether a layer of the adapter holds it, and not the base model."""
    prefixes = tuple(PEFT_TYPE_TO_PREFIX_MAPPING.values())
    return any(part.startswith(prefixes) for part in parameter.split("."))


def _digest(parameter: torch.Tensor) -> torch.Tensor:
    content = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return torch.frombuffer(bytearray(hashlib.blake2b(content.data, digest_size=16).digest()), dtype=torch.uint8)


def unmoved(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> dict[str, list[int]]:
    """The modules of which something did not move, each with the indexes of the mini blocks that did not.

    A MELoRA's block has moved if its B has; where B did not start at zero (as in embeddings), if its A has, too. Of any
    other method a module has moved if one of its parameters has; the list of blocks is empty then.

    Args:
        before: what `snapshot` returned.
        after: the same of the whole parameters now. A and B of a MELoRA have the block as their first dimension.
    """
    # Biases and the like, trained beside the adapter, may have a gradient of zero by the mathematics of attention.
    names = [name for name in before if _is_adapters(name)] or list(before)
    modules: dict[str, list[str]] = {}
    for name in names:
        modules.setdefault(module_of(name), []).append(name)
    found: dict[str, list[int]] = {}
    for module, own in modules.items():
        if any(f".{_B}." in name for name in own):
            still = _still_blocks(own, before, after)
            if still:
                found[module] = still
        elif all(torch.equal(before[name], after[name]) for name in own):
            found[module] = []
    return found


def _still_blocks(names: list[str], before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> list[int]:
    moved: torch.Tensor | None = None
    zero = torch.tensor(False)
    for name in sorted(names, key=lambda name: f".{_B}." not in name):  # B first
        old, new = before[name], after[name]
        changed = (old != new).flatten(1).any(1)
        if moved is None:
            moved, zero = changed, (old == 0).flatten(1).all(1)
        else:
            moved = moved | (changed & ~zero)  # weight decay alone moves A
    assert moved is not None
    return [int(index) for index in torch.nonzero(~moved).flatten()]


def check_moved(
    before: Mapping[str, torch.Tensor],
    after: Mapping[str, torch.Tensor],
    *,
    steps: int,
    rate: float,
    idle_modules: Iterable[str] = (),
) -> None:
    """Check that all of the adapter moved.

    Args:
        before, after: see `unmoved`.
        steps: how many optimiser steps with a learning rate above 0 lie between them.
        rate: the learning rate at its highest, for the message.
        idle_modules: regular expressions; a module whose name one of them matches somewhere may stay as it is.

    Raises:
        TrainingError: something did not move; it names the modules, and for MELoRA the blocks.
    """
    still = unmoved(before, after)
    modules = {module_of(name) for name in before}
    whole = {name for name in still if len(still[name]) in (0, _blocks(name, before))}
    if modules and whole == modules and steps == 0:
        raise TrainingError(
            f"no adapter weight changed in training: no step had a learning rate above 0 (training.learning_rate is "
            f"{rate:g}, and 0 or less of it in warm-up); train for more steps, or shorten training.warmup_steps"
        )
    if modules and whole == modules:
        raise TrainingError(
            f"no adapter weight changed in training: no gradient reached {_listed(whole)} in {_steps(steps)}, or the "
            f"learning rate ({rate:g}, less in warm-up) is too small for so few steps"
        )
    meant = [re.compile(pattern) for pattern in idle_modules]
    alone = _biases_alone(before)  # a key's has no gradient, whatever trains it: it moves all scores of a row alike
    still = {
        name: blocks for name, blocks in still.items() if name not in alone and not any(p.search(name) for p in meant)
    }
    if still:
        shown = [
            name if name in whole else f"{name} (mini block {', '.join(map(str, still[name][:5]))})" for name in still
        ]
        raise TrainingError(
            f"{len(still)} of {len(modules)} adapted modules did not change in {_steps(steps)}, no gradient reaches "
            f"them: {_listed(shown)}; the usual causes: gradient checkpointing with use_reentrant=true, "
            "adapter.target_modules that this task's forward pass does not use, an output that is detached, an input "
            "slice that is always zero; leave them out with adapter.exclude_modules, or name them in idle_modules if "
            "they are meant to rest (experts that few tokens reach)"
        )


def _biases_alone(parameters: Iterable[str]) -> set[str]:
    """The modules of which nothing but biases is trained."""
    trained = [(module_of(name), name.endswith("bias")) for name in parameters]
    return {module for module, _ in trained} - {module for module, is_bias in trained if not is_bias}


def _blocks(module: str, before: Mapping[str, torch.Tensor]) -> int:
    sizes = (value.shape[0] for name, value in before.items() if f".{_B}." in name and module_of(name) == module)
    return next(sizes, 0)


def _listed(names: Iterable[str]) -> str:
    ordered = sorted(names)
    return ", ".join(ordered[:5]) + (f" and {len(ordered) - 5} more" if len(ordered) > 5 else "")


def _steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"
