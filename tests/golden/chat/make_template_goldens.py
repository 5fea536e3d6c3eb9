#!/usr/bin/env python3
"""Makes prompts.jsonl beside this file: what transformers' apply_chat_template writes from the templates in templates/, for
tests/server/text/chat_renderer_test.cc.

    python3 -m venv VENV && VENV/bin/pip install transformers==4.57.6 jinja2==3.1.6
    VENV/bin/python tests/golden/chat/make_template_goldens.py

The templates are written here, after the documented prompt formats of the families that they are named after, tools, documents and
developers included; their instructions' words are our own. One line a template: name, config (the fields of a
tokenizer_config.json), and cases: what the conversation has (messages, tools, documents, kwargs, add_generation_prompt), and its
prompt, null where transformers raises. Dates are those of NOON.
"""

import datetime
import json
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models
from transformers.utils import chat_template_utils

NOON = datetime.datetime(2026, 2, 3, 12, 0, 0)
HERE = Path(__file__).resolve().parent


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return NOON


S_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TOKENS = {
    "llama_3": {"bos_token": "<|begin_of_text|>", "eos_token": {"content": "<|eot_id|>", "special": True}},
    "llama_3_1": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "additional_special_tokens": ["<start_of_turn>", {"content": "<end_of_turn>"}]},
    "gemma_3": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"},
    "deepseek_v2": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    "deepseek_r1": {"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": "<｜end▁of▁sentence｜>"},
    "olmoe": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
}

TOOLS = [
    {"type": "function", "function": {
        "name": "weather", "description": "The weather of a place, as of now; \"feels like\" <b>included</b>.",
        "parameters": {"type": "object", "required": ["place"], "properties": {
            "place": {"type": "string", "description": " A city, such as Zürich or 東京 "},
            "days": {"type": "integer", "description": "How many", "default": 1},
            "units": {"type": "string", "enum": ["metric", "imperial"]},
            "scale": {"type": "number", "minimum": 0.5, "maximum": 1e21}}}}},
    {"type": "function", "function": {
        "name": "add", "description": "Adds numbers, however many there are of them.",
        "parameters": {"type": "object", "required": ["numbers"], "properties": {
            "numbers": {"type": "array", "items": {"type": "number"}}, "exact": {"type": "boolean"}}},
        "return": {"type": "number"}}},
]
DOCUMENTS = [
    {"doc_id": 7, "title": "Granite", "text": "Granite is a rock.\nIt is hard."},
    {"doc_id": "b", "title": "Ein „Zitat“", "text": "Quartz & feldspar <mica> 'n' \"more\" ☃"},
]
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "id": "abcdefgh1", "function": {"name": "weather", "arguments": {"place": "Zürich", "days": 2, "scale": 1.0}}}]}
RESULT = {"role": "tool", "content": "{\"sky\": \"blue\", \"°C\": 21}", "tool_call_id": "abcdefgh1", "name": "weather"}


def turns(*texts, system=None, role="system"):
    messages = [] if system is None else [{"role": role, "content": system}]
    return messages + [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(texts)]


CASES = [
    {"messages": turns("Hi")},
    {"messages": turns("Hi"), "add_generation_prompt": False},
    {"messages": turns("What is 2 + 2?", system="Be brief.")},
    {"messages": turns("Hi", "Yes?", " 2+2\n")},
    {"messages": turns("Hi", "Yes?", "2+2", " 4 ", "and\n\nmore\t", system="Be brief.")},
    {"messages": turns("Hi", "I was", system="Be brief."), "add_generation_prompt": False},
    {"messages": turns("Grüße, <b>東京</b> & 'quotes' \"here\" \\n \U0001f600 e\u0301 {{ x }} {% y %}", "\u00a0ça va\u2028?", "<|im_end|>", system="„Ja“\r\n/no_think")},
    {"messages": turns("Hi", "<think>\nHm.\n\n</think>\n\nYes?", "2+2", "<think>\nEasy.\n</think>\n\n4", "5?")},
    {"messages": turns("Hi", system="")},
    {"messages": turns("Hi", "Hello", system="Obey.", role="developer")},
    {"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]},
    {"messages": turns("Weather?"), "tools": TOOLS},
    {"messages": turns("Weather?", system="Use tools."), "tools": TOOLS[:1]},
    {"messages": turns("Weather?", system="Use tools.") + [CALL, RESULT], "tools": TOOLS},
    {"messages": turns("Weather?") + [CALL, RESULT, {"role": "assistant", "content": "Blue."}, {"role": "user", "content": "Thanks"}], "tools": TOOLS,
     "add_generation_prompt": False},
    {"messages": turns("Weather?") + [{**CALL, "content": None, "reasoning_content": "I look."}, RESULT]},
    {"messages": turns("What is granite?"), "documents": DOCUMENTS},
    {"messages": turns("What is granite?", system="Cite."), "documents": DOCUMENTS, "tools": TOOLS},
    {"messages": turns("Think."), "kwargs": {"enable_thinking": False, "thinking": True, "reasoning_effort": "high", "date_string": "Today"}},
    {"messages": turns("Hi"), "documents": DOCUMENTS[:1], "kwargs": {"controls": {"citations": True, "length": "short"}, "eos_token": "<E>"}},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": " Look: "}, {"type": "image"}, {"type": "text", "text": "well?"}]}]},
    {"messages": [{"role": "tool", "content": "alone"}]},
]


def tokenizer_of(config):
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))
    for name, token in config.items():
        texts = [part["content"] if isinstance(part, dict) else part for part in (token if isinstance(token, list) else [token])]
        setattr(tokenizer, name, texts if isinstance(token, list) else texts[0])
    return tokenizer


def prompt_of(tokenizer, template, case):
    try:
        return tokenizer.apply_chat_template(
            case["messages"], chat_template=template, tokenize=False, tools=case.get("tools"), documents=case.get("documents"),
            add_generation_prompt=case.get("add_generation_prompt", True), **case.get("kwargs", {}))
    except Exception:
        return None


def main():
    chat_template_utils.datetime = Clock
    lines = []
    for path in sorted((HERE / "templates").glob("*.jinja")):
        template = path.read_text(encoding="utf-8")
        config = TOKENS.get(path.stem, S_TOKENS)
        tokenizer = tokenizer_of(config)
        cases = [{**case, "prompt": prompt_of(tokenizer, template, case)} for case in CASES
                 if ("tools" not in case or "tools" in template) and ("documents" not in case or "documents" in template)
                 and (not any(m["role"] == "developer" for m in case["messages"]) or "developer" in template)]
        lines.append(json.dumps({"name": path.stem, "config": config, "cases": cases}, ensure_ascii=False))
        raised = sum(case["prompt"] is None for case in cases)
        print(f"{path.stem}: {len(cases)} conversations, {raised} of them refused")
    (HERE / "prompts.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
