#!/usr/bin/env python3
"""This project's server beside llama.cpp's, vLLM's (CPU build) and transformers, on one model and one machine, in turns: A B A B ...,
the others paused. Prints a Markdown table of medians and ratios, how far the marks are reached, and what C3PO adds to a request.
README.md beside this file says how to get the peers; one that is not there is left out, and the table says so.

    TOOLS/bin/python tests/bench/peers.py [--model DIR] [--rounds 5] [--threads 2] [--out FILE] ...

TOOLS is the folder of deploy/install_deps.sh's Python tools. Without --model a random-weight model in OLMoE's shape is made in
the cache: 12 layers, hidden 512, 32 experts of 256, top-8.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
SOURCE = HERE.parents[1]
sys.path[:0] = [str(HERE / "peers"), str(SOURCE / "tests" / "integration")]

import measurement
import model_folder
import peer_catalog
import report


def read_arguments(words=None) -> argparse.Namespace:
    cache = pathlib.Path(os.environ.get("C3PO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "c3po")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=pathlib.Path, default=cache / "bench", help="where the model is made and converted")
    parser.add_argument("--model", type=pathlib.Path, help="Hugging Face folder; default: the OLMoE-shaped one")
    parser.add_argument("--tokenizer", type=pathlib.Path, default=cache / "downloads" / "gpt-neox-olmo-dolma-v1_5.json",
                        help="tokenizer.json for the OLMoE-shaped model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bits", type=int, choices=sorted(peer_catalog.WEIGHTS), default=16,
                        help="of the weights: 8 and 4 are int8 and int4 here, Q8_0 and Q4_K_M in llama.cpp (default: %(default)s)")
    parser.add_argument("--peers", default=",".join(peer_catalog.NAMES), help="which of them, if found (default: %(default)s)")
    parser.add_argument("--c3pod", default=str(SOURCE / "build" / "release" / "bin" / "c3pod"))
    parser.add_argument("--llama-server", help="llama.cpp's server (default: llama-server on PATH)")
    parser.add_argument("--llama-convert", help="llama.cpp's convert_hf_to_gguf.py, for a model that has no .gguf beside it yet")
    parser.add_argument("--llama-quantize", help="llama.cpp's llama-quantize, for --bits where no such .gguf is there yet")
    parser.add_argument("--llama-python", help="interpreter for that (default: that of transformers)")
    parser.add_argument("--llama-version", help="what to call it, where its build does not know (default: what it says)")
    parser.add_argument("--vllm-python", help="interpreter of an environment with vLLM (default: vllm on PATH)")
    parser.add_argument("--vllm-dtype", default="bfloat16")
    parser.add_argument("--transformers-python", help="interpreter of an environment with transformers and torch")
    parser.add_argument("--transformers-dtype", default="bfloat16")
    parser.add_argument("--no-c3po-cost", action="store_true", help="leave out what C3PO adds to a request")
    parser.add_argument("--out", type=pathlib.Path, help="write the Markdown here, too")
    parser.add_argument("--json", type=pathlib.Path, help="write every value here")
    arguments = parser.parse_args(words)
    unknown = set(arguments.peers.split(",")) - set(peer_catalog.NAMES)
    if unknown or arguments.rounds < 1 or not 1 <= arguments.threads <= len(os.sched_getaffinity(0)):
        parser.error(f"no such peers: {', '.join(unknown)}" if unknown else "--rounds from 1, --threads from 1 to the number of cores")
    arguments.cache = arguments.cache.resolve()
    arguments.model = (arguments.model or model_folder.olmoe_shaped(arguments.cache, arguments.tokenizer)).resolve()
    return arguments


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def start_peers(arguments, folder: pathlib.Path, stubs: dict) -> tuple:
    """The peers that came up, by name, each paused so that the next loads alone; and lines about those that did not."""
    peers, left_out = {}, []
    for name in peer_catalog.NAMES:
        if name not in arguments.peers.split(","):
            continue
        try:
            peer = peer_catalog.MAKERS[name](arguments, folder, stubs)
            tell(f"starting {name}: {peer.shown_command(arguments)}")
            peer.start(folder)
            peer.process.pause()
            peers[name] = peer
        except (peer_catalog.peer_process.PeerFailed, subprocess.SubprocessError, OSError) as error:
            tell(f"{name} is left out: {error}")
            left_out.append(f"{peer_catalog.NAMES[name]} is left out: {str(error).splitlines()[0]}.")
        except BaseException:
            stop_peers(peers)
            raise
    return peers, left_out


def stop_peers(peers: dict) -> None:
    for peer in peers.values():
        peer.process.stop()


def kv_bytes(model: pathlib.Path) -> int:
    """Of this project's cache: keys and values of every position, in bfloat16 as the models that are compared."""
    config = json.loads((model / "config.json").read_text())
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return peer_catalog.POSITIONS * config["num_hidden_layers"] * 2 * config["num_key_value_heads"] * head * 2


def markdown(arguments, peers: dict, left_out: list, values: dict, cost: dict, machine: str) -> str:
    weights = model_folder.weights_bytes(arguments.model) if arguments.bits == 16 else None  # Quantized, each has its own.
    parts = [f"`{arguments.model.name}`, weights of {arguments.bits} bits, {arguments.rounds} rounds, {arguments.threads} threads each. {machine}.",
             report.table(values, weights), *left_out]
    if "c3po" in values:
        encoder = peer_catalog.embedder(arguments)
        bytes_of = weights and {"weights": weights, "encoder": model_folder.weights_bytes(encoder) if encoder else 0,
                                "kv": kv_bytes(arguments.model)}
        parts.append(report.marks_table(values, bytes_of, cost, arguments.bits))
    if cost:
        parts.append(report.cost_table(cost))
    commands = [f"- {peer_catalog.NAMES[name]}, {peer.version}: `{peer.shown_command(arguments)}`" for name, peer in peers.items()]
    parts.append("\n".join(commands))
    return "\n\n".join(part for part in parts if part) + "\n"


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # By way of `finally`: no server is left behind.
    arguments = read_arguments()
    import server_process  # Needs grpcio, which only a run with servers does.
    machine = report.machine()
    with tempfile.TemporaryDirectory(prefix="c3po_peers_") as name:
        folder = pathlib.Path(name)
        prompts = model_folder.Prompts(arguments.model)
        peers, left_out = start_peers(arguments, folder, server_process.make_stubs())
        try:
            values = measurement.take_turns(peers, prompts, arguments.rounds, tell)
            left_out += [f"{peer_catalog.NAMES[name]} failed while it was measured." for name in peers if name not in values]
            for name in values:
                values[name][measurement.RESIDENT_LOADED.name] = [peers[name].resident_loaded / 1e6]
                values[name][measurement.RESIDENT_END.name] = [peers[name].process.resident_bytes() / 1e6]
            others = {name: peer.process for name, peer in peers.items() if name != "c3po"}
            cost = {}
            if "c3po" in values and not arguments.no_c3po_cost:
                cost = measurement.c3po_cost(peers["c3po"], others, prompts, arguments.rounds)
        finally:
            stop_peers(peers)
    text = markdown(arguments, peers, left_out, values, cost, machine)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)
    if arguments.json:
        arguments.json.write_text(json.dumps({"values": values, "cost": cost}, indent=1))
    return 0 if values else 1


if __name__ == "__main__":
    sys.exit(main())
