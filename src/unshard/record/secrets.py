"""What a record must never hold: passwords, keys and tokens, told by their names and by their looks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

MASK = "***"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words in a name that make whatever stands there a secret.
_SECRET = _words(
    "secret secrets password passwords passwd pwd passphrase credential credentials apikey apikeys "
    "authorization bearer cookie cookies auth authtoken accesskey secretkey privatekey "
    "pw pat hftoken wandbkey"
)
# Last words that name a secret, unless a word before them says that it is of something else.
_OF_SOMETHING: Mapping[str, frozenset[str]] = {
    "token": _words(
        "pad eos bos unk sep cls mask image video audio vision special stop end start begin first last next "
        "boi eoi user assistant system think per new add added decoder response instruction tokens "
        "max min num number total seen target extra"
    ),
    "key": _words(
        "text label labels image prompt prompts response input output sort group dataset column message "
        "messages answer question chosen rejected query data metric reward config state step value attention "
        "model module batch feature features target audio video instruction completion role content"
    ),
}
_PLURAL = {"keys": "key", "tokens": "token"}
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# Source: the formats that the services document for what they issue, as secret scanners know them.
_LOOKS = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bsk-[A-Za-z0-9_-]{16,}|\bgh[oprsu]_[A-Za-z0-9]{20,}"
    r"|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}|\bxox[abeprs]-[\w-]{10,}|\bAIza[\w-]{35}"
    r"|\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}|\bwandb_v\d_\w{20,}|\bnvapi-[\w-]{20,}"
    r"|\bpypi-[\w-]{16,}|\bnpm_\w{20,}|\bya29\.[\w-]{16,}|\bSG\.[\w-]{16,}|\bsk_live_\w{16,}"
    r"|(?<=hooks\.slack\.com/services/)\S+|(?i:\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}"
    r"|(?i:\b(?:hf|hub|api|access|auth|secret|wandb)_?(?:token|key)\s*[=:]\s*)[^\s'\",;]{6,}"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_USER_OF_URL = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_SIGNATURE = re.compile(
    r"(?i)([?&](?:sig|signature|token|access_token|api_?key|key|secret|password|x-amz-[a-z-]+)=)[^&\s'\"]+"
)
_OPTION = re.compile(r"(-{0,2}[+~]{0,2})([A-Za-z_][\w.\-/]*)=(.*)", re.DOTALL)


def is_secret_name(name: str) -> bool:
    """Return whether what is called so is a secret: `hub_token`, `api-key`; not `eos_token`."""
    words = [word.lower() for word in _WORDS.findall(name.rpartition(".")[2])]
    if not words:
        return False
    if not _SECRET.isdisjoint(words) or "apikey" in "".join(words):
        return True
    last = _PLURAL.get(words[-1], words[-1])
    return last in _OF_SOMETHING and _OF_SOMETHING[last].isdisjoint(words[:-1])


def is_secret(name: str, value: object) -> bool:
    """Return whether a value of this name is a secret: numbers and flags called `token` are none."""
    if value is None or isinstance(value, bool) or not is_secret_name(name):
        return False
    words = {word.lower() for word in _WORDS.findall(name.rpartition(".")[2])}
    return not isinstance(value, int | float) or not _SECRET.isdisjoint(words)


def without_secrets_in_text(text: str) -> str:
    """Return text with everything that looks like a secret replaced by `***`."""
    text = _USER_OF_URL.sub(MASK, text)
    text = _SIGNATURE.sub(rf"\1{MASK}", text)
    return _LOOKS.sub(MASK, text)


def without_secrets(value: object) -> object:
    """Return plain values without those that are secrets, at any depth.

    Args:
        value: Dicts, lists and what JSON has; what holds itself, or is nested too deeply, is no plain value.
    """
    if isinstance(value, Mapping):
        return {
            str(key): without_secrets(item) for key, item in value.items() if not is_secret(str(key), item)
        }
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return without_secrets_in_text(value) if isinstance(value, str) else value


def secrets_in(value: object, place: str = "") -> Iterator[str]:
    """Yield where secrets stand among plain values: their names, never what they are."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            inner = f"{place}.{key}" if place else str(key)
            if is_secret(str(key), item):
                yield inner
            else:
                yield from secrets_in(item, inner)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from secrets_in(item, f"{place}[{number}]")
    elif isinstance(value, str) and without_secrets_in_text(value) != value:
        yield place


def without_secrets_in_words(words: Iterable[str]) -> tuple[str, ...]:
    """Return the words of a command line; those of secrets are replaced by `***`."""
    found: list[str] = []
    is_next = False
    for word in words:
        option = _OPTION.fullmatch(word)
        if is_next and not word.startswith("--"):
            found.append(MASK)
        elif option is not None and is_secret_name(option[2].replace("-", "_")):
            found.append(f"{option[1]}{option[2]}={MASK}")
        else:
            found.append(without_secrets_in_text(word))
        is_next = word.startswith("-") and option is None and is_secret_name(word.strip("-"))
    return tuple(found)
