import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTTrainer

from melora import MeloraError
from melora.training.arguments import training_arguments
from melora.training.evaluate import evaluate, restore
from melora.training.instructions.sft import SftAdapterTrainer
from melora.training.merged import export_merged
from melora.training.prepare import prepare
from melora.training.recipe import parse_recipe
from melora.training.run import train
from melora.training.tasks.causal_lm import CausalLM
from melora_cli import main


@pytest.fixture
def answered(instruct_values: dict[str, Any]) -> dict[str, Any]:
    data = {**instruct_values["data"], "answers": "gsm8k", "answer_rows": 3, "answer_tokens": 4}
    return {**instruct_values, "data": data}


def test_scores_weigh_every_token_alike() -> None:
    """Rows of 1 and of 3 learned tokens: 6 nats over 4 tokens, not the mean of two means."""
    scores = CausalLM().metrics(np.array([[3.0], [3.0]]), np.array([1, 3]))
    assert scores == {"loss": 1.5, "perplexity": math.exp(1.5)}


def test_held_out_loss_is_the_models_own_over_all_rows(instruct_values: dict[str, Any]) -> None:
    result = train(parse_recipe(instruct_values))
    restored = restore(result.path)
    model = restored.with_adapter()
    examples = prepare(parse_recipe(instruct_values)).validation
    total, tokens = 0.0, 0
    with torch.no_grad():
        for row in examples:
            labels = torch.tensor([row["labels"]])
            count = int((labels != -100).sum())
            total += model(input_ids=torch.tensor([row["input_ids"]]), labels=labels).loss.item() * count
            tokens += count
    assert result.results["metrics"]["loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert result.results["metrics"]["perplexity"] == pytest.approx(math.exp(total / tokens), rel=1e-4)
    assert result.results["validation_loss"] == result.results["metrics"]["loss"]
    first = json.loads((result.path / "metrics.jsonl").read_text().splitlines()[0])
    assert result.results["metrics"]["loss"] < first["loss"] - 0.1  # it learned
    assert evaluate(result.path)["metrics"] == pytest.approx(result.results["metrics"], rel=1e-6)


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """stop(step) kills training at that step; stop(0) lets it run."""
    at = {"step": 0}

    class Killer(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == at["step"]:
                raise KeyboardInterrupt

    original = SftAdapterTrainer.__init__

    def with_killer(self: Any, *, callbacks: Any = (), **kwargs: Any) -> None:
        original(self, callbacks=[*callbacks, Killer()], **kwargs)

    monkeypatch.setattr(SftAdapterTrainer, "__init__", with_killer)
    return lambda step: at.update(step=step)


@pytest.mark.parametrize("packing", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(
    instruct_values: dict[str, Any], stop: Callable[[int], None], tmp_path: Path, packing: bool
) -> None:
    adapter = {**instruct_values["adapter"], "lora_dropout": 0.1}
    training = {**instruct_values["training"], "packing": packing, "per_device_train_batch_size": 2 if packing else 8}
    recipe = parse_recipe({**instruct_values, "adapter": adapter, "training": training})
    whole = train(recipe)
    steps = whole.results["steps"]
    assert issubclass(SftAdapterTrainer, SFTTrainer)
    kept = shutil.move(whole.path, tmp_path / "whole")
    stop(steps - 1)
    with pytest.raises(KeyboardInterrupt):
        train(recipe)
    stop(0)
    resumed = train(recipe, resume=True)
    assert resumed.results["resumed"]
    files = (load_file(Path(path) / "adapter" / "adapter_model.safetensors") for path in (kept, resumed.path))
    first, second = files
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert resumed.results["metrics"] == whole.results["metrics"]


def test_packing_trains_fewer_longer_rows_and_scores_single_ones(instruct_values: dict[str, Any]) -> None:
    plain = prepare(parse_recipe(instruct_values), on_meta=True)
    training = {**instruct_values["training"], "packing": True}
    data = {**instruct_values["data"], "max_length": 256}
    recipe = parse_recipe({**instruct_values, "training": training, "data": data})
    packed = prepare(recipe, on_meta=True)
    assert len(packed.train) < len(plain.train) / 2
    assert packed.rows == {"train": 48, "validation": 8}
    assert packed.validation == plain.validation
    with pytest.raises(MeloraError, match=r"training\.packing_strategy: wrapped cuts rows in two"):
        prepare(parse_recipe({**recipe.to_dict(), "training": {**training, "packing_strategy": "wrapped"}}))


def test_llamas_tokenizer_gets_padding_and_its_texts_begin(
    instruct_values: dict[str, Any], llama_tokenizer: Any, tmp_path: Path
) -> None:
    model = shutil.copytree(instruct_values["model"]["name_or_path"], tmp_path / "llama")
    (model / "chat_template.jinja").unlink()
    llama_tokenizer.save_pretrained(model)
    data = {**instruct_values["data"], "format": "alpaca", "max_length": 300, "loss": "all"}
    training = {**instruct_values["training"], "max_steps": 2}
    values = {**instruct_values, "model": {"name_or_path": str(model)}, "data": data, "training": training}
    run = train(parse_recipe(values)).path
    saved = AutoTokenizer.from_pretrained(run / "adapter")
    assert (saved.pad_token, saved.eos_token) == ("<unk>", "</s>")
    ids = prepare(parse_recipe(values), on_meta=True).train[0]["input_ids"]
    assert (ids[0], ids[-1]) == (saved.bos_token_id, saved.eos_token_id)
    with pytest.raises(MeloraError, match="has no chat template"):
        prepare(parse_recipe({**values, "data": {**data, "format": "chat"}}))


def test_the_cards_lines_answer_in_the_trained_format(answered: dict[str, Any]) -> None:
    run = train(parse_recipe(answered)).path
    text = (run / "adapter" / "README.md").read_text()
    assert "exact match of 3 answers" in text
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    names: dict[str, Any] = {}
    exec(found[1].replace('adapter = "adapter"', f"adapter = {str(run / 'adapter')!r}"), names)
    assert names["prompt"] == "<|im_start|>user\nWhat is 12 times 3?<|im_end|>\n<|im_start|>assistant\n"
    assert isinstance(names["model"], PeftModel)
    assert names["output"].shape[1] <= names["inputs"]["input_ids"].shape[1] + 4
    told = json.loads((run / "adapter" / "melora_task.json").read_text())
    assert (told["task"], told["format"], told["loss"]) == ("causal-lm", "chat", "completion")


def test_answers_are_scored_once_and_by_evaluate(answered: dict[str, Any]) -> None:
    result = train(parse_recipe(answered))
    assert (result.results["answers"]["rows"], result.results["answers"]["answer_tokens"]) == (3, 4)
    assert evaluate(result.path)["answers"] == result.results["answers"]
    fewer = evaluate(result.path, ["data.answer_rows=2", "data.answer_tokens=1"])["answers"]
    assert (fewer["rows"], fewer["unfinished"]) == (2, 2)
    assert "answers" not in evaluate(result.path, ["data.answers=null"])


def test_a_merged_export_is_a_plain_model(instruct_values: dict[str, Any], tmp_path: Path) -> None:
    run = train(parse_recipe(instruct_values)).path
    done = export_merged(run, tmp_path / "merged")
    assert done.measured_on == "4 validation rows"
    assert done.drift < 1e-5 * max(1.0, done.scale)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, restore(run).with_adapter()(ids).logits, rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template


def test_the_commands_from_end_to_end(
    instruct_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, run = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(yaml.safe_dump(instruct_values))
    assert main(["train", str(recipe), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert r"  - '<|im_start|>user\nWhat is 0 and 0?<|im_end|>\n<|im_start|>assistant\n'" in out
    assert r"  + '0+0=0\n#### 0<|im_end|>'" in out
    assert re.search(r"tokens   [\d,]+, of which [\d,]+ are learned", out)
    assert not run.exists()
    assert main(["train", str(recipe), "data.answers=gsm8k", "data.answer_rows=2", "data.answer_tokens=3"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"epoch 2\.00  validation loss \d\.\d{4}  perplexity \d", out)
    assert re.search(r"answers  exact match \d\.\d{4}: \d of 2 rows, \d unfinished after 3 tokens", out)
    assert main(["evaluate", str(run), "data.answers=null", "--predictions", str(tmp_path / "rows.csv")]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out
    assert "exact match" not in out
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 9
    assert main(["inspect", str(run)]) == 0
    assert main(["export", str(run), "--to", "lora"]) == 0
    assert main(["export", str(run), "--to", "merged"]) == 0
    base = AutoModelForCausalLM.from_pretrained(instruct_values["model"]["name_or_path"])
    lora = PeftModel.from_pretrained(base, run / "lora").eval()
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        torch.testing.assert_close(lora(ids).logits, restore(run).with_adapter()(ids).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "told"),
    [
        ({"max_length": 3}, "training.max_length: use data.max_length"),
        ({"completion_only_loss": True}, "training.completion_only_loss: use data.loss"),
        ({"eos_token": "x"}, "training.eos_token: the tokenizer's own end token is taken"),
        ({"paking": True}, "training: unknown key 'paking'; did you mean packing"),
    ],
)
def test_what_the_training_section_may_not_say(
    instruct_values: dict[str, Any], field: dict[str, Any], told: str
) -> None:
    with pytest.raises(MeloraError) as caught:
        prepare(parse_recipe({**instruct_values, "training": field}))
    assert told in str(caught.value)


def test_what_sft_turns_on_by_itself_is_off_unless_asked_for(instruct_values: dict[str, Any], tmp_path: Path) -> None:
    args = training_arguments(parse_recipe(instruct_values), CausalLM(), tmp_path)
    assert (args.bf16, args.gradient_checkpointing, args.activation_checkpointing) == (False, False, False)
    asked = {**instruct_values["training"], "activation_checkpointing": True, "bf16": True}
    args = training_arguments(parse_recipe({**instruct_values, "training": asked}), CausalLM(), tmp_path)
    assert (args.bf16, args.gradient_checkpointing) == (True, True)


def test_cut_and_dropped_rows_stand_in_the_results(instruct_values: dict[str, Any]) -> None:
    data = {**instruct_values["data"], "max_length": 48}
    values = {**instruct_values, "data": data, "training": {**instruct_values["training"], "max_steps": 1}}
    lengths = [len(row["input_ids"]) for row in prepare(parse_recipe(instruct_values), on_meta=True).train]
    results = train(parse_recipe(values)).results
    assert results["cut_rows"]["train"] == sum(length > 48 for length in lengths) > 0
    assert results["dropped_rows"] == {"train": 0, "validation": 0}


def test_a_resumed_run_logs_what_one_left_alone_logs(
    instruct_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL keeps its token counts and running means in memory alone; the interruption falls between two log entries."""
    training = {**instruct_values["training"], "max_steps": 8, "eval_strategy": "steps", "eval_steps": 3}
    values = {**instruct_values, "training": {**training, "logging_steps": 4}}
    whole = train(parse_recipe({**values, "output": str(tmp_path / "whole")})).path

    class Interrupt(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 7:
                raise KeyboardInterrupt

    recipe = parse_recipe({**values, "output": str(tmp_path / "cut")})
    original = SftAdapterTrainer.__init__
    with monkeypatch.context() as patch:
        patch.setattr(
            SftAdapterTrainer,
            "__init__",
            lambda self, **kwargs: (original(self, **kwargs), self.add_callback(Interrupt()))[0],
        )
        with pytest.raises(KeyboardInterrupt):
            train(recipe)
    resumed = train(recipe, resume=True).path
    logs = [[json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (whole, resumed)]
    for events in logs:
        for event in events:
            for key in [key for key in event if key.endswith(("seconds", "runtime", "per_second"))]:
                del event[key]
    assert logs[0] == logs[1]
    assert any("mean_token_accuracy" in event for event in logs[0])
    adapters = [load_file(run / "adapter" / "adapter_model.safetensors") for run in (whole, resumed)]
    assert all(torch.equal(adapters[0][key], adapters[1][key]) for key in adapters[0])


def test_n_auto_takes_its_gradient_of_the_same_batches(instruct_values: dict[str, Any]) -> None:
    adapter = {**instruct_values["adapter"], "n": "auto", "target_modules": "all-linear"}
    run = train(parse_recipe({**instruct_values, "adapter": adapter, "adapter_search": {"batches": 2}})).path
    rows = json.loads((run / "allocation.json").read_text())["modules"]
    assert len(rows) % 7 == 0
    assert all(row["effective_rank"] > 0 and row["d_in"] % row["n"] == row["d_out"] % row["n"] == 0 for row in rows)
