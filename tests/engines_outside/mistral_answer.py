"""The answer of a model folder to one question, as mistral.rs gives it: Rust, its own model code.

python mistral_answer.py FOLDER ANSWER.txt QUESTION
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Serve the folder, ask once, and write the answer to a file: the engine logs to the terminal."""
    from mistralrs import ChatCompletionRequest, Runner, Which

    folder, target, question = sys.argv[1:]
    plain: Any = Which.Plain(model_id=folder)  # its stubs do not know that this is a Which
    runner = Runner(which=plain)
    request = ChatCompletionRequest(
        model="default",
        messages=[{"role": "user", "content": question}],
        max_tokens=24,
        temperature=0.0,
    )
    response: Any = runner.send_chat_completion_request(request)
    Path(target).write_text(response.choices[0].message.content)


if __name__ == "__main__":
    main()
