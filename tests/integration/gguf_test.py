"""A model out of a GGUF file in two parts: it answers, token by token, as the Hugging Face folder that it was made of, and c3pod and c3po
inspect it. usage: gguf_test.py C3POD C3PO"""

import json
import pathlib
import struct
import subprocess
import sys
import unittest

import server_process
from service_calls import gen, pb, tokens_of

BINARY, CLIENT = sys.argv.pop(1), sys.argv.pop(1)
FOLDER = server_process.SOURCE / "tests" / "golden" / "model" / "mixtral_tiny"
ALIGNMENT = 32


def safetensors(path: pathlib.Path) -> dict:
    """(shape, bytes) by name, of float32."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = {name: field for name, field in json.loads(content[8:8 + length]).items() if name != "__metadata__"}
    begin = 8 + length
    return {name: (field["shape"], content[begin + field["data_offsets"][0]:begin + field["data_offsets"][1]]) for name, field in header.items()}


def text(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def entry(key: str, value) -> bytes:
    """A metadata entry: uint32, float32, a text, or a list of texts or of int32."""
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5
        body = b"".join(text(item) if kind == 8 else struct.pack("<i", item) for item in value)
        return text(key) + struct.pack("<IIQ", 9, kind, len(value)) + body
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    if isinstance(value, float):
        return text(key) + struct.pack("<If", 6, value)
    return text(key) + struct.pack("<II", 4, value)


def write_gguf(path: pathlib.Path, metadata: dict, tensors: dict) -> None:
    """Tensors of float32."""
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)) + b"".join(entry(*pair) for pair in metadata.items())
    data = b""
    for name, (shape, content) in tensors.items():
        header += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", size) for size in reversed(shape))
        header += struct.pack("<IQ", 0, len(data))
        data += content + b"\0" * (-len(content) % ALIGNMENT)
    path.write_bytes(header + b"\0" * (-len(header) % ALIGNMENT) + data)


def as_pairs(shape, content, heads):
    """Rows of each head from halves to interleaved pairs, as llama.cpp's converter stores them for its architecture llama."""
    row = len(content) // shape[0]
    size = shape[0] // heads
    order = [head * size + half * size // 2 + i for head in range(heads) for i in range(size // 2) for half in range(2)]
    return shape, b"".join(content[r * row:(r + 1) * row] for r in order)


def llama_tensors(folder: pathlib.Path, config: dict) -> dict:
    stored = safetensors(folder / "model.safetensors")
    tensors = {"token_embd.weight": stored["model.embed_tokens.weight"], "output_norm.weight": stored["model.norm.weight"]}
    if "lm_head.weight" in stored:
        tensors["output.weight"] = stored["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        ours, theirs = f"blk.{layer}.", f"model.layers.{layer}."
        for name, other in (("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"), ("attn_v", "self_attn.v_proj"),
                            ("attn_output", "self_attn.o_proj"), ("ffn_gate_inp", "block_sparse_moe.gate")):
            tensors[f"{ours}{name}.weight"] = stored[f"{theirs}{other}.weight"]
        for name, heads in (("q", config["num_attention_heads"]), ("k", config["num_key_value_heads"])):
            tensors[f"{ours}attn_{name}.weight"] = as_pairs(*stored[f"{theirs}self_attn.{name}_proj.weight"], heads)
        for name, other in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            experts = [stored[f"{theirs}block_sparse_moe.experts.{e}.{other}.weight"] for e in range(config["num_local_experts"])]
            tensors[f"{ours}ffn_{name}_exps.weight"] = ([len(experts), *experts[0][0]], b"".join(content for _, content in experts))
    return tensors


def llama_metadata(config: dict, tokenizer: dict) -> dict:
    pieces = {index: piece for piece, index in tokenizer["model"]["vocab"].items()}
    pieces.update({token["id"]: token["content"] for token in tokenizer["added_tokens"]})
    special = {token["id"] for token in tokenizer["added_tokens"]}
    return {"general.architecture": "llama", "llama.block_count": config["num_hidden_layers"],
            "llama.context_length": config["max_position_embeddings"], "llama.embedding_length": config["hidden_size"],
            "llama.feed_forward_length": config["intermediate_size"], "llama.attention.head_count": config["num_attention_heads"],
            "llama.attention.head_count_kv": config["num_key_value_heads"], "llama.rope.freq_base": float(config["rope_theta"]),
            "llama.attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "llama.expert_count": config["num_local_experts"],
            "llama.expert_used_count": config["num_experts_per_tok"], "llama.vocab_size": config["vocab_size"],
            "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": [pieces[i] for i in range(len(pieces))],
            "tokenizer.ggml.token_type": [3 if i in special else 1 for i in range(len(pieces))],
            "tokenizer.ggml.eos_token_id": config["eos_token_id"]}


class GgufTest(unittest.TestCase):
    def setUp(self):
        self.folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, self.folder)
        config = json.loads((FOLDER / "config.json").read_text())
        self.metadata = llama_metadata(config, json.loads((FOLDER / "tokenizer.json").read_text()))
        self.tensors = llama_tensors(FOLDER, config)

    def write_parts(self) -> pathlib.Path:
        """The path of the first."""
        names = list(self.tensors)
        halves = names[:len(names) // 2], names[len(names) // 2:]
        for number, half in enumerate(halves):
            split = {"split.no": number, "split.count": 2, "split.tensors.count": len(names)}
            write_gguf(self.folder / f"tiny-0000{number + 1}-of-00002.gguf", {**(self.metadata if number == 0 else {}), **split},
                       {name: self.tensors[name] for name in half})
        return self.folder / "tiny-00001-of-00002.gguf"

    def answers(self, model: pathlib.Path):
        """The model's name, and the greedy tokens of some prompts."""
        folder = self.folder / f"served-{model.name}"
        folder.mkdir()
        server = server_process.ServerProcess(BINARY, folder, "--dtype", "float32", model=model)
        self.addCleanup(server.process.kill)
        with server.channel() as channel:
            stub = pb["generation_pb2_grpc"].GenerationServiceStub(channel)
            tokens = []
            for prompt in ("Q", "Answer:", "Question: how many legs has a <|user|>cat é"):
                request = gen.GenerateRequest(prompt=prompt)
                request.sampling.max_tokens = 24
                tokens.append(tokens_of(stub.Generate(request, timeout=60)))
        loaded = server.logged(event="model_loaded")[0]
        self.assertEqual(server.stop(), 0)
        return loaded["name"], tokens

    def test_a_split_file_answers_as_the_folder_that_it_was_made_of(self):
        name, tokens = self.answers(self.write_parts())
        self.assertEqual(name, "tiny")
        self.assertTrue(all(tokens))
        self.assertEqual(tokens, self.answers(FOLDER)[1])

    def test_inspect_tells_what_a_file_is_or_why_it_would_not_load(self):
        card = json.loads(subprocess.run([CLIENT, "model", "inspect", self.write_parts(), "--json", "--c3pod", BINARY], capture_output=True,
                                         text=True, timeout=60, check=True).stdout)
        self.assertEqual((card["loads"], card["name"]), (True, "tiny"), card)
        self.metadata["llama.attention.sliding_window"] = 64
        path = self.folder / "other.gguf"
        write_gguf(path, self.metadata, self.tensors)
        done = subprocess.run([BINARY, "inspect", path, "--json"], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn('other.gguf: key "llama.attention.sliding_window" is not supported', "\n".join(json.loads(done.stdout)["problems"]))
        server = subprocess.run([BINARY, "--model", path, "--embedder", "model", "--store", self.folder / "store.db", "--listen",
                                 "127.0.0.1:0", "--metrics-port", "-1"], capture_output=True, text=True, timeout=60, check=False)
        self.assertNotEqual(server.returncode, 0)
        self.assertIn("llama.attention.sliding_window", server.stderr)


if __name__ == "__main__":
    unittest.main()
