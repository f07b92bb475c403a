"""Validated parameters, the base of what every room asks for.

Unknown keys, wrong types and impossible combinations end in a ``ValueError`` that names the key, the value and
what is allowed.
"""

import copy
import difflib
import re
from collections.abc import Iterable, Mapping
from functools import reduce
from operator import getitem
from reprlib import Repr
from typing import Annotated, Any, Self, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # what NumPy and scikit-learn take

EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
TOLD = 8  # problems at most, of one error
BRIEF = Repr()
BRIEF.maxstring = BRIEF.maxother = 300
BRIEF.maxlist = BRIEF.maxdict = 20


class Parameters(BaseModel):
    """Strictly typed, immutable parameters; errors are plain ``ValueError`` of one line, every problem in it."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    def __init__(self, **values: Any):
        try:
            try:
                super().__init__(**values)
            except ValidationError as error:
                super().__init__(**_read_exponents(values, error.errors()))
        except ValidationError as error:
            told = [self._explain(problem) for problem in error.errors()]
            more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
            raise ValueError(f"{type(self).__name__}: {'; '.join(told[:TOLD] + more)}") from None

    @classmethod
    def _explain(cls, problem: Mapping[str, Any]) -> str:
        name, value = ".".join(map(str, problem["loc"])), problem["input"]
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(name, cls.model_fields, n=3)
            allowed = ", ".join(near or cls.model_fields)
            return f"unknown key {name!r}; {'did you mean' if near else 'known keys are'} {allowed}?"
        return f"{repr(name)[1:-1]} = {shown(value)}: {problem['msg'][0].lower()}{problem['msg'][1:]}"

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


def shown(value: Any) -> str:
    """Write a value for one line of an error, cut where it is long."""
    try:
        return BRIEF.repr(value)
    except ValueError:  # Python writes no number of thousands of digits
        return f"a number of {value.bit_length()} bits" if isinstance(value, int) else f"a {type(value).__name__}"


def _read_exponents(values: dict[str, Any], problems: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Read ``5e-1`` and ``1e6``, which YAML takes for text, where a number was wanted."""
    values = copy.deepcopy(values)
    for problem in problems:
        text, whole = problem["input"], problem["type"] == "int_type"
        if (whole or problem["type"] == "float_type") and isinstance(text, str) and EXPONENT.fullmatch(text):
            number = float(text)
            *way, last = problem["loc"]
            reduce(getitem, way, values)[last] = int(number) if whole and number.is_integer() else number
    return values
