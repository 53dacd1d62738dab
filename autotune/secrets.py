"""Keeps credentials out of everything that is written: logs, launch lines, ledgers, trackers, error messages.

Pure. `redact` is for text, `redact_env` for environment variables; both leave everything else untouched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

MASK = "***"

_NAME = r"[A-Za-z0-9_.\-]*(?:API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)"
_URL = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^\s/@'\"]+@", re.IGNORECASE)
_ASSIGNED = re.compile(rf"(?P<name>\b{_NAME})(?P<sep>[\"']?\s*[=:]\s*[\"']?)(?P<value>[^\s\"'&,;}}]+)", re.IGNORECASE)
_CREDENTIAL = re.compile(_NAME, re.IGNORECASE)
_REFERENCE = re.compile(r"\$\{[A-Z_][A-Z0-9_]*(?::?-)?\}?")
_NO_CREDENTIALS = ("", "none", "null", "true", "false", "...", MASK)
_OPTION = re.compile(r"(?P<name>--(?:hf-token|api-key|token|password|secret))(?P<sep>[ =])(?P<value>[^\s\"']+)", re.IGNORECASE)
_BEARER = re.compile(r"(?P<name>\b(?:Bearer|Basic))(?P<sep>\s+)(?P<value>[A-Za-z0-9._~+/\-]{8,}=*)")
_KNOWN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_\-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16}|xox[a-z]-[A-Za-z0-9\-]{10,})"
)
_COUNTS = re.compile(r"(?:max|num|total|input|output|prompt|per|batched|generated|cached)[_\-]?[a-z_\-]*tokens?", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?:.*[.\-_])?(?:bos|eos|unk|sep|pad|cls|mask|stop|image|audio|video)[_\-]token", re.IGNORECASE)
"""A token of the model's own, as `pad_token: <|endoftext|>` sets one."""
_SECRET_NAME = re.compile(r"(?:KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?)$", re.IGNORECASE)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name is taken to hold a credential."""
    return bool(_SECRET_NAME.search(name)) and not _is_of_tokens(name)


def _is_of_tokens(name: str) -> bool:
    """Whether it names a number of tokens, or one of a vocabulary."""
    return bool(_COUNTS.fullmatch(name.strip("-")) or _VOCABULARY.fullmatch(name))


def redact(text: str) -> str:
    """The text with user information in URLs, bearer tokens, known token shapes and KEY/TOKEN/SECRET/PASSWORD values masked."""
    text = _URL.sub(rf"\g<scheme>{MASK}@", text)
    text = _BEARER.sub(rf"\g<name>\g<sep>{MASK}", text)
    text = _OPTION.sub(rf"\g<name>\g<sep>{MASK}", text)
    text = _ASSIGNED.sub(_mask_assigned, text)
    return _KNOWN.sub(MASK, text)


def redact_named(name: str, value: str) -> str:
    """A value as it may be shown, given what it stands under."""
    return MASK if _is_credential(name, value) else redact(value)


def redact_argv(argv: Sequence[str]) -> tuple[str, ...]:
    """A command with the values of credential options masked, whether they stand in the same argument or in the next."""
    hidden = [False, *(part.startswith("--") and "=" not in part and is_secret_name(part) for part in argv)]
    return tuple(MASK if hide else redact(part) for hide, part in zip(hidden, argv, strict=False))


def redact_env(env: Mapping[str, str]) -> dict[str, str]:
    """The variables with secret ones masked and the others passed through `redact`."""
    return {name: MASK if is_secret_name(name) else redact(value) for name, value in env.items()}


def _mask_assigned(match: re.Match[str]) -> str:
    return f"{match['name']}{match['sep']}{MASK}" if _is_credential(match["name"], match["value"]) else match[0]


def _is_credential(name: str, value: str) -> bool:
    """`max_tokens: 64` is a number of tokens, `pad_token: "<pad>"` one of a vocabulary, `automountServiceAccountToken: false` a
    switch, `${HF_TOKEN:-}` a variable."""
    none = value.lower() in _NO_CREDENTIALS or _REFERENCE.fullmatch(value)
    return bool(_CREDENTIAL.fullmatch(name)) and not _is_of_tokens(name) and not none
