"""How far a model has moved on ordinary text: perplexity, and divergence from the model before the edits."""

from collections.abc import Sequence

import torch
from torch import Tensor

from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import pad
from editkit.language.moments import token_chunks
from editkit.models import LanguageModel

PROBE_TOKENS = 64  # of the longest piece of text; many short pieces tell more than one long one


def held_out(lm: LanguageModel, texts: Sequence[str], reserved: int, pieces: int) -> list[list[int]]:
    """Cut the text after its first ``reserved`` tokens, which are used elsewhere, into ``pieces`` rows of tokens.

    Raises ``ValueError`` where the texts are too short for both.
    """
    chunks = token_chunks(lm, texts, reserved + pieces * PROBE_TOKENS)
    tokens = [token for chunk in chunks for token in chunk[1:]][reserved:]
    return [[lm.start_id, *tokens[i : i + PROBE_TOKENS]] for i in range(0, len(tokens), PROBE_TOKENS)]


class TextProbe:
    """Held-out text, with its log-probabilities and ``perplexity`` under the model when the probe was made.

    Args:
        rows: rows of tokens, each beginning with the start token (:func:`held_out`).
    """

    def __init__(self, lm: LanguageModel, rows: Sequence[Sequence[int]]):
        self._ids, self._mask = pad(rows, lm.start_id, lm.device)
        self._reference = self._log_probabilities(lm)  # (m, vocabulary)
        self.perplexity = self._perplexity(self._reference)

    def measure(self, lm: LanguageModel) -> tuple[float, float]:
        """Return perplexity, and the mean over tokens of KL(model when the probe was made ‖ model now) in nats."""
        now = self._log_probabilities(lm)
        kl = torch.nn.functional.kl_div(now, self._reference, reduction="batchmean", log_target=True)
        return self._perplexity(now), kl.item()

    def _perplexity(self, log_probabilities: Tensor) -> float:
        wanted = self._ids[:, 1:][self._mask[:, 1:]]
        return (-log_probabilities.gather(1, wanted[:, None]).mean()).exp().item()

    @torch.no_grad()
    def _log_probabilities(self, lm: LanguageModel) -> Tensor:
        with exact_products(lm):
            hidden = lm.forward(self._ids)[:, :-1][self._mask[:, 1:]]
            return lm.logits(hidden).float().log_softmax(-1)
