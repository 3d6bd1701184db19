"""Damaged, hostile and foreign adapter folders: one line each, before a tensor is loaded."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, VeraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from melora import MeloraConfig, MeloraError
from melora.adapter_files import read_adapter

Tensors = dict[str, torch.Tensor]
QUERY_A = "base_model.model.first.melora_A.weight"


@pytest.fixture
def folder(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> Path:
    config = MeloraConfig(
        r=2, n=6, target_modules=["first", "head"], init_weights=False, alpha_pattern={"head": 1}, n_pattern={"head": 3}
    )
    get_peft_model(make_mlp(), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def edit_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")


def edit_config(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def refused(folder: Path, message: str) -> None:
    with pytest.raises(MeloraError, match=message) as caught:
        read_adapter(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_reads_names_shapes_and_scaling(folder: Path) -> None:
    files = read_adapter(folder)
    assert isinstance(files.config, MeloraConfig)
    found = {m.name: (m.n, m.r, m.d_in, m.d_out, m.scaling, m.parameters) for m in files.modules}
    assert found == {"first": (6, 2, 24, 48, 8.0, 144), "head": (3, 2, 48, 6, 0.5, 108)}
    assert files.other_keys() == []
    tensors = files.load()
    assert files.factors(tensors, files.modules[0])[0].shape == files.shapes[files.modules[0].A_key]


def test_reads_a_lora_as_one_mini(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    config = LoraConfig(r=3, lora_alpha=12, target_modules=["first"], rank_pattern={"first": 2}, use_rslora=True)
    get_peft_model(make_mlp(), config).save_pretrained(tmp_path)
    (module,) = read_adapter(tmp_path).modules
    assert (module.n, module.r, module.d_in, module.d_out) == (1, 2, 24, 48)
    assert module.scaling == 12 / 2**0.5


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no adapter_config.json in it; give the folder that save_pretrained wrote")
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    refused(
        folder, r"no adapter_model\.safetensors in it \(adapter_model\.bin is a pickle, which can run code: not read\)"
    )


@pytest.mark.parametrize("keep", [0, 1, 7, 0.5, -1])
def test_truncated_weights(folder: Path, keep: float) -> None:
    file = folder / "adapter_model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else int(keep)])
    refused(folder, "truncated or damaged")


def test_a_header_larger_than_the_file(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 10**12) + b"{}")
    refused(folder, "truncated or damaged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(QUERY_A), rf"tensor {QUERY_A} is missing"),
        (lambda t: t.clear(), "holds no adapter weights"),
        (lambda t: t.update({QUERY_A: t[QUERY_A][:, :1].contiguous()}), r"has shape \[6, 1, 4\], but n=6, r=2 in"),
        (lambda t: t.update({QUERY_A: t[QUERY_A].flatten(0, 1)}), r"has shape \[12, 4\], but n=6, r=2 in"),
        (lambda t: t.update({QUERY_A: torch.empty(0)}), r"is empty \(shape \[0\]\): a sharded model"),
        (lambda t: t.update({"base_model.model.first.melora_C": torch.ones(1)}), "unexpected tensor .*melora_C"),
    ],
)
def test_tensors_that_do_not_fit_the_config(folder: Path, change: Callable[[Tensors], Any], message: str) -> None:
    edit_tensors(folder, change)
    refused(folder, message)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "VERA"}, "peft_type is 'VERA'; melora reads MELORA and LORA adapters"),
        ({"peft_type": None}, "peft_type is None"),
        ({"r": 0}, "r must be a whole number from 1"),
        ({"n": -2}, "n must be a whole number from 1"),
        ({"n": 10**9}, "n must be a whole number from 1"),
        ({"r": "2"}, "r must be a whole number"),
        ({"r": [1, 1], "lora_alpha": [16, 16], "mode": "x"}, "the format of the authors' reference code"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a finite number"),
        ({"n": 4}, r"tensor .*first\.melora_A\.weight has shape .* but n=4, r=2"),
        ({"from_the_future": 1}, "unknown fields from_the_future; it may come from a newer melora"),
    ],
)
def test_bad_configs(folder: Path, values: dict[str, Any], message: str) -> None:
    edit_config(folder, **values)
    refused(folder, message)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null"])
def test_a_config_that_is_no_json_object(folder: Path, content: bytes) -> None:
    (folder / "adapter_config.json").write_bytes(content)
    refused(folder, "not valid JSON|peft_type is None")


def test_other_methods_are_named(make_mlp: Callable[..., nn.Module], tmp_path: Path) -> None:
    get_peft_model(make_mlp(), VeraConfig(r=2, target_modules=["head"])).save_pretrained(tmp_path)
    refused(tmp_path, "peft_type is 'VERA'")
