"""Attacks with calls that are allowed: too many, too large, never read, or with numbers at the ends of what a field can hold. Mixed into
attack.py's Attacker; what a caller gets beyond its share is a fault."""

import math
import queue
import threading
import time

import grpc
import http2_frames as h2
from google.protobuf.descriptor import FieldDescriptor

LEGAL = ("open_imports", "answers_that_nobody_reads", "backups_that_nobody_reads", "long_continuations", "extreme_numbers",
         "profiles_of_nothing")
IMPORTS_MAX = 16  # --import-streams-max; half of them for one caller.
GLUTTON = {"metadata": [("authorization", "Bearer token-glutton")], "timeout": 600}
OTHER = {"metadata": [("authorization", "Bearer token-victim")], "timeout": 300}
EXTREME = (1e308, -1e308, math.inf, -math.inf, math.nan, 5e-324, -5e-324, 0.0, 1e-300, 3.4e38, 1.0000001, 2147483647.0)
REFUSED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)


class LegalCalls:
    def stubs(self):
        channel = grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.use_local_subchannel_pool", 1)])
        return (channel, self.pb["generation_pb2_grpc"].GenerationServiceStub(channel),
                self.pb["reference_pb2_grpc"].ReferenceServiceStub(channel))

    def sample(self, number: int, **fields):
        return self.pb["reference_pb2"].ReferenceSample(prompt=f"What is {number} modulo seven?", answer=f" {number % 7}", **fields)

    def fill(self, references, collection: str, count: int, **fields) -> None:
        ref = self.pb["reference_pb2"]
        list(references.Add((ref.AddReferencesRequest(collection=collection, sample=self.sample(i, **fields)) for i in range(count)), **GLUTTON))

    def code_of(self, call):
        """OK is None."""
        try:
            call()
        except grpc.RpcError as error:
            return error.code()
        return None

    def unread(self, path: str, payload: bytes, count: int):
        """Calls whose client never makes room for their answers."""
        made = self.connect(h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0) + h2.frame(h2.SETTINGS, h2.ACK, 0))
        for i in range(count):
            fields = h2.call_fields(path, (b"authorization", b"Bearer token-glutton"))
            made.sendall(h2.headers(2 * i + 1, fields) + h2.data(2 * i + 1, h2.message(payload)))
        return made

    def open_imports(self) -> None:
        """Add streams that stay open after one sample."""
        ref = self.pb["reference_pb2"]
        channel, _, references = self.stubs()
        taken, others, queues, streams = 0, set(), [], []
        for i in range(max(2 * IMPORTS_MAX, self.many(1500))):
            requests = queue.SimpleQueue()
            requests.put(ref.AddReferencesRequest(collection="mine-own", sample=self.sample(i)))
            stream = references.Add(iter(requests.get, None), **GLUTTON)
            code = self.code_of(lambda: next(stream))
            taken += code is None
            others.add(code)
            queues.append(requests)
            streams.append(stream)
        if taken > IMPORTS_MAX // 2 or others != {None, grpc.StatusCode.RESOURCE_EXHAUSTED}:
            self.faults.append(f"open_imports: {taken} are open, the others: {others}")
        one = iter([ref.AddReferencesRequest(collection="victims", sample=self.sample(1))])
        if code := self.code_of(lambda: list(references.Add(one, **OTHER))):
            self.faults.append(f"open_imports: another caller finds no place: {code}")
        for requests, stream in zip(queues, streams):
            requests.put(None)
            stream.cancel()
        channel.close()

    def answers_that_nobody_reads(self) -> None:
        """Pages of 3 MiB, as many as a connection has streams for."""
        ref = self.pb["reference_pb2"]
        channel, generation, references = self.stubs()
        self.fill(references, "large", max(4, self.many(240)), metadata={"text": "x" * 15_000})
        request = ref.ListReferencesRequest(collection="large", page_size=1000)
        for _ in range(2):
            self.unread("/c3po.v1.ReferenceService/List", request.SerializeToString(), min(200, self.many(200)))
        tokenize = lambda: generation.Tokenize(self.pb["generation_pb2"].TokenizeRequest(text="Hello"), **OTHER)
        for call in (tokenize, lambda: references.List(request, **OTHER)):
            if code := self.code_of(call):
                self.faults.append(f"answers_that_nobody_reads: another caller gets {code}")
        channel.close()

    def backups_that_nobody_reads(self) -> None:
        """Copies of the store that fill a window and no more."""
        channel, _, references = self.stubs()
        self.fill(references, "mine-own", 40)
        self.unread("/c3po.v1.ReferenceService/BackupStore", b"", max(6, self.many(40)))
        backup = lambda: list(references.BackupStore(self.pb["reference_pb2"].BackupStoreRequest(), **OTHER))
        for _ in range(600):  # One copy is made at a time, and the others wait for it only.
            code = self.code_of(backup)
            if code != grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
            time.sleep(0.1)
        if code:
            self.faults.append(f"backups_that_nobody_reads: another caller gets {code}")
        channel.close()

    def long_continuations(self) -> None:
        """Score calls with megabytes to tokenize, and their cancels."""
        gen = self.pb["generation_pb2"]
        channel, generation, _ = self.stubs()
        length = max(1000, self.many(55_000))
        request = gen.ScoreRequest(prompt="a", continuations=[f" {i} " + "word " * (length // 5) for i in range(250)])
        calls = [generation.Score.future(request, **GLUTTON) for _ in range(4)]
        for _ in range(5):
            if code := self.code_of(lambda: generation.Tokenize(gen.TokenizeRequest(text="Hello"), **OTHER)):
                self.faults.append(f"long_continuations: another caller's Tokenize gets {code}")
        for call in calls[:2]:
            call.cancel()
        for call in calls[2:]:
            code = self.code_of(call.result)
            if code not in REFUSED:
                self.faults.append(f"long_continuations: {code}")
        channel.close()

    def extreme_numbers(self) -> None:
        """Every number of a request and of a profile, drawn from what a double or an unsigned can hold."""
        gen, ref, opt = (self.pb[f"{name}_pb2"] for name in ("generation", "reference", "options"))
        channel, generation, references = self.stubs()
        self.fill(references, "mine-own", 12)

        def numbers(message, kind) -> list:
            return [field.name for field in message.DESCRIPTOR.fields if field.cpp_type == kind and field.label != field.LABEL_REPEATED]

        def draw():
            options = opt.OptimizationOptions(method=self.random.choice([1, 2, 3, 4]), application_rule=self.random.choice([1, 2, 3]),
                                              step_rule=self.random.choice([1, 2, 3]), gate=opt.GateOptions(enabled=self.random.random() < 0.5))
            for name in self.random.sample(numbers(options, FieldDescriptor.CPPTYPE_DOUBLE), self.random.choice([1, 1, 2])):
                setattr(options, name, self.random.choice(EXTREME))
            for name in self.random.sample(numbers(options.gate, FieldDescriptor.CPPTYPE_DOUBLE), self.random.choice([0, 0, 1])):
                setattr(options.gate, name, self.random.choice(EXTREME))
            for name in self.random.sample(numbers(options, FieldDescriptor.CPPTYPE_UINT32), self.random.choice([0, 0, 1])):
                setattr(options, name, self.random.choice([0, 1, 2147483647, 4294967295]))
            return options

        ask = lambda options, who: list(generation.Generate(gen.GenerateRequest(
            prompt="What is 5 modulo seven?", sampling=gen.SamplingOptions(max_tokens=1), optimization=options), **who))
        for _ in range(self.many(1000)):
            options = draw()
            profile = ref.SetProfileRequest(collection="mine-own", profile=options)
            stored = self.code_of(lambda: references.SetProfile(profile, **GLUTTON))
            options.collection = "mine-own"
            for what, code in (("a profile", stored), ("a request", self.code_of(lambda: ask(options, GLUTTON)))):
                if code not in (None, *REFUSED):
                    self.faults.append(f"extreme_numbers: {what} gets {code}: {options}")
            if stored is None and (code := self.code_of(lambda: ask(opt.OptimizationOptions(collection="mine-own"), OTHER))):
                self.faults.append(f"extreme_numbers: under a profile others get {code}: {profile}")
        references.SetProfile(ref.SetProfileRequest(collection="mine-own"), **GLUTTON)
        channel.close()

    def profiles_of_nothing(self) -> None:
        """Profiles of collections that are not there."""
        ref, opt = self.pb["reference_pb2"], self.pb["options_pb2"]
        channel, _, references = self.stubs()
        codes: set = set()

        def store(numbers) -> None:
            for number in numbers:
                request = ref.SetProfileRequest(collection=f"made-up-{number}", profile=opt.OptimizationOptions(k=1), notes="x" * 60_000)
                codes.add(self.code_of(lambda: references.SetProfile(request, **GLUTTON)))
        threads = [threading.Thread(target=store, args=(range(first, self.many(2000), 4),)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if codes != {grpc.StatusCode.NOT_FOUND}:
            self.faults.append(f"profiles_of_nothing: {codes}")
        if "made-up" in str(references.GetStats(ref.GetStatsRequest(), **OTHER)):
            self.faults.append("profiles_of_nothing: some are stored")
        channel.close()
