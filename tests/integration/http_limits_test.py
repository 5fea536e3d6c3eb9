"""The HTTP port under slow and vanished readers, full queues, floods, malformed requests and the server's end. usage: http_limits_test.py C3POD"""

import contextlib
import json
import pathlib
import select
import socket
import sys
import threading
import time
import unittest

import server_process
from http_calls import HTTP, Client, answer_of, answers_of, raw, read_to_end, request_bytes
from serving_case import ServingCase

BINARY = sys.argv.pop(1)
LONG = {"prompt": "a", "max_tokens": 90_000, "ignore_eos": True, "temperature": 0, "c3po": {"method": "none"}}


class HttpLimitsTest(ServingCase):
    binary = BINARY
    FLAGS = (*HTTP, "--running-sequences-max", 2)

    def server_with(self, *flags, store):
        server = self.start(*HTTP, *flags, store=store)
        self.addCleanup(server.stop)
        return server

    def begin(self, server=None, **fields):
        """A stream, of which the head and an event were read."""
        client = Client(server or self.server)
        self.addCleanup(client.close)
        client.begin("POST", "/v1/completions", {**LONG, "stream": True, **fields})
        response = client.connection.getresponse()
        self.assertEqual(response.status, 200)
        self.assertTrue(response.readline().startswith(b"data: {"))
        return client, response

    def vanish(self, client, response):
        """As a client whose program was ended."""
        response.close()
        client.close()

    def test_a_client_that_leaves_gives_everything_back(self):
        self.vanish(*self.begin())
        self.wait_until(self.is_empty, "everything is given back")
        for stream in (True, False):  # Also one that has heard nothing yet.
            connection = raw(self.server, request_bytes(**LONG, stream=stream))
            self.wait_until(lambda: self.metric("vllm:num_requests_running") == 1, "it runs")
            connection.close()
            self.wait_until(self.is_empty, "everything is given back")

    def test_a_reader_that_stops_is_cut_off_and_others_are_served(self):
        server = self.server_with("--unread-messages-max", 256, store="unread")
        stuck = socket.socket()
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", server.http_port))
        self.addCleanup(stuck.close)
        stuck.sendall(request_bytes(**LONG, stream=True, logprobs=20))
        self.assertEqual(len(Client(server).complete(stream=True, max_tokens=300, ignore_eos=True, c3po={"method": "none"}).events), 301)
        self.wait_until(lambda: self.is_empty(server), "the reader is cut off")
        with contextlib.suppress(ConnectionError):
            self.assertNotIn(b"[DONE]", read_to_end(stuck))
        self.wait_until(lambda: self.calls(server, "RESOURCE_EXHAUSTED") == 1, "it is counted")

    def calls(self, server, code):
        return self.metric(f'c3po_rpc_total{{code="{code}",method="Completions",service="OpenAI"}}', server)

    def test_an_answer_of_more_bytes_than_calls_may_hold_is_ended(self):
        server = self.server_with("--call-memory-mb", 2, store="memory")
        answer = Client(server).post("/v1/completions", **LONG, logprobs=20)
        self.assertEqual((answer.status, answer.error["reason"]), (429, "CAPACITY"))
        self.wait_until(lambda: self.is_empty(server), "everything is given back")

    def test_a_full_queue_says_when_to_come_back(self):
        server = self.server_with("--pending-requests-max", 2, store="full")
        for _ in range(2):
            self.begin(server)
        client = Client(server)
        for path, body in (("/v1/completions", LONG), ("/v1/embeddings", {"input": "a"})):
            answer = client.post(path, **body)
            self.assertEqual((answer.status, answer.error["type"], answer.error["reason"]), (429, "RateLimitError", "CAPACITY"))
            self.assertGreaterEqual(int(answer.headers["retry-after"]), 1)
            self.assertGreater(int(answer.headers["retry-after-ms"]), 0)
        self.assertEqual(client.get("/v1/models").status, 200)

    def test_a_prompt_that_fails_ends_the_others_of_its_request(self):
        answer = Client(self.server).post("/v1/completions", **{**LONG, "prompt": ["a", "b", "x" * 99_990]})
        self.assertEqual((answer.status, answer.error["param"]), (400, "prompt"))
        self.wait_until(self.is_empty, "the others are gone")

    def test_an_error_amid_a_stream_is_an_event(self):
        server = self.server_with("--drain-seconds-max", 1, store="ended")
        client, response = self.begin(server)
        server.process.terminate()
        events = response.read().decode().split("\n\n")
        self.assertEqual(events[-2:], ["data: [DONE]", ""])
        self.assertEqual(json.loads(events[-3].removeprefix("data: "))["error"]["code"], 503)
        client.close()
        self.assertEqual(server.wait(), 0)

    def test_draining_finishes_what_runs_and_turns_the_rest_away(self):
        server = self.server_with("--drain-seconds-max", 600, store="drain")
        idle, busy = Client(server), Client(server)
        self.assertEqual(idle.get("/health").status, 200)
        busy.begin("POST", "/v1/completions", {**LONG, "max_tokens": 3000, "stream": True})
        response = busy.connection.getresponse()
        server.process.terminate()
        self.wait_until(lambda: "draining" in "".join(server.log), "it drains")
        with self.assertRaises((ConnectionError, OSError)):
            idle.complete()
            idle.complete()
        self.assertIn(b'"finish_reason":"length"', response.read())
        self.assertEqual(server.wait(), 0)

    def test_connections_are_kept_and_requests_may_come_early(self):
        connection = raw(self.server, request_bytes(prompt="a", max_tokens=2, temperature=0) * 3 + request_bytes("/health", "GET"))
        answers = answers_of(connection, 4)
        self.assertEqual([status for status, _, _ in answers], [200] * 4)
        self.assertEqual(len({json.loads(body)["choices"][0]["text"] for _, _, body in answers[:3]}), 1)
        self.assertTrue(all(headers["connection"] == "keep-alive" for _, headers, _ in answers))
        connection.close()

    def test_http_1_0_and_connection_close_end_with_the_answer(self):
        body = dict(prompt="a", max_tokens=3, temperature=0, stream=True)
        old = request_bytes(**body).replace(b"HTTP/1.1", b"HTTP/1.0")
        answer = read_to_end(raw(self.server, old))
        self.assertNotIn(b"chunked", answer)
        self.assertTrue(answer.endswith(b"data: [DONE]\n\n"), answer[-100:])
        answer = read_to_end(raw(self.server, request_bytes(headers=["connection: close"], **body)))
        self.assertTrue(answer.endswith(b"\r\n0\r\n\r\n"), answer[-100:])

    def test_chunked_and_expected_bodies(self):
        data = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in data) + b"0\r\n\r\n"
        self.assertEqual(answer_of(raw(self.server, head + b"transfer-encoding: chunked\r\n\r\n" + chunks))[0], 200)
        connection = raw(self.server, head + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(data))
        self.assertEqual(connection.recv(100), b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(data)
        self.assertEqual(answer_of(connection)[0], 200)

    def test_what_is_no_http_is_told_so(self):
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        for data, status in ((b"nonsense\r\n\r\n", 400), (b"GET / HTTP/3.0\r\n\r\n", 400), (head + b"content-length: x\r\n\r\n", 400),
                             (head + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n", 400), (head + b"no colon\r\n\r\n", 400),
                             (head + b"content-length: 5\r\ncontent-length: 6\r\n\r\n", 400), (head + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", 400),
                             (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n\r\n", 431), (head + b"a: " + b"b" * 20_000 + b"\r\n\r\n", 431),
                             (head + b"content-length: 999999999999\r\n\r\n", 413)):
            with self.subTest(data[-40:]):
                answer = read_to_end(raw(self.server, data))
                self.assertTrue(answer.startswith(b"HTTP/1.1 %d " % status), answer[:100])
                self.assertIn(b"connection: close", answer)
                self.assertEqual(json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"], status)
        for data in (b"", b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):  # Nothing; TLS; HTTP/2.
            connection = raw(self.server, data)
            connection.shutdown(socket.SHUT_WR)
            self.assertNotIn(b" 200 ", read_to_end(connection))
        self.assertEqual(Client(self.server).get("/health").status, 200)

    def test_a_body_beyond_the_limit_is_refused_however_it_comes(self):
        server = self.server_with("--message-bytes-max", 100_000, store="bodies")
        self.assertEqual(Client(server).complete("x" * 200_000).status, 413)
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
        connection = raw(server, head)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                connection.sendall(b"2710\r\n" + b" " * 10_000 + b"\r\n")
        self.assertTrue(read_to_end(connection).startswith(b"HTTP/1.1 413 "))

    def test_bodies_count_against_the_memory_of_calls(self):
        server = self.server_with("--call-memory-mb", 2, store="held")
        head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 15000000\r\n\r\n"
        connection = raw(server, head)
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(b" " * 50_000)
        self.assertEqual(answer_of(connection)[0], 429)

    def test_hundreds_of_idle_connections_cost_no_thread(self):
        server = self.server_with("--address-connections-max", 900, store="idle")
        threads = lambda: len(list(pathlib.Path(f"/proc/{server.process.pid}/task").iterdir()))
        before = threads()
        idle = [raw(server) for _ in range(300)]
        half = [raw(server, b"POST /v1/comp") for _ in range(100)]
        self.wait_until(lambda: self.metric("c3po_http_connections", server) == 400, "they are counted")
        self.assertEqual(Client(server).complete(c3po={"method": "none"}).status, 200)
        self.assertEqual(threads(), before)
        for connection in (*idle, *half):
            connection.close()
        self.wait_until(lambda: self.metric("c3po_http_connections", server) <= 1, "they are gone")

    def test_connections_beyond_the_limit_are_closed_at_once(self):
        server = self.server_with("--connections-max", 3, store="connections")
        kept = [raw(server) for _ in range(3)]
        self.wait_until(lambda: self.metric("c3po_http_connections", server) == 3, "they are there")
        with contextlib.suppress(ConnectionError):
            self.assertEqual(read_to_end(raw(server)), b"")
        self.assertGreaterEqual(self.metric('c3po_connections_refused_total{limit="all"}', server), 1)
        for connection in kept:
            connection.close()
        self.wait_until(lambda: self.answers(server), "there is room again")

    def answers(self, server):
        try:
            return Client(server).get("/health").status == 200
        except (ConnectionError, OSError):
            return False

    def test_a_head_that_does_not_end_is_given_up(self):
        connection = raw(self.server, b"POST /v1/completions HTTP/1.1\r\nhost: ")
        self.addCleanup(connection.close)
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.5):
                    connection.sendall(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            select.select([connection], [], [], 60)
            self.assertEqual(connection.recv(1), b"")
        ended.set()
        dripping.join()
        self.assertLess(time.monotonic() - begun, 40)

    def test_old_connections_are_closed_behind_an_answer(self):
        server = self.server_with("--connection-age-seconds-max", 1, store="age")
        client = Client(server)
        self.assertEqual(client.get("/health").headers["connection"], "keep-alive")
        self.wait_until(lambda: self.closes(client), "it is closed")

    def closes(self, client):
        try:
            return client.get("/health").headers["connection"] == "close"
        except (ConnectionError, OSError):
            return True  # It was idle.


class LoadingTest(unittest.TestCase):
    def test_the_port_says_that_the_model_is_being_loaded(self):
        """Of a process that was just started: 503 until it serves, and never another answer."""
        folder = server_process.fresh_folder()
        self.addCleanup(server_process.remove_folder, folder)
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        seen, stop = [], threading.Event()

        class Where:
            http_port = port

        def ask():
            while not stop.is_set():
                with contextlib.suppress(OSError):
                    client = Client(Where)
                    seen.append((client.get("/health").status, client.complete(max_tokens=1, c3po={"method": "none"})))
                    client.close()

        asking = threading.Thread(target=ask)
        asking.start()
        server = server_process.ServerProcess(BINARY, folder, "--http-listen", f"127.0.0.1:{port}")
        deadline = time.monotonic() + 60
        while not any(answer.status == 200 for _, answer in seen) and time.monotonic() < deadline:
            time.sleep(0.02)
        stop.set()
        asking.join()
        self.assertEqual(server.stop(), 0)
        self.assertEqual({answer.status for _, answer in seen} - {200, 503}, set())
        self.assertIn(200, {answer.status for _, answer in seen})
        for _, answer in seen:
            if answer.status == 503:
                self.assertEqual((answer.error["type"], answer.error["reason"]), ("ServiceUnavailableError", "LOADING"))


if __name__ == "__main__":
    unittest.main()
