"""Secrets never get into a record: told by their names and by their looks, at any depth."""

from __future__ import annotations

import pytest

from unshard.record.secrets import (
    is_secret_name,
    secrets_in,
    without_secrets,
    without_secrets_in_text,
    without_secrets_in_words,
)

# Put together here, so that no scanner of secrets takes this file for a leak.
HUB = "hf_" + "aBcD1234" * 4
AMAZON = "AKIA" + "ABCDEFGH12345678"


@pytest.mark.parametrize(
    "name",
    [
        "token",
        "hub_token",
        "push_to_hub_token",
        "HF_TOKEN",
        "api_key",
        "apiKey",
        "OPENAI_API_KEY",
        "wandb-key",
        "secret",
        "clientSecret",
        "db.password",
        "passwd",
        "credentials",
        "aws_secret_access_key",
        "accessToken",
        "private_keys",
        "auth.bearer",
        "key",
    ],
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer",
        "tokenizer_name",
        "max_tokens",
        "pad_token",
        "eos_token",
        "eos_token_id",
        "image_token",
        "num_key_value_heads",
        "text_key",
        "sort_key",
        "label_keys",
        "monkey",
        "keyboard",
        "secretary_count",
        "author",
        "hidden_size",
        "key_proj",
    ],
)
def test_names_of_other_things_are_not_taken_for_secrets(name: str) -> None:
    assert not is_secret_name(name)


def test_secrets_are_left_out_at_any_depth_and_the_rest_stays() -> None:
    given = {
        "lr": 1e-5,
        "use_auth_token": True,
        "token": 5,
        "tracker": {"wandb": [{"api_key": "x", "project": "p"}]},
        "credentials": {"user": "u", "password": "p"},
        "url": "https://user:word@host/path?X-Amz-Signature=abc&part=1",
        "note": f"pushed with {HUB}",
        "pin": {"password": 1234},
    }
    assert without_secrets(given) == {
        "lr": 1e-5,
        "use_auth_token": True,
        "token": 5,
        "tracker": {"wandb": [{"project": "p"}]},
        "url": "https://***@host/path?X-Amz-Signature=***&part=1",
        "note": "pushed with ***",
        "pin": {},
    }
    assert list(secrets_in(given)) == [
        "tracker.wandb[0].api_key",
        "credentials",
        "url",
        "note",
        "pin.password",
    ]


@pytest.mark.parametrize(
    "secret",
    [
        HUB,
        AMAZON,
        "sk-" + "a1" * 12,
        "ghp_" + "Z9" * 12,
        "xoxb-" + "1234567890",
        "eyJ" + "hbGciOiJ" + ".eyJ" + "zdWIiOiIx" + "." + "c2lnbmF0dXJl",
        "-----BEGIN RSA " + "PRIVATE KEY-----",
        "Bearer " + "a1b2" * 6,
        "HF_TOKEN=" + "a1b2" * 6,
        "npm_" + "a1" * 12,
    ],
)
def test_secrets_are_known_by_their_looks(secret: str) -> None:
    assert without_secrets_in_text(f"a {secret} b") == "a *** b"


def test_users_of_addresses_are_left_out() -> None:
    for user in ("user:word", "a1b2c3d4"):
        assert without_secrets_in_text(f"https://{user}@host/y") == "https://***@host/y"


def test_text_that_only_resembles_secrets_stays() -> None:
    for text in (
        "meta-llama/Llama-3.2-1B",
        "sk-learn",
        "hf_home",
        "a" * 40,
        "https://host:8080/a@b",
        "key=3",
    ):
        assert without_secrets_in_text(text) == text


def test_words_of_a_command_line_keep_their_number() -> None:
    words = ["train.py", "--hub_token", HUB, "--lr", "1e-5", "model.api_key=x", "--wandb-key=y", "-v", HUB]
    assert without_secrets_in_words(words) == (
        "train.py",
        "--hub_token",
        "***",
        "--lr",
        "1e-5",
        "model.api_key=***",
        "--wandb-key=***",
        "-v",
        "***",
    )
    assert without_secrets_in_words(["--token", "--lr", "3"]) == ("--token", "--lr", "3")
