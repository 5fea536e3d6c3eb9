#!/usr/bin/env python3
"""Makes chat.jsonl beside this file: prompts that Jinja renders from chat templates, for tests/server/text/chat_format_test.cc.

    python3 -m venv VENV && VENV/bin/pip install jinja2==3.1.6
    VENV/bin/python tests/golden/tokenizer/make_chat_goldens.py

The templates are written here, after the structure of those that the instruct models of each family are published with: the same
prompt for a conversation without tools, in another spelling. One line a template: name, config (the fields of a
tokenizer_config.json), and prompts: [turns, prompt], null where the template refuses the conversation. Rendering is as
transformers does it: sandboxed, trim_blocks, lstrip_blocks, tools and documents none, add_generation_prompt true. The date is
that of DAY.
"""

import datetime
import json
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

DAY = datetime.date(2026, 2, 3)
ALTERNATION = ("{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}"
               "{%- endif %}")

TEMPLATES = {
    "smollm2": ({}, "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
                "{{ '<|im_start|>system\nYou are a small assistant, made to test<|im_end|>\n' }}{% endif %}"
                "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"),
    "qwen1.5": ({"eos_token": "<|im_end|>"}, "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + "
                "message['content']}}{% if (loop.last and add_generation_prompt) or not loop.last %}{{ '<|im_end|>' + '\\n'}}"
                "{% endif %}{% endfor %}{% if add_generation_prompt and messages[-1]['role'] != 'assistant' %}"
                "{{ '<|im_start|>assistant\\n' }}{% endif %}"),
    "qwen2.5": ({"eos_token": "<|im_end|>"}, """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a test. You answer.' }}
    {%- endif %}
    {%- for tool in tools %}
        {{- "\\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\\n<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a test. You answer.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for call in message.tool_calls %}{{- '<tool_call>' + call.name }}{%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""),
    "qwen3": ({"eos_token": "<|im_end|>"}, """{%- if tools %}
    {{- '<|im_start|>system\\n# Tools' }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}{{- '<tool_call>' }}{%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<tool_response>' + content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""),
    "qwen3_instruct": ({"eos_token": "<|im_end|>"}, """{%- if tools %}{{- tools }}{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- if message.tool_calls %}{{- message.tool_calls }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""),
    "olmoe": ({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"},
              "{{ bos_token }}{% for message in messages %}\n{% if message['role'] == 'system' %}\n"
              "{{ '<|system|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'user' %}\n"
              "{{ '<|user|>\n' + message['content'] + '\n' }}{% elif message['role'] == 'assistant' %}\n{% if not loop.last %}"
              "{{ '<|assistant|>\n'  + message['content'] + eos_token + '\n' }}{% else %}"
              "{{ '<|assistant|>\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
              "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"),
    "tulu": ({"bos_token": "<s>", "eos_token": "</s>"},
             "{% for m in messages %}{% if m.role == 'system' %}<|system|>\n{{ m.content }}\n{% elif m.role == 'user' %}<|user|>\n"
             "{{ m.content + '\n' }}{% else %}{{ '<|assistant|>\n' + m.content + eos_token + '\n' }}{% endif %}{% endfor %}"
             "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"),
    "deepseek": ({"bos_token": {"content": "<\uff5cbegin\u2581of\u2581sentence\uff5c>"},
                  "eos_token": {"content": "<\uff5cend\u2581of\u2581sentence\uff5c>"}},
                 "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}"
                 "{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}"
                 "{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + eos_token }}"
                 "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
                 "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"),
    "deepseek_v2.5": ({"bos_token": "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "eos_token": "<\uff5cend\u2581of\u2581sentence\uff5c>"},
                      "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}"
                      "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
                      "{{ '<\uff5cUser\uff5c>' + message['content'] }}{% elif message['role'] == 'assistant' %}"
                      "{{ '<\uff5cAssistant\uff5c>' + message['content'] + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}"
                      "{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
                      "{% if add_generation_prompt %}{{ '<\uff5cAssistant\uff5c>' }}{% endif %}"),
    "mixtral_v0.1": ({"bos_token": "<s>", "eos_token": "</s>"},
                     "{{ bos_token }}{% for m in messages %}" + ALTERNATION + "{% if m['role'] == 'user' %}"
                     "{{ '[INST] ' + m['content'] + ' [/INST]' }}{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token}}"
                     "{% else %}{{ raise_exception('no such role') }}{% endif %}{% endfor %}"),
    "mixtral": ({"bos_token": "<s>", "eos_token": "</s>"}, """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for m in loop_messages %}
    """ + ALTERNATION + """
    {%- if m["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + m["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + m["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif m["role"] == "assistant" %}
        {{- " " + m["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("no such role") }}
    {%- endif %}
{%- endfor %}
"""),
    "phi_moe": ({"bos_token": "<s>", "eos_token": "<|endoftext|>"},
                "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
                "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}"
                "{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}"
                "{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
                "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"),
    "granite_3.0": ({"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}, """{%- if tools %}
    {{- '<|start_of_role|>available_tools<|end_of_role|>\\n' }}
    {%- for tool in tools %}{{- tool | tojson(indent=4) }}{%- endfor %}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
    {{- '<|start_of_role|>system<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- elif message['role'] == 'user' %}
    {{- '<|start_of_role|>user<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- elif message['role'] == 'assistant' %}
    {{- '<|start_of_role|>assistant<|end_of_role|>'  + message['content'] + '<|end_of_text|>\\n' }}
    {%- elif message['role'] == 'assistant_tool_call' %}
    {{- '<|start_of_role|>assistant<|end_of_role|><|tool_call|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- endif %}
    {%- if loop.last and add_generation_prompt %}
    {{- '<|start_of_role|>assistant<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""),
    "granite_3.1": ({"bos_token": "<|end_of_text|>", "eos_token": "<|end_of_text|>"}, """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "Known until then.\\nToday's Date: " + strftime_now('%B %d, %Y') + ".\\nYou are a test." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " You have both." %}
    {%- elif tools %}
        {%- set system_message = system_message + " You have tools." %}
    {%- elif documents %}
        {%- set system_message = system_message + " You have documents." %}
    {%- else %}
        {%- set system_message = system_message + " You help." %}
    {%- endif %}
    {%- if 'citations' in controls and documents %}
        {%- set system_message = system_message + ' Cite.' %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' }}
{%- endif %}
{%- if documents %}
    {{- '<|start_of_role|>documents<|end_of_role|>' }}
{%- endif %}
{%- for message in loop_messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
            {%- if controls %}
                {{- ' ' + controls | tojson()}}
            {%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""),
}

S, U, A = "system", "user", "assistant"
CONVERSATIONS = [
    [(U, "Hi")],
    [(S, "Be brief."), (U, "What is 2 + 2?")],
    [(U, "Hi"), (A, "Yes?"), (U, "2+2")],
    [(S, "Be brief."), (U, "Hi"), (A, "Yes?"), (U, "2+2"), (A, "4"), (U, " and\nmore ")],
    [(U, "Hi"), (A, "I was")],
    [(S, "Be brief."), (U, "Hi"), (A, "<think>\nHm.\n</think>\n\nYes?")],
    [(U, "Hi"), (A, "<think>\nHm.\n\n</think>\n\nYes?"), (U, "2+2"), (A, "\n<think>a<think>b</think>c</think>\n4")],
    [(U, "Hi"), (A, "<think>one</think>\nfirst"), (A, "second"), (A, "third")],
    [(U, "<tool_response>3</tool_response>"), (A, "Yes?"), (U, "<tool_response>4</tool_response>")],
    [(S, ""), (U, "Hi")],
    [(S, "Be brief.")],
    [(U, "Hi"), (S, "Be loud."), (U, "2+2")],
    [(U, "Hi"), (U, "Are you there?")],
    [(A, "I begin."), (U, "Good.")],
    [(S, "\u4f60\u597d"), (U, "'q' \"d\" {{ x }} {% y %} \\n <|im_end|> [/INST] </s>"), (A, ""), (U, "\t")],
]


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    env.filters["tojson"] = lambda value, **_: json.dumps(value)
    env.globals.update(raise_exception=raise_exception, strftime_now=DAY.strftime)
    return env


def text(token):
    return token["content"] if isinstance(token, dict) else token


def main():
    lines = []
    for name, (config, source) in TEMPLATES.items():
        template = environment().from_string(source)
        prompts = []
        for conversation in CONVERSATIONS:
            turns = [{"role": role, "content": content} for role, content in conversation]
            try:
                prompt = template.render(messages=turns, tools=None, documents=None, add_generation_prompt=True,
                                         **{key: text(token) for key, token in config.items()})
            except jinja2.exceptions.TemplateError:
                prompt = None
            prompts.append([conversation, prompt])
        line = {"name": name, "config": {**config, "chat_template": source}, "prompts": prompts}
        lines.append(json.dumps(line, ensure_ascii=True, separators=(",", ":")))
    path = Path(__file__).resolve().parent / "chat.jsonl"
    path.write_text("".join(line + "\n" for line in lines), encoding="ascii")
    print(f"{len(TEMPLATES)} templates, {len(CONVERSATIONS)} conversations")


if __name__ == "__main__":
    main()
