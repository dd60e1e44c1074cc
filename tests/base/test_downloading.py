"""Downloading: the small files of a model come from a hub over HTTP, and its weights do not."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"text",
    "README.md": b"# another model",
    "model.safetensors": b"\x00" * 1000,
    "original/params.json": b"{}",
    "original/consolidated.00.pth": b"\x00" * 1000,
    "modeling_own.py": b"raise SystemExit",
}


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its own library asks for."""

    served: list[str]

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in FILES.items()
            ]
            self.reply(json.dumps(tree).encode(), "tree", body)
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name, "size": len(data)} for name, data in FILES.items()]
            self.reply(
                json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode(), "api", body
            )
        elif path.startswith(f"/org/model/resolve/{COMMIT}/"):
            name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
            self.served.append(name)
            self.reply(FILES[name], hashlib.sha1(FILES[name]).hexdigest(), body)
        else:
            self.send_error(404)

    def reply(self, content: bytes, tag: str, body: bool) -> None:
        self.send_response(200)
        for key, value in {
            "ETag": f'"{tag}"',
            "X-Repo-Commit": COMMIT,
            "Content-Length": str(len(content)),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub() -> Iterator[tuple[str, list[str]]]:
    """The address of a hub that holds `org/model`, and the files it was asked for."""
    served: list[str] = []
    handler = type("TestHub", (Hub,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", served
        server.shutdown()
        thread.join()


def download(name: str, address: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Locate a base in a process of its own: the hub's library reads its settings once."""
    code = f"from unshard.base.locating import locate_base; print(locate_base({name!r}, download=True))"
    environment = {"HF_ENDPOINT": address, "HF_HUB_CACHE": str(cache), "HOME": str(cache), "PATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_everything_but_weights_and_code_is_downloaded(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, served = hub
    child = download("org/model", address, tmp_path / "cache")
    folder = Path(child.stdout.strip())
    assert folder == tmp_path / "cache" / "models--org--model" / "snapshots" / COMMIT, child.stderr
    wanted = {"config.json", "tokenizer.json", "chat_template.jinja", "LICENSE"}
    assert {path.name for path in folder.iterdir()} == wanted
    assert set(served) == wanted


def test_what_is_in_the_cache_is_not_asked_for_again(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    address, served = hub
    download("org/model", address, tmp_path / "cache")
    served.clear()
    assert COMMIT in download("org/model", address, tmp_path / "cache").stdout
    assert served == []


def test_a_model_that_the_hub_does_not_have_says_what_to_do(
    hub: tuple[str, list[str]], tmp_path: Path
) -> None:
    child = download("org/absent", hub[0], tmp_path / "cache")
    assert "BaseModelError: `org/absent` is not on this machine and cannot be downloaded" in child.stderr
    assert "log in if the model is gated (hf auth login)" in child.stderr


def test_a_hub_that_does_not_answer_says_what_to_do(tmp_path: Path) -> None:
    child = download("org/model", "http://127.0.0.1:9", tmp_path / "cache")
    assert "BaseModelError: `org/model` is not on this machine and cannot be downloaded" in child.stderr
