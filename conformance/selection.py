"""Which of PEFT's collected tests are MELoRA's, and why each of the others is not."""

from typing import Any

from .repoint import names
from .stand_in import StandIn

# Tests that name LoraConfig, and what of LoRA's own they are about.
ABOUT_LORA = {
    "TestDynamicDispatch": "about LoRA's own interface for custom layers (_register_custom_module)",
    "TestLoraNestedConfigRoundTrip": "about configs of LoRA's variants",
    "test_multirank": "reads the 2-D shape of lora_A.weight",
    "test_multirank_2": "asks for r=64 on 10 x 10 layers, which melora refuses: r above the weight's size",
    "test_gpt2_dora_merge_and_unload": "about DoRA",
    "test_gpt2_dora_merge_and_unload_safe_merge": "about DoRA",
    "test_mixed_adapter_batches_mha_raises": "expects LoRA's exception and its words; melora raises MeloraError there",
    "test_mha_gradients_set_correctly": "reads LoRA's own internals (_restore_weights)",
    "test_repr_lora_conv1d": "expects the repr of factors that are nn.Linear",
    "test_requires_grad_lora_emb_conv1d": "expects the parameter names of LoRA's embeddings",
    "test_from_pretrained_cache_dir[StandIn-mandatory_kwargs0]": "needs the hub: downloads into an empty cache",
    "test_load_resized_embedding_ignore_mismatched_sizes": "melora refuses a tensor of another shape, also when "
    "told to ignore it",
    "test_add_adapter_rejects_duplicate_name_without_mutation[True]": "PeftMixedModel takes a closed list of types",
}

# Correlations with the exact sum that PEFT's authors saw with LoRA, plus a margin.
THRESHOLDS = {
    f"test_add_weighted_adapter_with_different_scaling[{case}]"
    for case in ("dare_ties_svd-0.55-None-weights2", "ties-0.4-1.0-weights4", "ties_svd-0.8-1.0-weights2")
}


def why_not(item: Any, mode: str) -> str | None:
    """The reason why a collected test can't apply, or None if it is to run.

    Args:
        item: pytest's item, after re-pointing.
        mode: "melora" or "lora-name".
    """
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if any("NOTSET" in str(value) for value in params.values()):
        return "names another method: all cases are about other methods"
    if item.name in THRESHOLDS:
        return "a threshold found by trial for LoRA's random factors; tests/test_weighted.py compares with LoRA exactly"
    for name, reason in ABOUT_LORA.items():
        if name in {*item.nodeid.split("::"), item.nodeid.partition("[")[0].rpartition("::")[2]}:
            return reason
    parameters = [value.get("target_parameters") for value in params.values() if isinstance(value, dict)]
    if len(parameters) == 2 and parameters[0] != parameters[1]:
        return "two adapters on different parameters: refused by MELoRA, as by LoRA, which PEFT skips here"
    if any(_is_ours(value) for value in params.values()):
        return None
    if "LoraConfig" not in names(item.function.__code__):
        return "names another method, or none"
    return None if mode == "lora-name" else "names LoraConfig in its body: runs in mode lora-name"


def _is_ours(value: Any) -> bool:
    return value is StandIn or type(value) is StandIn
