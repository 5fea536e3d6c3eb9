#include "tests/gpu/product_marks.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/compute/cuda/kernel_table.h"
#include "server/compute/cuda/packed_matrix.h"

namespace c3po {
namespace {

struct ProductSizes {
  int hidden, vocabulary, neurons, experts, experts_per_token;
  int64_t read_between;  // bytes that pass before a matrix is read again, so that no cache has it still
  std::vector<int> rows;
};

ProductSizes SizesOf(bool tiny) {
  if (tiny) return {48, 70, 20, 4, 2, 0, {3}};
  return {2048, 50304, 1024, 64, 8, int64_t{512} << 20, {1, 8, 64}};
}

// Memory of the device, given back at the end.
class Memory {
 public:
  explicit Memory(cuda::Runtime& runtime) : runtime_(runtime) { Check(runtime_.NewStream(&stream_)); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() {
    for (void* const each : taken_) static_cast<void>(runtime_.Free(each));
    static_cast<void>(runtime_.DeleteStream(stream_));
  }

  static void Check(cuda::Error error) {
    if (error != nullptr) Fail(absl::StrCat("device cuda: ", error));
  }
  template <class T>
  T* Take(int64_t count) {
    void* taken = nullptr;
    Check(runtime_.Allocate(count * static_cast<int64_t>(sizeof(T)), &taken));
    taken_.push_back(taken);
    return static_cast<T*>(taken);
  }
  template <class T>
  T* Uploaded(const std::vector<T>& values) {
    T* const taken = Take<T>(static_cast<int64_t>(values.size()));
    Check(runtime_.CopyToDevice(stream_, taken, values.data(), static_cast<int64_t>(values.size() * sizeof(T))));
    Check(runtime_.Synchronize(stream_));
    return taken;
  }
  cuda::Runtime& runtime() const { return runtime_; }
  cuda::Stream stream() const { return stream_; }

 private:
  cuda::Runtime& runtime_;
  cuda::Stream stream_ = nullptr;
  std::vector<void*> taken_;
};

// Random weights. One band of rows is packed, and lies in every band: the time does not depend on it.
std::vector<std::byte> RandomMatrix(const cuda::PackedLayout& layout, std::mt19937& random) {
  const cuda::PackedLayout one =
      cuda::PackedLayout::Plain(cuda::kBandRows, layout.matrix_columns(), layout.planes()).WithBits(layout.bits());
  std::vector<std::byte> band(static_cast<size_t>(one.bytes()));
  std::normal_distribution<float> normal(0, 0.02f);
  const int largest = layout.bits() == 8 ? 127 : 7;
  for (int64_t row = 0; row < cuda::kBandRows; ++row) {
    for (int64_t column = 0; column < layout.matrix_columns(); column += cuda::kChunkColumns) {
      const int64_t count = std::min<int64_t>(cuda::kChunkColumns, layout.matrix_columns() - column);
      float values[cuda::kChunkColumns];
      int8_t levels[cuda::kChunkColumns];
      for (int64_t k = 0; k < count; ++k) {
        values[k] = normal(random);
        levels[k] =
            static_cast<int8_t>(static_cast<int>(random() % (2u * static_cast<unsigned>(largest) + 1)) - largest);
      }
      if (layout.bits() == 16) {
        one.PackRow(row, column, values, count, band.data());
      } else {
        one.PackGroup(row, column, levels, count, cuda::RoundToBfloat16(0.04f / static_cast<float>(largest)),
                      band.data());
      }
    }
  }
  std::vector<std::byte> matrix;
  matrix.reserve(static_cast<size_t>(layout.bytes()));
  while (static_cast<int64_t>(matrix.size()) < layout.bytes()) matrix.insert(matrix.end(), band.begin(), band.end());
  return matrix;
}

// Copies of a matrix one behind the other, as many as `bytes` hold.
std::vector<const void*> Copies(Memory& memory, const std::vector<std::byte>& matrix, int64_t bytes) {
  const auto size = static_cast<int64_t>(matrix.size());
  std::vector<const void*> copies = {memory.Uploaded(matrix)};
  while (static_cast<int64_t>(copies.size()) * size < bytes) {
    auto* const copy = memory.Take<std::byte>(size);
    Memory::Check(memory.runtime().CopyOnDevice(memory.stream(), copy, copies.front(), size));
    copies.push_back(copy);
  }
  return copies;
}

// Seconds of one of `runs`, which the device goes through several times; the first time does not count.
std::vector<double> Times(Memory& memory, int runs, const std::function<cuda::Error(int)>& run) {
  constexpr int kRounds = 5;
  cuda::Runtime& runtime = memory.runtime();
  cuda::Event begin = nullptr, end = nullptr;
  Memory::Check(runtime.NewEvent(&begin, true));
  Memory::Check(runtime.NewEvent(&end, true));
  std::vector<double> seconds;
  for (int round = 0; round <= kRounds; ++round) {
    Memory::Check(runtime.Record(memory.stream(), begin));
    for (int i = 0; i < runs; ++i) Memory::Check(run(i));
    Memory::Check(runtime.Record(memory.stream(), end));
    Memory::Check(runtime.Synchronize(memory.stream()));
    float milliseconds = 0;
    Memory::Check(runtime.Milliseconds(begin, end, &milliseconds));
    if (round > 0) seconds.push_back(milliseconds / 1e3 / runs);
  }
  Memory::Check(runtime.DeleteEvent(begin));
  Memory::Check(runtime.DeleteEvent(end));
  return seconds;
}

class ProductMarks {
 public:
  ProductMarks(const MarksDevice& device, const ProductSizes& sizes, MarksTable& table)
      : runtime_(*device.runtime), kernels_(*device.model_kernels), sizes_(sizes), table_(table) {
    cuda::DeviceProperties properties;
    Memory::Check(runtime_.Properties(&properties));
    multiprocessors_ = properties.multiprocessors;
  }

  // logits = W x of `rows` rows.
  void Head(int bits) {
    Memory memory(runtime_);
    const auto layout = cuda::PackedLayout::Plain(sizes_.vocabulary, sizes_.hidden, 1).WithBits(bits);
    const auto copies = Copies(memory, RandomMatrix(layout, random_), sizes_.read_between);
    for (const int rows : sizes_.rows) {
      cuda::ProductArgs args;
      args.rows = rows;
      args.planes = PlanesOf(memory, rows, sizes_.hidden);
      args.out = memory.Take<float>(int64_t{rows} * sizes_.vocabulary);
      args.out_stride = sizes_.vocabulary;
      args.multiprocessors = multiprocessors_;
      const auto seconds = Times(memory, static_cast<int>(copies.size()), [&](int i) {
        args.weights = layout.Weights(copies[static_cast<size_t>(i)]);
        return kernels_.product(args, memory.stream());
      });
      ExpectFinite(memory, args.out, int64_t{rows} * sizes_.vocabulary);
      Tell("LM head", bits, rows, seconds, static_cast<double>(layout.bytes()));
    }
  }

  // silu(W_gate x) W_up x of the experts that rows select at random.
  void Experts(int bits) {
    Memory memory(runtime_);
    const auto layout = cuda::PackedLayout::GateUp(sizes_.experts, sizes_.neurons, sizes_.hidden, 1).WithBits(bits);
    const auto copies = Copies(memory, RandomMatrix(layout, random_), sizes_.read_between);
    for (const int rows : sizes_.rows) {
      std::vector<int> selected;
      std::set<int> different;
      for (int r = 0; r < rows; ++r) {
        std::set<int> own;
        while (static_cast<int>(own.size()) < sizes_.experts_per_token) {
          own.insert(static_cast<int>(random_() % static_cast<unsigned>(sizes_.experts)));
        }
        selected.insert(selected.end(), own.begin(), own.end());
        different.insert(own.begin(), own.end());
      }
      const int pairs = rows * sizes_.experts_per_token;
      const int64_t padded = cuda::RoundUp(sizes_.neurons, cuda::kBandRows);
      cuda::ExpertProductArgs args;
      args.selection = {rows, sizes_.experts_per_token, sizes_.experts, memory.Uploaded(selected)};
      args.routed.in = PlanesOf(memory, rows, sizes_.hidden);
      args.routed.planes_out = PlanesOf(memory, pairs, sizes_.neurons);
      args.routed.gate_up = memory.Take<float>(pairs * 2 * padded);
      args.multiprocessors = multiprocessors_;
      const auto seconds = Times(memory, static_cast<int>(copies.size()), [&](int i) {
        args.routed.weights = layout.Weights(copies[static_cast<size_t>(i)]);
        return kernels_.gate_up(args, memory.stream());
      });
      ExpectFinite(memory, args.routed.gate_up, pairs * 2 * padded);
      Tell(absl::StrCat("gate and up of ", different.size(), " experts"), bits, rows, seconds,
           static_cast<double>(different.size()) * static_cast<double>(layout.matrix_bytes()));
    }
  }

 private:
  cuda::ActivationPlanes PlanesOf(Memory& memory, int64_t rows, int64_t columns) {
    const int64_t stride = cuda::RoundUp(columns, cuda::kChunkColumns);
    std::vector<uint16_t> halves(static_cast<size_t>(rows * stride));
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < halves.size(); ++i) {
      if (static_cast<int64_t>(i) % stride < columns) halves[i] = cuda::RoundToBfloat16(normal(random_));
    }
    return {memory.Uploaded(halves), rows * stride, static_cast<int>(stride)};
  }

  void ExpectFinite(Memory& memory, const float* values, int64_t count) {
    std::vector<float> read(static_cast<size_t>(count));
    Memory::Check(runtime_.CopyToHost(memory.stream(), read.data(), values, count * 4));
    Memory::Check(runtime_.Synchronize(memory.stream()));
    double largest = 0;
    for (const float value : read) {
      if (!std::isfinite(value)) Fail("a product is not finite");
      largest = std::max(largest, std::abs(double{value}));
    }
    if (largest == 0) Fail("a product is zero");
  }

  // The mark: three quarters of what the bandwidth gives.
  void Tell(const std::string& what, int bits, int rows, const std::vector<double>& seconds, double bytes) {
    constexpr double kShare = 0.75;
    table_.Row(absl::StrCat(what, ", ", bits, " bits, ", rows, rows == 1 ? " row" : " rows"), seconds, bytes,
               bytes / kMarksBandwidth / kShare * 1e3);
  }

  cuda::Runtime& runtime_;
  const cuda::ModelKernels& kernels_;
  const ProductSizes sizes_;
  MarksTable& table_;
  int multiprocessors_ = 1;
  std::mt19937 random_{5};
};

}  // namespace

void MeasureProducts(const MarksDevice& device, bool tiny, MarksTable& table) {
  ProductMarks marks(device, SizesOf(tiny), table);
  for (const int bits : {16, 8, 4}) {
    marks.Head(bits);
    marks.Experts(bits);
  }
}

}  // namespace c3po
