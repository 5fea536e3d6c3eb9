"""Who may include whom: a room may include itself, what every room may, and what is listed here."""

INDEX_ROOMS = {
    "index/base": set(),
    "index/base/cuda": {"index/base"},
    "index/types": {"index/base"},
    "index/store": {"index/base", "index/types"},
    "index/search": {"index/base", "index/types", "index/store",  # The catalog shows what the store holds.
                     "index/search/cuda", "index/base/cuda"},
    "index/search/cuda": {"index/base", "index/base/cuda", "index/types", "index/search"},
}
EVERY_SERVER_ROOM = {"server/types", "index/base", "index/types"}
EVERY_SERVER_ROOM_HEADERS = {"server/metrics/metrics.h", "server/metrics/logging.h"}
SERVER_ROOMS = {
    "server/types": set(),
    "server/metrics": {"server/process"},
    "server/weights": set(),
    "server/text": {"server/process", "server/weights"},  # The process that renders chat templates; GGUF metadata.
    "server/grammar": {"server/process", "server/text"},
    "server/sampling": set(),
    "server/pathway": set(),
    "server/config": set(),
    "server/process": set(),
    "server/trace": set(),
    "server/admission": {"server/config"},
    "server/embed": {"server/weights", "server/compute"},
    "server/compute": {"server/sampling", "server/compute/cpu", "server/compute/aten", "server/compute/cuda",
                       "server/model/config", "server/weights", "index/base/cuda"},
    "server/compute/cpu": {"server/compute", "server/model/config", "server/weights"},
    "server/compute/aten": {"server/compute", "server/model/config", "index/base/cuda"},
    "server/compute/cuda": {"server/compute", "server/compute/cpu", "server/model/config", "server/sampling", "server/weights",
                            "index/base/cuda"},
    "server/model": {"server/model/config", "server/weights", "server/compute", "server/compute/cpu"},
    "server/model/config": {"server/weights"},
    "server/scheduler": set(),
    "server/pipeline": {"server/admission", "server/sampling", "server/text", "server/grammar", "server/embed", "server/pathway", "server/scheduler",
                        "server/config", "server/trace", "index/search", "index/store",
                        "index/search/cuda", "index/base/cuda"},  # Where indexes lie.
    "server/inspect": {"server/model", "server/model/config", "server/pipeline", "server/text", "server/weights"},
    "server/quantize": {"server/compute", "server/compute/cpu", "server/model", "server/model/config", "server/sampling", "server/text", "server/weights"},
    "server/rpc": {"server/pipeline", "server/process", "server/admission", "server/text", "server/config", "server/trace",
                   "index/store", "proto"},
    "server/rpc/doors": {"server/rpc", "server/pipeline", "server/admission", "server/text", "server/trace", "proto"},
}
# Under g++ the language of kernels is the tests' execution model.
KERNELS_DOOR_TO_TESTS = ("index/base/cuda/device.h", "tests/host_cuda/device.h")
