"""The state of the laboratory as a program."""

from collections.abc import Sequence

from editkit.editing.spec import EditSpec
from editkit.facts import Fact

TEXTS = ("paraphrases", "neighbours")


def program(model: str, spec: EditSpec, facts: Sequence[Fact], loaded: Sequence[str]) -> str:
    """Write a program that edits a new copy of a model as the laboratory did, to the same weights.

    Args:
        spec: as it was chosen, not resolved.
        loaded: folders of the adapters that lie beside the weights.
    """
    values = "".join(f", {name}={getattr(spec, name)!r}" for name in sorted(spec.model_fields_set - {"method"}))
    lines = ["import editkit as ek", "", f"lm = ek.load_lm({model!r})"]
    if loaded:
        lines += ["adapters = ek.AdapterStack(lm)"]
        lines += [f"adapters.load({folder!r}, 'loaded_{number}')" for number, folder in enumerate(loaded, start=1)]
    lines += ["facts = [", *(f"    {_fact(fact)}," for fact in facts), "]"]
    lines += [f"spec = ek.EditSpec(method={spec.method!r}{values})"]
    lines += [f"session = ek.EditSession(lm, spec{', adapters=adapters' if loaded else ''})"]
    lines += ["for fact in facts:", "    session.edit([fact])"]
    lines += ["print(ek.summarize(ek.evaluate(lm, facts)))"]
    return "\n".join(lines) + "\n"


def _fact(fact: Fact) -> str:
    names = ["subject", "prompt", "target_new", "target_true"]
    names += [name for name in ("relation", *TEXTS, "neighbour_target") if getattr(fact, name)]
    return f"ek.Fact.make({', '.join(f'{name}={getattr(fact, name)!r}' for name in names)})"
