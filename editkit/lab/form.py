"""The fields of a fact as somebody types them, and what still keeps it from being edited in."""

from dataclasses import dataclass, replace
from typing import Any, Self

from editkit.facts import Fact
from editkit.facts.fact import clean, template_of

FIELDS = {"subject": "the subject", "prompt": "a prompt", "new": "the new object", "true": "the true object"}


@dataclass(frozen=True)
class Form:
    """A fact that is being typed; nothing in it needs to be right yet."""

    subject: str = ""
    prompt: str = ""
    """A template with ``{}``, or a text that names the subject."""
    new: str = ""
    true: str = ""
    paraphrases: str = ""
    """Full texts that should change with it, one a line."""
    neighbours: str = ""
    """Full texts about other subjects of which the true object is right too, one a line."""
    picked: Fact | None = None
    """The fact of a source that the fields were filled from."""

    @classmethod
    def of(cls, fact: Fact) -> Self:
        """Fill in the fields of a fact."""
        lines = {"paraphrases": "\n".join(fact.paraphrases), "neighbours": "\n".join(fact.neighbours)}
        return cls(fact.subject, fact.prompt, fact.target_new, fact.target_true, picked=fact, **lines)

    def fact(self) -> Fact:
        """Return the fact as typed, which is still the picked one where only objects and prompts around it changed.

        Raises ``ValueError``, see :meth:`reasons`.
        """
        if reasons := self.reasons():
            raise ValueError("; ".join(reasons))
        return self._fact()

    def reasons(self) -> list[str]:
        """Say in words why this cannot be edited in; nothing where it can."""
        if empty := [words for name, words in FIELDS.items() if not getattr(self, name).strip()]:
            return [f"type {' and '.join(empty) if len(empty) < 3 else ', '.join(empty)}"]
        if clean(self.new).strip() == clean(self.true).strip():
            return [f"the new object is the true one, {self.new.strip()!r}: there is nothing to edit"]
        try:
            self._fact()
        except (TypeError, ValueError) as problem:
            return [str(problem)]
        return []

    @property
    def template(self) -> str:
        """The prompt with ``{}`` in the subject's place. Raises ``ValueError`` where the subject is not in it."""
        return template_of(self.prompt, self.subject)

    def _fact(self) -> Fact:
        texts: dict[str, Any] = {"target_new": self.new, "target_true": self.true}
        texts |= {name: _lines(getattr(self, name)) for name in ("paraphrases", "neighbours")}
        same = ("subject", "prompt", "target_true")
        made = Fact.make(subject=self.subject, prompt=self.prompt, **texts)
        if self.picked and all(getattr(self.picked, name) == getattr(made, name) for name in same):
            return replace(self.picked, **texts)
        return made


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.splitlines() if line.strip())
