"""Training: from a recipe to a run folder, and back from a run folder to scores and exports.

recipe.py, schema.py         what a recipe may say
data.py, tasks/              from files to examples, and from logits to scores
source.py, base.py           the base model
adapter.py, arguments.py     the recipe's two open sections: PEFT configs and TrainingArguments
prepare.py, plan.py          everything before the first step
run.py, trainer.py, ...      the run itself and what it leaves behind
evaluate.py, merged.py       what is done with a finished run
"""
