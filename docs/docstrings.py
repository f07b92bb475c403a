"""How docstrings become Markdown: what they name, as in ``:func:`editkit.complete```, is a link, examples are code."""

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":\w+:`~?([\w.]+)`")
EXAMPLE = re.compile(r"(?:^>>> .*\n?)+", re.MULTILINE)


class Docstrings(Extension):
    """Rewrites each docstring as it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = EXAMPLE.sub(fenced, ROLE.sub(linked, obj.docstring.value))

    def on_package(self, *, pkg: Object, **_: Any) -> None:
        self.on_object(obj=pkg)  # which is told of everything below it alone


def linked(role: re.Match) -> str:
    """Link what is named with its whole path; a name alone stays code."""
    name = role[1]
    return f"[`{name}`][{name}]" if name.startswith("editkit.") else f"`{name}`"


def fenced(example: re.Match) -> str:
    lines = example[0].replace(">>> ", "").strip()
    return f"```python\n{lines}\n```\n"
