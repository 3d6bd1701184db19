"""Hostile adapter folders: each refused in under a second and 100 MB, in a process whose memory is limited to that.

All folders are read by one process, which forks for each, so that torch is imported once.
"""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from melora import MeloraConfig, MeloraError, load_adapter
from melora.adapter_files import read_adapter
from melora.untrusted import MAX_CONFIG_BYTES, MAX_HEADER_BYTES, MAX_TENSORS

READ = """
import json, os, resource, sys, time
from melora import MeloraError
from melora.loading import read_adapter

def attempt(folder):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 100 * 2**20,) * 2)
    start = time.process_time()  # of the processor: other tests run beside this one
    try:
        read_adapter(folder)
        said = "accepted"
    except MeloraError as error:
        said = str(error)
    except BaseException as error:
        said = f"{type(error).__name__}: {error}"
    return {"seconds": time.process_time() - start, "said": said}

results = {}
for folder in sys.argv[1:]:
    reading, writing = os.pipe()
    if os.fork() == 0:
        with os.fdopen(writing, "w") as pipe:
            json.dump(attempt(folder), pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        results[folder.rpartition("/")[2]] = json.load(pipe)
    os.wait()
print(json.dumps(results))
"""
KEY_A, KEY_B = "base_model.model.0.melora_A.weight", "base_model.model.0.melora_B.weight"
CONFIG: dict[str, Any] = {"peft_type": "MELORA", "r": 1, "n": 2, "target_modules": ["0"]}
Files = tuple[str, bytes]


def entry(shape: list[int], start: int) -> dict[str, Any]:
    size = 4
    for length in shape:
        size *= length
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, start + size]}


HEADER = {KEY_A: entry([2, 1, 4], 0), KEY_B: entry([2, 4, 1], 32)}


def weights(header: Any = HEADER, data: int = 64, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def config(**values: Any) -> str:
    return json.dumps({**CONFIG, **values})


def renamed(name: str) -> bytes:
    return weights({name: HEADER[KEY_A], KEY_B: HEADER[KEY_B]})


def many(count: int) -> bytes:
    """Tensors of one number each, in the shortest header that describes them."""
    header = json.dumps({f"m{i}": entry([1], 4 * i) for i in range(count)}, separators=(",", ":"))
    return weights(header.encode(), data=4 * count)


# case: (adapter_config.json, adapter_model.safetensors, what the message says)
CASES: dict[str, tuple[str | bytes, bytes, str]] = {
    "harmless": (config(), weights(), "accepted"),
    "n_1e9": (config(n=10**9), weights(), "n must be a whole number from 1 to 16777216, got 1000000000"),
    "r_1e9": (config(r=10**9), weights(), "r must be a whole number from 1 to 16777216, got 1000000000"),
    "n_1e7": (config(n=10**7), weights(), "has shape [2, 1, 4], but n=10000000, r=1"),
    "n_of_5000_digits": (config().replace('"n": 2', f'"n": {"9" * 5000}'), weights(), "not valid JSON"),
    "a_huge_pattern_value": (config(rank_pattern={"0": 10**9}), weights(), "rank_pattern['0'] must be a whole number"),
    "1e5_entries": (config(), many(100_000), "more than 600,000 JSON values"),
    "6e4_entries": (config(), many(60_000), "holds 60,000 tensors, more than the 50,000 allowed"),
    "a_long_header": (config(), weights(b" " * (MAX_HEADER_BYTES + 1)), "its header is 8,388,609 bytes"),
    "header_beyond_the_file": (config(), weights(length=10**12), "truncated or damaged (header of 1000000000000 bytes"),
    "header_of_brackets": (config(), weights(b"[" * 10**6), "more than 600,000 JSON values"),
    "deep_header": (config(), weights(b"[" * 10**5 + b"]" * 10**5), "nested too deep"),
    "header_of_many_values": (config(), weights(b"[" + b"[]," * 2 * 10**6 + b"1]"), "more than 600,000 JSON values"),
    "header_of_one_string": (config(), weights(b'{"' + "😀".encode() + b"x" * 8 * 10**6 + b'": 1}'), "is no name of a"),
    "duplicate_tensor": (
        config(),
        weights(f'{{"{KEY_A}": {json.dumps(HEADER[KEY_A])}, "{KEY_A}": {json.dumps(HEADER[KEY_B])}}}'.encode()),
        f"has the key '{KEY_A}' twice",
    ),
    "duplicate_key_in_config": (config()[:-1] + ', "r": 4}', weights(), "has the key 'r' twice"),
    "deep_config": ("[" * 50_000 + "]" * 50_000, weights(), "nested too deep"),
    "huge_config": (config(revision="x" * MAX_CONFIG_BYTES), weights(), "more than the 2,097,152 that an adapter's"),
    "config_of_many_values": (config(revision=[[]] * 500_000), weights(), "more than 200,000 JSON values"),
    "dots_in_a_name": (config(), renamed("base_model.model...0.melora_A.weight"), "is no name of a tensor"),
    "a_path_as_a_name": (config(), renamed("../../etc/passwd"), "is no name of a tensor"),
    "an_absolute_path_as_a_name": (config(), renamed("/etc/passwd.melora_A.weight"), "is no name of a tensor"),
    "a_line_break_in_a_name": (config(), renamed("a\nb.melora_A.weight"), "is no name of a tensor"),
    "a_negative_size": (config(), weights({KEY_A: {"dtype": "F32", "shape": [-1]}}), "has no valid shape"),
    "a_tensor_beyond_the_file": (
        config(),
        weights({KEY_A: entry([2, 1, 10**9], 0), KEY_B: HEADER[KEY_B]}),
        "truncated or damaged",
    ),
    "overlapping_tensors": (config(), weights({KEY_A: entry([2, 1, 4], 0), KEY_B: entry([2, 4, 1], 0)}), "damaged"),
    "an_unknown_dtype": (config(), weights({KEY_A: {**HEADER[KEY_A], "dtype": "X"}}), "truncated or damaged"),
    "wrong_types_in_config": (config(rank_pattern=3, target_modules=[["0"]]), weights(), "adapter_config.json: "),
}
LINKS = {
    "config_link": "adapter_config.json: is a link out of its folder, to ",
    "weights_link": "adapter_model.safetensors: is a link out of its folder, to ",
    "dangling_link": "no adapter_config.json in it",
    "fifo": "no adapter_config.json in it",
}


def write(folder: Path, settings: str | bytes, tensors: bytes) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_bytes(settings if isinstance(settings, bytes) else settings.encode())
    (folder / "adapter_model.safetensors").write_bytes(tensors)
    return folder


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    root = tmp_path_factory.mktemp("hostile")
    folders = [write(root / name, settings, tensors) for name, (settings, tensors, _) in CASES.items()]
    for name in LINKS:
        folders.append(write(root / name, config(), weights()))
        file = root / name / ("adapter_model.safetensors" if name == "weights_link" else "adapter_config.json")
        file.unlink()
        if name == "fifo":
            os.mkfifo(file)
        else:
            file.symlink_to("/nowhere" if name == "dangling_link" else root / "harmless" / file.name)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, *folders], env=environment, capture_output=True, text=True, check=True
    )
    found: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("case", [*CASES, *LINKS])
def test_is_refused_soon_and_in_one_line(results: dict[str, dict[str, Any]], case: str) -> None:
    said, seconds = results[case]["said"], results[case]["seconds"]
    assert (LINKS.get(case) or CASES[case][2]) in said
    assert "\n" not in said
    assert len(said) < 2000
    assert seconds < 20.0  # of the processor: what is meant are minutes and gigabytes, not how fast this machine is


def test_links_within_the_folder_and_of_the_hubs_cache_are_followed(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "models--x--y" / "blobs", tmp_path / "models--x--y" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "1").write_text(config())
    (blobs / "2").write_bytes(weights())
    (snapshot / "adapter_config.json").symlink_to("../../blobs/1")
    (snapshot / "adapter_model.safetensors").symlink_to("../../blobs/2")
    assert load_adapter(nn.Sequential(nn.Linear(8, 8)), snapshot).peft_config["default"].n == 2

    inside = write(tmp_path / "inside", config(), weights())
    (inside / "adapter_config.json").rename(inside / "real.json")
    (inside / "adapter_config.json").symlink_to("real.json")
    load_adapter(nn.Sequential(nn.Linear(8, 8)), inside)


FOREIGN = {"base_model_class": "Popen", "parent_library": "antigravity"}


LORA = {"base_model.model.0.lora_A.weight": entry([2, 8], 0), "base_model.model.0.lora_B.weight": entry([8, 2], 64)}


@pytest.mark.parametrize(
    ("settings", "tensors"),
    [
        (config(auto_mapping=FOREIGN), weights()),
        (json.dumps({"peft_type": "LORA", "r": 2, "auto_mapping": FOREIGN}), weights(LORA, data=128)),
    ],
)
def test_a_foreign_auto_mapping_is_refused_before_anything_is_imported(
    tmp_path: Path, settings: str, tensors: bytes
) -> None:
    folder, base = write(tmp_path / "a", settings, tensors), nn.Sequential(nn.Linear(8, 8))
    with pytest.raises(MeloraError, match="auto_mapping names the module antigravity, not loaded yet") as caught:
        load_adapter(base, folder)
    assert str(folder) in str(caught.value)
    assert "antigravity" not in sys.modules
    assert isinstance(base[0], nn.Linear)


def test_pefts_own_loaders_refuse_a_foreign_auto_mapping(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", config(auto_mapping=FOREIGN), weights())
    for load in (PeftConfig.from_pretrained, lambda path: PeftModel.from_pretrained(nn.Linear(8, 8), path)):
        with pytest.raises(MeloraError, match="auto_mapping names the module antigravity"):
            load(str(folder))


@pytest.mark.parametrize("value", ["os", [], {"base_model_class": "a"}, {**FOREIGN, "parent_library": "os; x"}])
def test_something_else_as_auto_mapping(value: Any) -> None:
    with pytest.raises(MeloraError, match="auto_mapping must hold base_model_class and parent_library"):
        MeloraConfig(auto_mapping=value)


def test_the_auto_mapping_that_peft_itself_writes_passes(
    make_mlp: Callable[..., nn.Module], tiny_bert: Any, tmp_path: Path
) -> None:
    for name, base, target in (("mlp", make_mlp(), "first"), ("bert", tiny_bert, "query")):
        get_peft_model(base, MeloraConfig(n=2, target_modules=[target])).save_pretrained(tmp_path / name)
        saved = json.loads((tmp_path / name / "adapter_config.json").read_text())
        assert saved["auto_mapping"]["base_model_class"] == type(base).__name__
        fresh = make_mlp() if name == "mlp" else type(tiny_bert)(tiny_bert.config)
        load_adapter(fresh, tmp_path / name)


def test_as_many_tensors_as_are_allowed_are_read(tmp_path: Path) -> None:
    """The bound on JSON values is no tighter than the one on tensors."""
    header: dict[str, Any] = {}
    for i in range(MAX_TENSORS // 2):
        header[f"m{i}.melora_A.weight"] = entry([1, 1, 1], 8 * i)
        header[f"m{i}.melora_B.weight"] = entry([1, 1, 1], 8 * i + 4)
    folder = write(tmp_path / "a", config(n=1), weights(header, data=4 * MAX_TENSORS))
    assert len(read_adapter(folder).modules) == MAX_TENSORS // 2
