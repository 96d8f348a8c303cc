"""llama.cpp, through llama-cpp-python in a process of its own, as an engine."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine import MissingEngineError, Run

WORKER = Path(__file__).with_name("llama_worker.py")


class LlamaEngine:
    """A GGUF file as it is, without dequantising it first.

    llama-cpp-python may live in another environment, since its version of a library can differ
    from ours, and a crash there (its AMX path has had one) does not end the benchmark.
    """

    def __init__(self, python: Path, gguf: Path, threads: int, capacity: int) -> None:
        """Starts the process.

        Raises:
            MissingEngineError: `python` has no llama-cpp-python, or it cannot load the file.
        """
        command = [str(python), str(WORKER), str(gguf), str(threads), str(capacity)]
        try:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
        except OSError as error:
            raise MissingEngineError(f"cannot run {python}: {error.strerror}") from error
        self._receive()

    def prefill(self, tokens: Sequence[int]) -> None:
        """Make `tokens` the context."""
        self._call({"prefill": list(tokens)})

    def decode(self, num_tokens: int) -> Run:
        """Continue the context, and forget the new tokens."""
        return Run(*self._call({"decode": num_tokens}))

    def close(self) -> None:
        """Ends the process."""
        self.process.terminate()
        self.process.wait()

    def _call(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # _receive tells why the process has ended
        return self._receive()

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise MissingEngineError(f"its process ended with code {self.process.wait()}")
        answer = json.loads(line)
        if "missing" in answer:
            raise MissingEngineError(answer["missing"])
        return answer["result"]
