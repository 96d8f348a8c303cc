"""The other end of `llama_engine`: one JSON request a line on stdin, one answer a line on stdout.

Needs nothing but llama-cpp-python. Arguments: GGUF file, threads, tokens of the cache.
"""

import json
import os
import sys
import time


def main() -> None:
    """Loads the model, then answers until stdin ends."""
    # What llama.cpp prints itself goes to stderr.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def answer(content: dict) -> None:
        print(json.dumps(content), file=answers, flush=True)

    gguf, threads, capacity = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    try:
        from llama_cpp import Llama
    except ImportError as error:
        answer({"missing": f"{error} in {sys.executable}: pip install llama-cpp-python"})
        return
    try:
        llama = Llama(
            gguf, n_ctx=capacity, n_threads=threads, n_threads_batch=threads, verbose=False
        )
    except ValueError as error:
        answer({"missing": str(error)})
        return
    answer({"result": None})
    context = 0
    for line in sys.stdin:
        request = json.loads(line)
        if "prefill" in request:
            llama.reset()
            llama.eval(request["prefill"])
            context = llama.n_tokens
            answer({"result": None})
        else:
            answer({"result": decode(llama, context, request["decode"])})


def decode(llama, context: int, num_tokens: int) -> tuple[list[int], list[float]]:
    """Greedy tokens behind the context, and the time at which each was there."""
    llama.n_tokens = context  # eval drops what the cache holds beyond
    tokens, times = [], []
    token = 0
    for _ in range(num_tokens):
        llama.eval([token])
        token = llama.sample(temp=0.0)
        times.append(time.perf_counter())
        tokens.append(token)
    return tokens, times


if __name__ == "__main__":
    main()
