"""The carving: which expert each feed-forward neuron of each layer belongs to, and the router's rows.

carving.safetensors, made by carve.py, holds
  assignment  U8  [layers, neurons]          expert of each neuron; each expert has neurons / experts of them
  router      I8  [layers, experts, hidden]  router row = router * 2 ** router_exponent
  router_exponent  F32 [layers]              whole numbers, so that a row is exact in bfloat16
and in its metadata how it was made.

A layer's dense network is FFN(h) = sum_j silu(g_j h) (u_j h) d_j over its neurons j. The same sum, grouped by expert:
  FFN(h) = sum_e 1/E * Expert_e(h),  Expert_e(h) = sum_{j in e} silu(g_j h) (u_j h) (E d_j),
so a Mixture of Experts whose E experts are all active with weights 1/E is the dense network. The router's logits are
kept small, which makes its softmax nearly 1/E; E = 32 is a power of two, which makes the scaling exact."""

import pathlib
from typing import NamedTuple

import numpy as np

import safetensors_file

EXPERTS = 32
FILE = pathlib.Path(__file__).with_name("carving.safetensors")


class Carving(NamedTuple):
    assignment: np.ndarray  # uint8 [layers, neurons]
    router: np.ndarray  # float32 [layers, experts, hidden]
    provenance: dict[str, str]


def load(path: pathlib.Path, layers: int, neurons: int, hidden: int) -> Carving:
    """ValueError names the file when shapes differ or an expert has too few or too many neurons."""
    arrays, provenance = safetensors_file.read(path)
    if set(arrays) != {"assignment", "router", "router_exponent"}:
        raise ValueError(f"{path}: holds {sorted(arrays)}, expected assignment, router, router_exponent")
    assignment, exponent = arrays["assignment"], arrays["router_exponent"]
    if assignment.shape != (layers, neurons) or exponent.shape != (layers,):
        raise ValueError(f"{path}: is for a model of another shape")
    if arrays["router"].shape != (layers, EXPERTS, hidden):
        raise ValueError(f"{path}: router has shape {arrays['router'].shape}, expected {(layers, EXPERTS, hidden)}")
    for layer in range(layers):
        sizes = np.bincount(assignment[layer], minlength=EXPERTS)
        if not np.array_equal(sizes, np.full(EXPERTS, neurons // EXPERTS)):
            raise ValueError(f"{path}: the experts of layer {layer} have {sizes.tolist()} neurons")
    router = np.ldexp(arrays["router"].astype(np.float32), exponent.astype(np.int32)[:, None, None])
    return Carving(assignment, router, provenance)


def save(path: pathlib.Path, assignment: np.ndarray, router: np.ndarray, exponent: np.ndarray,
         provenance: dict[str, str]) -> None:
    safetensors_file.write(path, [
        safetensors_file.Tensor("assignment", "U8", assignment.astype("u1")),
        safetensors_file.Tensor("router", "I8", router.astype("i1")),
        safetensors_file.Tensor("router_exponent", "F32", exponent.astype("<f4")),
    ], provenance)


def expert_weights(dense: dict[str, np.ndarray], assignment: np.ndarray) -> dict[str, np.ndarray]:
    """The experts of one layer by their names below "model.layers.N.block_sparse_moe.": w1 is the gate, w3 the up and
    w2 the down projection. dense: the layer's weights (dense_source.layer_weights); assignment: uint8 [neurons]."""
    weights = {}
    for expert in range(EXPERTS):
        neurons = np.flatnonzero(assignment == expert)
        weights[f"experts.{expert}.w1.weight"] = dense["mlp.gate_proj.weight"][neurons]
        weights[f"experts.{expert}.w2.weight"] = dense["mlp.down_proj.weight"][:, neurons] * np.float32(EXPERTS)
        weights[f"experts.{expert}.w3.weight"] = dense["mlp.up_proj.weight"][neurons]
    return weights
