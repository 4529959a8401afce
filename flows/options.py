"""A runbook's parameters: read from its signature and docstring, parsed from text."""

from __future__ import annotations

import enum
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from blocks.errors import BadInput
from blocks.nearest import did_you_mean, unknown


@dataclass(frozen=True)
class Parameter:
    """One parameter of a runbook, as its form and its help show it."""

    name: str
    annotation: Any
    default: Any
    description: str

    @property
    def required(self) -> bool:
        """Whether it has no default."""
        return self.default is inspect.Parameter.empty

    @property
    def kind(self) -> str:
        """Its type in the reader's words: `wait | break-glass`, `yes or no`, `number`."""
        return _kind(self.annotation)

    def parse(self, text: str) -> Any:
        """
        The value that `--set name=text` means.

        Raises:
            BadInput: no such value; the line names what there is.
        """
        adapter: TypeAdapter[Any] = TypeAdapter(self.annotation)
        try:
            if _holds_many(self.annotation):
                if text.lstrip()[:1] in {"[", "{"}:
                    return adapter.validate_json(text)
                return adapter.validate_python([part for part in text.split(",") if part])
            if inspect.isclass(self.annotation) and hasattr(self.annotation, "model_fields"):
                return adapter.validate_json(text)
            return adapter.validate_strings(text)
        except ValidationError as error:
            raise BadInput(self._line(text, error)) from None

    def _line(self, text: str, error: ValidationError) -> str:
        if values := _values(self.annotation):
            return (
                f"{self.name}: {text!r} is none of {', '.join(values)}{did_you_mean(text, values)}"
            )
        reason = error.errors()[0]
        place = "".join(f"[{part}]" for part in reason["loc"])
        return f"{self.name}{place}: {text!r}: {reason['msg'][:1].lower()}{reason['msg'][1:]}"


def parameters_of(body: Callable[..., object]) -> list[Parameter]:
    """The parameters of a runbook's body after its `run`, in their order."""
    hints = typing.get_type_hints(body, include_extras=True)
    described = descriptions(inspect.getdoc(body) or "")
    found = list(inspect.signature(body).parameters.values())[1:]
    return [Parameter(p.name, hints[p.name], p.default, described.get(p.name, "")) for p in found]


def descriptions(docstring: str) -> dict[str, str]:
    """What a docstring's `Args:` section says of each argument."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(match[1]).splitlines() if match else []:
        if start := re.match(r"^(\w+)(?:\s*\([^)]*\))?:\s*(.*)$", line):
            name = start[1]
            found[name] = start[2]
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def parse_all(parameters: Sequence[Parameter], given: Iterable[str]) -> dict[str, Any]:
    """
    Options from `key=value` texts; what is not given keeps its default.

    Raises:
        BadInput: one line for each unknown name, bad value, or name given twice.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for text in given:
        key, equals, value = text.partition("=")
        key = key.strip().replace("-", "_")
        if not equals:
            problems.append(f"--set {text}: write it as {key or 'name'}=value")
        elif key not in by_name:
            problems.append(unknown("parameter", key, by_name))
        elif key in values:
            problems.append(f"{key}: given twice")
        else:
            try:
                values[key] = by_name[key].parse(value)
            except BadInput as error:
                values[key] = None
                problems += error.problems
    problems += [f"{p.name}: must be given ({p.kind})" for p in _missing(parameters, values)]
    if problems:
        raise BadInput(problems)
    return {p.name: values.get(p.name, p.default) for p in parameters}


def check_all(parameters: Sequence[Parameter], given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Options from values, as an API or a caller in Python gives them.

    Raises:
        BadInput: one line for each unknown name or bad value.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    values: dict[str, Any] = {}
    problems = [unknown("parameter", key, by_name) for key in given if key not in by_name]
    problems += [f"{p.name}: must be given ({p.kind})" for p in _missing(parameters, given)]
    for parameter in parameters:
        if parameter.required and parameter.name not in given:
            continue
        value = given.get(parameter.name, parameter.default)
        try:
            values[parameter.name] = TypeAdapter(parameter.annotation).validate_python(value)
        except ValidationError as error:
            problems.append(parameter._line(str(value), error))  # noqa: SLF001 - its own module
    if problems:
        raise BadInput(problems)
    return values


def _missing(parameters: Sequence[Parameter], given: Mapping[str, Any]) -> list[Parameter]:
    return [p for p in parameters if p.required and p.name not in given]


def _values(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return [str(value) for value in typing.get_args(annotation)]
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return [str(member.value) for member in annotation]
    return []


def _holds_many(annotation: Any) -> bool:
    return typing.get_origin(annotation) in {list, tuple, set, frozenset}


def _kind(annotation: Any) -> str:
    if values := _values(annotation):
        return " | ".join(values)
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin in {typing.Union, types.UnionType}:
        parts = [a for a in typing.get_args(annotation) if a is not type(None)]
        return " or ".join(_kind(part) for part in parts)
    if _holds_many(annotation):
        return f"list of {_kind(typing.get_args(annotation)[0])}"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))
