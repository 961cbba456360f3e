"""Ask a vLLM server with our weights, as any client of OpenAI's interface does, and print the share of right answers.

Start the server first, and wait until it says that it is up:

    python -m vllm.entrypoints.openai.api_server --tokenizer-mode sector --served-model-name sector --dtype float32 \
        --host 127.0.0.1 --model "$(python -c 'import sector; print(sector.load("addition").path)')"

A model of text that reads hints is served without the tokenizer mode, and asked with --hints:

    sector export runs/text --to served --wide-heads
    python -m vllm.entrypoints.openai.api_server --served-model-name sector --dtype float32 \
        --host 127.0.0.1 --model served/model
"""

import argparse
import json
import random
import string
import urllib.error
import urllib.request


def hinted(number: int, width: int) -> str:
    """Return a number with a letter before each digit, the least significant digit first: 12 is a2b1."""
    return "".join(
        letter + digit for letter, digit in zip(string.ascii_letters, f"{number:0{width}}"[::-1], strict=False)
    )


def read(text: str) -> str:
    """Return the number of an answer with letters or without."""
    text = text.strip()
    if not text[:1].isalpha():
        return text
    digits = [character for character in text if character.isdigit()]
    return "".join(reversed(digits)).lstrip("0") or "0"


def complete(server: str, prompts: list[str], max_tokens: int) -> list[str]:
    """Return a greedy completion of each prompt."""
    asked = {"model": "sector", "prompt": prompts, "temperature": 0, "max_tokens": max_tokens, "stop": ["\n"]}
    request = urllib.request.Request(
        f"{server}/v1/completions", json.dumps(asked).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request) as reply:
            choices = json.load(reply)["choices"]
    except urllib.error.URLError as error:
        told = f"no answer from {server}: {error.reason}; start the server first, as above in this file"
        raise SystemExit(told) from None
    return [choice["text"] for choice in sorted(choices, key=lambda choice: choice["index"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8000")
    parser.add_argument("--digits", type=int, nargs="+", default=[1, 5, 10, 15, 20, 25, 29])
    parser.add_argument("--hints", action="store_true", help="write letters before digits")
    parser.add_argument("--small", action="store_true", help="ask 4 problems per length instead of 100")
    options = parser.parse_args()
    draws = random.Random(0)
    for digits in options.digits:
        pairs = [[draws.randrange(10**digits) for _ in "ab"] for _ in range(4 if options.small else 100)]
        if options.hints:
            prompts = [f"{hinted(first, digits + 1)}+{hinted(second, digits + 1)}+a0=" for first, second in pairs]
        else:
            prompts = [f"{first}+{second}=" for first, second in pairs]
        answers = complete(options.server, prompts, (digits + 2) * (2 if options.hints else 1))
        right = sum(read(answer) == str(sum(pair)) for pair, answer in zip(pairs, answers, strict=True))
        print(f"{digits:4} {'#' * round(50 * right / len(pairs))} {right} of {len(pairs)}")


if __name__ == "__main__":
    main()
