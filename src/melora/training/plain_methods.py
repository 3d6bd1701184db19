"""Methods without an adapter, to compare adapters with: the new head alone, all biases (as BitFit), or every weight.

They are methods of PEFT as any other, so training, checkpoints, saving and loading need not know of them. What they
train of the base model is trained where it is. PEFT's modules_to_save and bias="all" would do as well, but the first
keeps a frozen copy of each module, so that full fine-tuning would seem to take more memory than it does, and the second
writes a head's bias twice. An adapter folder holds the trained weights under the base model's own names.
"""

import copy
from typing import Any

import torch
from peft import mapping
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from torch import nn

from ..adapter_files import PREFIX
from ..errors import MeloraError
from ..loading import check_state_dict
from .plain_configs import BiasConfig, FullConfig, HeadConfig, PlainType, shown_targets


class PlainModel(BaseTuner):
    """The tuner of all three (PEFT 0.21's BaseTuner): it replaces no module, and trains parameters of its targets.

    Attributes:
        trained: names of the base model's trained parameters, shared ones once.
    """

    prefix = "melora_plain_"  # no parameter has it; PEFT takes an empty prefix for that of every parameter
    tuner_layer_cls = BaseTunerLayer
    target_module_mapping: Any = {}  # noqa: RUF012 - BaseTuner declares it as the instance's
    trained: list[str]

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.trained = []
        if config.target_modules is None:
            self._create_and_replace(config, adapter_name, model, "", model, "")  # PEFT goes through its children alone

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict[str, Any]) -> Any:
        return peft_config  # no targets are all of them, not the architecture's

    def _check_new_adapter_config(self, config: Any) -> None:
        if len(self.peft_config) > 1:
            raise MeloraError(
                f"adapter.method {config.kind.value.lower()}: trains the base model's own weights, so there is no "
                "second adapter beside it; load the base model again for that"
            )

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        if peft_config.target_modules is None:
            peft_config = copy.copy(peft_config)
            peft_config.target_modules = ".*"
        return check_target_module_exists(peft_config, key)

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Note which of the target's parameters are trained; the target stays where it is."""
        start = f"{current_key}." if current_key else ""
        own = (name for name, _ in target.named_parameters(recurse=False))
        self.trained += [start + name for name in own if peft_config.trains(name)]

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        """Train what was noted, once modules_to_save has taken what is its own."""
        noted, parameters = set(self.trained), dict(model.named_parameters())
        self.trained = [name for name in parameters if name in noted]
        method = config.kind.value.lower()
        if not self.trained and config.kind is PlainType.BIAS:
            raise MeloraError(
                f"adapter.method {method}: {shown_targets(config.target_modules) or 'the model'} has no bias to train; "
                "choose other adapter.target_modules, or another method"
            )
        if config.inference_mode:
            return
        for name in self.trained:
            if parameters[name].dtype != torch.float32:
                raise MeloraError(
                    f"adapter.method {method}: would train {name} in {parameters[name].dtype}, where small steps are "
                    "lost; set model.dtype=float32 and no model.quantization (training.bf16=true computes in bfloat16)"
                )
        for name in self.trained:
            parameters[name].requires_grad = True

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        return {PREFIX + name: state_dict[PREFIX + name] for name in model.base_model.trained}

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The file's names are the model's already; a file that does not fit exactly is refused.

        Raises:
            MeloraError: missing, extra, empty or mis-shaped tensors.
        """
        trained = cls._get_adapter_state_dict(model, config, adapter_name, model.state_dict(), [])
        check_state_dict(model, trained, adapter_name, state_dict)
        return state_dict

    # What was trained in place can't be taken out again.

    def _enable_adapter_layers(self, enabled: bool = True) -> None:
        if not enabled:
            self._check_nothing_trained("disable")
        super()._enable_adapter_layers(enabled)

    def _unload_and_optionally_merge(self, merge: bool = True, *args: Any, **kwargs: Any) -> Any:
        if not merge:
            self._check_nothing_trained("unload")
        return super()._unload_and_optionally_merge(merge, *args, **kwargs)

    def _check_nothing_trained(self, what: str) -> None:
        if self.trained:
            raise MeloraError(
                f"can't {what} what was trained: {self.trained[0]} and other weights of the base model were trained in "
                "place; load the base model again"
            )

    def _get_tied_target_modules(self, model: nn.Module) -> list[str]:
        return []  # a weight that two modules share is trained once, and stays shared

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # a head that loses its wrapper: it has its own weights


def trained_in_place(model: Any) -> bool:
    """Whether weights of a PeftModel's base model were trained themselves, so that there is no base model below."""
    return isinstance(model.base_model, PlainModel) and bool(model.base_model.trained)


def _register() -> None:
    """Make PEFT know the three methods, as melora.registration does MELORA."""
    for cls in (HeadConfig, BiasConfig, FullConfig):
        kind: Any = cls.kind
        mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = cls
        mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = PlainModel
        mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = PlainModel.prefix


_register()
