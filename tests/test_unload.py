"""Taking adapters out again where they are more than one on a layer."""

from typing import Any

import pytest
import torch
from peft import get_peft_model

from melora import MeloraConfig

IDS = torch.tensor([[1, 2, 3, 4, 5, 6]])


@pytest.mark.parametrize("order", [["first", "second"], ["second", "first"]])
def test_trained_tokens_of_two_adapters_merge_and_unload(order: list[str], tiny_bert: Any) -> None:
    """PEFT's BaseTuner sets the embedding's weight to a plain tensor then, which torch refuses."""

    def config(tokens: list[int]) -> MeloraConfig:
        return MeloraConfig(n=4, target_modules=["query"], init_weights=False, trainable_token_indices=tokens)

    model = get_peft_model(tiny_bert, config([0, 1, 2]), adapter_name="first")
    model.add_adapter("second", config([3, 4]))
    embedding: Any = model.get_input_embeddings()
    deltas = embedding.token_adapter.trainable_tokens_delta
    for name in order:
        torch.nn.init.normal_(deltas[name])
    trained = torch.cat([deltas["first"], deltas["second"]]).detach().clone()
    merged = model.eval().merge_and_unload(adapter_names=order)
    weight = merged.get_input_embeddings().weight
    assert isinstance(weight, torch.nn.Parameter)
    torch.testing.assert_close(weight[:5], trained)
    assert torch.isfinite(merged(IDS).logits).all()
