"""A training loop of one's own with accelerate: prepare, clip, accumulate, and save from the unwrapped model.

python examples/accelerate_loop.py        (or: torchrun --nproc-per-node 2 examples/accelerate_loop.py)
"""

import tempfile

import torch
from accelerate import Accelerator
from peft import get_peft_model
from transformers import BertConfig, BertForSequenceClassification

from melora import MeloraConfig, load_adapter


def base_model() -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=20, num_labels=2, **sizes))


model = get_peft_model(base_model(), MeloraConfig(r=2, n=8, target_modules=["query", "value"], task_type="SEQ_CLS"))
optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.02)
ids = torch.randint(2, 20, (32, 6), generator=torch.Generator().manual_seed(0))
rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, (ids[:, 0] > 10).long(), strict=True)]
loader = torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)

accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
losses = []
for _ in range(20):
    for batch in loader:
        with accelerator.accumulate(model):
            loss = model(**batch).loss
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")
assert losses[-1] < losses[0]

trained = accelerator.unwrap_model(model)
if accelerator.is_main_process:
    with tempfile.TemporaryDirectory() as folder:
        trained.save_pretrained(folder)
        loaded = load_adapter(base_model(), folder).eval()
    assert torch.allclose(loaded(input_ids=ids).logits, trained.eval()(input_ids=ids).logits, atol=1e-5)
accelerator.end_training()
