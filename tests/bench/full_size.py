#!/usr/bin/env python3
"""A model of a family's published size with random weights: whether c3pod loads it, what that takes, and that it answers.

    full_size.py olmoe-1b-7b|deepseek-moe-16b [--layers N] [--folder DIR] [--tokenizer FILE] [--bin DIR] [--keep]
                                           [--device cpu|cuda] [--arithmetic auto|float32|bfloat16]
                                           [--weights auto|float32|bfloat16|int8|int4]
                                           [--llama-bench PROGRAM --gguf FILE]

Writes bfloat16 shards (14 GB and 33 GB; --layers keeps the first N layers where the disk or the memory is too small), reads them once to
know the disk's speed, starts c3pod on them, generates with and without C3PO, and prints load time against that speed and peak memory
against the bytes of the weights as they are held. The weights are random, the answers nonsense. With --folder of a model that is there, as `c3po model
quantize` writes one, it is measured as it is. --llama-bench measures prefill and decode of llama.cpp's file of the same model afterwards, by as many
threads. The folder is removed unless --keep. Needs the Python of
deploy/install_deps.sh with numpy (that of the goldens has it).
"""

import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time

import numpy

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "tests" / "bench" / "peers"))

import model_folder

SHARD_BYTES = 4 << 30
KV_CACHE_TOKENS = 2048
NEW_TOKENS = 64

OLMOE = {**model_folder.SHAPE, "num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 1024, "num_experts": 64,
         "num_attention_heads": 16, "num_key_value_heads": 16}
DEEPSEEK = {"architectures": ["DeepseekForCausalLM"], "model_type": "deepseek", "num_hidden_layers": 28, "hidden_size": 2048,
            "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
            "num_experts_per_tok": 6, "first_k_dense_replace": 1, "moe_layer_freq": 1, "norm_topk_prob": False,
            "scoring_func": "softmax", "num_attention_heads": 16, "num_key_value_heads": 16, "vocab_size": 102400,
            "max_position_embeddings": 4096, "attention_bias": False, "hidden_act": "silu", "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
            "rope_scaling": None, "tie_word_embeddings": False, "bos_token_id": 100000, "eos_token_id": 100001,
            "torch_dtype": "bfloat16"}
CONFIGS = {"olmoe-1b-7b": OLMOE, "deepseek-moe-16b": DEEPSEEK}


def gated(name, inner, hidden):
    return {f"{name}.gate_proj.weight": (inner, hidden), f"{name}.up_proj.weight": (inner, hidden),
            f"{name}.down_proj.weight": (hidden, inner)}


def deepseek_shapes(config):
    """Name to shape of every tensor of a DeepSeekMoE checkpoint, in the order of the layers."""
    hidden, vocabulary, inner = config["hidden_size"], config["vocab_size"], config["moe_intermediate_size"]
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        shapes |= {f"{layer}.{norm}.weight": (hidden,) for norm in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}.self_attn.{name}_proj.weight": (hidden, hidden) for name in "qkvo"}
        if index < config["first_k_dense_replace"]:
            shapes |= gated(f"{layer}.mlp", config["intermediate_size"], hidden)
            continue
        shapes[f"{layer}.mlp.gate.weight"] = (config["n_routed_experts"], hidden)
        for expert in range(config["n_routed_experts"]):
            shapes |= gated(f"{layer}.mlp.experts.{expert}", inner, hidden)
        shapes |= gated(f"{layer}.mlp.shared_experts", inner * config["n_shared_experts"], hidden)
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def tensor_shapes(config):
    return model_folder.tensor_shapes(config) if config["model_type"] == "olmoe" else deepseek_shapes(config)


def shards_of(shapes):
    """The tensors in parts of at most SHARD_BYTES."""
    shards, bytes_left = [], 0
    for name, shape in shapes.items():
        if model_folder.bytes_of(shape) > bytes_left:
            shards.append({})
            bytes_left = SHARD_BYTES
        shards[-1][name] = shape
        bytes_left -= model_folder.bytes_of(shape)
    return shards


def write_shard(path, shapes, noise, generator):
    """One safetensors file. The values of a tensor are a stretch of `noise` from a random place: as good as fresh ones here, and as
    fast as the disk."""
    ones = numpy.full(1 << 15, 0x3F80, "<u2")
    with open(path, "wb") as file:
        model_folder.write_header(file, shapes)
        for name, shape in shapes.items():
            left = model_folder.bytes_of(shape) // 2
            if "norm" in name:
                file.write(ones[:left].tobytes())
                continue
            while left > 0:
                begin = int(generator.integers(0, len(noise) - 1))
                stretch = noise[begin:begin + left]
                file.write(stretch.tobytes())
                left -= len(stretch)


def write_folder(folder, config, tokenizer):
    folder.mkdir(parents=True)
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    shapes = tensor_shapes(config)
    shards = shards_of(shapes)
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    generator = numpy.random.default_rng(1)
    values = (generator.standard_normal(1 << 24, numpy.float32) * 0.02).astype("<f4").view("<u4")
    noise = (values >> 16).astype("<u2")
    for name, shard in zip(names, shards):
        write_shard(folder / name, shard, noise, generator)
    (folder / "model.safetensors.index.json").write_text(json.dumps(
        {"metadata": {"total_size": sum(map(model_folder.bytes_of, shapes.values()))},
         "weight_map": {tensor: name for name, shard in zip(names, shards) for tensor in shard}}))
    return sum(map(model_folder.bytes_of, shapes.values()))


def read_seconds(folder):
    """How long the disk takes to give all shards, none of them in memory before."""
    paths = sorted(folder.glob("*.safetensors"))
    for path in paths:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    start = time.monotonic()
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(BUFFER):
                pass
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return time.monotonic() - start


BUFFER = bytearray(64 << 20)


def status_gb(pid, field):
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024 / 1e9
    raise RuntimeError(f"no {field} in the process's status")


def run_server(arguments, folder):
    """Loads, asks, and returns {what: value} of it."""
    log_path = folder / "c3pod.log"
    figures = {}
    with log_path.open("w") as log:
        start = time.monotonic()
        server = subprocess.Popen(
            [arguments.bin / "c3pod", "--model", folder, "--embedder", "model", "--store", folder / "store.db", "--listen", "127.0.0.1:0",
             "--metrics-port", "-1", "--kv-cache-tokens", str(KV_CACHE_TOKENS), "--neighbor-cache-mb", "64", "--device", arguments.device,
             "--arithmetic", arguments.arithmetic, "--weights", arguments.weights], stderr=log)
    try:
        address = None
        while address is None:
            if server.poll() is not None:
                raise SystemExit(f"c3pod did not start:\n{log_path.read_text()}")
            time.sleep(0.05)
            for line in log_path.read_text().splitlines():
                event = json.loads(line) if line.startswith("{") and line.endswith("}") else {}
                if event.get("event") == "model_loaded":
                    figures["held_gb"] = event["weight_bytes"] / 1e9
                if event.get("event") == "serving":
                    address = event["address"]
        figures["load_seconds"] = time.monotonic() - start
        figures["resident_gb_after_load"] = status_gb(server.pid, "VmRSS")

        def c3po(*words):
            done = subprocess.run([arguments.bin / "c3po", "--server", address, *words], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"c3po {' '.join(words)}: {done.stderr}")
            return [json.loads(line) for line in done.stdout.splitlines()]

        samples = folder / "samples.jsonl"
        samples.write_text("".join(json.dumps({"prompt": f"What is {i} modulo seven?", "answer": f" {i % 7}"}) + "\n" for i in range(4)))
        subprocess.run([arguments.bin / "c3po", "--server", address, "refs", "import", samples, "--collection", "set"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for method in ("none", "ngd"):
            words = ("ask", "What is 12 modulo seven?", "--method", method, "--collection", "set", "--references", "all", "--no-gate",
                     "--max-tokens", str(NEW_TOKENS), "--ignore-eos", "--json")
            c3po(*words)  # The first touches what the next finds in memory.
            timings = c3po(*words)[-1]["summary"]["timings"]
            figures[f"{method}_first_token_seconds"] = timings["time_to_first_token_seconds"]
            figures[f"{method}_tokens_per_second"] = (NEW_TOKENS - 1) / timings["decode_seconds"]
            figures[f"{method}_optimization_seconds"] = timings["optimization_seconds"]
        figures["peak_gb"] = status_gb(server.pid, "VmHWM")
        figures["peak_own_gb"] = status_gb(server.pid, "RssAnon")
    finally:
        server.terminate()
        figures["exit_code"] = server.wait(timeout=120)
    return figures


def llama_cpp(program, gguf):
    """Tokens per second of llama.cpp's own benchmark, at its middle of three."""
    done = subprocess.run([program, "--model", gguf, "--threads", str(len(os.sched_getaffinity(0))), "--n-prompt", "64", "--n-gen", str(NEW_TOKENS),
                           "--repetitions", "3", "--output", "json"], capture_output=True, text=True, check=True)
    rates = {bool(run["n_gen"]): sorted(run["samples_ts"])[1] for run in json.loads(done.stdout)}
    return {"llama_cpp_tokens_per_second": rates[True], "llama_cpp_prefill_tokens_per_second": rates[False]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cache = pathlib.Path(os.environ.get("C3PO_CACHE_DIR") or pathlib.Path.home() / ".cache" / "c3po")
    parser.add_argument("model", choices=sorted(CONFIGS))
    parser.add_argument("--layers", type=int)
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--tokenizer", type=pathlib.Path, default=cache / "downloads" / "gpt-neox-olmo-dolma-v1_5.json")
    parser.add_argument("--bin", type=pathlib.Path, default=SOURCE / "build" / "release" / "bin")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--arithmetic", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--weights", default="auto", choices=("auto", "float32", "bfloat16", "int8", "int4"))
    parser.add_argument("--llama-bench", type=pathlib.Path, help="llama.cpp's llama-bench, to run beside")
    parser.add_argument("--gguf", type=pathlib.Path, help="the file for it")
    arguments = parser.parse_args()
    if (arguments.llama_bench is None) != (arguments.gguf is None):
        parser.error("--llama-bench and --gguf go together")
    config = dict(CONFIGS[arguments.model])
    config["num_hidden_layers"] = arguments.layers or config["num_hidden_layers"]
    folder = arguments.folder or pathlib.Path(tempfile.mkdtemp(prefix="c3po_full_size_")) / arguments.model
    try:
        if not folder.exists():
            start = time.monotonic()
            write_folder(folder, config, arguments.tokenizer)
            print(f"written in {time.monotonic() - start:.0f} s", flush=True)
        files_gb = sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 1e9
        disk_seconds = read_seconds(folder)
        figures = run_server(arguments, folder)
        kv_heads, head = config["num_key_value_heads"], config["hidden_size"] // config["num_attention_heads"]
        kv_gb = 2 * 2 * config["num_hidden_layers"] * kv_heads * head * KV_CACHE_TOKENS / 1e9
        figures |= {"model": arguments.model, "layers": config["num_hidden_layers"], "files_gb": files_gb, "kv_cache_gb": kv_gb,
                    "disk_read_seconds": disk_seconds, "disk_gb_per_second": files_gb / disk_seconds,
                    "load_over_read": figures["load_seconds"] / disk_seconds,
                    "peak_over_weights_and_kv": figures["peak_gb"] / (figures["held_gb"] + kv_gb)}
        if arguments.llama_bench:
            figures |= llama_cpp(arguments.llama_bench, arguments.gguf)
        print(json.dumps(figures, indent=1))
        return figures["exit_code"]
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
