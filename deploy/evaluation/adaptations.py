"""What each method of fine_tuning.py trains, and from where. The layers are the last eight, 22 to 29 of the default
model, which C3PO re-mixes there.

  none    nothing: the model as it is
  router  the router's rows in the layers, applied to every token
  prompt  8 rows before the prompt's embeddings (Lester et al., arXiv 2104.08691), from the embeddings of 8 tokens
  prefix  8 keys and values in each of the layers (Li and Liang, arXiv 2101.00190, without their network), from those
          that 8 tokens have there as a text of their own
  full    attention, experts, router and norms of the layers

The tokens are drawn from the vocabulary's first 5,000, which a byte-pair encoding learned first, hence frequent ones.

Learning rates are those of Adam, the same for every task. They were chosen by the loss of SST-2 references held apart
(50 of 125 after 3 epochs; prompt: 24 of 60 after 2), held-out questions not looked at:
  router  1e-4 0.490   3e-4 0.488   1e-3 0.451   3e-3 0.444, after 0.633 in the first epoch
  prompt  1e-3 0.659   1e-2 0.579   3e-2 0.649
  prefix  1e-3 0.501   1e-2 0.492   3e-2 0.519
  full    1e-5 0.485   3e-5 0.490   1e-4 0.474, after 0.625 in the first epoch"""

import random
from typing import NamedTuple

import torch_model  # Before torch: finds it.

import torch

METHODS = ("none", "router", "prompt", "prefix", "full")
LEARNING_RATES = {"router": 1e-3, "prompt": 1e-2, "prefix": 1e-2, "full": 3e-5}
_FREQUENT_TOKENS = 5000


class Adaptation(NamedTuple):
    """A model that shares with the one it was made from all that is not trained."""

    model: torch_model.Model
    trained: list[torch.Tensor]  # Leaves of the model that want gradients; changed in place.
    first_layer: int  # What enters this layer is what enters it in the model as it is.

    @property
    def parameters(self) -> int:
        return sum(tensor.numel() for tensor in self.trained)


def _leaf(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(True)


def _weights(model: torch_model.Model, layers: range, names: tuple[str, ...]) -> Adaptation:
    """Trains the named weights of the layers."""
    adapted, trained = list(model.layers), []
    for layer in layers:
        leaves = {name: _leaf(getattr(adapted[layer], name)) for name in names}
        adapted[layer] = adapted[layer]._replace(**leaves)
        trained += leaves.values()
    return Adaptation(model._replace(layers=adapted), trained, layers.start)


def _prefixes(model: torch_model.Model, layers: range, embeddings: torch.Tensor) -> Adaptation:
    """Starts from the keys, not turned, and values of a text of its own, whose embeddings are given."""
    prefixes, hidden, length = {}, embeddings, len(embeddings)
    with torch.no_grad():
        for layer in range(layers.stop):
            if layer in layers:
                prefixes[layer] = torch_model.Prefix(*map(_leaf, torch_model.projections(model, layer, hidden)[1:]))
            if length > 0:
                hidden = torch_model.run_layers(model, hidden, [length], range(layer, layer + 1))
    return Adaptation(model._replace(prefixes=prefixes), [leaf for prefix in prefixes.values() for leaf in prefix],
                      layers.start)


def start(method: str, model: torch_model.Model, layers: range, vectors: int, seed: int) -> Adaptation:
    """The untrained adaptation. layers: those trained, the model's last ones; method: one of METHODS. With 0 vectors
    `prompt` and `prefix` are the model as it is."""
    if method == "none":
        return Adaptation(model, [], layers.start)
    if method == "router":
        return _weights(model, layers, ("router",))
    if method == "full":
        return _weights(model, layers, torch_model.Layer._fields)
    tokens = random.Random(seed).sample(range(min(_FREQUENT_TOKENS, model.shape.vocabulary)), vectors)
    embeddings = model.embedding[torch.tensor(tokens, dtype=torch.long)]
    if method == "prefix":
        return _prefixes(model, layers, embeddings)
    soft_prompt = _leaf(embeddings)
    return Adaptation(model._replace(soft_prompt=soft_prompt), [soft_prompt], 0)
