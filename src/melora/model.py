"""MeloraModel: finds the targets, replaces them by MeloraLayers, and routes mixed batches."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, cast

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.other import AuxiliaryTrainingWrapper
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import nn

from .adapted import AdaptedLayer
from .config import MeloraConfig
from .dispatch import layer_class
from .drift import reported_drift
from .errors import MeloraError
from .fast_path import close_fast_path, open_fast_path
from .initial import forget_gradients
from .layer import MeloraLayer
from .loading import check_state_dict
from .merge_all import merge_all
from .mixed_batch import route_by_name
from .ops.backend import chosen_backend
from .parameters import ParamWrapper
from .plain_form import plain_form
from .targets import check_targets, module_settings
from .tied import untied
from .weighted import Combination, CombinationType, add_weighted_adapter


class MeloraModel(BaseTuner):
    """The tuner that `peft.get_peft_model(model, MeloraConfig(...))` builds (PEFT 0.21's BaseTuner).

    Before a module is touched, all targets are checked: names that match nothing, layer types without support, and n
    or r that do not fit raise MeloraError with the model unchanged.
    """

    prefix = "melora_"
    tuner_layer_cls = MeloraLayer
    target_module_mapping: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        self.peft_config[adapter_name].check_n_is_chosen()
        chosen_backend()  # raises where MELORA_BACKEND names none that can be used
        if state_dict is None:  # else the tensors' names, not the config, say which modules are meant
            config = self._prepare_adapter_config(self.peft_config[adapter_name], self.get_model_config(model))
            check_targets(model, config, sources=not low_cpu_mem_usage)
        super().inject_adapter(
            model,
            adapter_name,
            autocast_adapter_dtype=autocast_adapter_dtype,
            low_cpu_mem_usage=low_cpu_mem_usage,
            state_dict=state_dict,
        )
        forget_gradients(model)
        close_fast_path(model)

    def _inject_parameters(
        self, peft_config: MeloraConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        """BaseTuner's, which adds adapters while it walks through the modules: none may get a new child meanwhile."""
        if peft_config.mixing == "learned":
            for module in list(model.modules()):
                if isinstance(module, ParamWrapper):
                    module.make_room("melora_C")
        return super()._inject_parameters(peft_config, model, adapter_name, low_cpu_mem_usage)

    def _prepare_adapter_config(self, peft_config: MeloraConfig, model_config: dict[str, Any]) -> MeloraConfig:
        """LoRA's default targets for the architecture, unless target_parameters alone say what to adapt."""
        unknown = self.target_module_mapping.get(model_config.get("model_type")) is None  # diffusers' have no type
        if peft_config.target_modules is None and peft_config.target_parameters and unknown:
            return peft_config
        return cast(MeloraConfig, super()._prepare_adapter_config(peft_config, model_config))

    def _check_new_adapter_config(self, config: MeloraConfig) -> None:
        """BaseTuner's check, and LoRA's: where a wrapper sits in the nest says which parameter it adapts."""
        super()._check_new_adapter_config(config)
        for name, other in self.peft_config.items():
            if other is not config and config.target_parameters and other.target_parameters:
                ours, theirs = sorted(set(config.target_parameters)), sorted(set(other.target_parameters))
                if ours != theirs:
                    raise MeloraError(
                        "When using multiple adapters with `target_parameters`, all adapters must target the same set "
                        f"of parameters, but got {ours} for the new adapter and {theirs} for adapter '{name}'."
                    )

    def _create_and_replace(
        self,
        peft_config: MeloraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        r, n, lora_alpha = module_settings(peft_config, current_key)
        nested = isinstance(target, ParamWrapper) and adapter_name in target.scaling  # for another parameter
        if isinstance(target, MeloraLayer) and not nested:
            target.update_layer(adapter_name, r, n, lora_alpha, peft_config, current_key)
            return
        settings: dict[str, Any] = {
            "r": r,
            "n": n,
            "lora_alpha": lora_alpha,
            "config": peft_config,
            "module_name": current_key,
        }
        layer: AdaptedLayer
        if parameter_name is not None:
            layer = ParamWrapper(target, adapter_name, parameter_name=parameter_name, **settings)
        else:
            base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
            backend = resolve_quantization_backend(base, **get_quantization_kwargs(self.model))
            cls = layer_class(current_key, base, backend)
            layer = cls(target, adapter_name, quantization_backend=backend, **settings)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter is not trained until it is set active
        self._replace_module(parent, target_name, layer, target)

    def merge_adapter(self, adapter_names: list[str] | None = None, safe_merge: bool = False) -> None:
        """BaseTuner's, but for every layer or for none, and with the drift of quantised layers in a warning."""
        self._check_merge_allowed()
        with reported_drift(self.model), untied(self.model, adapter_names):
            merge_all(self.model, adapter_names, safe_merge)

    def _unload_and_optionally_merge(  # type: ignore[override]  # PEFT 0.21 says that it returns None
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            with reported_drift(self.model), untied(self.model, adapter_names):
                merge_all(self.model, adapter_names, safe_merge)
        unload: Any = super()._unload_and_optionally_merge
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "All adapters are already merged")
            model = cast(nn.Module, unload(merge, progressbar, safe_merge, adapter_names))
        open_fast_path(model)
        return model

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(new_module, BaseTunerLayer):
            super()._replace_module(parent, child_name, new_module, child)
        else:
            # Unloading: new_module is the bare base layer and needs nothing. BaseTuner would set its weight to the
            # wrapper's, which is no nn.Parameter where trainable_token_indices merge more than one adapter.
            setattr(parent, child_name, new_module)

    def add_weighted_adapter(
        self,
        adapters: list[str],
        weights: list[float],
        adapter_name: str,
        combination_type: CombinationType = "svd",
        svd_rank: int | None = None,
        svd_clamp: float | None = None,
        svd_full_matrices: bool = True,
        svd_driver: str | None = None,
        density: float | None = None,
        majority_sign_method: Literal["total", "frequency"] = "total",
    ) -> None:
        """Add a new, frozen adapter: the weighted sum of others (weights may be negative). As LoraModel's (PEFT 0.21).

        Does nothing if there is an adapter of that name. A head in modules_to_save, and trained tokens, are not
        combined: at most one of the adapters may have a given module in modules_to_save.

        Args:
            adapters: names of the adapters; in every module, those that are there need one n.
            weights: one for each.
            adapter_name: the new adapter's name.
            combination_type: "cat" is exact, at the sum of the ranks. "svd", and what ends with it, sums the updates
                and takes the nearest update of rank svd_rank in each block. "linear" and the others mix A and B
                separately, which needs equal r and is a rough approximation. One adapter alone is always "linear",
                which is exact then.
            svd_rank: rank of one mini; by default the largest of the adapters'.
            svd_clamp: quantile at which the factors of the svd types are clamped.
            svd_full_matrices: accepted for LoraModel's sake; the result is the same.
            svd_driver: torch.linalg.svd's, for CUDA.
            density: share of the numbers to keep, for ties, dare and magnitude_prune. Counted over the blocks.
            majority_sign_method: for ties.

        Raises:
            MeloraError: unknown adapters, or ones that can't be combined like that; the model is then as it was.
        """
        if adapter_name not in self.peft_config:
            kind = "linear" if len(adapters) == 1 else combination_type
            combination = Combination(
                adapters, weights, kind, svd_rank, svd_clamp, svd_driver, density, majority_sign_method
            )
            add_weighted_adapter(self, adapter_name, combination)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """PeftModel's forward and generate enter this; `adapter_names` makes a mixed batch of the call."""
        with route_by_name(self, kwargs.pop("adapter_names", None), kwargs.get("num_beams")):
            yield

    @classmethod
    def _get_learnable_bias_state_dict(
        cls, model: nn.Module, state_dict: dict[str, torch.Tensor], config: MeloraConfig
    ) -> dict[str, torch.Tensor]:
        """PEFT's, without the biases inside modules_to_save: those are saved with their modules, and PEFT 0.21 would
        write them a second time under a name that nothing loads."""
        biases: dict[str, torch.Tensor] = super()._get_learnable_bias_state_dict(model, state_dict, config)
        names = [name for name, module in model.named_modules() if isinstance(module, AuxiliaryTrainingWrapper)]
        whole = tuple(f"{name.replace('_fsdp_wrapped_module.', '')}." for name in names)  # as FSDP's state dict has it
        return {name: bias for name, bias in biases.items() if not (whole and name.startswith(whole))}

    @classmethod
    def _convert_state_dict_for_initial_model(
        cls,
        peft_model: PeftModel,
        peft_config: MeloraConfig,
        path_initial_model_for_weight_conversion: str,
        output_state_dict: dict[str, torch.Tensor],
        kwargs: dict[str, Any],
    ) -> dict[str, torch.Tensor]:
        """PEFT's step of save_pretrained(path_initial_model_for_weight_conversion=...): see plain_form.py."""
        return plain_form(peft_model, peft_config, path_initial_model_for_weight_conversion, output_state_dict)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: MeloraConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """PEFT's step from a file's names to the model's; a file that does not fit exactly is refused here.

        Raises:
            MeloraError: missing, extra, empty or mis-shaped tensors, which PEFT would pass over or report late.
        """
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        try:
            biases = cls._get_learnable_bias_state_dict(model, model.state_dict(), config)
            check_state_dict(model, biases, adapter_name, remapped)
        except MeloraError:
            if isinstance(model, PeftModel) and len(model.peft_config) > 1:
                model.delete_adapter(adapter_name)  # else it would stay behind with random weights
            raise
        return remapped
