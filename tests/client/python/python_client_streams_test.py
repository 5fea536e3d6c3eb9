"""c3po_client's streams against a fake server: imports, pages, learning, copies of the store."""

import asyncio
import hashlib
import pathlib
import tempfile
import threading
import time
import unittest

import grpc
from client_case import ClientCase, for_both

import c3po_client
from c3po.v1 import options_pb2 as opt
from c3po.v1 import reference_pb2 as ref
from fake_server import fail

SLOW_SECONDS = 10  # Until a handler gives up that waits for its call's end.


def sample(number):
    return {"prompt": f"p{number}", "answer": " a"}


class Store:
    """Judges samples in batches, as a server does that commits them, and knows how many ever waited for a verdict."""

    def __init__(self, batch, lost=0):
        self.batch, self.lost = batch, lost
        self.added = []
        self.first = None

    def __call__(self, request_iterator, context):
        waiting, progress = [], ref.AddProgress()
        for index, request in enumerate(request_iterator):
            if index == 0:
                self.first = request
            elif request.collection or request.HasField("replace"):
                fail(context, grpc.StatusCode.INVALID_ARGUMENT, "collection: in the first message only")
            waiting.append(request)
            if len(waiting) == self.batch:
                yield self.commit(waiting, progress)
        waiting = waiting[:len(waiting) - self.lost]
        if waiting:
            yield self.commit(waiting, progress)

    def commit(self, waiting, progress):
        verdicts = []
        for request in waiting:
            verdict = ref.VERDICT_MALFORMED if request.sample.prompt == "bad" else ref.VERDICT_SUCCESSFUL
            progress.received += 1
            progress.malformed += verdict == ref.VERDICT_MALFORMED
            progress.successful += verdict == ref.VERDICT_SUCCESSFUL
            self.added.append(request.sample.prompt)
            verdicts.append(ref.SampleVerdict(sequence=request.sequence, verdict=verdict, id=f"id-{request.sequence}"))
        waiting.clear()
        return ref.AddReferencesResponse(verdicts=verdicts, progress=progress)


@for_both
class ImportTest:
    def test_verdicts_come_in_batches_and_are_counted(self):
        store = self.server.on["Add"] = Store(batch=10)
        seen = []
        samples = [sample(i) for i in range(95)]
        samples[7]["prompt"] = "bad"
        outcome = self.run_(lambda: self.client.references.add(samples, collection="science", replace=True,
                                                               on_progress=lambda progress: seen.append(progress.received)))
        self.assertEqual((outcome.progress.received, outcome.progress.successful, outcome.progress.malformed), (95, 94, 1))
        self.assertEqual([problem.sequence for problem in outcome.problems], [7])
        self.assertEqual(seen, [*range(10, 100, 10), 95])
        self.assertEqual((store.first.collection, store.first.replace), ("science", True))
        self.assertEqual(store.added, [each["prompt"] for each in samples])

    def test_no_more_samples_are_taken_than_wait_for_verdicts(self):
        self.server.on["Add"] = Store(batch=4)
        taken = judged = most = 0

        def source():
            nonlocal taken, most
            for i in range(60):
                taken += 1
                most = max(most, taken - judged)
                yield sample(i)

        def count(progress):
            nonlocal judged
            judged = progress.received

        self.run_(lambda: self.client.references.add(source(), window=8, on_progress=count))
        self.assertEqual(taken, 60)
        self.assertLessEqual(most, 8 + 4)  # Room is made when a batch has come, a moment before it is counted here.

    def test_an_import_is_tried_again_before_its_first_verdict_and_sends_everything_again(self):
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            with self.subTest(code):
                store, attempts = Store(batch=10), []

                def third_time(request_iterator, context):
                    attempts.append(context)
                    if len(attempts) < 3:
                        for _ in range(5 * len(attempts)):
                            next(request_iterator)
                        fail(context, code, "not now", retry_delay=0.05)
                    yield from store(request_iterator, context)

                self.server.on["Add"] = third_time
                outcome = self.run_(lambda: self.client.references.add((sample(i) for i in range(50)), collection="science", window=20))
                self.assertEqual((len(attempts), outcome.progress.successful), (3, 50))
                self.assertEqual(store.added, [f"p{i}" for i in range(50)])
                self.assertEqual(store.first.collection, "science")

    def test_an_import_that_has_a_verdict_is_not_tried_again(self):
        def breaks(request_iterator, context):
            yield Store(1).commit([next(request_iterator)], ref.AddProgress())
            fail(context, grpc.StatusCode.UNAVAILABLE, "gone")

        self.server.on["Add"] = breaks
        self.raises(c3po_client.Unavailable, lambda: self.client.references.add([sample(0), sample(1)]))
        self.assertEqual(self.server.calls("Add"), 1)

    def test_an_error_of_the_source_is_raised_once_what_was_sent_is_in(self):
        store = self.server.on["Add"] = Store(batch=10)

        def source():
            yield from (sample(i) for i in range(3))
            raise KeyError("the source's own")

        with self.assertRaisesRegex(KeyError, "the source's own"):
            self.run_(lambda: self.client.references.add(source()))
        self.assertEqual(store.added, ["p0", "p1", "p2"])
        self.assertIn("sample.answer: is missing", str(self.raises(c3po_client.ArgumentError, lambda: self.client.references.add(
            [sample(3), {"prompt": "p"}]))))
        self.assertEqual(store.added[3:], ["p3"])

    def test_samples_without_a_verdict_are_data_loss(self):
        self.server.on["Add"] = Store(batch=10, lost=2)
        error = self.raises(c3po_client.DataLoss, lambda: self.client.references.add([sample(i) for i in range(15)]))
        self.assertIn("left 2 samples without a verdict", str(error))

    def test_nothing_to_import_is_no_error(self):
        self.server.on["Add"] = Store(batch=10)
        self.assertEqual(self.run_(lambda: self.client.references.add([])).progress.received, 0)

    def test_a_file_is_imported_up_to_its_first_malformed_line(self):
        store = self.server.on["Add"] = Store(batch=10)
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "samples.jsonl"
            path.write_text('{"prompt": "p0", "answer": " a", "choices": [" a", " b"], "metadata": {"n": 1}, "reference_id": "q-1"}\n\n'
                            '{"prompt": "p1", "answer": " a", "other": 3}\n{"prompt": "p2"}\n')
            error = self.raises(c3po_client.ArgumentError, lambda: self.client.references.add_file(path))
            self.assertEqual(str(error), f'{path}:4: "answer" is missing or not a text')
        self.assertEqual(store.added, ["p0", "p1"])
        self.assertEqual(store.first.sample, ref.ReferenceSample(prompt="p0", answer=" a", choices=[" a", " b"], metadata={"n": "1"}, id="q-1"))

    def test_closing_an_import_ends_the_call_and_its_source(self):
        ended = threading.Event()

        def waits(request_iterator, context):
            context.add_callback(ended.set)
            yield Store(1).commit([next(request_iterator)], ref.AddProgress())
            ended.wait(SLOW_SECONDS)

        self.server.on["Add"] = waits
        begun = time.monotonic()

        def leave():
            stream = self.client.references.add_stream((sample(i) for i in range(10**6)), window=4)
            next(stream)
            stream.close()

        async def leave_async():
            stream = self.client.references.add_stream((sample(i) for i in range(10**6)), window=4)
            await stream.__anext__()
            await stream.aclose()

        self.run_(leave_async if self.is_async else leave)
        self.assertTrue(ended.wait(SLOW_SECONDS))
        self.assertLess(time.monotonic() - begun, SLOW_SECONDS / 2)


class AsyncSourceTest(ClientCase):
    client_class = c3po_client.AsyncClient

    def test_samples_may_come_from_an_asynchronous_iterable(self):
        store = self.server.on["Add"] = Store(batch=10)

        async def source():
            for i in range(25):
                await asyncio.sleep(0)
                yield sample(i)

        self.run_(lambda: self.client.references.add(source(), window=10))
        self.assertEqual(store.added, [f"p{i}" for i in range(25)])


@for_both
class PagesTest:
    def test_lists_searches_and_statistics_join_their_pages(self):
        def page(request, items, make):
            start = int(request.page_token or 0)
            return make(items[start:start + 2], str(start + 2) if start + 2 < len(items) else "")

        references = [ref.Reference(id=f"ref-{i}") for i in range(5)]
        self.server.on["List"] = lambda request, context: page(
            request, references, lambda items, token: ref.ListReferencesResponse(references=items, next_page_token=token))
        self.assertEqual(self.all_of(lambda: self.client.references.list("science", page_size=2)), references)
        self.assertEqual([(r.collection, r.page_size, r.page_token) for r in self.server.requests["List"]],
                         [("science", 2, ""), ("science", 2, "2"), ("science", 2, "4")])
        hits = [ref.SearchReferencesResponse.Hit(reference=reference, distance=i) for i, reference in enumerate(references)]
        self.server.on["Search"] = lambda request, context: page(
            request, hits, lambda items, token: ref.SearchReferencesResponse(hits=items, next_page_token=token))
        self.assertEqual(self.run_(lambda: self.client.references.search("a text", collection="science", k=5)), hits)
        self.assertEqual({(r.collection, r.text, r.k, r.HasField("successful_only"), r.HasField("filter")) for r in self.server.requests["Search"]},
                         {("science", "a text", 5, False, False)})
        self.run_(lambda: self.client.references.search("a text", filter={"must": [{"key": "language", "equals": "en"}]}))
        [condition] = self.server.requests["Search"][-1].filter.must
        self.assertEqual((condition.key, condition.equals), ("language", "en"))
        collections = [ref.CollectionStats(collection=f"c{i}") for i in range(3)]
        self.server.on["GetStats"] = lambda request, context: page(
            request, collections, lambda items, token: ref.GetStatsResponse(collections=items, next_page_token=token, index_generation=4))
        stats = self.run_(lambda: self.client.references.stats())
        self.assertEqual((list(stats.collections), stats.index_generation, stats.next_page_token), (collections, 4, ""))

    def test_references_are_fetched_and_deleted(self):
        self.server.on["Get"] = lambda request, context: ref.GetReferenceResponse(reference=ref.Reference(id=request.id))
        self.server.on["Delete"] = lambda request, context: ref.DeleteReferencesResponse(deleted=len(request.ids) or 9, not_found=request.ids[1:])
        self.assertEqual(self.run_(lambda: self.client.references.get("a:1", include_pathway=True)).id, "a:1")
        self.assertTrue(self.server.requests["Get"][0].include_pathway)
        self.assertEqual(list(self.run_(lambda: self.client.references.delete(["a", "b"])).not_found), ["b"])
        self.assertEqual(self.run_(lambda: self.client.references.delete_collection("science")), 9)
        self.assertEqual(self.server.requests["Delete"][1], ref.DeleteReferencesRequest(collection="science"))
        self.assertIn("collection: is empty", str(self.raises(c3po_client.ArgumentError, lambda: self.client.references.delete_collection(""))))

    def test_what_a_collection_learns(self):
        collections = self.client.collections
        self.server.on["GetCollection"] = lambda request, context: ref.GetCollectionResponse(amortized_shifts=3)
        self.server.on["SetProfile"] = lambda request, context: ref.SetProfileResponse(removed=not request.HasField("profile"))
        self.assertEqual(self.run_(lambda: collections.get("science")).amortized_shifts, 3)
        self.run_(lambda: collections.set_profile("science", {"method": "none"}, notes="{}"))
        self.assertTrue(self.run_(lambda: collections.clear_profile("science")))
        profile, clear = self.server.requests["SetProfile"]
        self.assertEqual((profile.profile.method, profile.notes, clear.HasField("profile")), (1, "{}", False))
        self.server.on["TunePrior"] = lambda request, context: (ref.TunePriorResponse(epoch=i, finished=i == 2) for i in range(3))
        self.server.on["AmortizeShifts"] = lambda request, context: iter([ref.AmortizeShiftsResponse(done=1, total=1)])
        self.server.on["TuneOffset"] = lambda request, context: iter([ref.TuneOffsetResponse(done=1, total=1)])
        self.assertTrue(self.run_(lambda: collections.tune_prior("science", {"epochs": 2, "objective": "choices"}).last()).finished)
        self.assertEqual(self.server.requests["TunePrior"], [ref.TunePriorRequest(collection="science", epochs=2,
                                                                                     objective=opt.OBJECTIVE_CHOICES)])
        self.assertEqual(len(self.all_of(lambda: collections.tune_prior("science"))), 3)
        self.assertEqual(self.run_(lambda: collections.amortize_shifts("science", {"steps": 4}).last()).total, 1)
        self.assertEqual(self.server.requests["AmortizeShifts"][0].optimization.steps, 4)
        self.assertEqual(self.run_(lambda: collections.tune_offset("science", {"method": "ngd"}, max_references=50).last()).done, 1)
        asked = self.server.requests["TuneOffset"][0]
        self.assertEqual((asked.optimization.method, asked.max_references, asked.HasField("seed"), asked.keep), (4, 50, False, False))
        self.run_(lambda: collections.tune_offset("science", keep=True).last())
        self.assertTrue(self.server.requests["TuneOffset"][1].keep)

    def test_a_copy_of_the_store_is_whole_or_not_there(self):
        content = b"0123456789" * 1000
        digest = hashlib.sha256(content).hexdigest()
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "copy.db"
            path.write_bytes(b"an older one")
            for wrong in ({"sha256": "0" * 64}, {"total_bytes": 1}, {"cut": True}):
                def stream(request, context):
                    yield ref.BackupStoreResponse(chunk=content[:6000], total_bytes=len(content))
                    if "cut" in wrong:
                        fail(context, grpc.StatusCode.UNAVAILABLE, "gone")
                    yield ref.BackupStoreResponse(chunk=content[6000:], total_bytes=wrong.get("total_bytes", len(content)),
                                                  sha256=wrong.get("sha256", digest))

                self.server.on["BackupStore"] = stream
                self.raises(c3po_client.C3poError, lambda: self.client.backup(path))
                self.assertEqual([each.read_bytes() for each in pathlib.Path(folder).iterdir()], [b"an older one"])
            wrong = {}
            self.assertEqual(self.run_(lambda: self.client.backup(path)), len(content))
            self.assertEqual([each.read_bytes() for each in pathlib.Path(folder).iterdir()], [content])


if __name__ == "__main__":
    unittest.main()
