#!/usr/bin/env python3
"""transformers behind just enough HTTP to be measured like a server: POST /generate {"prompts": [[id, ...], ...], "max_tokens": n}
answers one line {"tokens": number so far, of all prompts} per step, then {"prompt_tokens", "completion_tokens", "done"}.
Prompts of one call have the same length and are one batch: what a script that calls generate() would do. Run by the
interpreter of an environment that has torch and transformers.

    transformers_worker.py MODEL PORT THREADS DTYPE
"""

import http.server
import json
import sys

import torch
import transformers


class EachStep(transformers.StoppingCriteria):
    def __init__(self, tell):
        self.tell = tell

    def __call__(self, input_ids, scores, **_):
        self.tell(input_ids)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def make_handler(model):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            prompts = torch.tensor(request["prompts"])
            self.send_response(200)
            self.end_headers()
            new, each_step = request["max_tokens"], EachStep(lambda now: self.line(tokens=now.numel() - prompts.numel()))
            with torch.inference_mode():
                ids = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=False, pad_token_id=0,
                                     min_new_tokens=new, max_new_tokens=new, stopping_criteria=[each_step])
            self.line(prompt_tokens=prompts.numel(), completion_tokens=ids.numel() - prompts.numel(), done=True)

        def line(self, **fields):
            self.wfile.write(json.dumps(fields).encode() + b"\n")
            self.wfile.flush()

        def log_message(self, *_):
            pass

    return Handler


def main() -> None:
    folder, port, threads, dtype = sys.argv[1:]
    torch.set_num_threads(int(threads))
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    http.server.HTTPServer(("127.0.0.1", int(port)), make_handler(model)).serve_forever()


if __name__ == "__main__":
    main()
