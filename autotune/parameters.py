"""The kinds of parameter a search space is made of, and how the sampler sees each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from autotune.distributions import Choice, Distribution, FloatRange, IntRange, category, within
from autotune.expression import ExpressionError, parse
from autotune.trial import Frozen, Scalar, Value

MAX_INTEGER = 1 << 53
"""Beyond it a whole number is no longer exact as a float, which samplers compute in."""


def checked(text: str | None) -> str | None:
    """The expression, once it parses. Raises ValueError."""
    if text is not None:
        try:
            parse(text)
        except ExpressionError as error:
            raise ValueError(str(error)) from None
    return text


class Canonical(Frozen):
    """The engine-neutral name of a parameter; `invert` where the engine's flag says the opposite."""

    name: str
    invert: bool = False


class Parameter(Frozen):
    """What all kinds share. `memory` says which way a larger value moves memory need."""

    tuned: bool = False
    """Whether `include` brings it in without being named."""
    when: str | None = None
    about: str = ""
    role: Literal["throughput", "memory", "algorithm"] = "throughput"
    memory: Literal["more", "less", "none"] = "none"
    canonical: Canonical | None = None
    lossy: bool = False
    """Whether it can change the model's answers, so that a winner needs a quality check."""

    _when = field_validator("when")(checked)

    @field_validator("canonical", mode="before")
    @classmethod
    def _short_canonical(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    def distribution(self) -> Distribution | None:
        """How the sampler sees it; None when it is not sampled."""
        raise NotImplementedError

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        """The engine's parameters for a sampled value."""
        return {name: internal}

    def encode(self, name: str, values: Mapping[str, Value]) -> Scalar:
        """The sampled value for the engine's parameters. Raises LookupError when it is not in the space."""
        return within(self.distribution(), values[name])


class _Ranged(Parameter):
    @model_validator(mode="after")
    def _ordered(self) -> _Ranged:
        low, high = getattr(self, "low"), getattr(self, "high")  # noqa: B009
        if low > high:
            raise ValueError(f"low ({low}) is above high ({high})")
        if getattr(self, "log", False) and low <= 0:
            raise ValueError("A log range must start above 0")
        if getattr(self, "log", False) and getattr(self, "step", None) not in (None, 1):
            raise ValueError("A log range cannot have a step")
        return self


class IntParameter(_Ranged):
    """A range of whole numbers, every `step`-th of them from `low`."""

    kind: Literal["int"]
    low: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    high: int = Field(ge=-MAX_INTEGER, le=MAX_INTEGER)
    step: int = Field(default=1, gt=0)
    log: bool = False

    def distribution(self) -> Distribution:
        return IntRange(self.low, self.low + (self.high - self.low) // self.step * self.step, self.step, self.log)


class FloatParameter(_Ranged):
    """A range of real numbers; with a step, the last value is the highest that the steps reach."""

    kind: Literal["float"]
    low: Annotated[float, Field(allow_inf_nan=False)]
    high: Annotated[float, Field(allow_inf_nan=False)]
    step: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    log: bool = False

    def distribution(self) -> Distribution:
        if self.step is None:
            return FloatRange(self.low, self.high, None, self.log)
        steps = math.floor((self.high - self.low) / self.step + 1e-9)
        return FloatRange(self.low, round(self.low + steps * self.step, 10), self.step)

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        return {name: round(float(internal or 0.0), 10)}


class PowerOfTwoParameter(_Ranged):
    """Sampled as the exponent, so that neighbours are a factor of two apart."""

    kind: Literal["power_of_two"]
    low: int = Field(gt=0)
    high: int = Field(gt=0, le=1 << 40)

    @field_validator("low", "high")
    @classmethod
    def _power(cls, value: int) -> int:
        if value & (value - 1):
            raise ValueError(f"{value} is not a power of two")
        return value

    def distribution(self) -> Distribution:
        return IntRange(self.low.bit_length() - 1, self.high.bit_length() - 1)

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        return {name: 1 << int(internal or 0)}

    def encode(self, name: str, values: Mapping[str, Value]) -> Scalar:
        value = values[name]
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise LookupError(f"{name}={value!r} is not a power of two")
        return within(self.distribution(), value.bit_length() - 1)


class ValuesParameter(Parameter):
    """An ordered list of numbers, sampled as the index so that order is kept."""

    kind: Literal["values"]
    values: tuple[int | float, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _rising(cls, values: tuple[int | float, ...]) -> tuple[int | float, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError("The values must rise and not repeat; for unordered ones use kind: categorical")
        return values

    def distribution(self) -> Distribution:
        return IntRange(0, len(self.values) - 1)

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        return {name: self.values[int(internal or 0)]}

    def encode(self, name: str, values: Mapping[str, Value]) -> Scalar:
        if values[name] not in self.values:
            raise LookupError(f"{name}={values[name]!r} is not among {list(self.values)}")
        return self.values.index(values[name])


class CategoricalParameter(Parameter):
    """Unordered values; lists and mappings are allowed for flags that take JSON."""

    kind: Literal["categorical"]
    values: tuple[Value, ...] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: tuple[Value, ...]) -> tuple[Value, ...]:
        if len({category(value) for value in values}) < len(values):
            raise ValueError("A value stands twice")
        return values

    def distribution(self) -> Distribution:
        return Choice(tuple(category(value) for value in self.values))

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        return {name: next(value for value in self.values if category(value) == internal)}

    def encode(self, name: str, values: Mapping[str, Value]) -> Scalar:
        return within(self.distribution(), category(values[name]))


class FlagParameter(Parameter):
    """A boolean flag."""

    kind: Literal["flag"]

    def distribution(self) -> Distribution:
        return Choice((False, True))


class TupleParameter(Parameter):
    """Parameters that only make sense together, e.g. tensor and data parallel sizes."""

    kind: Literal["tuple"]
    members: tuple[str, ...] = Field(min_length=2)
    values: tuple[tuple[Value, ...], ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _widths(self) -> TupleParameter:
        for entry in self.values:
            if len(entry) != len(self.members):
                raise ValueError(f"{list(entry)} has {len(entry)} values for the {len(self.members)} members {list(self.members)}")
        return self

    def distribution(self) -> Distribution:
        return Choice(tuple(category(list(entry)) for entry in self.values))

    def decode(self, name: str, internal: Scalar) -> dict[str, Value]:
        entry = next((entry for entry in self.values if category(list(entry)) == internal), None)
        if entry is None:
            raise LookupError(f"{internal!r} is none of the values of {name}")
        return dict(zip(self.members, entry, strict=True))

    def encode(self, name: str, values: Mapping[str, Value]) -> Scalar:
        return within(self.distribution(), category([values[member] for member in self.members]))


class DerivedParameter(Parameter):
    """Computed from the others; never sampled."""

    kind: Literal["derived"]
    expr: str

    _expr = field_validator("expr")(checked)

    def distribution(self) -> None:
        return None


class FixedParameter(Parameter):
    """The same value in every trial but the default one."""

    kind: Literal["fixed"]
    value: Value

    def distribution(self) -> None:
        return None


AnyParameter = Annotated[
    IntParameter
    | FloatParameter
    | PowerOfTwoParameter
    | ValuesParameter
    | CategoricalParameter
    | FlagParameter
    | TupleParameter
    | DerivedParameter
    | FixedParameter,
    Field(discriminator="kind"),
]
