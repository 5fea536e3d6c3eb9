"""Tests of deploy/evaluation/torch_model.py against a naive forward pass.  Need numpy, pytest and the torch of
deploy/install_deps.sh.  Run: pytest tests/deploy/test_torch_model.py"""

import pathlib

import numpy as np
import pytest

from tiny_mixtral import (CONFIG, HEAD_DIM, HIDDEN, KV_HEADS, Oracle, folder, last_logits, model, random_sequences,
                          random_weights, torch, write_model)

import torch_model


@pytest.fixture(scope="module", params=[False, True], ids=["tied", "head of its own"])
def any_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_model(tmp_path_factory.mktemp("models"), random_weights(5, request.param))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("before", ["nothing", "soft prompt", "prefixes"])
def test_logits_of_a_batch_agree_with_a_naive_forward_pass(any_folder: pathlib.Path, before: str, seed: int) -> None:
    model, oracle, generator = torch_model.load(any_folder), Oracle(any_folder), np.random.default_rng(seed)
    soft_prompt, prefixes = np.zeros((0, HIDDEN)), {}
    if before == "soft prompt":
        soft_prompt = generator.normal(size=(3, HIDDEN))
    if before == "prefixes":
        prefixes = {1: (generator.normal(size=(3, KV_HEADS, HEAD_DIM)), generator.normal(size=(3, KV_HEADS, HEAD_DIM)))}
    adapted = model._replace(soft_prompt=torch.tensor(soft_prompt, dtype=torch.float32), prefixes={
        layer: torch_model.Prefix(*(torch.tensor(x, dtype=torch.float32) for x in prefix))
        for layer, prefix in prefixes.items()})
    sequences = random_sequences(seed)
    expected = np.stack([oracle.last_logits(tokens, soft_prompt, prefixes) for tokens in sequences])
    np.testing.assert_allclose(last_logits(adapted, sequences), expected, rtol=0, atol=1e-4)
    assert np.abs(expected).max() > 1


def test_states_that_enter_a_later_layer_continue_to_the_same_logits(model: torch_model.Model) -> None:
    sequences = random_sequences(3)
    np.testing.assert_allclose(last_logits(model, sequences, first_layer=1), last_logits(model, sequences), atol=1e-5)


@pytest.mark.parametrize("field, value", [("num_experts_per_tok", 2), ("hidden_act", "gelu"), ("sliding_window", 8),
                                          ("architectures", ["OlmoeForCausalLM"])])
def test_model_that_is_computed_otherwise_is_refused_by_field(tmp_path: pathlib.Path, field: str, value: object) -> None:
    write_model(tmp_path, {}, {**CONFIG, field: value})
    with pytest.raises(ValueError, match=f"config.json: {field} is "):
        torch_model.load(tmp_path)


def test_model_that_is_not_whole_is_refused_by_name(tmp_path: pathlib.Path) -> None:
    write_model(tmp_path, {}, {field: value for field, value in CONFIG.items() if field != "rope_theta"})
    with pytest.raises(ValueError, match="config.json: has no rope_theta"):
        torch_model.load(tmp_path)
    weights = random_weights(7, False)
    name = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    write_model(tmp_path, {key: values for key, values in weights.items() if key != name})
    with pytest.raises(ValueError, match=f"model.safetensors: has no {name}"):
        torch_model.load(tmp_path)
    write_model(tmp_path, {**weights, name: weights[name].T.copy()})
    with pytest.raises(ValueError, match=f"{name} has shape"):
        torch_model.load(tmp_path)
