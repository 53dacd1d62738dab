"""The small language of forbid rules, conditions and derived parameters. Parsed here; never evaluated as Python.

    expression  = comparison with `and`, `or`, `not`, parentheses
    comparison  = sum [ (< <= > >= == !=) sum ] | sum [not] in [literal, ...]
    sum         = numbers, 'strings', true, false, null, names (dots allowed) with + - * / // %, min(a, b), max(a, b)

A name that has no value makes arithmetic and comparisons unknown; an unknown rule does not forbid (`Unknown` is raised and
the caller decides), because the engine's own default is then in force.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+)|(?P<string>'[^']*'|\"[^\"]*\")"
    r"|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)|(?P<op><=|>=|==|!=|//|[-+*/%<>()\[\],]))"
)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
_ADD: dict[str, Callable[[Any, Any], Any]] = {"+": operator.add, "-": operator.sub}
_MULTIPLY: dict[str, Callable[[Any, Any], Any]] = {
    "*": operator.mul, "/": operator.truediv, "//": operator.floordiv, "%": operator.mod,
}  # fmt: skip
_FUNCTIONS: dict[str, Callable[..., Any]] = {"min": min, "max": max, "ceil": math.ceil, "floor": math.floor, "abs": abs}
_CONSTANTS: dict[str, Any] = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_WORDS = {"and", "or", "not", "in"}
MAX_DEPTH = 30
MAX_LENGTH = 1000


class ExpressionError(ValueError):
    """The text does not follow the grammar; the message says where."""


class Unknown(Exception):
    """A name of the expression has no value, or its values cannot be combined."""


Evaluate = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Expression:
    """A parsed expression and the names it reads."""

    text: str
    names: frozenset[str]
    _evaluate: Evaluate

    def __call__(self, values: Mapping[str, Any]) -> Any:
        """The value under `values`. Raises Unknown."""
        try:
            return self._evaluate(values)
        except (TypeError, ZeroDivisionError, OverflowError, ValueError) as error:
            raise Unknown(f"{self.text!r} cannot be computed: {error}") from error

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true; False when unknown."""
        try:
            return bool(self(values))
        except Unknown:
            return False


@lru_cache(maxsize=4096)
def parse(text: str) -> Expression:
    """Parse an expression. Raises ExpressionError."""
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"An expression may be {MAX_LENGTH} characters long; this one has {len(text)}.")
    parser = _Parser(text)
    evaluate = parser.disjunction()
    if parser.kind != "end":
        raise parser.error("an operator or the end")
    return Expression(text, frozenset(parser.names), evaluate)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.position, self.depth = text, 0, 0
        self.names: set[str] = set()
        self.kind, self.token = "end", ""
        self.advance()

    def advance(self) -> str:
        taken = self.token
        rest = self.text[self.position :]
        if not rest.strip():
            self.kind, self.token = "end", ""
            self.position = len(self.text)
            return taken
        match = _TOKEN.match(self.text, self.position)
        if match is None:
            raise ExpressionError(f"{self.text!r}: unexpected {rest.strip()[0]!r} at character {self.position + 1}.")
        self.kind, self.token, self.position = match.lastgroup or "op", match[match.lastgroup or 0], match.end()
        if self.token in _WORDS:
            self.kind = "op"
        return taken

    def error(self, wanted: str) -> ExpressionError:
        found = repr(self.token) if self.kind != "end" else "the end"
        return ExpressionError(
            f"{self.text!r}: expected {wanted}, found {found} at character {self.position - len(self.token) + 1}."
        )

    def take(self, *tokens: str) -> str | None:
        return self.advance() if self.kind == "op" and self.token in tokens else None

    def expect(self, token: str) -> None:
        if self.take(token) is None:
            raise self.error(repr(token))

    def disjunction(self) -> Evaluate:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"{self.text[:60]!r}...: nested deeper than {MAX_DEPTH} levels.")
        terms = [self.conjunction()]
        while self.take("or"):
            terms.append(self.conjunction())
        self.depth -= 1
        return terms[0] if len(terms) == 1 else lambda values: _any(terms, values)

    def conjunction(self) -> Evaluate:
        terms = [self.negation()]
        while self.take("and"):
            terms.append(self.negation())
        return terms[0] if len(terms) == 1 else lambda values: all(term(values) for term in terms)

    def negation(self) -> Evaluate:
        flips = 0
        while self.take("not"):
            flips += 1
        inner = self.comparison()
        return (lambda values: not inner(values)) if flips % 2 else inner

    def comparison(self) -> Evaluate:
        left = self.sum()
        if self.kind == "op" and self.token in _COMPARE:
            compare, right = _COMPARE[self.advance()], self.sum()
            return lambda values: compare(left(values), right(values))
        negated = self.take("not") is not None
        if self.take("in"):
            options = self.literals()
            return lambda values: (left(values) in options) != negated
        if negated:
            raise self.error("'in'")
        return left

    def literals(self) -> list[Any]:
        self.expect("[")
        options = [self.literal()]
        while self.take(","):
            options.append(self.literal())
        self.expect("]")
        return options

    def literal(self) -> Any:
        sign = -1 if self.take("-") else 1
        if self.kind == "number":
            return sign * _number(self.advance())
        if self.kind == "string":
            return self.advance()[1:-1]
        if self.kind == "name":
            word = self.advance()
            return _CONSTANTS.get(word, word)
        raise self.error("a number, a 'string' or a word")

    def sum(self) -> Evaluate:
        return self.chain(_ADD, self.product)

    def product(self) -> Evaluate:
        return self.chain(_MULTIPLY, self.unary)

    def chain(self, operators: Mapping[str, Callable[[Any, Any], Any]], part: Callable[[], Evaluate]) -> Evaluate:
        value = part()
        while self.kind == "op" and self.token in operators:
            value = _combine(operators[self.advance()], value, part())
        return value

    def unary(self) -> Evaluate:
        flips = 0
        while self.take("-"):
            flips += 1
        inner = self.atom()
        return (lambda values: -inner(values)) if flips % 2 else inner

    def atom(self) -> Evaluate:
        if self.take("("):
            inner = self.disjunction()
            self.expect(")")
            return inner
        if self.kind in ("number", "string"):
            value = self.literal()
            return lambda values: value
        if self.kind != "name":
            raise self.error("a name, a number or '('")
        word = self.advance()
        if word in _CONSTANTS:
            return lambda values: _CONSTANTS[word]
        if word in _FUNCTIONS and self.token == "(":
            return self.call(_FUNCTIONS[word])
        self.names.add(word)
        return lambda values: _lookup(values, word)

    def call(self, function: Callable[..., Any]) -> Evaluate:
        self.expect("(")
        arguments = [self.disjunction()]
        while self.take(","):
            arguments.append(self.disjunction())
        self.expect(")")
        return lambda values: function(*(argument(values) for argument in arguments))


def _any(terms: list[Evaluate], values: Mapping[str, Any]) -> bool:
    """`or` that survives an unknown term when another one is true."""
    unknown: Unknown | None = None
    for term in terms:
        try:
            if term(values):
                return True
        except Unknown as error:
            unknown = error
    if unknown is not None:
        raise unknown
    return False


def _combine(operation: Callable[[Any, Any], Any], left: Evaluate, right: Evaluate) -> Evaluate:
    return lambda values: operation(_numeric(left(values)), _numeric(right(values)))


def _numeric(value: Any) -> Any:
    """Arithmetic is for numbers only: a string times a number must not become a long string."""
    if isinstance(value, int | float):
        return value
    raise Unknown(f"{value!r} is not a number.")


def _lookup(values: Mapping[str, Any], name: str) -> Any:
    if values.get(name) is None:
        raise Unknown(f"{name} has no value.")
    return values[name]


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)
