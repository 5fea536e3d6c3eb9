"""Triton's own client, PyPI's tritonclient, against c3pod: health, metadata, an answer and a stream. Needs the gateway's folder of
deploy/install_deps.sh and C3POD, the server's path.  Run: C3POD=build/release/bin/c3pod pytest tests/deploy/test_triton_client.py"""

import json
import os
import pathlib
import subprocess
import sys

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests" / "integration")]
import server_process

PYTHON = max(server_process.cache_folder().glob("gateway-*/bin/python"), key=lambda path: int(path.parents[1].name.rsplit("-", 1)[1]))

# What a user writes, in the interpreter that has tritonclient.
CLIENT = '''
import json, queue, sys
import numpy, tritonclient.grpc as triton

client = triton.InferenceServerClient(sys.argv[1])
model, parameters = "mixtral_tiny", {"max_tokens": 12, "ignore_eos": True, "temperature": 0.5, "seed": 7}
text = triton.InferInput("text_input", [1], "BYTES")
text.set_data_from_numpy(numpy.array(["Which gas do plants take in?".encode()], dtype=object))
told = {"live": client.is_server_live(), "ready": client.is_server_ready(), "model": client.is_model_ready(model),
        "other": client.is_model_ready("another"), "metadata": client.get_model_metadata(model, as_json=True)}
told["answer"] = client.infer(model, [text], parameters=parameters).as_numpy("text_output")[0].decode()
try:
    client.infer("another", [text])
except triton.InferenceServerException as error:
    told["refusal"] = error.status()
answers = queue.Queue()
client.start_stream(lambda result, error: answers.put((result, error)))
client.async_stream_infer(model, [text], request_id="a", parameters=parameters, enable_empty_final_response=True)
pieces = []
while True:
    result, error = answers.get(timeout=100)
    if error is not None:
        raise error
    pieces.append(result.as_numpy("text_output")[0].decode())
    if result.get_response().parameters["triton_final_response"].bool_param:
        break
client.async_stream_infer("another", [text], request_id="b")
told["stream_error"] = str(answers.get(timeout=100)[1])
client.stop_stream()
told["pieces"] = pieces
client.close()  # Else the interpreter's end may wait for the channel's threads for ever.
print(json.dumps(told))
'''


def test_tritonclient_asks_and_streams(tmp_path: pathlib.Path) -> None:
    server = server_process.ServerProcess(os.environ["C3POD"], tmp_path, "--threads", "1")
    try:
        done = subprocess.run([PYTHON, "-c", CLIENT, f"127.0.0.1:{server.port}"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
    finally:
        server.stop()
    assert (told["live"], told["ready"], told["model"], told["other"]) == (True, True, True, False)
    assert [tensor["name"] for kind in ("inputs", "outputs") for tensor in told["metadata"][kind]] == ["text_input", "text_output"]
    assert told["answer"]
    assert "".join(told["pieces"]) == told["answer"] and len(told["pieces"]) > 2
    assert told["refusal"] == "StatusCode.NOT_FOUND"
    assert "model_name: " in told["stream_error"]
