"""c3po_client against a fake server: what closing, leaving and cancelling ends, and many calls at once."""

import asyncio
import threading
import time
import unittest

import grpc
from client_case import ClientCase

import c3po_client
from c3po.v1 import generation_pb2 as gen
from fake_server import answer, fail

SLOW_SECONDS = 10  # Until a handler gives up that waits for its call's end.


class Endless:
    """An answer that goes on until its call ends; `ended` is set then."""

    def __init__(self):
        self.ended, self.begun = threading.Event(), threading.Event()

    def __call__(self, request, context):
        context.add_callback(self.ended.set)
        yield from list(answer("first"))[:2]
        self.begun.set()
        self.ended.wait(SLOW_SECONDS)


class SyncCancelTest(ClientCase):
    client_class = c3po_client.Client

    def setUp(self):
        super().setUp()
        self.endless = self.server.on["Generate"] = Endless()

    def test_leaving_a_with_cancels_the_call(self):
        with self.client.generate("hi") as generation:
            for event in generation:
                if isinstance(event, gen.TextDelta):
                    break
        self.assertTrue(self.endless.ended.wait(SLOW_SECONDS / 2))
        self.assertEqual(generation.text_so_far(), "first")
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()  # An answer that was left is never taken for a whole one.

    def test_a_generation_that_nobody_holds_is_cancelled(self):
        generation = self.client.generate("hi")
        next(generation)
        del generation
        self.assertTrue(self.endless.ended.wait(SLOW_SECONDS / 2))

    def test_closing_from_another_thread_wakes_who_waits(self):
        generation = self.client.generate("hi")
        threading.Timer(0.2, generation.close).start()
        begun = time.monotonic()
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()
        self.assertLess(time.monotonic() - begun, SLOW_SECONDS / 2)

    def test_closing_during_the_pause_before_a_retry_ends_it(self):
        self.server.on["Generate"] = lambda request, context: fail(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "full", retry_delay=SLOW_SECONDS)
        generation = self.client.generate("hi")
        threading.Timer(0.3, generation.close).start()
        begun = time.monotonic()
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()
        self.assertLess(time.monotonic() - begun, SLOW_SECONDS / 2)
        self.assertEqual(self.server.calls("Generate"), 1)

    def test_closing_the_client_ends_its_calls(self):
        client = self.connect()
        generation = client.generate("hi")
        next(generation)
        client.close()
        self.assertTrue(self.endless.ended.wait(SLOW_SECONDS / 2))
        with self.assertRaises(c3po_client.Cancelled):
            generation.text()


class AsyncCancelTest(ClientCase):
    client_class = c3po_client.AsyncClient

    def setUp(self):
        super().setUp()
        self.endless = self.server.on["Generate"] = Endless()

    def test_leaving_an_async_with_cancels_the_call(self):
        async def leave():
            async with self.client.generate("hi") as generation:
                async for event in generation:
                    if isinstance(event, gen.TextDelta):
                        break
            self.assertEqual(generation.text_so_far(), "first")
            with self.assertRaises(c3po_client.Cancelled):
                await generation.text()
            await asyncio.to_thread(self.endless.ended.wait, SLOW_SECONDS / 2)

        self.run_(leave)
        self.assertTrue(self.endless.ended.is_set())

    def test_a_cancelled_task_cancels_its_call_and_stays_cancelled(self):
        async def cancel():
            for call in (lambda: self.client.generate("hi").text(), lambda: self.client.score("Q:", [" a"])):
                self.endless.ended.clear()
                self.endless.begun.clear()
                task = asyncio.ensure_future(call())
                await asyncio.to_thread(self.endless.begun.wait, SLOW_SECONDS)
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task
                self.assertTrue(await asyncio.to_thread(self.endless.ended.wait, SLOW_SECONDS / 2))

        def score(request, context):
            context.add_callback(self.endless.ended.set)
            self.endless.begun.set()
            self.endless.ended.wait(SLOW_SECONDS)

        self.server.on["Score"] = score
        self.run_(cancel)

    def test_closing_from_another_task_wakes_who_waits(self):
        async def close():
            generation = self.client.generate("hi")
            task = asyncio.ensure_future(generation.text())
            await asyncio.to_thread(self.endless.begun.wait, SLOW_SECONDS)
            await generation.aclose()
            with self.assertRaises(c3po_client.Cancelled):
                await task

        self.run_(close)

    def test_a_hundred_answers_at_once(self):
        self.server.on["Generate"] = lambda request, context: answer(request.prompt)

        async def many():
            return await asyncio.gather(*(self.client.generate(f"prompt {i}").text() for i in range(100)))

        self.assertEqual(self.run_(many), [f"prompt {i}" for i in range(100)])

    def test_one_client_serves_one_loop_after_it_was_made_outside_of_any(self):
        client = c3po_client.AsyncClient(self.server.target)
        self.server.on["Generate"] = lambda request, context: answer("ok")

        async def ask():
            async with client:
                return await client.generate("hi").text()

        self.assertEqual(asyncio.run(ask()), "ok")


if __name__ == "__main__":
    unittest.main()
