"""Renders chat templates for c3pod, which runs this text by `python3 -I -c` and owns both pipes (server/text/jinja_renderer.h).

A message is four bytes, its length in network order, and that many bytes of JSON. The first one in has the templates; each
further one is a conversation, and gets one reply. Rendering is that of transformers' apply_chat_template: its environment,
filters, functions and extensions, in an immutable sandbox. What goes wrong is told by the reply's only member:

    ready       jinja2's version; of the first message alone
    missing     why jinja2 cannot be imported; then this process ends
    prompt      the text
    refused     what the template says by raise_exception
    failed      an exception of the template at this conversation
    malformed   where the template is no Jinja
    too_long    the prompt would be longer than output_characters_max
    no_memory   beyond the limit of address space; then this process ends
"""

import contextlib
import json
import os
import resource
import struct
import sys

LENGTH = struct.Struct("!I")
MESSAGE_CHARACTERS_MAX = 500  # Of an error.
PROCESSOR_SECONDS_MAX = 3     # Of one conversation; c3pod's clock is stricter.


def read_message():
    head = read_exactly(LENGTH.size)
    return read_exactly(LENGTH.unpack(head)[0])


def read_exactly(size):
    parts = sys.stdin.buffer.read(size)
    if len(parts) < size:  # c3pod has closed the pipe.
        os._exit(0)
    return parts


def encode(reply):
    # A lone surrogate has no UTF-8: UnicodeEncodeError.
    body = json.dumps(reply, ensure_ascii=False).encode("utf-8")
    return LENGTH.pack(len(body)) + body


def send(message):
    sys.stdout.buffer.write(message)
    sys.stdout.buffer.flush()


try:
    import jinja2
    import jinja2.ext
    import jinja2.sandbox
    # What jinja2 or Python imports at its first use, when no file can be opened any more.
    import datetime
    import pprint
    import random
    import textwrap
    import traceback
    import unicodedata
    import jinja2.debug
    del pprint, random, textwrap, traceback, unicodedata
    for codec in ("ascii", "latin-1", "raw-unicode-escape", "unicode-escape", "utf-8"):
        "".encode(codec)
except ImportError as error:
    send(encode({"missing": str(error)}))
    sys.exit(1)


class Refused(jinja2.TemplateError):
    """raise_exception was called."""


class Generation(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's words for training. Here the block is its text."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller):
        return caller()


def raise_exception(message):
    raise Refused(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Renderer:
    def __init__(self, first):
        self.sources = first["templates"]
        self.special_tokens = first["special_tokens"]
        self.characters_max = first["output_characters_max"]
        self.compiled = {}
        self.now = None
        self.environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
        self.environment.filters["tojson"] = tojson
        self.environment.globals["raise_exception"] = raise_exception
        self.environment.globals["strftime_now"] = lambda format: self.now.strftime(format)

    def template(self, name):
        if name not in self.compiled:
            self.compiled[name] = self.environment.from_string(self.sources[name])
        return self.compiled[name]

    def answer(self, request):
        try:
            template = self.template(request["template"])
        except jinja2.TemplateSyntaxError as error:
            return {"malformed": cut(f"line {error.lineno}: {error.message}")}
        if "messages" not in request:  # Only whether it is Jinja was asked.
            return {"prompt": ""}
        self.now = datetime.datetime.fromtimestamp(request["now"])
        variables = {**self.special_tokens, **request["kwargs"]}
        for name in ("messages", "tools", "documents", "add_generation_prompt"):
            variables[name] = request[name]
        parts, left = [], self.characters_max
        for part in template.generate(variables):
            left -= len(part)
            if left < 0:
                return {"too_long": f"more than {self.characters_max} characters"}
            parts.append(part)
        return {"prompt": "".join(parts)}

    def reply(self, request):
        try:
            return encode(self.answer(json.loads(request)))
        except MemoryError:
            raise
        except Refused as error:
            return encode({"refused": cut(error.message)})
        except Exception as error:
            return encode({"failed": cut(f"{type(error).__name__}: {error}")})


def cut(text):
    text = str(text).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MESSAGE_CHARACTERS_MAX else text[:MESSAGE_CHARACTERS_MAX] + "…"


def limit_processor():
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + PROCESSOR_SECONDS_MAX
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))


def main():
    no_memory = encode({"no_memory": ""})  # While there is some.
    renderer = Renderer(json.loads(read_message()))
    datetime.datetime.now().astimezone()   # Reads the zone's file.
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as score:
        score.write("1000")                # Where memory is short, this process goes before its server.
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
    send(encode({"ready": jinja2.__version__}))
    while True:
        request = read_message()
        limit_processor()
        try:
            reply = renderer.reply(request)
        except MemoryError:
            send(no_memory)
            os._exit(1)
        send(reply)


main()
