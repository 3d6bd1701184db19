"""The adapter's README.md: what it is, how it was made, how it scored, and the lines that reload it."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .places import described
from .plan import Counts, ModulePlan
from .recipe import Recipe
from .source import ModelSource
from .tasks import Task

# Methods that PEFT does not have, and what to import for it to know them.
_REGISTERED = {"melora": "melora", **dict.fromkeys(("head", "bias", "full"), "melora.training.plain_methods")}


def model_card(
    recipe: Recipe,
    source: ModelSource,
    task: Task,
    counts: Counts,
    modules: list[ModulePlan],
    results: dict[str, Any],
    environment: dict[str, Any],
) -> str:
    """The card's Markdown with Hugging Face's YAML front matter.

    Args:
        recipe: what was asked for.
        source: the base model.
        task: names the metrics and undoes its own scaling of the labels.
        counts: parameters by role.
        modules: the adapted modules.
        results: as in results.json.
        environment: as in environment.json.
    """
    method = recipe.adapter.get("method", "melora")
    title = f"{method} adapter of {source.name} for {task.name}"
    facts = [
        *_adapter_facts(recipe, modules, counts),
        ("seed", recipe.seed),
        ("learning rate", _rates(results)),
        ("epochs", f"{results['epochs']:g} (kept: epoch {results['best_epoch']:g})"),
        ("batch", results["batch"]),
        ("training time", f"{results['train_seconds']:.0f} s on {environment['machine']}"),
    ]
    rows = [(name, f"{value:.4f}") for name, value in results["metrics"].items()]
    if "answers" in results:
        answers = results["answers"]
        rows.append((f"exact match of {answers['rows']} answers", f"{answers['exact_match']:.4f}"))
    if "mismatched" in results:
        other = results["mismatched"]
        rows.append((f"accuracy on {other['rows']:,} mismatched rows", f"{other['accuracy']:.4f}"))
    data = recipe.data
    sizes = f"{results['rows']['train']:,} rows of `{described(data, 'train')}`"
    scored = f"{results['rows']['validation']:,} rows of `{described(data, 'validation')}`"
    cut = sum(results["cut_rows"].values())
    return "\n".join(
        [
            f"---\n{_front_matter(recipe, source, task, results).to_yaml()}\n---",
            f"# {title}",
            "",
            f"Trained on {sizes} ({task.describe_rows(data)}; "
            f"at most {data.max_length} tokens, {cut} rows cut). The validation rows chose the epoch, so the scores "
            "below are slightly optimistic.",
            "",
            f"Scores on {scored}:",
            "",
            *_table(("metric", "value"), rows),
            "",
            *_table(("setting", "value"), facts),
            "",
            "## Use",
            "",
            "```python",
            *_reload_lines(recipe, source, task, method),
            "```",
            "",
            *_notes(method),
        ]
    )


def _front_matter(recipe: Recipe, source: ModelSource, task: Task, results: dict[str, Any]) -> ModelCardData:
    dataset = described(recipe.data, "validation")
    scores = [
        EvalResult(
            task_type=f"text-{task.name}" if task.name == "classification" else task.name,
            dataset_type="file",
            dataset_name=dataset,
            metric_type=name,
            metric_value=value,
        )
        for name, value in results["metrics"].items()
    ]
    return ModelCardData(
        base_model=source.name,
        library_name="peft",
        tags=[recipe.adapter.get("method", "melora"), "base_model:adapter:" + source.name, task.name],
        metrics=list(results["metrics"]),
        model_name=f"{recipe.adapter.get('method', 'melora')}-{task.name}",
        eval_results=scores,
    )


def _adapter_facts(recipe: Recipe, modules: list[ModulePlan], counts: Counts) -> list[tuple[str, Any]]:
    def span(values: list[int | None]) -> str:
        known = sorted({value for value in values if value is not None})
        return "-" if not known else str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"

    facts: list[tuple[str, Any]] = [
        ("n (minis)", span([module.n for module in modules])),
        ("r (rank of one mini)" if any(module.n for module in modules) else "r", span([m.r for m in modules])),
        ("n or r chosen by", "gradients before training" if recipe.searches_adapter else "-"),
        ("equivalent rank", span([module.equivalent_rank for module in modules])),
        ("alpha", recipe.adapter.get("lora_alpha", "the method's default") if any(m.r for m in modules) else "-"),
        ("adapted modules", len(modules)),
        ("adapter parameters", f"{counts.adapter:,}"),
        ("LoRA of equal rank would have", "-" if counts.lora is None else f"{counts.lora:,}"),
        ("head parameters", f"{counts.head:,}"),
        ("frozen parameters", f"{counts.base:,}"),
    ]
    return [(name, value) for name, value in facts if value != "-"]


def _rates(results: dict[str, Any]) -> str:
    rate, ratio = results["learning_rate"], results["loraplus_lr_ratio"]
    return f"{rate:g}" if ratio == 1.0 else f"{rate:g}, of B {rate * ratio:g} (LoRA+)"


def _reload_lines(recipe: Recipe, source: ModelSource, task: Task, method: str) -> list[str]:
    imports, path = source.python()
    config = "".join(f", {key}={value!r}" for key, value in task.model_config().items())
    known = _REGISTERED.get(method)
    register = [] if known is None else [f"import {known}  # registers {method.upper()} with PEFT"]
    return [
        *register,
        *imports,
        "from peft import PeftModel",
        f"from transformers import {task.auto_class}, AutoTokenizer",
        "",
        'adapter = "adapter"  # this folder',
        f"base = {task.auto_class}.from_pretrained({path}{config})",
        "model = PeftModel.from_pretrained(base, adapter).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(adapter)",
        *task.usage_lines(recipe.data),
    ]


def _notes(method: str) -> list[str]:
    notes = []
    if method == "melora":
        notes.append(
            "A process that has not imported `melora` stops with `KeyError: 'MELORA'`. Without melora installed, use "
            "an exact plain-LoRA copy, which stock PEFT and LoRA servers load: `melora export RUN --to lora`."
        )
    elif method in _REGISTERED:
        notes.append(
            f"A process that has not imported `{_REGISTERED[method]}` stops with `KeyError: '{method.upper()}'`. "
            "Without melora installed, use the trained model as a plain one: `melora export RUN --to merged`."
        )
    return [line for note in notes for line in (note, "")]


def _table(head: tuple[str, str], rows: list[tuple[str, Any]]) -> list[str]:
    return [f"| {head[0]} | {head[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
