"""YAML with lines: every broken text is one clear answer."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autotune import source, study
from autotune.errors import AutotuneError, InvalidInput


@pytest.mark.parametrize(
    ("text", "fragment", "line"),
    [
        ("a: [1, 2", "not valid YAML", 1),
        ("a: 1\na: 2", "stands twice", 2),
        ("a: !!python/object/apply:os.system ['true']", "is not allowed", 1),
        ("a:\n  b: !custom 3", "is not allowed", 2),
        ("? [1, 2]\n: 3", "A key must be a plain name", 1),
        ("a: &x [*x]", "nests deeper", 1),
        ("\n\na: \x07", "cannot stand in YAML", 3),
        ("--- 1\n--- 2", "not valid YAML", 2),
        ("a: *missing", "not valid YAML", 1),
        ("[" * 5000, "YAML", None),
        ("a: !!int x", "cannot be read", 1),
        ("a: !!float ''", "cannot be read", 1),
    ],
)
def test_broken_text_is_one_clear_answer(text, fragment, line):
    with pytest.raises(InvalidInput) as caught:
        source.parse(text, "f.yaml")
    (mistake,) = caught.value.mistakes
    assert fragment in str(mistake) or "nests deeper" in str(mistake)
    if line is not None:
        assert mistake.line == line


def test_a_bomb_of_aliases_is_refused():
    text = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "\n".join(
        f"{n}: &{n} [{','.join('*' + p for _ in range(10))}]" for p, n in zip("abcdefg", "bcdefgh", strict=True)
    )
    with pytest.raises(InvalidInput, match="more than"):
        source.parse(text)


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("env:\n  HF_TOKEN: hush\nnext: 5\n", {"env": {"HF_TOKEN": "***"}, "next": 5}),
        ("{HF_TOKEN: hush, a: 1}", {"HF_TOKEN": "***", "a": 1}),
        ("API_KEY:\n  hush\nb: 2", {"API_KEY": "***", "b": 2}),
        ("SECRET: |\n  hush\n  hush\nb: 2", {"SECRET": "***", "b": 2}),
        ("PASSWORD: >-\n  hush\n\nb: 2", {"PASSWORD": "***", "b": 2}),
        ("my_token: [hush, 'hush']", {"my_token": ["***", "***"]}),
        ("a: {b_token: &x hush}\nc: *x", {"a": {"b_token": "***"}, "c": "***"}),
        ("uri: http://me:hush@host/  # token=hush", {"uri": "http://***@host/"}),
        ("f: [sk-abcdefghijklmnopqrst]", {"f": ["***"]}),
        (
            "prompt_key: prompt\nmax_num_batched_tokens: 64\nq_token: true\n",
            {"prompt_key": "prompt", "max_num_batched_tokens": 64, "q_token": True},
        ),
    ],
)
def test_a_text_without_its_credentials_is_still_yaml(text, data):
    """`HF_TOKEN: ***` is an alias to YAML: the study could not be read any more once it had been measured."""
    masked = source.masked(source.parse(text))
    assert "hush" not in masked
    assert source.parse(masked).data == data
    assert source.masked(source.parse(masked)) == masked


def test_a_text_without_credentials_is_kept_as_it_is():
    for path in Path(__file__).parents[1].glob("*/*.yaml"):
        assert source.masked(source.read(path)) == path.read_text(), path


def test_lines_of_nested_places():
    text = source.parse("a:\n  - x: 1\n    y: 2\n  - 3\n")
    assert text.data == {"a": [{"x": 1, "y": 2}, 3]}
    assert text.line(("a", 0, "y")) == 3
    assert text.line(("a", 1)) == 4
    assert text.line(("a", 0, "y", "not", "there")) == 3


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a" * (2 << 20)])
def test_unreadable_files(tmp_path, content):
    path = tmp_path / "study.yaml"
    path.write_bytes(content)
    with pytest.raises(InvalidInput):
        source.read(path)
    with pytest.raises(InvalidInput, match="cannot be read"):
        source.read(tmp_path / "missing.yaml")
    with pytest.raises(InvalidInput, match="cannot be read"):
        source.read(tmp_path)


@given(st.text(max_size=200))
def test_any_text_is_data_or_our_own_error(text):
    with contextlib.suppress(AutotuneError):
        source.parse(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
KEYS = st.sampled_from([*study.Study.model_fields, "typo"])


@given(st.dictionaries(KEYS, VALUES, max_size=8))
def test_any_mapping_is_a_study_or_our_own_error(data):
    text = yaml.safe_dump(data, allow_unicode=True)
    try:
        study.validate(source.parse(text))
    except AutotuneError as error:
        assert str(error)


@given(VALUES)
def test_any_yaml_value_is_a_study_or_our_own_error(data):
    try:
        study.validate(source.parse(yaml.safe_dump(data)))
    except AutotuneError as error:
        assert str(error)
