"""Ask a vLLM server with our weights, as any client of OpenAI's interface does, and print the share of right answers.

Start the server first, and wait until it says that it is up:

    python -m vllm.entrypoints.openai.api_server --tokenizer-mode sector --served-model-name sector --dtype float32 \
        --host 127.0.0.1 --model "$(python -c 'import sector; print(sector.load("addition").path)')"
"""

import argparse
import json
import random
import urllib.request


def complete(server: str, prompts: list[str], digits: int) -> list[str]:
    """Return a greedy completion of each prompt."""
    asked = {"model": "sector", "prompt": prompts, "temperature": 0, "max_tokens": digits + 2}
    request = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as reply:
        choices = json.load(reply)["choices"]
    return [choice["text"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 5, 10, 15, 20, 25, 29])
    parser.add_argument("--small", action="store_true", help="ask 4 problems per length instead of 100")
    options = parser.parse_args()
    draws = random.Random(0)
    for digits in options.digits:
        pairs = [[draws.randrange(10**digits) for _ in "ab"] for _ in range(4 if options.small else 100)]
        answers = complete(options.server, [f"{first}+{second}=" for first, second in pairs], digits)
        right = sum(answer.strip() == str(sum(pair)) for pair, answer in zip(pairs, answers, strict=True))
        print(f"{digits:4} {'#' * round(50 * right / len(pairs))} {right} of {len(pairs)}")


if __name__ == "__main__":
    main()
