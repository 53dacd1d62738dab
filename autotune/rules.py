"""Combinations of values that are not to be run: impossible ones of a space file, and those that a study's user does not want."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pydantic import Field, field_validator

from autotune.expression import Expression, parse
from autotune.parameters import checked
from autotune.trial import Configuration, Frozen, Value


class Rule(Frozen):
    """A combination that is known to be impossible, and why."""

    rule: str
    reason: str

    _rule = field_validator("rule")(checked)

    @property
    def expression(self) -> Expression:
        return parse(self.rule)

    def __str__(self) -> str:
        return f"{self.rule}: {self.reason}"


class StudyRule(Rule):
    """A combination that a study's user does not want."""


class OwnRules(Frozen):
    """What a study's user does not want of one engine; the ledger keeps it as a note, for whoever judges the trials.

    `known` is what the rules read that a configuration need not say: the values of the engine's default, and fixed ones.
    """

    rules: tuple[StudyRule, ...] = ()
    known: Mapping[str, Value] = Field(default_factory=dict)
    when: Mapping[str, str] = Field(default_factory=dict)
    """The conditions under which the engine uses what is known of a parameter: elsewhere no rule holds of it."""

    def forbid(self, configuration: Configuration) -> StudyRule | None:
        """The first rule that a configuration breaks; the default itself is no exception."""
        return next(self.broken(configuration), None)

    def broken(self, configuration: Configuration) -> Iterator[StudyRule]:
        """The rules that hold of what a configuration runs with."""
        given = {**self.known, **configuration.values}
        unused = {name for name, condition in self.when.items() if not parse(condition).holds(given)} - configuration.values.keys()
        values = {name: value for name, value in given.items() if name not in unused}
        yield from (rule for rule in self.rules if rule.expression.holds(values))


def of_the_default(rule: Rule, given: Mapping[str, Value], configuration: Configuration) -> bool:
    """Whether what a rule holds of is the engine's default and not the configuration."""
    told = isinstance(rule, StudyRule) and not rule.expression.names.isdisjoint(configuration.values)
    return rule.expression.holds(given) and not told
