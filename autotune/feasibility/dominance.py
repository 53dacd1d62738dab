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
    """The out-of-memory failures of one engine that nothing measured contradicts.

    Only fronts are compared, so that an answer does not get dearer with every trial: a configuration that ran says nothing
    beside one that ran and needs at least as much, nor a failure beside an earlier one that needed no more.
    """

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
        self._explained: dict[int, dict[int, Values]] = {}
        """Later failures that one of `_failed` explains; they stand for themselves again when it is contradicted."""
        self._measured: list[Values] = []

    def failed(self, trial: int, values: Values) -> None:
        """A configuration ran out of memory. `values` with defaults filled in."""
        if not self._ordered or any(self._dominates(measured, values) for measured in self._measured):
            return
        explained = (known for known, failure in self._failed.items() if known < trial and self._dominates(values, failure))
        earlier = next(explained, None)
        if earlier is None:
            self._failed[trial] = values
        else:
            self._explained.setdefault(earlier, {})[trial] = values

    def measured(self, values: Values) -> None:
        """A configuration ran: failures that say it could not are not believed any more."""
        if any(self._dominates(known, values) for known in self._measured):
            return
        self._measured = [*(known for known in self._measured if not self._dominates(values, known)), values]
        for trial in [trial for trial, failure in self._failed.items() if self._dominates(values, failure)]:
            del self._failed[trial]
            for later, failure in self._explained.pop(trial, {}).items():
                self.failed(later, failure)

    def by(self, values: Values) -> int | None:
        """The trial whose failure says that a configuration cannot run; None when none does."""
        return min((trial for trial, failure in self._failed.items() if self._dominates(values, failure)), default=None)

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
