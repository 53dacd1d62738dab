"""What an out-of-memory says about configurations that need at least as much.

A parameter's `memory` attribute says whether a larger value needs more memory or less. A configuration is dominated by a
failed one when it needs at least as much in every such parameter, and equals it in every unordered parameter whose
effect on memory the space does not tell.
"""

from __future__ import annotations

from collections.abc import Mapping

from autotune.parameters import CategoricalParameter, FlagParameter, Parameter, TupleParameter
from autotune.space import EngineSpace
from autotune.trial import Value

Values = Mapping[str, Value]


class Dominance:
    """The out-of-memory failures of one engine that nothing measured contradicts."""

    def __init__(self, space: EngineSpace) -> None:
        ordered = {name: parameter for name, parameter in space.parameters.items() if parameter.memory != "none"}
        self._ordered = {name: 1.0 if parameter.memory == "more" else -1.0 for name, parameter in ordered.items()}
        self._equal = [
            member
            for name, parameter in space.parameters.items()
            if name not in ordered and isinstance(parameter, CategoricalParameter | FlagParameter | TupleParameter)
            for member in _members(name, parameter)
        ]
        self._failed: dict[int, Values] = {}
        self._measured: list[Values] = []

    def failed(self, trial: int, values: Values) -> None:
        """A configuration ran out of memory. `values` with defaults filled in."""
        if self._ordered and not any(self._dominates(measured, values) for measured in self._measured):
            self._failed[trial] = values

    def measured(self, values: Values) -> None:
        """A configuration ran: failures that say it could not are not believed any more."""
        self._measured.append(values)
        for trial in [trial for trial, failure in self._failed.items() if self._dominates(values, failure)]:
            del self._failed[trial]

    def by(self, values: Values) -> int | None:
        """The trial whose failure says that a configuration cannot run; None when none does."""
        return next((trial for trial, failure in sorted(self._failed.items()) if self._dominates(values, failure)), None)

    def _dominates(self, first: Values, second: Values) -> bool:
        """Whether `first` needs at least as much memory as `second`, as far as the space can tell."""
        if any(first.get(name) != second.get(name) for name in self._equal):
            return False
        return all(_at_least(first.get(name), second.get(name), sign) for name, sign in self._ordered.items())


def _members(name: str, parameter: Parameter) -> tuple[str, ...]:
    return parameter.members if isinstance(parameter, TupleParameter) else (name,)


def _at_least(first: Value, second: Value, sign: float) -> bool:
    if first == second:
        return True
    numbers = isinstance(first, int | float) and isinstance(second, int | float)
    return numbers and sign * first >= sign * second
