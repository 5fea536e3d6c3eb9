"""DeepseekForCausalLM (DeepSeekMoE-16B, https://arxiv.org/abs/2401.06066) in NumPy float64, written from the paper and the
fields of its config.json: transformers has no class for it. Slow and plain on purpose: one row, one expert at a time.

With x the residual stream, per layer:
    x += o_proj(causal softmax attention with rotary embedding over input_layernorm(x))
    h  = post_attention_layernorm(x)
    x += dense(h)                                                      below first_k_dense_replace
    x += shared(h) + sum over the top num_experts_per_tok of p_e expert_e(h),  p = softmax(gate h)        else
where `shared` is one network of n_shared_experts * moe_intermediate_size neurons, and every network is
down(silu(gate h) * up h). With norm_topk_prob the weights of several experts are divided by their sum; that of a single
one is kept.
"""

import numpy

DEFAULTS = {"num_key_value_heads": None, "first_k_dense_replace": 0, "moe_layer_freq": 1, "n_shared_experts": None,
            "norm_topk_prob": False, "attention_bias": False, "tie_word_embeddings": False, "rope_theta": 10000.0,
            "rms_norm_eps": 1e-6, "rope_scaling": None, "hidden_act": "silu", "scoring_func": "softmax"}


def with_defaults(config):
    """The configuration with what it does not say. ValueError: this code does not have what it asks for."""
    config = {**DEFAULTS, **config}
    if config["num_key_value_heads"] is None:
        config["num_key_value_heads"] = config["num_attention_heads"]
    config["n_shared_experts"] = config["n_shared_experts"] or 0
    scaling = config["rope_scaling"]
    if scaling is not None and set(scaling) != {"type", "factor"} or scaling and scaling["type"] != "linear":
        raise ValueError(f"rope_scaling {scaling}")
    if "rope_parameters" in config:  # Later than the family.
        raise ValueError("rope_parameters")
    if config["hidden_act"] not in ("silu", "swish") or config["scoring_func"] != "softmax":
        raise ValueError(f"{config['hidden_act']}, {config['scoring_func']}")
    for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "n_routed_experts", "num_experts_per_tok",
                "vocab_size", "first_k_dense_replace", "moe_layer_freq", "moe_intermediate_size", "intermediate_size"):
        least = 0 if key == "first_k_dense_replace" else 1
        if not isinstance(config[key], int) or config[key] < least:
            raise ValueError(f"{key} {config[key]}")
    for key in ("norm_topk_prob", "attention_bias", "tie_word_embeddings"):
        if not isinstance(config[key], bool):
            raise ValueError(f"{key} {config[key]}")
    if config["hidden_size"] % config["num_attention_heads"] or config["num_experts_per_tok"] > config["n_routed_experts"]:
        raise ValueError("sizes")
    return config


def parameter_shapes(config):
    """The tensors of model.safetensors, by name."""
    config = with_defaults(config)
    d, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    dim = d // heads
    shapes = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (config["vocab_size"], d)

    def network(prefix, neurons):
        shapes[prefix + ".gate_proj.weight"] = shapes[prefix + ".up_proj.weight"] = (neurons, d)
        shapes[prefix + ".down_proj.weight"] = (d, neurons)

    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shapes[prefix + "input_layernorm.weight"] = shapes[prefix + "post_attention_layernorm.weight"] = (d,)
        for name, rows in (("q", heads * dim), ("k", kv * dim), ("v", kv * dim), ("o", d)):
            shapes[f"{prefix}self_attn.{name}_proj.weight"] = (rows, heads * dim if name == "o" else d)
            if config["attention_bias"]:
                shapes[f"{prefix}self_attn.{name}_proj.bias"] = (rows,)
        if is_dense(config, layer):
            network(prefix + "mlp", config["intermediate_size"])
            continue
        neurons = config["moe_intermediate_size"]
        shapes[prefix + "mlp.gate.weight"] = (config["n_routed_experts"], d)
        if config["n_shared_experts"]:
            network(prefix + "mlp.shared_experts", config["n_shared_experts"] * neurons)
        for expert in range(config["n_routed_experts"]):
            network(f"{prefix}mlp.experts.{expert}", neurons)
    return shapes


def is_dense(config, layer):
    return layer < config["first_k_dense_replace"] or layer % config["moe_layer_freq"] != 0


def softmax(x):
    e = numpy.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


class Model:
    def __init__(self, config, weights):
        """`weights`: arrays of any float type, by name."""
        self.config = with_defaults(config)
        self.weights = {name: numpy.asarray(value, dtype=numpy.float64) for name, value in weights.items()}

    def norm(self, x, name):
        return x / numpy.sqrt((x * x).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"]) * self.weights[name]

    def network(self, h, prefix):
        gate, up = (self.weights[f"{prefix}.{part}_proj.weight"] @ h for part in ("gate", "up"))
        return self.weights[prefix + ".down_proj.weight"] @ (gate / (1 + numpy.exp(-gate)) * up)

    def rotate(self, x):
        """x [tokens, heads, dim]: entries i and i + dim / 2 turn by position * theta^(-2i / dim)."""
        half = x.shape[-1] // 2
        frequency = self.config["rope_theta"] ** (-numpy.arange(half) / half)
        if self.config["rope_scaling"]:
            frequency = frequency / self.config["rope_scaling"]["factor"]
        turn = numpy.exp(1j * numpy.outer(numpy.arange(len(x)), frequency))[:, None, :]
        turned = (x[..., :half] + 1j * x[..., half:]) * turn
        return numpy.concatenate([turned.real, turned.imag], axis=-1)

    def project(self, h, name):
        bias = self.weights.get(name + ".bias", 0)
        return h @ self.weights[name + ".weight"].T + bias

    def attention(self, h, prefix):
        heads, kv = self.config["num_attention_heads"], self.config["num_key_value_heads"]
        n, dim = len(h), h.shape[1] // heads
        q, k, v = (self.project(h, f"{prefix}{name}_proj") for name in "qkv")
        q, k = self.rotate(q.reshape(n, heads, dim)), self.rotate(k.reshape(n, kv, dim))
        v = v.reshape(n, kv, dim)
        future = numpy.triu(numpy.full((n, n), -numpy.inf), 1)
        context = []
        for head in range(heads):
            shared = head // (heads // kv)
            context.append(softmax(q[:, head] @ k[:, shared].T / numpy.sqrt(dim) + future) @ v[:, shared])
        return self.project(numpy.concatenate(context, axis=1), prefix + "o_proj")

    def mixture(self, h, prefix):
        """The MoE block of one row, and the router's logits."""
        logits = self.weights[prefix + "gate.weight"] @ h
        weights = softmax(logits)
        chosen = numpy.argsort(-weights, kind="stable")[:self.config["num_experts_per_tok"]]
        total = weights[chosen].sum() if self.config["norm_topk_prob"] and len(chosen) > 1 else 1.0
        out = self.network(h, prefix + "shared_experts") if self.config["n_shared_experts"] else 0
        for expert in chosen:
            out = out + weights[expert] / total * self.network(h, f"{prefix}experts.{expert}")
        return out, logits

    def trace(self, ids):
        """Hidden states (input of each layer, output of the last), final norm, router logits of the MoE layers, logits."""
        hidden, router = [], []
        x = self.weights["model.embed_tokens.weight"][ids]
        for layer in range(self.config["num_hidden_layers"]):
            prefix = f"model.layers.{layer}."
            hidden.append(x)
            x = x + self.attention(self.norm(x, prefix + "input_layernorm.weight"), prefix + "self_attn.")
            h = self.norm(x, prefix + "post_attention_layernorm.weight")
            if is_dense(self.config, layer):
                x = x + numpy.stack([self.network(row, prefix + "mlp") for row in h])
                continue
            outputs, logits = zip(*(self.mixture(row, prefix + "mlp.") for row in h))
            x = x + numpy.stack(outputs)
            router.append(numpy.stack(logits))
        hidden.append(x)
        final = self.norm(x, "model.norm.weight")
        head = self.weights["model.embed_tokens.weight" if self.config["tie_word_embeddings"] else "lm_head.weight"]
        return hidden, final, router, final @ head.T
