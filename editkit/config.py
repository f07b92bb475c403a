"""Validated parameters, the base of what every room asks for.

Unknown keys, wrong types and impossible combinations end in a ``ValueError`` that names the key, the value and
what is allowed.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Parameters(BaseModel):
    """Strictly typed, immutable parameters; errors are plain ``ValueError`` with one line per problem."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any):
        try:
            super().__init__(**values)
        except ValidationError as error:
            lines = [self._explain(problem) for problem in error.errors()]
            raise ValueError(f"{type(self).__name__}: " + "\n  ".join(lines)) from None

    @classmethod
    def _explain(cls, problem: dict) -> str:
        name, value = ".".join(map(str, problem["loc"])), problem["input"]
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=3)
            allowed = ", ".join(near or cls.model_fields)
            return f"unknown key {name!r}; {'did you mean' if near else 'known keys are'} {allowed}?"
        hint = ""
        if isinstance(value, str) and problem["type"] in ("float_type", "int_type") and _parse(float, value) != value:
            hint = " (YAML reads 5e-1 and 1e6 as text: write 0.5 and 1.0e+6)"
        return f"{name} = {value!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{hint}"

    @classmethod
    def from_texts(cls, values: Mapping[str, str | list[str]]) -> Self:
        """Make parameters from the words of a command line, a dict being written as YAML; raises as the class does."""
        return cls(**{name: _parse(cls.model_fields[name].annotation, text) for name, text in values.items()})


def _parse(kind: Any, text: str | list[str]) -> Any:
    """Parse ``text`` as a value of a type; text that is none is returned as it is, for validation to refuse."""
    try:
        return yaml.safe_load(text) if get_origin(kind) is dict else TypeAdapter(kind).validate_python(text)
    except (ValidationError, yaml.YAMLError):
        return text
