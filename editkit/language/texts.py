"""Ordinary text for the second moment: it stands for what edits should not disturb.

The first texts of a source can be unlike the rest, and what is read decides how much edits disturb, so every source is
drawn from at random over the whole of it, with a seed.
"""

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers import DynamicCache

from editkit.cache import Store, entry_key
from editkit.language.forward.precision import exact_products
from editkit.models import LanguageModel
from editkit.plain import decode, is_text, parse_lines

SAMPLES, REFERENCE, WIKIPEDIA = "samples", "python-reference", "wikipedia"
ROWS, LENGTH = 32, 128  # samples drawn and stored together, and tokens of each
TOKENS = 20_000  # of samples where nothing else is asked for: more than C of the default model takes
PASSAGE = 1000  # characters; longer texts are cut, so that few of them do not make up everything that is read
ARTICLES, BUFFER = 2000, 10_000  # of Wikipedia: drawn, and held at once to draw from


def load_texts(
    source: str = "",
    *,
    lm: LanguageModel | None = None,
    n_tokens: int = TOKENS,
    seed: int = 0,
    store: Store | None = None,
    progress: bool = True,
) -> list[str]:
    """Draw texts at random over a whole source, in passages of at most 1,000 characters; a seed gives one order.

    Args:
        source: ``"samples"`` of the model as it stands at temperature 1, which is the default and needs neither network
            nor file; ``"python-reference"``, the chapters that come with Python; ``"wikipedia"``, articles of the
            English one; a ``.txt`` file (paragraphs) or a ``.jsonl`` file (field ``text`` of each line), in UTF-8.
        lm: the model that samples are drawn from; other sources need none.
        n_tokens: least number of tokens of samples; other sources are returned whole.
        store: where samples are cached.

    Raises ``ValueError`` for samples without a model, and a file that is missing, empty or of another kind or layout;
    it names the file and the line.
    """
    if source in ("", SAMPLES):
        if lm is None:
            raise ValueError("ordinary text is drawn from the model itself unless a source is named: give lm or source")
        return _samples(lm, n_tokens, seed, store or Store(), progress)
    if source == REFERENCE:
        return _drawn(_reference(), seed)
    if source == WIKIPEDIA:
        return _drawn(_wikipedia(seed), seed)
    return _drawn(_file(Path(source)), seed)


def other_prose(texts: Sequence[str], *, lm: LanguageModel, n_tokens: int, store: Store | None = None) -> list[str]:
    """Draw texts of another source than that of ``texts``, to see what is not protected with them.

    That is the Python reference, and the model's samples where ``texts`` are from the reference.
    """
    reference = load_texts(REFERENCE)
    if set(reference).isdisjoint(texts):
        return reference
    return load_texts(SAMPLES, lm=lm, n_tokens=n_tokens, store=store, progress=False)


def _drawn(documents: Iterable[str], seed: int) -> list[str]:
    """Cut documents at white space into passages, where there is some, and shuffle all of them."""
    cut = rf"\S.{{0,{PASSAGE - 1}}}(?!\S)|\S.{{0,{PASSAGE - 1}}}"
    passages = [passage.strip() for text in documents for passage in re.findall(cut, text, re.DOTALL)]
    random.Random(seed).shuffle(passages)
    return passages


def _samples(lm: LanguageModel, n_tokens: int, seed: int, store: Store, progress: bool) -> list[str]:
    texts, found = list[str](), 0
    bar = tqdm(total=n_tokens, desc="ordinary text from the model", unit="token", unit_scale=True, disable=not progress)
    with bar:
        for number in range(n_tokens):  # each batch adds a token or ends this
            if found >= n_tokens:
                break
            key = entry_key(__name__, lm, seed=seed, batch=number)
            batch = store.plain("samples", key, partial(_sample, lm, seed, number))
            if not (count := sum(len(lm.tokens(text)) for text in batch)):
                raise ValueError(f"{lm.name} wrote no text that could be read for the second moment: name a source")
            texts, found = texts + batch, found + count
            bar.update(count)
    return texts


@torch.no_grad()
def _sample(lm: LanguageModel, seed: int, number: int) -> list[str]:
    """Sample rows of text after the start token, without special tokens, at temperature 1 from the whole vocabulary."""
    generator = torch.Generator().manual_seed(int.from_bytes(random.Random(f"{seed} {number}").randbytes(7)))
    cache, ids = DynamicCache(), torch.full((ROWS, 1), lm.start_id, device=lm.device)
    rows = []
    with exact_products(lm):
        for place in range(int(min(LENGTH, lm.n_positions - 1))):
            positions = torch.full_like(ids, place)
            logits = lm.logits(lm.forward(ids, past_key_values=cache, position_ids=positions)[:, -1]).cpu()
            logits[:, lm.tokenizer.all_special_ids] = -torch.inf
            logits[:, len(lm.tokenizer) :] = -torch.inf  # rows of the embedding that stand for no token
            total = logits.double().softmax(-1).cumsum(-1)  # faster to draw from than multinomial()
            drawn = torch.rand(ROWS, 1, dtype=torch.float64, generator=generator) * total[:, -1:]
            rows.append(torch.searchsorted(total, drawn, right=True))
            ids = rows[-1].to(lm.device)
    texts = lm.tokenizer.batch_decode(torch.cat(rows, dim=1), skip_special_tokens=True)
    return [text for text in (text.strip("\ufffd \n") for text in texts) if text]  # a cut character ends as U+FFFD


def _reference() -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name] for name in sorted(topics)]


def _file(path: Path) -> list[str]:
    path, kind = path.expanduser(), path.suffix.lower()
    if kind not in (".txt", ".jsonl"):
        names = ", ".join(map(repr, (SAMPLES, REFERENCE, WIKIPEDIA)))
        raise ValueError(f"text source {str(path)!r}: give a .txt or .jsonl file, {names}, or nothing")
    if not path.is_file():
        raise ValueError(f"text file {path} does not exist")
    content, source = path.read_bytes(), f"text file {path}"
    texts = decode(content, source).split("\n\n") if kind == ".txt" else _fields(content, source)
    if not any(text.strip() for text in texts):
        raise ValueError(f"text file {path} holds no text")
    return texts


def _fields(content: bytes, source: str) -> list[str]:
    """Read the field ``text`` of each line."""
    lines = parse_lines(content, source)
    for number, value in lines:
        if not isinstance(value, dict) or not is_text(value.get("text")):
            shown = f"{value!r:.80}"
            raise ValueError(f'{source}, line {number} is {shown}: an object with a text is needed, {{"text": "…"}}')
    return [value["text"] for _, value in lines]


def _wikipedia(seed: int) -> Iterator[str]:
    """Draw articles from files in random order, each out of the next ``BUFFER`` ones."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("text source 'wikipedia' needs the datasets package: pip install datasets") from None
    stream = load_dataset("wikimedia/wikipedia", "20231101.en", split="train", streaming=True)
    for article in islice(stream.shuffle(seed=seed, buffer_size=BUFFER), ARTICLES):
        yield article["text"]
