"""MeloraConfig: LoraConfig's names, so that switching from LoRA is one line."""

import copy
import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from peft import LoraConfig, PeftConfig

from .errors import MeloraError
from .initial import INIT_WEIGHTS, has_start, is_init
from .lora_fields import shared_fields
from .registration import MeloraPeftType
from .untrusted import check_auto_mapping

# No weight has this many rows or columns. A larger r or n is a slip (or an attack), caught before any module is seen.
LARGEST_SIZE = 2**24

# n is to be chosen for each module, by its gradient (allocation.py).
AUTO: Literal["auto"] = "auto"

Mixing = Literal["none", "learned", "shuffle"]
Permute = Literal["none", "strided", "correlation"]

_BIAS = ("none", "all", "melora_only", "lora_only")


def positive_int(name: str, value: Any) -> int:
    """`value` if it is a whole number from 1 to LARGEST_SIZE, else MeloraError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_SIZE:
        raise MeloraError(
            f"{name} must be a whole number from 1 to {LARGEST_SIZE}, got {value!r}: choose e.g. {name}=8"
        )
    return value


def positive_number(name: str, value: Any) -> float:
    """`value` if it is a finite number above 0, else MeloraError naming `name`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise MeloraError(f"{name} must be a finite number above 0, got {value!r}: choose {name}=16, say")
    return value


@dataclass
class MeloraConfig(PeftConfig):
    """Configuration of a MELoRA adapter (mini-ensemble low-rank adapters, Ren et al., ACL 2024, arXiv 2402.17263).

    A weight (d_out, d_in) gets n mini LoRAs of rank r on its n diagonal blocks: an update of rank n * r for
    r * (d_in + d_out) parameters, a LoRA of rank r's. n=1 is LoRA. Names and meanings are those of peft.LoraConfig
    (PEFT 0.21) wherever it has the field.

    Args:
        r: rank of ONE mini.
        n: number of minis; must divide both sizes of every target. "auto" is a wish: melora.allocate turns it into
            numbers, each module's own, and without that no model takes the config.
        target_modules: names, a regular expression, or "all-linear", as for LoRA; by default LoRA's choice for the
            model's architecture.
        exclude_modules: names or a regular expression of modules to leave alone.
        lora_alpha: the update is scaled by lora_alpha / r, with r the rank of one mini (the reference's convention).
            A LoRA of the same update rank and lora_alpha is scaled by lora_alpha / (n * r), n times less.
        lora_dropout: dropout on the adapter's input.
        fan_in_fan_out: accepted for LoraConfig's sake; the layer's own type (Linear or Conv1D) decides.
        bias: "none", "all" or "melora_only" ("lora_only" is taken as the same).
        use_rslora: scale by lora_alpha / sqrt(r) instead.
        modules_to_save: modules to train and save whole, such as a new classifier.
        init_weights: True for Kaiming-uniform A over its own fan-in d_in / n (the reference's) and B = 0; "gaussian"
            for A ~ N(0, 1 / r^2), the paper's kind with PEFT's width, and B = 0; False for a random B, which PEFT's
            tests use. Three read A and B off each diagonal block, with the model's output unchanged (initial.py has
            the formulas): "pissa" by the singular values of the weight ("pissa_niter_N": approximate, in N
            iterations), "olora" by its QR decomposition, "lora_ga" by the singular vectors of its gradient, for which
            `melora.preprocess_lora_ga(model, config, batches)` comes first. Unlike PEFT's, they leave the base weight
            as it is, so a saved adapter needs no conversion. Not with mixing or permute="correlation".
        layers_to_transform: indexes of the layers to adapt, when target_modules is a list.
        layers_pattern: name of the model's list of layers, when layers_to_transform is given.
        rank_pattern: {name or regular expression: r} for modules that differ.
        alpha_pattern: {name or regular expression: lora_alpha} for modules that differ.
        n_pattern: {name or regular expression: n} for modules that differ.
        mixing: how information crosses the blocks. "none": not at all, the paper's method. "learned": block (i, j) of
            the update is B_i diag(C[:, i, j]) A_j with a trained core C of r n^2 numbers a module that starts at the
            identity, so that training starts as MELoRA (BoRA's form, ICLR 2026). "shuffle": ranks change places between
            blocks by a fixed rule, no further numbers, n must divide r (GraLoRA's form, NeurIPS 2025).
        permute: which channels of a linear layer each mini gets. "none": neighbours, as in the paper. "strided": mini i
            gets the channels i, i + n, i + 2 n, ... of the input and of the output. "correlation": channels that go
            together on a batch, found by melora.calibrate before training and saved as a list of indexes. The adapter
            is then computed as the LoRA of rank n * r that it is, at that LoRA's speed.
        trainable_token_indices: rows of the token embedding to train, as for LoRA.
        target_parameters: names, or their ends, of parameters to adapt directly: the stacked weights of experts. With
            target_modules=[] they alone are adapted.

    Raises:
        MeloraError: a value that no model could take, named in the message.
    """

    r: int = field(default=1, metadata={"help": "rank of one mini"})
    n: int | Literal["auto"] = field(
        default=8, metadata={"help": "number of minis; must divide both sizes of every target; or 'auto'"}
    )
    target_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "module names, a regular expression, or 'all-linear'"}
    )
    exclude_modules: set[str] | list[str] | str | None = field(
        default=None, metadata={"help": "module names or a regular expression to leave alone"}
    )
    lora_alpha: int | float = field(default=16, metadata={"help": "the update is scaled by lora_alpha / r"})
    lora_dropout: float = field(default=0.0, metadata={"help": "dropout on the adapter's input"})
    fan_in_fan_out: bool = field(default=False, metadata={"help": "accepted for LoraConfig's sake, not needed"})
    bias: Literal["none", "all", "melora_only", "lora_only"] = field(
        default="none", metadata={"help": "which biases to train: none, all or melora_only"}
    )
    use_rslora: bool = field(default=False, metadata={"help": "scale by lora_alpha / sqrt(r)"})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "modules to train and save whole"})
    init_weights: bool | str = field(
        default=True,
        metadata={
            "help": "True (Kaiming A, zero B), 'gaussian' (Gaussian A, zero B), False (random B), or from the weight's "
            "blocks ('pissa', 'pissa_niter_N', 'olora') or their gradient ('lora_ga')"
        },
    )
    layers_to_transform: list[int] | int | None = field(default=None, metadata={"help": "layer indexes to adapt"})
    layers_pattern: list[str] | str | None = field(default=None, metadata={"help": "name of the list of layers"})
    rank_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "{module: r} where r differs"})
    alpha_pattern: dict[str, float] = field(
        default_factory=dict, metadata={"help": "{module: lora_alpha} where lora_alpha differs"}
    )
    n_pattern: dict[str, int] = field(default_factory=dict, metadata={"help": "{module: n} where n differs"})
    mixing: Mixing = field(
        default="none",
        metadata={"help": "exchange between blocks: none, learned (r n^2 further numbers) or shuffle (n divides r)"},
    )
    permute: Permute = field(
        default="none", metadata={"help": "which channels each mini gets: none (neighbours), strided or correlation"}
    )
    trainable_token_indices: list[int] | dict[str, list[int]] | None = field(
        default=None, metadata={"help": "rows of the token embedding to train"}
    )
    target_parameters: list[str] | None = field(
        default=None, metadata={"help": "parameters to adapt directly, such as stacked expert weights"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = MeloraPeftType.MELORA
        check_auto_mapping(self.auto_mapping, "")
        if isinstance(self.r, list) or isinstance(self.lora_alpha, list):
            raise MeloraError(
                f"r={self.r!r}, lora_alpha={self.lora_alpha!r}: a list, one value per mini, is the format of the "
                "authors' reference code; melora.reference_files.convert_reference(FOLDER, NEW_FOLDER) rewrites such "
                "an adapter, and a new config takes whole numbers r and n"
            )
        positive_int("r", self.r)
        if self.n != AUTO:
            positive_int("n", self.n)
        positive_number("lora_alpha", self.lora_alpha)
        for name, pattern in (("rank_pattern", self.rank_pattern), ("n_pattern", self.n_pattern)):
            for key, value in (pattern or {}).items():
                positive_int(f"{name}[{key!r}]", value)
        for key, alpha in (self.alpha_pattern or {}).items():
            positive_number(f"alpha_pattern[{key!r}]", alpha)
        self.rank_pattern, self.alpha_pattern = self.rank_pattern or {}, self.alpha_pattern or {}
        self.n_pattern = self.n_pattern or {}
        if not isinstance(self.lora_dropout, int | float) or not 0.0 <= self.lora_dropout < 1.0:
            raise MeloraError(f"lora_dropout must be at least 0 and below 1, got {self.lora_dropout!r}")
        if self.bias not in _BIAS:
            raise MeloraError(f"bias must be one of {', '.join(_BIAS)}, got {self.bias!r}")
        for name, known in (("mixing", get_args(Mixing)), ("permute", get_args(Permute))):
            if getattr(self, name) not in known:
                raise MeloraError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not is_init(self.init_weights):
            raise MeloraError(f"init_weights must be {INIT_WEIGHTS}, got {self.init_weights!r}")
        self._awaits_tensors = bool(self.inference_mode)
        self._check_start()
        if isinstance(self.target_modules, list | tuple):
            self.target_modules = set(self.target_modules)
        if isinstance(self.exclude_modules, list | tuple):
            self.exclude_modules = set(self.exclude_modules)
        if isinstance(self.target_parameters, str):
            raise MeloraError(
                f"target_parameters must be a list of names, got {self.target_parameters!r}: put it in a list"
            )
        self._check_layer_selection()

    def _check_start(self) -> None:
        if not has_start(self.init_weights):
            return
        if self.mixing != "none":
            raise MeloraError(
                f"init_weights={self.init_weights!r} starts from the minis' own blocks, and mixing={self.mixing!r} "
                "adds others: set mixing to 'none', or init_weights to True"
            )
        if self.permute == "correlation":
            raise MeloraError(
                f"init_weights={self.init_weights!r} starts from blocks that permute='correlation' finds only later: "
                "set permute to 'strided' or 'none', or init_weights to True"
            )

    def _check_layer_selection(self) -> None:
        # Each message starts with PEFT's own words: code written for LoRA looks for them.
        for name in ("layers_to_transform", "layers_pattern"):
            if isinstance(self.target_modules, str) and getattr(self, name) not in (None, []):
                raise MeloraError(
                    f"`{name}` cannot be used when `target_modules` is a str. Got {self.target_modules!r}: select the "
                    "layers in that regular expression, or list the names"
                )
        if self.layers_pattern and self.layers_to_transform is None:
            raise MeloraError("When `layers_pattern` is specified, `layers_to_transform` must also be specified.")

    @classmethod
    def from_lora(cls, lora_config: LoraConfig, *, n: int = 8, r: int | None = None, **changes: Any) -> "MeloraConfig":
        """The config that trains a MELoRA where `lora_config` trains a LoRA; every shared field is taken over.

        lora_alpha stays. The scaling lora_alpha / r is then n times the LoRA's, and so it should be: with Adam every
        entry of B moves by about the learning rate, and an output sums r such moves instead of n * r, so that the first
        steps change it as much as the LoRA's do. (With use_rslora the scaling grows by sqrt(n) only.) For the LoRA's
        own scaling pass lora_alpha=lora_config.lora_alpha * r / lora_config.r.

        Args:
            lora_config: a peft.LoraConfig.
            n: number of minis.
            r: rank of one mini; by default LoRA's divided by n and at least 1, so that the update's rank stays. LoRA's
                rank_pattern is divided likewise.
            changes: other fields, in place of the LoRA's.

        Raises:
            MeloraError: the LoRA uses a feature that MELoRA does not have (use_dora, ...); the message names it.
        """
        positive_int("n", n)
        taken = shared_fields(lora_config, {field.name for field in fields(cls)})
        taken["rank_pattern"] = {key: max(1, rank // n) for key, rank in (lora_config.rank_pattern or {}).items()}
        return cls(**{**taken, "n": n, "r": max(1, lora_config.r // n) if r is None else r, **changes})

    @property
    def awaits_tensors(self) -> bool:
        """Whether A and B come from elsewhere, so that nothing is to be read off weights or gradients for them.

        So it is with the config of a saved adapter: PEFT writes all with inference_mode=True, and sets that anew
        (is_trainable) after reading them.
        """
        return self._awaits_tensors

    def awaiting_tensors(self) -> "MeloraConfig":
        """A copy for an adapter whose tensors come from elsewhere, such as another process."""
        config = copy.copy(self)
        config._awaits_tensors = True
        return config

    @classmethod
    def recommended(cls, model: Any, **changes: Any) -> "MeloraConfig":
        """What this project's own studies speak for: n=2, r=4, lora_alpha=16, on LoRA's usual targets of the model.

        From results/glue-minilm: STS-B, CoLA, MRPC, SST-2 and RTE with MiniLM-L6, three seeds, each method at its own
        learning rate (1e-3 on CoLA and RTE, else 3e-3 for this one): the best mean of the MELoRAs. That is five tasks
        and one small model, and LoRA r=4 of as many parameters ties with it on four and wins on MRPC; docs/choosing.md
        tells what was found, and docs/compare.md how to ask for yours. Where 2 does not divide the sizes of every
        target, n is 1. The options stay off: of them permute alone helped, and not with two blocks
        (results/options-minilm). For 8 blocks, where bytes count most: n=8, r=1, permute="strided", ahead of
        LoRA r=1 at 2,304 parameters (results/quarter-seeds); SmolLM2 had the lowest loss of that size with A at 8 times
        B's rate besides (results/options-smollm2).

        Args:
            model: the base model.
            changes: other fields of the config, in place of these.

        Raises:
            MeloraError: the model has no target.
        """
        from .recommended import recommended

        return recommended(model, **changes)

    @property
    def equivalent_rank(self) -> int | None:
        """Rank of the update, n * r (where they are not overridden and n * r fits the weight); None if n is "auto"."""
        return None if self.n == AUTO else self.n * self.r

    def check_n_is_chosen(self) -> None:
        """Raise MeloraError while n is "auto", which no adapter can be made or saved with."""
        if self.n == AUTO:
            raise MeloraError(
                "n='auto' is no number yet: config, _ = melora.allocate(model, config, batches) chooses n for each "
                "module by its gradient (`melora train` does so by itself); or give a number, e.g. n=8"
            )

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """PEFT's.

        Raises:
            MeloraError: n is "auto"; a saved config has numbers.
        """
        self.check_n_is_chosen()
        super().save_pretrained(save_directory, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """The fields, sets as sorted lists, so that a saved file does not depend on the hash seed."""
        return {key: sorted(value) if isinstance(value, set) else value for key, value in super().to_dict().items()}
