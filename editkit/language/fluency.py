"""Fluency and consistency of what an edited model writes: GE and RS (arXiv 2202.05262, section 3.4).

The protocol is that of experiments/py/eval_utils_counterfact.py, util/generate.py and dsets/tfidf_stats.py in
kmeng01/rome: from each generation prompt a text of 100 tokens, the prompt's included, each token drawn from the five
likeliest, written on past tokens that end texts; normal form NFKD, empty lines closed up.

- **GE**, the n-gram entropy of a text in bits: the mean of ⅔ H₂ and 4/3 H₃, where Hₙ = −Σ f log₂ f over the relative
  frequencies f of its n-grams of words. A fact's GE is the mean over its texts. (ROME's tables print it times 100.)
- **RS**, the reference score: the cosine of the TF-IDF vectors of a fact's texts, joined, and of its reference texts,
  joined; words and their weights are those of a whole collection of references.

What differs: words are NLTK's as there (``word_tokenize``), but sentences are found by Punkt without its English list
of abbreviations, which is data to download, so the full stop after one may stand for itself; all special tokens are
left out of a text, not only ``<|endoftext|>``; draws are seeded by prompt; a text that shares no word with the
collection has RS 0 in place of an undefined one; the model reads the start token before a prompt.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from nltk.tokenize import NLTKWordTokenizer
from nltk.tokenize.punkt import PunktSentenceTokenizer
from nltk.util import ngrams
from scipy.stats import entropy
from sklearn.feature_extraction.text import TfidfVectorizer

from editkit.config import shown
from editkit.facts.fact import Fact
from editkit.language.generation import sample
from editkit.models import LanguageModel

WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the entropies of bi- and trigrams


def fluency(
    lm: LanguageModel,
    facts: Sequence[Fact],
    references: Mapping[str, Sequence[str]] | None = None,
    *,
    vectorizer: TfidfVectorizer | None = None,
    max_out_len: int = 100,
    seed: int = 0,
    progress: bool = False,
) -> pd.DataFrame:
    """Let the model write from the generation prompts of facts, and score the texts.

    Args:
        references: texts about what is true after the edit, by the id of a fact; facts may have none.
        vectorizer: fitted to a collection; one is fitted to all ``references`` where not given.
        max_out_len: tokens of a text, the prompt's included.
        seed: the same texts come of it whatever facts are asked about beside.

    Returns one row a fact that has generation prompts: ``fact`` (id), ``relation``, ``GE`` (bits), ``RS`` (nan without
    references), ``texts`` (a list). Raises ``ValueError`` where no fact has such a prompt, for references that are no
    texts, and what :func:`sample` raises.
    """
    about = {fact: fact.generation for fact in facts if fact.generation}
    if not about:
        raise ValueError(f"none of {len(facts)} facts has a generation prompt to write from")
    known = _checked(references or {})
    if known and vectorizer is None:
        vectorizer = fit_vectorizer(known.values())
    # Facts about one subject share their prompts.
    prompts = list(dict.fromkeys(prompt for own in about.values() for prompt in own))
    texts = map(_plain, sample(lm, prompts, max_out_len, seed=seed, progress=progress))
    written = dict(zip(prompts, texts, strict=True))
    rows = []
    for fact, own in about.items():
        found, wanted = [written[prompt] for prompt in own], known.get(fact.id)
        row: dict[str, Any] = {"fact": fact.id, "relation": fact.relation}
        row["GE"] = float(np.mean([n_gram_entropy(text) for text in found]))
        row["RS"] = consistency(found, wanted, vectorizer) if wanted else np.nan
        rows.append(row | {"texts": found})
    return pd.DataFrame(rows)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKD", text).replace("\n\n", " ")


def n_gram_entropy(text: str) -> float:
    """Compute the weighted entropy of a text's bi- and trigrams of words, in bits; 0 for a text without any."""
    tokens = words(text)
    entropies = [weight * _entropy(ngrams(tokens, n)) for n, weight in WEIGHTS.items()]
    return float(np.mean(entropies))


def _entropy(items: Iterable[tuple[str, ...]]) -> float:
    counts = list(Counter(items).values())
    return float(entropy(counts, base=2)) if counts else 0.0


def words(text: str) -> list[str]:
    """Split a text into words and punctuation marks, see above."""
    tokenizer = NLTKWordTokenizer()
    return [word for sentence in PunktSentenceTokenizer().tokenize(text) for word in tokenizer.tokenize(sentence)]


def fit_vectorizer(collection: Iterable[Sequence[str]]) -> TfidfVectorizer:
    """Learn words and their weights from a collection's texts, each a document.

    Raises ``ValueError`` where they hold no word.
    """
    return TfidfVectorizer().fit([text for texts in collection for text in texts])


def consistency(texts: Sequence[str], references: Sequence[str], vectorizer: TfidfVectorizer) -> float:
    """Compute the cosine of the TF-IDF vectors of texts and of references, each joined by a space; in [0, 1]."""
    one, other = vectorizer.transform([" ".join(texts), " ".join(references)]).toarray()
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / norms if norms else 0.0


def _checked(references: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    for name, texts in references.items():
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"the references of {shown(name)} are {shown(texts)}; a list of texts is needed")
    return {name: list(texts) for name, texts in references.items()}
