"""What is special about embeddings: the vocabulary side, the base's own options, tied weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from melora import MeloraConfig, MeloraError
from melora.conversion import export_lora
from melora.embedding import Embedding

IDS = torch.tensor([[1, 2, 2, 0], [9, 0, 4, 5]])


class Holder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layer(x)
        return y


class Scaled(nn.Embedding):
    """As Gemma's: its output is multiplied by embed_scale."""

    embed_scale: float | torch.Tensor = 3.0

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * self.embed_scale


def adapt(base: nn.Module, **kwargs: Any) -> Any:
    settings = {"r": 2, "n": 4, "init_weights": False, "target_modules": ["layer"], **kwargs}
    return get_peft_model(Holder(base), MeloraConfig(**settings))


def test_n_splits_the_width_alone() -> None:
    layer = adapt(nn.Embedding(10, 8)).base_model.model.layer
    assert isinstance(layer, Embedding)
    A, B = layer.factors("default")
    assert (A.shape, B.shape) == ((4, 2, 10), (4, 2, 2))
    delta = layer.get_delta_weight("default")
    assert delta.shape == (10, 8)
    for i in range(4):
        expected = layer.scaling["default"] * (B[i] @ A[i]).T
        torch.testing.assert_close(delta[:, 2 * i : 2 * i + 2], expected)
    assert torch.linalg.matrix_rank(delta) == 8


def test_starts_as_lora_does() -> None:
    A, B = adapt(nn.Embedding(10, 8), init_weights=True).base_model.model.layer.factors("default")
    assert not A.any()
    assert B.all()


def test_any_vocabulary_will_do_but_n_must_divide_the_width() -> None:
    adapt(nn.Embedding(11, 8))
    with pytest.raises(
        MeloraError, match="layer: n=4 does not divide the embedding's width 6; choose n from 1, 2, 3, 6"
    ):
        adapt(nn.Embedding(8, 6))


def test_the_scale_of_the_base_is_the_adapters_too() -> None:
    for scale in (3.0, torch.tensor(0.5)):
        base = Scaled(10, 8)
        base.embed_scale = scale
        model = adapt(base).eval()
        expected = model(IDS)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(IDS), expected)


def test_the_padding_row_gets_no_gradient() -> None:
    model = adapt(nn.Embedding(10, 8, padding_idx=0))
    model(IDS).sum().backward()
    gradient = model.base_model.model.layer.factors("default")[0].grad
    assert not gradient[:, :, 0].any()
    assert gradient[:, :, 1].any()


@pytest.mark.parametrize("options", [{"sparse": True}, {"max_norm": 0.5}, {"scale_grad_by_freq": True}])
def test_options_of_the_base(options: dict[str, Any]) -> None:
    model = adapt(nn.Embedding(10, 8, **options))
    model(IDS).sum().backward()
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)


def test_max_norm_and_frequency_are_used_as_in_lora() -> None:
    torch.manual_seed(0)
    base = nn.Embedding(10, 8, max_norm=0.5, scale_grad_by_freq=True)
    ours = adapt(base, n=1, lora_alpha=2).base_model.model.layer
    config = LoraConfig(r=2, lora_alpha=2, target_modules=["layer"], init_lora_weights=False)
    theirs = get_peft_model(Holder(nn.Embedding(10, 8, max_norm=0.5, scale_grad_by_freq=True)), config)
    lora = theirs.base_model.model.layer
    lora.base_layer.load_state_dict(base.state_dict())
    A, B = ours.factors("default")
    lora.lora_embedding_A["default"].data = A.data[0].clone()
    lora.lora_embedding_B["default"].data = B.data[0].clone()
    for layer in (ours, lora):
        layer(IDS).square().sum().backward()
    torch.testing.assert_close(A.grad[0], lora.lora_embedding_A["default"].grad)
    torch.testing.assert_close(A[0], lora.lora_embedding_A["default"])


IDS_OF_TEXT = torch.tensor([[3, 4, 5, 6]])


@pytest.fixture
def tied() -> LlamaForCausalLM:
    """Its head shares the embedding's weight."""
    torch.manual_seed(0)
    sizes: Any = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)).eval()


def adapt_tied(base: LlamaForCausalLM, targets: list[str]) -> Any:
    with pytest.warns(UserWarning, match="no implementation exists to tie the adapters"):  # LoRA's words are similar
        return get_peft_model(base, MeloraConfig(n=4, target_modules=targets, init_weights=False)).eval()


@pytest.mark.parametrize("targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_merging_reaches_the_adapted_one_of_two_tied_modules(tied: LlamaForCausalLM, targets: list[str]) -> None:
    model = adapt_tied(tied, targets)
    expected = model(input_ids=IDS_OF_TEXT).logits
    model.merge_adapter()
    torch.testing.assert_close(model(input_ids=IDS_OF_TEXT).logits, expected)
    model.unmerge_adapter()
    with pytest.warns(UserWarning, match="no longer tied after merging"):
        merged = model.merge_and_unload()
    torch.testing.assert_close(merged(input_ids=IDS_OF_TEXT).logits, expected)
    assert not merged.config.tie_word_embeddings


@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`:UserWarning")
def test_tied_modules_stay_tied_without_a_merge_of_them(tied: LlamaForCausalLM) -> None:
    model = adapt_tied(tied, ["embed_tokens"])
    model.base_model.model.model.embed_tokens.factors("default")[1].data.fill_(torch.nan)
    with pytest.raises(MeloraError, match="nothing was merged"):
        model.merge_adapter(safe_merge=True)
    base = model.unload()
    assert base.lm_head.weight is base.model.embed_tokens.weight
    other = get_peft_model(base, MeloraConfig(n=4, target_modules=["q_proj"], init_weights=False)).merge_and_unload()
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_saving_takes_the_base_table_along_as_for_lora(tied: LlamaForCausalLM, tmp_path: Path) -> None:
    """PEFT saves an embedding that is a target whole; reading, exporting and loading it must not trip over that."""
    base = {key: value.clone() for key, value in tied.state_dict().items()}
    model = adapt_tied(tied, ["embed_tokens"])
    expected = model(input_ids=IDS_OF_TEXT).logits
    with pytest.warns(UserWarning, match="Setting `save_embedding_layers` to `True`"):
        model.save_pretrained(tmp_path / "melora")
    export_lora(tmp_path / "melora", tmp_path / "lora")
    for name, message in (("melora", "no implementation exists to tie"), ("lora", "ensure_weight_tying")):
        fresh = LlamaForCausalLM(tied.config)
        fresh.load_state_dict(base)
        with pytest.warns(UserWarning, match=message):
            loaded = PeftModel.from_pretrained(fresh, tmp_path / name).eval()
        torch.testing.assert_close(loaded(input_ids=IDS_OF_TEXT).logits, expected)
