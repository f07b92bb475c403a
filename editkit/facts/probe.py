"""One probe of what follows from an edit, or must not: its prompt, and what is right there before and after it."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from editkit.config import shown
from editkit.facts.fact import BLANKS, clean
from editkit.plain import is_text


class Kind(NamedTuple):
    """What a kind of probe asks, and when the untouched model counts as answering it."""

    label: str
    ranks: bool = False
    """The question has two answers, and a model answers by the one that it finds likelier; else by what it says."""


KINDS = {
    "negation": Kind("negated from outside", ranks=True),
    "negation_inside": Kind("negated inside", ranks=True),
    "true_false": Kind("true or false", ranks=True),
    "reverse": Kind("reverse"),
    "reverse_judged": Kind("reverse, true or false", ranks=True),
    "alias": Kind("alias of the subject"),
    "two_hop": Kind("two hops"),
    "two_hop_into": Kind("a hop into the subject"),
    "multi_hop": Kind("more hops"),
    "logical": Kind("logical consequence"),
    "portability": Kind("other consequence"),
    "relation": Kind("other relation"),
    "forgetfulness": Kind("earlier objects"),
    "locality": Kind("other fact"),
    "distracting_neighbourhood": Kind("neighbour after the edit", ranks=True),
}


class Condition(NamedTuple):
    """What a model has to say for a probe to be asked at all."""

    prompt: str
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Probe:
    """A prompt about a consequence of an edit, or about what the edit must leave alone.

    Raises ``ValueError`` for an unknown kind and an empty text, ``TypeError`` where a text is not a text.
    """

    kind: str
    """One of ``KINDS``."""
    fact: str
    """Id of the fact whose edit it follows."""
    prompt: str
    """Full text that ends right before the answer."""
    answer: str
    """What is right after the edit."""
    before: str | None
    """What is right before it; the same where the edit must change nothing; None where that is not known."""
    rival: str | None = None
    """What success compares the answer with. Not given: ``before`` where that is another; else there is no success."""
    aliases: tuple[str, ...] = ()
    """Other ways to give the answer; saying one of them is accurate too."""
    before_aliases: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    """What the untouched model has to say; where there are some, they decide whether it answers the probe."""
    needs: tuple[str, ...] = ()
    """Ids of further facts whose edits the answer takes."""
    rests_on: tuple[tuple[str, str], ...] = ()
    """Topics (subject, relation) of statements that the answer rests on and no other edit may change."""
    relation: str = ""

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a probe's kind is {shown(self.kind)}; allowed are {', '.join(KINDS)}")
        for name in ("prompt", "answer", "before", "rival"):
            value = getattr(self, name)
            if value is not None or name in ("prompt", "answer"):
                object.__setattr__(self, name, _filled(value, name))
        object.__setattr__(self, "rival", self.rival or (self.before if self.changes else None))
        for name in ("aliases", "before_aliases"):
            object.__setattr__(self, name, _texts(getattr(self, name), name))
        clean_ones = (Condition(_filled(prompt, "prompt"), _texts(said, "answers")) for prompt, said in self.conditions)
        object.__setattr__(self, "conditions", tuple(clean_ones))

    @property
    def changes(self) -> bool:
        """Whether the edit has to change what is right."""
        return self.before != self.answer


def _filled(value: Any, name: str) -> str:
    text = clean(value)
    if not text.strip():
        raise ValueError(f"a probe's {name} is {shown(value)}; a non-empty text is needed")
    return text.rstrip(BLANKS) if name == "prompt" else text.strip()


def _texts(values: Any, name: str) -> tuple[str, ...]:
    if not isinstance(values, list | tuple) or not all(is_text(value) for value in values):
        raise TypeError(f"{name} is {values!r:.80}; a list of texts is needed")
    return tuple(text for value in values if (text := clean(value).strip()))
