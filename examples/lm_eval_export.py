"""EleutherAI's lm-eval on an exported adapter: HFLM loads it as any LoRA, in a process that need not know melora.

python examples/lm_eval_export.py
On the command line: lm_eval --model hf --model_args pretrained=BASE,peft=LORA_FOLDER --tasks ...
"""

import tempfile

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from melora import MeloraConfig
from melora.conversion import export_lora

words = ["<pad>", "</s>", "<unk>", "the", "film", "is", "fine", "good", "dull", "bad"]
tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
tokens.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
tokenizer.model_input_names = ["input_ids", "attention_mask"]

torch.manual_seed(0)
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), pad_token_id=0, eos_token_id=1, bos_token_id=1, **sizes))

with tempfile.TemporaryDirectory() as folder:
    base.save_pretrained(f"{folder}/base")
    tokenizer.save_pretrained(f"{folder}/base")
    # A random adapter stands for a trained one.
    config = MeloraConfig(r=2, n=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_weights=False)
    model = get_peft_model(base, config).eval()
    model.save_pretrained(f"{folder}/melora")
    export_lora(f"{folder}/melora", f"{folder}/lora")

    questions = [("the film is", f" {word}") for word in words[6:]]

    def scores(**kwargs: str) -> list[float]:
        evaluated = HFLM(pretrained=f"{folder}/base", device="cpu", dtype="float32", max_length=16, **kwargs)
        requests = [Instance("loglikelihood", {}, question, i) for i, question in enumerate(questions)]
        return [score for score, _ in evaluated.loglikelihood(requests, disable_tqdm=True)]

    exported = scores(peft=f"{folder}/lora")
    ids = tokenizer("the film is", return_tensors="pt")["input_ids"]
    expected = model(ids).logits[0, -1].log_softmax(-1)[6:].tolist()
    print("log-likelihoods", [round(score, 3) for score in exported])
    assert torch.allclose(torch.tensor(exported), torch.tensor(expected), atol=1e-4)
    assert not torch.allclose(torch.tensor(scores()), torch.tensor(expected), atol=1e-2)
