# Third parties. gRPC and Protobuf are Debian's; libtorch comes from the torch wheel that deploy/install_deps.sh unpacked.
include(GoogleTest)
find_package(Threads REQUIRED)
find_package(PkgConfig REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(GTest CONFIG REQUIRED)
find_package(benchmark CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(SQLite3 REQUIRED)
find_package(Boost 1.74 REQUIRED)  # Headers only: Asio and Beast.
find_package(OpenSSL REQUIRED)
pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(HWY REQUIRED IMPORTED_TARGET libhwy)
pkg_check_modules(PQ REQUIRED IMPORTED_TARGET libpq)

find_path(HNSWLIB_INCLUDE_DIR hnswlib/hnswlib.h REQUIRED)
add_library(c3po_hnswlib INTERFACE)
target_include_directories(c3po_hnswlib SYSTEM INTERFACE ${HNSWLIB_INCLUDE_DIR})

# Only the CPU half of libtorch is linked: the CUDA half (libtorch_cuda.so and NVIDIA's libraries, 2 s and 1 GB to load) is
# opened by server/model when --device cuda asks for it. The wheel's own CMake package would need a CUDA toolkit to be found.
set(C3PO_TORCH_DIR ${C3PO_CACHE_DIR}/torch-2.11.0/site/torch CACHE PATH "The torch wheel's package folder")
find_path(TORCH_INCLUDE_DIR ATen/ATen.h PATHS ${C3PO_TORCH_DIR}/include NO_DEFAULT_PATH REQUIRED)
find_library(TORCH_CPU_LIBRARY torch_cpu PATHS ${C3PO_TORCH_DIR}/lib NO_DEFAULT_PATH REQUIRED)
find_library(TORCH_C10_LIBRARY c10 PATHS ${C3PO_TORCH_DIR}/lib NO_DEFAULT_PATH REQUIRED)
add_library(c3po_torch INTERFACE)
target_include_directories(c3po_torch SYSTEM INTERFACE ${TORCH_INCLUDE_DIR})
target_link_libraries(c3po_torch INTERFACE ${TORCH_CPU_LIBRARY} ${TORCH_C10_LIBRARY})

# Static, built by deploy/install_deps.sh. Seen by server/grammar alone.
set(C3PO_XGRAMMAR_DIR ${C3PO_CACHE_DIR}/xgrammar-0.2.9 CACHE PATH "Where xgrammar's library and headers are installed")
find_path(XGRAMMAR_INCLUDE_DIR xgrammar/xgrammar.h PATHS ${C3PO_XGRAMMAR_DIR}/include NO_DEFAULT_PATH REQUIRED)
find_library(XGRAMMAR_LIBRARY xgrammar PATHS ${C3PO_XGRAMMAR_DIR}/lib NO_DEFAULT_PATH REQUIRED)
add_library(c3po_xgrammar INTERFACE)
target_include_directories(c3po_xgrammar SYSTEM INTERFACE ${XGRAMMAR_INCLUDE_DIR})
target_link_libraries(c3po_xgrammar INTERFACE ${XGRAMMAR_LIBRARY})
