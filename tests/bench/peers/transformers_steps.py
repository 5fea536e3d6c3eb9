#!/usr/bin/env python3
"""transformers' prefill and decode steps on a model folder, as c3po_bench_scaling measures ours: the passes alone, without a server.
Run by the interpreter of an environment that has torch and transformers.

    transformers_steps.py FOLDER [--device cuda] [--dtype bfloat16] [--rounds 5] [--prompt-tokens 16,64,512] [--sequences 1,8,32]

A step is one pass and the last token's logits on the host. Prints Markdown tables of medians; rounds go through all sizes in turn.
"""

import argparse
import statistics
import time

import torch
import transformers

CONTEXT = 64  # tokens of each sequence before it decodes
DECODE_STEPS = 8


def integers(text):
    return [int(part) for part in text.split(",")]


class Steps:
    def __init__(self, arguments):
        self.model = transformers.AutoModelForCausalLM.from_pretrained(
            arguments.folder, dtype=getattr(torch, arguments.dtype)).to(arguments.device).eval()
        self.device = arguments.device
        self.generator = torch.Generator().manual_seed(1)

    def random_tokens(self, sequences, tokens):
        return torch.randint(self.model.config.vocab_size, (sequences, tokens), generator=self.generator)

    def run(self, tokens, cache=None):
        """Seconds of a pass, and the cache behind it."""
        start = time.monotonic()
        out = self.model(tokens.to(self.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        out.logits.float().cpu()
        return time.monotonic() - start, out.past_key_values

    def prefill(self, tokens):
        return self.run(self.random_tokens(1, tokens))[0]

    def decode(self, sequences):
        _, cache = self.run(self.random_tokens(sequences, CONTEXT))
        return statistics.median(self.run(self.random_tokens(sequences, 1), cache)[0] for _ in range(DECODE_STEPS))


def medians(sizes, rounds, measure):
    measure(sizes[0])  # The first pass of all makes what the others find.
    seconds = {size: [] for size in sizes}
    for _ in range(rounds):
        for size in sizes:
            seconds[size].append(measure(size))
    return {size: statistics.median(values) for size, values in seconds.items()}


def table(title, size, rows):
    print(f"\n{title}\n\n| {size} | ms | tokens/s |\n|---|---|---|")
    for count, tokens, seconds in rows:
        print(f"| {count} | {seconds * 1e3:.2f} | {tokens / seconds:.1f} |", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=integers, default=[16, 64, 512])
    parser.add_argument("--sequences", type=integers, default=[1, 8, 32])
    arguments = parser.parse_args()
    with torch.inference_mode():
        steps = Steps(arguments)
        print(f"transformers {transformers.__version__}, torch {torch.__version__}, {arguments.dtype} on {arguments.device}, "
              f"medians of {arguments.rounds} rounds.")
        prefill = medians(arguments.prompt_tokens, arguments.rounds, steps.prefill)
        table("Prefill of one prompt in one pass:", "prompt tokens", [(n, n, prefill[n]) for n in prefill])
        decode = medians(arguments.sequences, arguments.rounds, steps.decode)
        table(f"One decode step, every sequence after {CONTEXT} tokens:", "sequences", [(n, n, decode[n]) for n in decode])


if __name__ == "__main__":
    main()
