"""What the test measures instead of a real server: llama-server's /completion and /health, and a fixed time per token.

    fake_peer.py PORT PREFILL_MILLISECONDS TOKEN_MILLISECONDS [short]     (short: answers with one token less than asked)
"""

import http.server
import json
import sys
import time

PORT, PREFILL, TOKEN = int(sys.argv[1]), float(sys.argv[2]) / 1e3, float(sys.argv[3]) / 1e3
MISSING = 1 if sys.argv[4:] == ["short"] else 0


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.end_headers()
        time.sleep(PREFILL)
        for token in range(1, request["n_predict"] + 1 - MISSING):
            event = {"tokens_predicted": token, "tokens_evaluated": len(request["prompt"]), "content": "a"}
            self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            self.wfile.flush()
            time.sleep(TOKEN)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64  # Connections that come at once.


Server(("127.0.0.1", PORT), Handler).serve_forever()
