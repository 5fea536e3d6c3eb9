"""What the tests of OpenAI's HTTP protocol share: requests and answers by http.client, as little as possible between them and the socket."""

import dataclasses
import http.client
import io
import json
import socket
import ssl

SECONDS_MAX = 120  # Ends a test that would hang; nothing is decided by it.
HTTP = ("--http-listen", "127.0.0.1:0")


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def error(self):
        return self.json["error"]

    @property
    def events(self):
        """The data of server-sent events; [DONE] has to be the last and is left out."""
        parts = self.body.decode().split("\n\n")
        assert parts.pop() == "", self.body
        assert all(part.startswith("data: ") and "\n" not in part for part in parts), self.body
        data = [part.removeprefix("data: ") for part in parts]
        assert data.pop() == "[DONE]", self.body
        return [json.loads(one) for one in data]


class Client:
    """One connection, kept from request to request."""

    def __init__(self, server, token=None, context: ssl.SSLContext | None = None, host="127.0.0.1"):
        if context is None:
            self.connection = http.client.HTTPConnection(host, server.http_port, timeout=SECONDS_MAX)
        else:
            self.connection = http.client.HTTPSConnection(host, server.http_port, timeout=SECONDS_MAX, context=context)
        self.headers = {"authorization": f"Bearer {token}"} if token else {}

    def ask(self, method, path, body=None, **headers) -> Answer:
        self.begin(method, path, body, **headers)
        return self.end()

    def begin(self, method, path, body=None, **headers):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {**({"content-type": "application/json"} if data is not None else {}), **self.headers,
                **{name.replace("_", "-"): value for name, value in headers.items()}}
        self.connection.request(method, path, data, sent)

    def end(self) -> Answer:
        response = self.connection.getresponse()
        return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())

    def post(self, path, **body) -> Answer:
        return self.ask("POST", path, body)

    def get(self, path) -> Answer:
        return self.ask("GET", path)

    def complete(self, prompt="abc", **body) -> Answer:
        return self.post("/v1/completions", **{"prompt": prompt, "temperature": 0, "max_tokens": 5, **body})

    def chat(self, text="abc", **body) -> Answer:
        return self.post("/v1/chat/completions", **{"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 5, **body})

    def close(self):
        self.connection.close()


def request_bytes(path="/v1/completions", method="POST", headers=(), **body) -> bytes:
    """A request as it goes over the wire."""
    data = json.dumps(body).encode() if body else b""
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {len(data)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


def raw(server, data: bytes = b"") -> socket.socket:
    """A connection to which nothing but `data` has been written."""
    connection = socket.create_connection(("127.0.0.1", server.http_port), timeout=SECONDS_MAX)
    connection.sendall(data)
    return connection


def read_to_end(connection: socket.socket) -> bytes:
    """What the server writes until it closes the connection, which is closed here then."""
    data = b""
    with connection:
        while piece := connection.recv(1 << 16):
            data += piece
    return data


def answer_of(connection: socket.socket) -> tuple[int, dict, bytes]:
    """The only answer of a connection, which is closed then: status, headers, body."""
    with connection:
        [answer] = answers_of(connection, 1)
    return answer


def answers_of(connection: socket.socket, count: int) -> list[tuple[int, dict, bytes]]:
    """The next answers of a connection. Several may come at once, so all are read through one buffer."""
    buffered = _ReadAhead(socket.SocketIO(connection, "r"))
    answers = []
    for _ in range(count):
        response = http.client.HTTPResponse(buffered)
        response.begin()
        answers.append((response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()))
    return answers


class _ReadAhead(io.BufferedReader):
    """Stands in for a socket towards an HTTPResponse, which would make a buffer of its own and take with it what lies behind its answer."""

    def makefile(self, _mode):
        return self

    def close(self):
        """An answer that was read does not end the connection."""
