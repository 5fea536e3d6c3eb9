#!/usr/bin/env python3
"""Generates answers to many prompts at once in one event loop, and prints each as JSON when it is whole: {"line", "prompt", "text"}.
Needs c3po-client: pip install ./client/python
  concurrent_generation.py prompts.txt --concurrency 16 --max-tokens 64
A prompt a line, "-" is stdin. The server batches what runs together; RESOURCE_EXHAUSTED is waited out as it says.
"""

import argparse
import asyncio
import json
import sys

from c3po_client import AsyncClient, C3poError, CallError


async def answer(client, room, line, prompt, arguments):
    async with room:
        async with client.generate(prompt, sampling={"max_tokens": arguments.max_tokens},
                                   optimization={"collection": arguments.collection}) as generation:
            text = await generation.text()
    print(json.dumps({"line": line, "prompt": prompt, "text": text}, ensure_ascii=False), flush=True)


async def run(prompts, arguments):
    room = asyncio.Semaphore(arguments.concurrency)
    async with AsyncClient.from_environment(arguments.server) as client:
        tasks = [asyncio.ensure_future(answer(client, room, line, prompt, arguments)) for line, prompt in prompts]
        try:
            await asyncio.gather(*tasks)
        finally:  # The first failure, or Ctrl-C, cancels the calls that are under way.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prompts", help="file with a prompt a line, or -")
    parser.add_argument("--server", help="HOST:PORT; default: $C3PO_SERVER, 127.0.0.1:50051")
    parser.add_argument("--collection", default="default")
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--concurrency", type=int, default=16, help="calls at a time")
    arguments = parser.parse_args()
    try:
        with open(0 if arguments.prompts == "-" else arguments.prompts, encoding="utf-8") as file:
            prompts = [(number, line.rstrip("\n")) for number, line in enumerate(file, 1) if line.strip()]
        asyncio.run(run(prompts, arguments))
    except (C3poError, OSError) as error:
        print(f"concurrent_generation.py: {error}", file=sys.stderr)
        return error.exit_code if isinstance(error, CallError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
