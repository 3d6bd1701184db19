from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

from melora import MeloraConfig, MeloraError, load_adapter
from melora.adapter_files import read_adapter

KEY = "base_model.model.first.melora_A.weight"


@pytest.fixture
def folder(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> Path:
    config = MeloraConfig(r=2, n=6, target_modules=["first", "head"], init_weights=False, bias="melora_only")
    get_peft_model(make_mlp(), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def test_loads_what_fits(make_mlp: Callable[..., nn.Module], folder: Path) -> None:
    x = torch.randn(3, 24)
    torch.testing.assert_close(load_adapter(make_mlp(), folder)(x), PeftModel.from_pretrained(make_mlp(), folder)(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY), r"1 missing tensor\(s\) in its file: .*first\.melora_A"),
        (lambda t: t.pop("base_model.model.head.base_layer.bias"), r"1 missing tensor\(s\) in its file: .*head.*bias"),
        (lambda t: t.update({KEY + "x": torch.ones(1)}), r"1 unexpected tensor\(s\) in its file: .*weightx"),
        (lambda t: t.update({KEY: torch.ones(6, 2, 3)}), r"mis-shaped .* \[6, 2, 3\] instead of \[6, 2, 4\]"),
        (lambda t: t.update({KEY: torch.ones(6, 0, 4)}), r"1 empty tensor\(s\)"),
    ],
)
def test_pefts_own_loading_is_strict_too(
    make_mlp: Callable[..., nn.Module], folder: Path, change: Callable[[dict[str, torch.Tensor]], Any], message: str
) -> None:
    """PEFT passes over missing and extra tensors in silence; here each is an error."""
    edit(folder, change)
    with pytest.raises(MeloraError, match=message) as caught:
        PeftModel.from_pretrained(make_mlp(), folder)
    assert "\n" not in str(caught.value)


def test_a_damaged_second_adapter_leaves_the_first_in_use(make_mlp: Callable[..., nn.Module], folder: Path) -> None:
    model = get_peft_model(make_mlp(), MeloraConfig(r=1, n=2, target_modules=["first"], init_weights=False))
    x = torch.randn(3, 24)
    expected = model(x)
    edit(folder, lambda t: t.pop(KEY))
    with pytest.raises(MeloraError, match="missing"):
        model.load_adapter(folder, "second")
    assert list(model.peft_config) == ["default"]
    assert not any("second" in name for name, _ in model.named_parameters())
    assert torch.equal(model(x), expected)


def bert(**kwargs: Any) -> BertForSequenceClassification:
    sizes = {"vocab_size": 20, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, **kwargs}
    return BertForSequenceClassification(BertConfig(intermediate_size=32, **sizes))


@pytest.fixture
def bert_folder(tmp_path: Path) -> Path:
    base = bert()
    base.save_pretrained(tmp_path / "some-bert")
    base.name_or_path = str(tmp_path / "some-bert")
    config = MeloraConfig(n=4, target_modules=["query"], task_type="SEQ_CLS")
    get_peft_model(base, config).save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_hidden_layers": 1},
            r"adapts bert\.encoder\.layer\.1.*query, which BertForSequenceClassification does not",
        ),
        ({"hidden_size": 64}, r"query is 32 x 32 in the adapter and 64 x 64 in BertForSequenceClassification"),
    ],
)
def test_an_adapter_for_another_base(bert_folder: Path, kwargs: dict[str, Any], message: str) -> None:
    base = bert(**kwargs)
    before = [name for name, _ in base.named_modules()]
    with pytest.raises(MeloraError, match=message) as caught:
        load_adapter(base, bert_folder)
    assert "some-bert: load that model" in str(caught.value)
    assert [name for name, _ in base.named_modules()] == before


def test_a_head_that_is_missing(bert_folder: Path) -> None:
    edit(bert_folder, lambda t: [t.pop(key) for key in list(t) if "classifier" in key])
    with pytest.raises(MeloraError, match="modules_to_save names classifier, but the file has no tensor of it"):
        load_adapter(bert(), bert_folder)


def test_a_tensor_that_the_base_has_no_place_for(bert_folder: Path) -> None:
    edit(bert_folder, lambda t: t.update({"base_model.model.extra.weight": torch.ones(1)}))
    with pytest.raises(MeloraError, match=r"tensor base_model\.model\.extra\.weight has no place in Bert"):
        load_adapter(bert(), bert_folder)


def test_a_classifiers_adapter_loads_though_peft_lists_heads_that_it_has_not(bert_folder: Path) -> None:
    assert read_adapter(bert_folder).config.modules_to_save == ["classifier", "score"]
    load_adapter(bert(), bert_folder)
