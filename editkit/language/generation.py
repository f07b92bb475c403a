"""What the model says when nobody forces its tokens."""

from collections.abc import Sequence

import torch

from editkit.models import LanguageModel


@torch.no_grad()
def complete(lm: LanguageModel, prompts: Sequence[str], max_new_tokens: int = 12) -> list[str]:
    """Greedy continuations, without the prompt."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([lm.encode(prompt)[0]], device=lm.device)
        output = lm.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=lm.start_id,
        )
        texts.append(lm.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
    return texts
