"""Makes answers.json, rows.safetensors and readouts.safetensors: what llama.cpp answers from tiny models of every architecture that c3po
reads out of GGUF files, with weights of every type.

1. Each model is a Hugging Face folder that llama.cpp's converter turns into GGUF, with the tokenizer of NAME.vocabulary.gguf. Its matrices
   are those of assembled_gguf.py. Which element of a Hugging Face tensor a GGUF tensor has where, is found by converting a folder of
   numbered elements. So the converter's file is the assembled one, and that is asserted.
2. llama_model_quantize, what llama-quantize calls, makes a file of each type (`pure`), and a mixture Q4_K_M of one model. The assembled
   file of the type has the same tensors, byte by byte, and that is asserted.
3. Random weights have no margins, so the LM head is fitted: ridge regression over llama.cpp's final states, of all types, onto the tokens
   of ANSWERS, with more weight, round by round, on states of small margins. Everything below the LM head stays random, and a fault in it
   gives states that the LM head was not fitted for. Faults that are asserted to move a logit by more than FAULT: a tenth of the rotary
   base, one expert less, gate and up exchanged, another epsilon of the norms.
4. llama.cpp gives the ids of the prompts and, greedily, the tokens of the answers, with its defaults on the CPU: activations in 8 bits
   beside quantized weights, keys and values in float16, flash attention. `margin` is the least difference between the best and the second
   logit at any step; `deviation` the largest difference in a logit to llama.cpp on the same weights as float32, all else in float32 too.
   A margin of MARGIN deviations is asserted. `log_probabilities` are those of the tokens by the latter.

    CMAKE_ARGS="-DLLAVA_BUILD=OFF" pip install llama-cpp-python==0.3.36
    python make_gguf_answers.py FOLDER_OF_LLAMA_CPP   (see make_gguf_models.py; needs what make_gguf_tokenizers.py does, and torch)
Other processors, other last bits: the readouts then differ a little, the tokens do not.
"""

import ctypes
import importlib.metadata
import json
import logging
import pathlib
import shutil
import sys
import tempfile

import llama_cpp
import llama_cpp._ggml
import numpy
import safetensors.numpy

HERE = pathlib.Path(__file__).resolve().parent
LLAMA = pathlib.Path(sys.argv[1]).resolve()
sys.path[:0] = [str(HERE.parent), str(HERE), str(LLAMA), str(LLAMA / "gguf-py")]  # The converter needs the gguf beside it.
import convert_hf_to_gguf as converter  # noqa: E402
import gguf  # noqa: E402

import assembled_gguf as assembled  # noqa: E402
import make_gguf_models as models  # noqa: E402
import make_gguf_tokenizers as tokenizers  # noqa: E402
from llama_reader import QUIET, THREADS, LlamaReader  # noqa: E402

MARGIN = 4
FAULT = 0.1
RIDGE = 1e-2  # Of the mean eigenvalue.
ROUNDS = 30
SCALE = 6.0  # Of a fitted logit: low, so that log-probabilities tell of faults too.
models.D, models.F, models.LAYERS, models.EXPERTS, models.HEADS = 256, 256, 2, 4, 4
SIZES = dict(hidden_size=256, num_attention_heads=4, num_hidden_layers=2, num_key_value_heads=2, tie_word_embeddings=False)
DEEPSEEK = dict(intermediate_size=256, moe_intermediate_size=256, num_key_value_heads=4)
BYTE_LEVEL = dict(eos_token_id=2, bos_token_id=1)
# Architecture: family of make_gguf_models.py, vocabulary, `pre` if another, and what differs in its configuration.
MODELS = {
    "olmoe": ("olmoe", "byte_level", "olmo", dict(intermediate_size=256, num_key_value_heads=4, **BYTE_LEVEL)),  # llama.cpp knows no others.
    "qwen2moe": ("qwen2_moe", "qwen", None, dict(intermediate_size=256, moe_intermediate_size=256, shared_expert_intermediate_size=256,
                                                 eos_token_id=1002)),
    "qwen3moe": ("qwen3_moe", "qwen", None, dict(intermediate_size=256, moe_intermediate_size=256, head_dim=64, eos_token_id=1002)),
    "deepseek": ("deepseek", "deepseek", None, dict(DEEPSEEK, bos_token_id=1000, eos_token_id=1001)),
    "deepseek2": ("deepseek_v2", "deepseek", None, dict(DEEPSEEK, q_lora_rank=256, kv_lora_rank=256, qk_nope_head_dim=64, qk_rope_head_dim=32,
                                                        v_head_dim=64, bos_token_id=1000, eos_token_id=1001)),
    "llama": ("mixtral", "sentence_piece", None, dict(intermediate_size=256, bos_token_id=1, eos_token_id=2)),
    "granitemoe": ("granite_moe", "byte_level", "refact", dict(intermediate_size=256, embedding_multiplier=1.5, residual_multiplier=0.75,
                                                               logits_scaling=2.0, **BYTE_LEVEL)),
}
TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7, "Q4_0": 2, "Q4_1": 3, "Q5_0": 8, "Q5_1": 9, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}  # llama_ftype.
MIXTURE = ("olmoe", "Q4_K_M", 15)
F16 = 1  # ggml_type.
ANSWERS = {
    "Question: What do bees make of 12 flowers?\nAnswer:": " Honey, in six to eight weeks.",
    "The street (Stra\u00dfe) isn't far, na\u00efve tourist: \u6771\u4eac 1984?": " No, 25 km!",
    "Once upon a time there was": " a fox who couldn't sleep.",
}


def make_rows():
    """The 128 chunks in every type with blocks, by ggml_quantize_chunk."""
    values = numpy.array([assembled.row_values(i) for i in range(assembled.ROWS)], dtype=numpy.float32)
    base = llama_cpp._ggml.libggml
    base.ggml_quantize_chunk.restype = ctypes.c_size_t
    base.ggml_quantize_chunk.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p]
    rows = {}
    for name, (number, block, size, halves) in assembled.TYPES.items():
        for factor, suffix in ((1, ""), (16, ".large")):
            if not halves or factor > 1 and name not in assembled.LARGE:
                continue
            source = values * numpy.float32(factor)
            content = numpy.empty((assembled.ROWS, assembled.CHUNK // block * size), dtype=numpy.uint8)
            assert base.ggml_quantize_chunk(number, source.ctypes.data, content.ctypes.data, 0, *source.shape, None) == content.nbytes
            rows[name + suffix] = content
    safetensors.numpy.save_file(rows, HERE / "rows.safetensors")


class Folders:
    """Hugging Face folders of a model, and the converter."""

    def __init__(self, temporary, architecture):
        family, self.vocabulary, pre, own = MODELS[architecture]
        self.temporary = temporary
        self.pre = pre or tokenizers.CASES.get(self.vocabulary, ("",))[0]
        self.tokenizer = temporary / f"tokenizer-{self.vocabulary}"
        if not self.tokenizer.exists():
            self.write_tokenizer()
        size = len(gguf.GGUFReader(HERE.parent / f"{self.vocabulary}.vocabulary.gguf").fields["tokenizer.ggml.tokens"].data)
        self.config = {**models.COMMON, **models.MODELS[family][1], **SIZES, **own, "vocab_size": size}
        models.VOCABULARY = size
        self.shapes = models.shapes_of(self.config)

    def write_tokenizer(self):
        self.tokenizer.mkdir()
        if self.vocabulary == "sentence_piece":
            tokenizers.write_sentence_piece(self.tokenizer)
        else:
            tokenizers.write_byte_level(self.tokenizer, self.vocabulary, tokenizers.CASES[self.vocabulary][1])

    def convert(self, tensors):
        """What the converter makes of Hugging Face's tensors."""
        folder = self.temporary / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.tokenizer, folder)
        (folder / "config.json").write_text(json.dumps(self.config))
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        path = self.temporary / "converted.gguf"
        models.convert(converter, folder, self.pre, path, "f32")
        return gguf.GGUFReader(path)


def shape_of(tensor):
    return [int(size) for size in reversed(tensor.shape)]


def kind_of(value_type):
    return {"UINT32": "uint32", "INT32": "int32", "FLOAT32": "float32", "BOOL": "bool", "STRING": "string", "UINT64": "uint64"}[value_type.name]


def metadata_of(converted, vocabulary):
    """What the converter says beyond the vocabulary's file; general.* describes only."""
    known = gguf.GGUFReader(HERE.parent / f"{vocabulary}.vocabulary.gguf").fields
    metadata = {}
    for key, field in converted.fields.items():
        if key.startswith("GGUF.") or key.startswith("general.") and key != "general.architecture":
            continue
        value = field.contents()
        if key.startswith("tokenizer.") and key in known and known[key].contents() == value:
            continue
        metadata[key] = [kind_of(field.types[0]), value]
    missing = [key for key in known if key.startswith("tokenizer.") and key not in converted.fields]
    assert not missing, missing
    return metadata


def describe(folders):
    """The entry of answers.json, without answers. Asserts that the converter makes the assembled file of the model."""
    numbered, at = {}, 0
    for name, shape in folders.shapes.items():
        count = assembled.elements(shape)
        numbered[name] = numpy.arange(at, at + count, dtype=numpy.float32).reshape(shape)
        at += count
    assert at < 1 << 24  # float32 holds these exactly.
    converted = folders.convert(numbered)
    model = {"vocabulary": folders.vocabulary, "metadata": metadata_of(converted, folders.vocabulary),
             "tensors": {tensor.name: shape_of(tensor) for tensor in converted.tensors}, "readout_tokens": []}
    origins = {tensor.name: tensor.data.astype(numpy.int64).ravel() for tensor in converted.tensors}
    made = values_of(assembled.tensors_of(model, "F32", assembled.Rows(), b""))
    whole = numpy.zeros(at, dtype=numpy.float32)
    for name, values in made.items():
        whole[origins[name]] = values.ravel()
    tensors, at = {}, 0
    for name, shape in folders.shapes.items():
        count = assembled.elements(shape)
        tensors[name] = whole[at:at + count].reshape(shape)
        at += count
    for tensor in folders.convert(tensors).tensors:
        assert numpy.array_equal(tensor.data.ravel(), made[tensor.name].ravel()), tensor.name
    return model


def values_of(tensors):
    values = {}
    for name, (shape, kind, content) in tensors.items():
        number, block, size, _ = assembled.TYPES[kind]
        row = shape[-1] // block * size
        stored = numpy.frombuffer(content, dtype=numpy.uint8).reshape(-1, row)
        number = gguf.GGMLQuantizationType(number)
        if kind in ("F32", "F16"):
            stored = stored.view(numpy.float32 if kind == "F32" else numpy.float16)
        values[name] = numpy.ascontiguousarray(gguf.quants.dequantize(stored, number), dtype=numpy.float32).reshape(shape)
    return values


def write_float32(path, model, tensors):
    assembled.write(path, model, {name: (list(values.shape), "F32", values.tobytes()) for name, values in values_of(tensors).items()})


def quantize(source, target, ftype, pure):
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype, parameters.pure, parameters.output_tensor_type = THREADS, ftype, pure, F16
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters)) == 0
    return gguf.GGUFReader(target)


def check_quantizer(temporary, model, rows):
    """llama.cpp's quantizer makes the assembled tensors; finds the types of a mixture."""
    source = temporary / "float32.gguf"
    write_float32(source, model, assembled.tensors_of(model, "F32", rows, b""))
    kinds = {number: kind for kind, (number, *_) in assembled.TYPES.items()}
    for kind in model["kinds"]:
        if kind == "F32":
            continue
        mixture = kind == MIXTURE[1]
        quantized = quantize(source, temporary / "quantized.gguf", MIXTURE[2] if mixture else TYPES[kind], not mixture)
        if mixture:
            model["mixtures"] = {kind: {tensor.name: kinds[int(tensor.tensor_type)] for tensor in quantized.tensors}}
        ours = assembled.tensors_of(model, kind, rows, b"")
        for tensor in quantized.tensors:
            _, stored, content = ours[tensor.name]
            assert kinds[int(tensor.tensor_type)] == stored, (kind, tensor.name, tensor.tensor_type, stored)
            assert tensor.data.tobytes() == content, (kind, tensor.name)


def fit(temporary, model, rows):
    """Fits the LM head. Returns its rows, of model["readout_tokens"]."""
    path = temporary / "model.gguf"
    states, labels = [], []
    for kind in model["kinds"]:
        tensors = assembled.tensors_of(model, kind, rows, b"")
        for wide in (False, True):
            if wide:
                write_float32(path, model, tensors)
            else:
                assembled.write(path, model, tensors)
            with LlamaReader(path, exact=wide) as reader:
                for prompt, answer in ANSWERS.items():
                    ids, tokens = reader.ids(prompt, True), [*reader.ids(answer, False), reader.end()]
                    states.append(reader.outputs(ids + tokens[:-1], 0)[0][len(ids) - 1:])
                    states.append(reader.outputs(ids, 0)[0][-1:])  # And one by one, as they are decoded.
                    states += [reader.outputs([token], len(ids) + i)[0] for i, token in enumerate(tokens[:-1])]
                    labels += 2 * tokens
    states = numpy.concatenate(states).astype(numpy.float64)
    model["readout_tokens"] = sorted(set(labels))
    wanted = numpy.full((len(labels), len(model["readout_tokens"])), -SCALE / 4)
    wanted[range(len(labels)), [model["readout_tokens"].index(token) for token in labels]] = SCALE
    right = wanted > 0
    weights = numpy.ones((len(labels), 1))
    for _ in range(ROUNDS):
        covariance = states.T @ (weights * states)
        ridge = RIDGE * numpy.trace(covariance) / len(covariance) * numpy.eye(len(covariance))
        readout = numpy.linalg.solve(covariance + ridge, states.T @ (weights * wanted))
        logits = states @ readout
        margins = logits[right] - numpy.maximum(numpy.where(right, -numpy.inf, logits).max(axis=1), 0)
        weights[margins < SCALE * 0.75] *= 1.5
    return numpy.ascontiguousarray(readout.T, dtype=numpy.float16)


def logits_of(path, cases):
    """At each token of the answers, exact."""
    with LlamaReader(path, exact=True) as reader:
        return [reader.outputs(case["ids"] + case["tokens"][:-1], 0)[1][len(case["ids"]) - 1:] for case in cases]


def largest_difference(ours, theirs):
    return max(float(numpy.abs(a - b).max()) for a, b in zip(ours, theirs))


def log_probabilities(logits, tokens):
    wide = logits.astype(numpy.float64)
    whole = numpy.log(numpy.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1)) + wide.max(axis=1)
    return [round(float(row[token] - total), 4) for row, token, total in zip(wide, tokens, whole)]


def answer(temporary, model, rows, readout):
    path = temporary / "model.gguf"
    model["answers"] = {}
    for kind in model["kinds"]:
        tensors = assembled.tensors_of(model, kind, rows, readout.tobytes())
        assembled.write(path, model, tensors)
        cases, runs = [], []
        with LlamaReader(path) as reader:
            for prompt in ANSWERS:
                ids = reader.ids(prompt, True)
                tokens, logits = reader.greedy(ids, 32)
                assert tokens[-1] == reader.end(), (kind, tokens)
                cases.append({"ids": ids, "tokens": tokens})
                runs.append(logits)
        write_float32(path, model, tensors)
        exact = logits_of(path, cases)
        best = numpy.sort(numpy.concatenate(runs), axis=1)
        margin, deviation = float((best[:, -1] - best[:, -2]).min()), largest_difference(exact, runs)
        print(f"{model['metadata']['general.architecture'][1]} {kind}: margin {margin:.2f}, deviation {deviation:.4f}", flush=True)
        assert margin >= MARGIN * deviation
        model["answers"][kind] = {"margin": round(margin, 2), "deviation": round(deviation, 4), "tokens": [case["tokens"] for case in cases],
                                  "log_probabilities": [log_probabilities(logits, case["tokens"]) for logits, case in zip(exact, cases)]}
        if kind == "F32":
            check_faults(temporary, model, tensors, cases, exact)
    model["prompts"] = [[prompt, case["ids"]] for prompt, case in zip(ANSWERS, cases)]


def check_faults(temporary, model, tensors, cases, right):
    """A model that is read wrong has other logits."""
    prefix = model["metadata"]["general.architecture"][1]
    path = temporary / "model.gguf"

    def change(metadata, changed):
        assembled.write(path, {**model, "metadata": {**model["metadata"], **metadata}}, changed)
        return largest_difference(right, logits_of(path, cases))

    base, used = (model["metadata"][f"{prefix}.{key}"] for key in ("rope.freq_base", "expert_used_count"))
    gate, up = (f"blk.1.ffn_{part}_exps.weight" for part in ("gate", "up"))
    nothing = change({}, tensors)
    faults = {"rope": change({f"{prefix}.rope.freq_base": [base[0], base[1] / 10]}, tensors),
              "experts": change({f"{prefix}.expert_used_count": [used[0], used[1] - 1]}, tensors),
              "gate": change({}, {**tensors, gate: tensors[up], up: tensors[gate]}),
              "epsilon": change({f"{prefix}.attention.layer_norm_rms_epsilon": ["float32", 0.1]}, tensors)}
    print(prefix, nothing, faults, flush=True)
    assert nothing < FAULT / 20 and min(faults.values()) > FAULT, (nothing, faults)


def main():
    logging.disable(logging.INFO)
    llama_cpp.llama_log_set(QUIET, None)
    make_rows()
    rows = assembled.Rows()
    result, readouts = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        for architecture in sys.argv[2:] or MODELS:
            model = describe(Folders(temporary, architecture))
            assert model["metadata"]["general.architecture"][1] == architecture
            model["kinds"] = [*TYPES, *([MIXTURE[1]] if MIXTURE[0] == architecture else [])]
            check_quantizer(temporary, model, rows)
            readouts[architecture] = fit(temporary, model, rows)
            answer(temporary, model, rows, readouts[architecture])
            del model["kinds"]
            result[architecture] = model
    safetensors.numpy.save_file(readouts, HERE / "readouts.safetensors")
    versions = {name: importlib.metadata.version(name) for name in ("numpy", "safetensors", "sentencepiece", "transformers")}
    provenance = {"script": "tests/golden/gguf/answers/make_gguf_answers.py", "versions": {**versions, "llama.cpp": "of llama-cpp-python 0.3.36"}}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in {"provenance": provenance, **result}.items())
    (HERE / "answers.json").write_text("{\n" + lines + "\n}\n")


if __name__ == "__main__":
    main()
