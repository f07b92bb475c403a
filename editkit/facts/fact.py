"""One fact to edit, in CounterFact's terms (arXiv 2202.05262, appendix D).

A fact says that the prompt with its subject is followed by ``target_true``; the edit wants ``target_new`` there.
Paraphrases should change with it, neighbourhood prompts should not.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

SLOT = "{}"
# One part in so many is for tuning. The salt is one that leaves CounterFact's first eight records, which the published
# algorithms were run on, in the test part.
PARTS, PART_SALT = 3, "part 34"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, its edit, and the prompts that score the edit.

    Raises ``ValueError`` for a prompt that does not hold exactly one ``{}``, an empty subject or target, or equal
    targets; ``TypeError`` where a text is not a text, or prompts are not a list of non-empty texts.
    """

    id: str
    """Stable name, such as "worldfacts:capital_of:Paris" or "counterfact:0"."""
    relation: str
    """What the subject is asked about; facts of one relation share their templates."""
    subject: str
    prompt: str
    """Template with one ``{}`` where the subject goes; the target follows after one space."""
    target_new: str
    """What the edited model shall say, without surrounding spaces."""
    target_true: str
    """What is true, without surrounding spaces."""
    paraphrases: tuple[str, ...] = ()
    """Full texts that ask for the same fact in other words."""
    neighbours: tuple[str, ...] = ()
    """Full texts about other subjects whose answer the edit must not change."""
    neighbour_target: str | None = None
    """The neighbours' right answer where it is not ``target_true`` (zsRE), else None."""
    generation: tuple[str, ...] = ()
    """Full texts about the subject, from which the model writes freely."""

    def __post_init__(self):
        for name in ("target_new", "target_true"):
            object.__setattr__(self, name, _text(self, name).strip())
        for name in ("paraphrases", "neighbours", "generation"):
            object.__setattr__(self, name, _texts(self, name))
        _check(self)

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.prompt.replace(SLOT, self.subject)

    @property
    def neighbour_answer(self) -> str:
        """What is right after the neighbours."""
        return self.neighbour_target or self.target_true

    @property
    def topic(self) -> tuple[str, str]:
        """What a newer edit replaces: the same subject and relation."""
        return self.subject, self.relation or self.prompt

    def describe(self) -> dict[str, str]:
        """Describe the edit in words for a model card."""
        return {"prompt": self.text, "now": self.target_new, "before": self.target_true}

    @classmethod
    def make(cls, *, subject: str, prompt: str, relation: str = "", **texts: Any) -> "Fact":
        """Build a fact from plain texts; its id is derived from its content.

        Args:
            prompt: a template with one ``{}``, or a text that names the subject itself.
            texts: both targets, and whatever prompts there are, as in :class:`Fact`.

        Raises ``ValueError`` for a prompt that neither holds ``{}`` nor names the subject, and what ``Fact`` raises.
        """
        unnamed = cls(id="", relation=relation, subject=subject, prompt=template_of(prompt, subject), **texts)
        return replace(unnamed, id=f"user:{data_hash([unnamed])[:12]}")


def template_of(prompt: str, subject: str) -> str:
    """Put ``{}`` where the prompt names the subject; a prompt that already is a template is kept.

    The first whole-word mention is taken, or the first mention inside a word where there is no other: the word
    "Ann" goes before the "Ann" of "Annual". Raises ``ValueError`` for a prompt that neither holds
    ``{}`` nor names the subject.
    """
    braces_are_the_subjects = SLOT in subject and subject in prompt
    if SLOT in prompt and not braces_are_the_subjects:
        return prompt
    if not subject.strip() or subject not in prompt:
        raise ValueError(
            f"subject {subject!r} is not in the prompt {prompt!r}: "
            "name the subject in the prompt, or write {} in its place"
        )
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = whole.start() if whole else prompt.index(subject)
    return prompt[:start] + SLOT + prompt[start + len(subject) :]


def data_hash(facts: Iterable[Fact]) -> str:
    """Hash the facts' canonical JSON, in their order (SHA-256, hex)."""
    rows = [asdict(fact) for fact in facts]
    canonical = json.dumps(rows, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def part_of(fact: Fact) -> Literal["tune", "test"]:
    """Tell whether hyperparameters may be tuned on a fact, or reports are made from it.

    A hash of the subject decides, whatever its spelling of case and accents, so no subject is in both parts; a third
    of the subjects is for tuning.
    """
    return "tune" if int(digest(PART_SALT, fold(fact.subject)), 16) % PARTS == 0 else "test"


def digest(*names: str) -> str:
    """Hash names to hex digits: a fixed pseudo-random sort key, the same in every process."""
    return hashlib.sha256("|".join(names).encode()).hexdigest()


def fold(text: str) -> str:
    """Write ``text`` in lower case without accents, to compare names."""
    parts = unicodedata.normalize("NFKD", text.casefold())
    return "".join(char for char in parts if not unicodedata.combining(char))


def last_word(text: str) -> str:
    """Find the word that an edit of this subject acts at, folded; hyphens join words."""
    return fold(text).replace("-", " ").split()[-1]


def _check(fact: Fact) -> None:
    where = f"fact {fact.id!r}: " if fact.id else ""
    slots = _text(fact, "prompt").count(SLOT)
    if slots != 1:
        raise ValueError(f"{where}prompt {fact.prompt!r} holds {{}} {slots} times; exactly one is allowed")
    for name in ("subject", "target_new", "target_true"):
        if not _text(fact, name).strip():
            raise ValueError(f"{where}{name} is {getattr(fact, name)!r}; a non-empty text is needed")
    if fact.target_new == fact.target_true:
        raise ValueError(f"{where}target_new and target_true are both {fact.target_new!r}; they must differ")
    if fact.neighbour_target is not None and not _text(fact, "neighbour_target").strip():
        raise ValueError(f"{where}neighbour_target is empty; give a text, or None")


def _text(fact: Fact, name: str) -> str:
    value = getattr(fact, name)
    if not isinstance(value, str):
        raise TypeError(f"fact {fact.id!r}: {name} is {value!r}; a text is needed")
    return value


def _texts(fact: Fact, name: str) -> tuple[str, ...]:
    value = getattr(fact, name)
    values = () if isinstance(value, str) else tuple(value)
    if isinstance(value, str) or not all(isinstance(v, str) and v.strip() for v in values):
        raise TypeError(f"fact {fact.id!r}: {name} is {value!r}; a list of texts is needed")
    return values
