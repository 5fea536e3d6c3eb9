"""What the tests of vLLM's gRPC service share: its stubs, by its own .proto, and requests."""

import foreign_stubs

stubs = foreign_stubs.make_stubs("vllm", "vllm_engine.proto", "common.proto")
vllm, common = stubs["vllm_engine_pb2"], stubs["common_pb2"]
SERVICE = "vllm.grpc.engine.VllmEngine"
PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13]


def engine(channel):
    return stubs["vllm_engine_pb2_grpc"].VllmEngineStub(channel)


def request(ids=PROMPT, stream=True, request_id="", text=None, **sampling):
    sampling.setdefault("temperature", 0)
    where = {"text": text} if text is not None else {"tokenized": vllm.TokenizedInput(input_ids=ids, original_text="for reference only")}
    return vllm.GenerateRequest(request_id=request_id, stream=stream, sampling_params=vllm.SamplingParams(**sampling), **where)


def ids_of(messages, index=0):
    return [token for m in messages if m.HasField("chunk") and m.chunk.index == index for token in m.chunk.token_ids]


def ends_of(messages):
    return {m.complete.index: m.complete for m in messages if m.HasField("complete")}
