"""How far a model has moved on text: perplexity, and divergence from the model before.

Three kinds of text tell different things: *text* is more of what the second moment was taken over, which it protects;
*prose* is of another source; *subjects* are true sentences near the facts, where edits act.
"""

import random
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from editkit.facts.fact import Fact
from editkit.language.forward.precision import exact_products
from editkit.language.forward.prefix import pad
from editkit.language.moments import token_chunks
from editkit.models import LanguageModel
from editkit.models.language import continued

KINDS = ("text", "prose", "subjects")
REACHABLE = ("prose", "subjects")  # kinds that the second moment does not protect by itself
PIECES = 8  # of each kind of text behind perplexity and divergence
PROBE_TOKENS = 64  # of the longest piece of text; many short pieces tell more than one long one
SENTENCES = 4  # in place of one piece of text: they are that much shorter


def held_out(lm: LanguageModel, texts: Sequence[str], reserved: int, pieces: int) -> list[list[int]]:
    """Cut the text after its first ``reserved`` tokens, which are used elsewhere, into ``pieces`` rows of tokens.

    Raises ``ValueError`` where the texts are too short for both.
    """
    chunks = token_chunks(lm, texts, reserved + pieces * PROBE_TOKENS)
    tokens = [token for chunk in chunks for token in chunk[1:]][reserved:]
    return [[lm.start_id, *tokens[i : i + PROBE_TOKENS]] for i in range(0, len(tokens), PROBE_TOKENS)]


def sentences(lm: LanguageModel, edited: Sequence[Fact], heldout: Sequence[Fact], pieces: int) -> list[list[int]]:
    """Draw what edits should leave alone near them, as rows of tokens; at most ``SENTENCES`` times ``pieces``.

    That is the neighbours' and the held-out facts' true statements, without those that name an edited subject, and
    the beginnings of other statements about the edited subjects.
    """
    subjects = {fact.subject for fact in edited}
    near = [continued(prompt, fact.neighbour_answer) for fact in [*edited, *heldout] for prompt in fact.neighbours]
    near += [continued(fact.text, fact.target_true) for fact in heldout]
    near = [text for text in near if not any(subject in text for subject in subjects)]
    found = list(dict.fromkeys([*near, *(text for fact in edited for text in fact.generation)]))
    drawn = random.Random(0).sample(found, min(len(found), SENTENCES * pieces))
    return [lm.encode(text)[0] for text in drawn]


class TextProbe:
    """Text, with its log-probabilities and ``perplexity`` under the model when the probe was made.

    Args:
        rows: rows of tokens, each beginning with the start token (:func:`held_out`, :func:`sentences`).
    """

    def __init__(self, lm: LanguageModel, rows: Sequence[Sequence[int]]):
        self._ids, self._mask = pad(rows, lm.start_id, lm.device)
        self.reference = self.read(lm)
        self.perplexity = self._perplexity(self.reference)

    def measure(self, lm: LanguageModel) -> tuple[float, float]:
        """Return perplexity, and :func:`divergence` of the model now from that when the probe was made."""
        now = self.read(lm)
        return self._perplexity(now), divergence(self.reference, now)

    @torch.no_grad()
    def read(self, lm: LanguageModel) -> Tensor:
        """Compute the model's log-probabilities after each token but a row's last, (m, vocabulary)."""
        with exact_products(lm):
            hidden = lm.forward(self._ids)[:, :-1][self._mask[:, 1:]]
            return lm.logits(hidden).float().log_softmax(-1)

    def _perplexity(self, log_probabilities: Tensor) -> float:
        wanted = self._ids[:, 1:][self._mask[:, 1:]]
        return (-log_probabilities.gather(1, wanted[:, None]).mean()).exp().item()


def divergence(before: Tensor, now: Tensor) -> float:
    """Average KL(before ‖ now) over tokens, in nats; both are log-probabilities (m, vocabulary)."""
    return torch.nn.functional.kl_div(now, before, reduction="batchmean", log_target=True).item()


def measure_all(lm: LanguageModel, probes: Mapping[str, TextProbe], measured: bool) -> dict[str, float]:
    """Return perplexity_before, perplexity and kl of each kind, ``{name}_{kind}``.

    They are nan where there is no such probe, and the latter two where nothing is to be measured now.
    """
    row: dict[str, float] = {}
    for kind in KINDS:
        probe, nothing = probes.get(kind), float("nan")
        now, kl = probe.measure(lm) if probe and measured else (nothing, nothing)
        row |= {f"perplexity_before_{kind}": probe.perplexity if probe else nothing}
        row |= {f"perplexity_{kind}": now, f"kl_{kind}": kl}
    return row
