"""Secrets are told from their names, and everything else is left as it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.secrets import MASK, is_secret, masked_text, masked_value

SECRET = [
    "api_key", "apikey", "wandb.api_key", "wandb_api_key", "password", "db_password", "passwd", "secret",
    "client_secret", "secret_key", "access_key", "aws_access_key", "private_key", "credentials", "hf_token",
    "HF_TOKEN", "auth_token", "use_auth_token", "github_token", "token", "hub-token", "passphrase",
]  # fmt: skip
OPEN = [
    "tokenizer", "num_tokens", "bos_token", "eos_token", "pad_token", "max_tokens", "token_ids", "vocab_size",
    "key", "keys", "n_head", "secretary", "tokens_per_second", "api", "best_metric_key", "password_file_count",
]  # fmt: skip


@pytest.mark.parametrize("key", SECRET)
def test_a_key_that_holds_a_secret_is_masked(key):
    """Whatever its spelling, alone or as the last name of a dotted key."""
    assert is_secret(key)
    assert masked_value("", {key: "canary"}) == {key: MASK} if "." not in key else is_secret(key)


@pytest.mark.parametrize("key", OPEN)
def test_a_key_that_only_looks_like_one_is_shown(key):
    """Hiding `tokenizer` or `num_tokens` would make the output useless."""
    assert not is_secret(key)
    assert masked_value("", {key: "shown"}) == {key: "shown"}


def test_what_is_no_secret_below_a_secret_key_stays():
    """Null, truth values and references are shown; lists and sections below the key are masked through and through."""
    value = {"token": None, "hf_token": True, "api_key": "${KEY}", "password": ["a", {"b": 1}], "secret": "${KEY,text}"}

    assert masked_value("", value) == {
        "token": None,
        "hf_token": True,
        "api_key": "${KEY}",
        "password": [MASK, {"b": MASK}],
        "secret": MASK,
    }


canaries = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4)


@given(st.sampled_from(["api_key", "hf_token", "password"]), canaries)
def test_no_line_shows_a_secret_and_no_line_changes_its_length(key, canary):
    """Neither as YAML, nor in a flow mapping, nor as an option; carets still point at their place."""
    canary = f"CANARY{canary}"
    for line in (
        f"  {key}: {canary}",
        f"x: {{a: 1, {key}: {canary}}}",
        f'"{key}": "{canary}"',
        f"--set w.{key}={canary}",
    ):
        shown = masked_text(line)

        assert "CANARY" not in shown
        assert len(shown) == len(line)


def test_lines_without_secrets_are_untouched():
    """A path with a colon, a reference and a tokenizer are no secrets."""
    for line in (
        "tokenizer: gpt2",
        "--set a.b=c",
        "api_key: ${KEY}",
        "_target_: file.py:build",
        "# the api_key is secret",
    ):
        assert masked_text(line) == line
