"""Secrets are told from their names, and everything else is left as it is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from automodel_cli.engine.config.secrets import MASK, is_masked, is_secret, masked_message, masked_text, masked_value
from automodel_cli.engine.config.sections import SECTIONS, General, section_fields

SECRET = [
    "api_key", "apikey", "wandb.api_key", "wandb_api_key", "password", "db_password", "passwd", "secret",
    "client_secret", "secret_key", "access_key", "aws_access_key", "private_key", "credentials", "hf_token",
    "HF_TOKEN", "auth_token", "use_auth_token", "github_token", "token", "hub-token", "passphrase",
    "session_token", "aws_session_token", "sas_token", "gitlab_token", "huggingface_token", "accessToken",
    "account_key", "AccountKey", "encryption_key", "storage_options.key", "dataset.storage_options.key", "s3.key",
    "pwd", "PGPASSWORD", "bearer", "sig", "signature", "SharedAccessSignature", "auth", "basic_auth", "cookie",
    "cookies", "x-api-key", "X-Api-Key", "headers.Authorization", "X-Amz-Signature", "X-Amz-Security-Token",
    "AWS_SECRET_ACCESS_KEY", "api_keys", "apiKeys", "passwords", "secrets", "access_tokens", "api_key_2", "token1",
    "password_hash", "connection_string", "connectionString", "secret_name", "openai_key", "jwt",
]  # fmt: skip
OPEN = [
    "tokenizer", "num_tokens", "bos_token", "eos_token", "pad_token", "max_tokens", "token_ids", "vocab_size",
    "key", "keys", "n_head", "secretary", "tokens_per_second", "api", "best_metric_key", "password_file_count",
    "tokens_per_step", "eos_token_id", "monkey", "key_size", "num_key_value_heads", "num_key_value", "author",
    "authors", "tokens", "special_tokens", "val_tokens", "max_new_tokens", "mask_token", "image_token",
    "fim_prefix_token", "bytes_per_token", "tokenizer_name", "text_key", "label_key", "columns.key", "public_key",
    "token_path", "sigma", "signal", "keyword", "design", "significance", "tokenize", "monkeys", "hidden_keys",
]  # fmt: skip


@pytest.mark.parametrize("key", SECRET)
def test_a_key_that_holds_a_secret_is_masked(key):
    """Whatever its spelling, alone or as the last name of a dotted key."""
    assert is_secret(key)
    assert masked_value(key, ["canary"]) == [MASK]


@pytest.mark.parametrize("key", OPEN)
def test_a_key_that_only_looks_like_one_is_shown(key):
    """Hiding `tokenizer` or `num_tokens` would make the output useless."""
    assert not is_secret(key)
    assert masked_value(key, "shown") == "shown"


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


def test_a_secret_key_masks_all_that_lies_below_it():
    """Whatever the names there, and however deep; a bare `key` counts beside the storage that it opens."""
    value = {
        "auth": {"user": "a", "more": [{"kind": "b"}, ["c"]], "enabled": True},
        "dataset": {"storage_options": {"key": "d", "anon": False}, "columns": {"key": "text"}},
    }

    assert masked_value("", value) == {
        "auth": {"user": MASK, "more": [{"kind": MASK}, [MASK]], "enabled": True},
        "dataset": {"storage_options": {"key": MASK, "anon": False}, "columns": {"key": "text"}},
    }


BY_FORM = {
    "https://me:CANARY@host:80/x?y=1": "https://me:***@host:80/x?y=1",
    "postgresql+psycopg://me:CAN@ARY@host/db": "postgresql+psycopg://me:***@host/db",
    "redis://:CANARY@host": "redis://:***@host",
    "https://CANARYabcdefghijklmno@git.example/x.git": "https://***@git.example/x.git",
    "https://a.blob/c?sv=1&sig=CANARY%2B&se=2": "https://a.blob/c?sv=1&sig=***&se=2",
    "s3://b/k?X-Amz-Signature=CANARY&X-Amz-Date=1": "s3://b/k?X-Amz-Signature=***&X-Amz-Date=1",
    "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=CANARY==;EndpointSuffix=x":
        "DefaultEndpointsProtocol=https;AccountName=me;AccountKey=***;EndpointSuffix=x",
    "BlobEndpoint=https://x;SharedAccessSignature=sv=CANARY": "BlobEndpoint=https://x;SharedAccessSignature=***",
    "Server=db;Uid=me;Pwd=CANARY;": "Server=db;Uid=me;Pwd=***;",
    "Authorization: Bearer CANARY123": "Authorization: Bearer ***",
    '{"user": "me", "password": "CANARY"}': '{"user": "me", "password": "***"}',
    "login with hf_CANARY1abcdefghijklmnopq": "login with hf_***",
    "eyJCANARY1hbGciOi.eyJzdWIiOiI.abc-def": "eyJ***",
}  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), BY_FORM.items())
def test_secrets_are_known_by_their_form_under_any_key(text, shown):
    """In values, lines and messages; what has been masked is known again, so that nothing goes on with it."""
    assert masked_value("", {"url": [text]}) == {"url": [shown]}
    assert masked_message(text) == shown
    assert "CANARY" not in masked_text(text)
    assert len(masked_text(text)) == len(text)
    assert is_masked("url", shown)
    assert not is_masked("url", text)


@pytest.mark.parametrize(
    "text",
    [
        "https://host:8080/a@b", "git@github.com:me/x", "s3://bucket/part=5/x", "a *** b", "Bearer of news",
        "sk-skip-connections", "pad_token=<pad>", "model.n_layer=24", "https://me:${PW}@host", "x?sig=${SIG}",
    ],
)  # fmt: skip
def test_other_texts_are_shown_as_they_are(text):
    """Ports, paths, references, and options of no secret."""
    assert masked_value("", {"url": text}) == {"url": text}
    assert masked_message(text) == text
    assert not is_masked("url", text)


@pytest.mark.parametrize("part", ["sig=", "a.", "eyJ-", "x://", "://a:", "a.token: ", "Bearer ", "\"'", "a=", "x"])
def test_a_hostile_text_takes_no_longer_than_its_length(part):
    """A line of a checkpoint's configuration may hold a megabyte of anything."""
    text = part * (200_000 // len(part))
    began = time.process_time()

    masked_message(text)
    masked_text(text)

    assert time.process_time() - began < 5  # seconds; what takes the square of the length takes hundreds


def test_no_key_of_our_own_is_taken_for_a_secret():
    """A run could not be resumed with its own settings masked."""
    own = [*section_fields(General), *(f"{part.name}.{name}" for part in SECTIONS for name in section_fields(part))]

    assert [key for key in own if is_secret(key)] == []


canaries = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=4)


@given(
    st.sampled_from(["api_key", "hf_token", "password", "storage_options.key", "x-api-key", "accessToken"]), canaries
)
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
