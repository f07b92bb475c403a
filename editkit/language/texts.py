"""Ordinary text for the second moment: it stands for what edits should not disturb."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics


def load_texts(source: str = "") -> list[str]:
    """Read texts from a ``.txt`` file (paragraphs), a ``.jsonl`` file (field ``text``), or ``"wikipedia"``.

    The default needs no network: it reads the chapters of the language reference that come with Python.
    Raises ``ValueError`` for a file that is missing, empty or of another kind.
    """
    if not source:
        return [topics[name] for name in sorted(topics)]
    if source == "wikipedia":
        return list(_wikipedia())
    path = Path(source)
    if path.suffix not in (".txt", ".jsonl"):
        raise ValueError(f"text source {source!r}: give a .txt or .jsonl file, 'wikipedia', or nothing")
    if not path.is_file():
        raise ValueError(f"text file {path} does not exist")
    content = path.read_text(encoding="utf-8")
    if path.suffix == ".txt":
        texts = [paragraph.strip() for paragraph in content.split("\n\n")]
    else:
        texts = [json.loads(line)["text"] for line in content.splitlines() if line.strip()]
    texts = [text for text in texts if text]
    if not texts:
        raise ValueError(f"text file {path} holds no text")
    return texts


def _wikipedia(articles: int = 2000) -> Iterator[str]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise ValueError("text source 'wikipedia' needs the datasets package: pip install datasets") from None
    stream = load_dataset("wikimedia/wikipedia", "20231101.en", split="train", streaming=True)
    for article in islice(stream, articles):
        yield article["text"]
