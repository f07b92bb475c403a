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

from editkit.config import shown
from editkit.plain import is_text

SLOT = "{}"
BLANKS = " \t\u00a0\u3000"  # a prompt may end in a line, but a target's own space follows
# One part in so many is for tuning. The salt is one that leaves CounterFact's first eight records, which the published
# algorithms were run on, in the test part.
PARTS, PART_SALT = 3, "part 34"

# What stands where a source names no earlier object, in ROME's and EasyEdit's code as here. Success compares with it
# and says little then, unlike accuracy; and no model knows such a fact beforehand.
NO_OBJECT = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact, its edit, and the prompts that score the edit.

    Texts are kept in one Unicode form (:func:`clean`), and without white space where one text meets another: around
    subject and answers, and blanks at the end of prompts.

    Raises ``ValueError`` for a prompt that does not hold exactly one ``{}``, an empty subject or target, or equal
    targets; ``TypeError`` where a text is not a text, or prompts are not a list of non-empty texts.
    """

    id: str
    """Stable name, such as "worldfacts:capital_of:Paris" or "counterfact:0"."""
    relation: str
    """What the subject is asked about; facts of one relation share their templates. Empty: not named."""
    subject: str
    prompt: str
    """Template with one ``{}`` where the subject goes; the target follows after one space."""
    target_new: str
    """What the edited model shall say."""
    target_true: str
    """What is true."""
    paraphrases: tuple[str, ...] = ()
    """Full texts that ask for the same fact in other words."""
    neighbours: tuple[str, ...] = ()
    """Full texts about other subjects whose answer the edit must not change."""
    neighbour_target: str | None = None
    """The neighbours' right answer where it is not ``target_true`` (zsRE), else None."""
    generation: tuple[str, ...] = ()
    """Full texts about the subject, from which the model writes freely."""

    def __post_init__(self):
        for name in ("subject", "target_new", "target_true"):
            object.__setattr__(self, name, self._filled(name))
        if self.neighbour_target is not None:
            object.__setattr__(self, "neighbour_target", self._filled("neighbour_target", ", or None"))
        object.__setattr__(self, "relation", self._text("relation"))
        object.__setattr__(self, "prompt", self._text("prompt").rstrip(BLANKS))
        for name in ("paraphrases", "neighbours", "generation"):
            object.__setattr__(self, name, self._prompts(name))
        self._check()

    def _text(self, name: str) -> str:
        try:
            return clean(getattr(self, name))
        except TypeError as error:
            raise TypeError(f"{self._where}{name} is {error}") from None

    def _filled(self, name: str, otherwise: str = "") -> str:
        if not (text := self._text(name).strip()):
            raise ValueError(
                f"{self._where}{name} is {shown(getattr(self, name))}; a non-empty text is needed{otherwise}"
            )
        return text

    def _prompts(self, name: str) -> tuple[str, ...]:
        value = getattr(self, name)
        if not isinstance(value, list | tuple) or not all(is_text(text) and text.strip() for text in value):
            raise TypeError(f"{self._where}{name} is {value!r:.80}; a list of texts is needed")
        return tuple(clean(text).rstrip(BLANKS) for text in value)

    def _check(self) -> None:
        if (slots := self.prompt.count(SLOT)) != 1:
            raise ValueError(
                f"{self._where}prompt {shown(self.prompt)} holds {{}} {slots} times; one is needed, where the "
                "subject goes"
            )
        if self.target_new == self.target_true:
            raise ValueError(
                f"{self._where}target_new and target_true are both {shown(self.target_new)}; they must differ"
            )

    @property
    def _where(self) -> str:
        return f"fact {shown(self.id)}: " if self.id else ""

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
        """What a newer edit replaces: the same subject and relation, or prompt where no relation is named."""
        return self.subject, self.relation or self.prompt

    @property
    def claims(self) -> dict[str, str]:
        """The new object by what asks for it: the prompt itself, and any other of the same subject and relation."""
        return {repr(self.text): self.target_new, ", ".join(self.topic): self.target_new}

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

    Raises what :func:`cut` raises for a prompt that does not hold ``{}``.
    """
    prompt, subject = clean(prompt), clean(subject).strip()
    braces_are_the_subjects = SLOT in subject and subject in prompt
    return prompt if SLOT in prompt and not braces_are_the_subjects else cut(prompt, subject)


def cut(prompt: str, subject: str) -> str:
    """Put ``{}`` where a prompt that is no template names the subject.

    The first whole-word mention is taken, or the first mention inside a word where there is no other: the word
    "Ann" goes before the "Ann" of "Annual". Raises ``ValueError`` for a prompt that does not name the subject.
    """
    prompt, subject = clean(prompt), clean(subject).strip()
    if not subject or subject not in prompt:
        raise ValueError(
            f"subject {shown(subject)} is not in the prompt {shown(prompt)}: "
            "name the subject in the prompt, or write {} in its place"
        )
    whole = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)
    start = whole.start() if whole else prompt.index(subject)
    return prompt[:start] + SLOT + prompt[start + len(subject) :]


def clean(text: str) -> str:
    """Write a text in Unicode's composed form (NFC), so that letters that look the same are the same.

    Raises ``TypeError`` for anything that is not a text.
    """
    if not is_text(text):
        raise TypeError(f"{text!r:.80}; a text is needed")
    return unicodedata.normalize("NFC", text)


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
