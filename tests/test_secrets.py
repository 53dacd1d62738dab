import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotune.secrets import redact, redact_argv, redact_env


@pytest.mark.parametrize(
    "text",
    [
        "http://user:hush@host/path",
        "postgresql+psycopg://user:hush@db:5432/x",
        "Authorization: Bearer hush.hush.hush",
        "HF_TOKEN=hush",
        "export WANDB_API_KEY='hush'",
        '{"password": "hush"}',
        "aws_secret_access_key = hush",
        "--api-key hush --port 1",
        "--hf-token=hush",
        "MLFLOW_TRACKING_PASSWORD: hush",
        "HF_TOKEN: ${HF_TOKEN:-hush}",
    ],
)
def test_credentials_are_masked(text):
    assert "hush" not in redact(text) and "***" in redact(text)


@pytest.mark.parametrize(
    "token", ["hf_abcdefghijklmnopqrst", "sk-abcdefghijklmnopqrst", "ghp_abcdefghijklmnopqrstuvwx", "AKIAABCDEFGHIJKLMNOP"]
)
def test_known_token_shapes_are_masked_anywhere(token):
    assert token not in redact(f"failed with {token}!")


@pytest.mark.parametrize(
    "text",
    [
        "max_num_batched_tokens=8192",
        "--max-num-batched-tokens 8192",
        "prompt_tokens: 12, total_tokens=40",
        "http://127.0.0.1:8000/v1",
        "ValueError: max_model_len (4096) is larger than 2048",
        "KV cache size: 920,144 tokens",
        "user@host",
        "tokenizer=auto",
        "automountServiceAccountToken: false",
        "add_special_token=True",
        "pad_token: <|endoftext|>",
        '{"eos_token": "</s>"}',
        "--model.mask-token=[MASK]",
        "HF_TOKEN: ${HF_TOKEN:-}",
        "--from-literal=token=...",
    ],
)
def test_what_is_no_credential_is_left_alone(text):
    assert redact(text) == text


def test_commands_and_environments():
    assert redact_argv(("serve", "--api-key", "hush", "--max-num-batched-tokens", "64")) == (
        "serve", "--api-key", "***", "--max-num-batched-tokens", "64",
    )  # fmt: skip
    assert redact_argv(()) == ()
    env = redact_env({"OPENAI_API_KEY": "hush", "VLLM_X": "1", "PROXY": "http://a:hush@p/"})
    assert env == {"OPENAI_API_KEY": "***", "VLLM_X": "1", "PROXY": "http://***@p/"}


@given(st.text())
def test_redacting_twice_is_redacting_once(text):
    assert redact(redact(text)) == redact(text)
