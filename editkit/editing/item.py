"""What is edited in, as far as editing has to know it."""

import warnings
from collections.abc import Sequence
from dataclasses import Field
from typing import Any, ClassVar, Protocol


class Item(Protocol):
    """One edit that is asked for: a dataclass of plain values, such as a fact, or an image and its class."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def id(self) -> str: ...

    @property
    def topic(self) -> tuple[str, str]:
        """What the edit is about: a newer edit of the same topic replaces it."""

    @property
    def claims(self) -> dict[str, str]:
        """What the edit wants, by what it is asked: two edits that want different things there cannot both hold."""

    def describe(self) -> dict[str, str]:
        """Return the edit in words, for a model card."""


def warn_of_contradictions(items: Sequence[Item]) -> None:
    """Warn, by name, of edits of one batch that contradict each other."""
    first: dict[str, Item] = {}
    found = []
    for item in items:
        for asked, wanted in item.claims.items():
            other = first.setdefault(asked, item)
            if other.claims[asked] != wanted:
                found.append(f"{asked}: {other.claims[asked]!r} ({other.id}) and {wanted!r} ({item.id})")
                break
    if found:
        more = f"; {len(found) - 1} more" if len(found) > 1 else ""
        warnings.warn(f"edits of one batch contradict each other, not all can hold: {found[0]}{more}", stacklevel=3)
