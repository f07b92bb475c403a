"""What a model says when nobody forces its tokens."""

import pandas as pd
import torch
from transformers import GenerationConfig

from editkit.language.generation import complete, pick_examples


def test_examples_are_taken_in_turn_from_successes_and_failures():
    frame = pd.DataFrame(
        {
            "kind": ["rewrite"] * 6 + ["neighbourhood"] * 2,
            "accuracy": [True] * 5 + [False, True, False],
            "prompt": range(8),
        }
    )
    chosen = pick_examples(frame, 4)
    assert sorted(zip(chosen.kind, chosen.accuracy, strict=True)) == [
        ("neighbourhood", False), ("neighbourhood", True), ("rewrite", False), ("rewrite", True),
    ]  # fmt: skip


def test_greedy_is_greedy_whatever_the_hub_says(tiny):
    lm = tiny()
    prompts = ["The capital of France is", "a b c"]
    plain = complete(lm, prompts, 12)
    ids = lm.encode(prompts[0])[0]
    for _ in range(12):
        ids.append(lm.logits(lm.forward(torch.tensor([ids], device=lm.device))[0, -1]).argmax().item())
    assert plain[0] == lm.tokenizer.decode(ids[-12:], skip_special_tokens=True)
    told = GenerationConfig(
        repetition_penalty=3.0, no_repeat_ngram_size=1, num_beams=3, do_sample=True, temperature=5.0, min_new_tokens=9,
        suppress_tokens=ids[-3:], eos_token_id=0,
    )  # fmt: skip
    lm.model.generation_config = told
    assert complete(lm, prompts, 12) == plain and lm.model.generation_config is told
