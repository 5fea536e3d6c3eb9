"""Attacks with calls that cost: a crowd of one caller's requests that never stops asking, learning that never ends, and requests as heavy
as they may be. Mixed into attack.py's Attacker; another caller who asks one thing at a time must be answered."""

import threading

import grpc
from legal_calls import GLUTTON, OTHER

COSTLY = ("crowd_of_one_caller", "learning_that_never_ends", "heaviest_requests")
LEARNING_MAX = 2  # --learning-calls-max
PLACES = 48  # --pending-requests-max


class CostlyCalls:
    def ask_beside(self, name: str, generation, count: int) -> None:
        """Another caller's requests, one after the other, each with a deadline that is estimated."""
        gen = self.pb["generation_pb2"]
        for i in range(count):
            sampling = gen.SamplingOptions(max_tokens=4, ignore_eos=True)
            request = gen.GenerateRequest(prompt=f"What is {i} modulo seven?", sampling=sampling)
            if code := self.code_of(lambda: list(generation.Generate(request, **OTHER))):
                self.faults.append(f"{name}: request {i} of another caller gets {code}")

    def crowd_of_one_caller(self) -> None:
        """More requests than there are places, and each that is refused or answered is asked again at once."""
        gen = self.pb["generation_pb2"]
        channel, generation, _ = self.stubs()
        request = gen.GenerateRequest(prompt="How much is it?", sampling=gen.SamplingOptions(max_tokens=100, ignore_eos=True))
        over, refused = threading.Event(), []

        def ask_for_ever():
            while not over.is_set():
                if code := self.code_of(lambda: list(generation.Generate(request, **GLUTTON))):
                    refused.append(code)
                    over.wait(0.01)

        crowd = [threading.Thread(target=ask_for_ever) for _ in range(max(2 * PLACES, self.many(300)))]
        for thread in crowd:
            thread.start()
        self.ask_beside("crowd_of_one_caller", self.stubs()[1], max(5, self.many(50)))
        over.set()
        for thread in crowd:
            thread.join()
        if set(refused) - {grpc.StatusCode.RESOURCE_EXHAUSTED}:
            self.faults.append(f"crowd_of_one_caller: {set(refused)}")
        channel.close()

    def learning_that_never_ends(self) -> None:
        """As many calls as a caller may have in flight, of a thousand epochs each."""
        ref = self.pb["reference_pb2"]
        channel, generation, references = self.stubs()
        self.fill(references, "mine-own", 40)
        tune = ref.TunePriorRequest(collection="mine-own", critical_layers=[0, 1, 2, 3], epochs=1000, patience=1000, batch_size=1)
        streams = [references.TunePrior(tune, **GLUTTON) for _ in range(max(8, self.many(32)))]
        codes = [self.code_of(lambda: next(stream)) for stream in streams]
        if codes.count(None) > LEARNING_MAX or set(codes) - {None, grpc.StatusCode.RESOURCE_EXHAUSTED}:
            self.faults.append(f"learning_that_never_ends: {codes}")
        self.ask_beside("learning_that_never_ends", generation, max(5, self.many(20)))
        for stream in streams:
            stream.cancel()
        channel.close()

    def heaviest_requests(self) -> None:
        """Long prompts and continuations, many positions, layers and steps, drawn from what is allowed."""
        gen, opt = self.pb["generation_pb2"], self.pb["options_pb2"]
        channel, generation, references = self.stubs()
        self.fill(references, "mine-own", 40, choices=[f" {number}" for number in range(7)])
        words = lambda most: " ".join(self.random.choice(("one", "two", "three")) for _ in range(self.random.randint(1, most)))

        def draw():
            layers = self.random.choice(([0, 1, 2, 3], [2, 3], [3]))
            optimization = opt.OptimizationOptions(collection="mine-own", critical_layers=layers, k=self.random.randint(1, 20),
                                                   steps=self.random.randint(1, 50), prompt_positions=self.random.randint(1, 12),
                                                   method=opt.METHOD_NEIGHBORHOOD_GRADIENT_DESCENT,
                                                   gate=opt.GateOptions(enabled=False))
            if self.random.random() < 0.5:
                return lambda: generation.Score(gen.ScoreRequest(prompt=words(30), continuations=[words(30) for _ in range(8)],
                                                                 optimization=optimization), **GLUTTON)
            sampling = gen.SamplingOptions(max_tokens=self.random.randint(1, 60), ignore_eos=True)
            return lambda: list(generation.Generate(gen.GenerateRequest(prompt=words(30), sampling=sampling, optimization=optimization), **GLUTTON))

        codes = []
        crowd = [threading.Thread(target=lambda call: codes.append(self.code_of(call)), args=(draw(),)) for _ in range(max(10, self.many(100)))]
        for thread in crowd:
            thread.start()
        self.ask_beside("heaviest_requests", generation, max(3, self.many(20)))
        for thread in crowd:
            thread.join()
        if strange := set(codes) - {None, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED}:
            self.faults.append(f"heaviest_requests: {strange}")
        channel.close()
