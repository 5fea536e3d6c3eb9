// Memory, the cache of keys and values, and one step of running sequences but for its blocks.

#include "server/compute/cuda/cuda_backend.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <utility>

namespace c3po::cuda {
namespace {

void CheckRows(bool right, const char* what) {
  if (!right) throw std::invalid_argument(what);
}

DeviceProperties PropertiesOf(Runtime& runtime) {
  DeviceProperties properties;
  Check(runtime.Properties(&properties), "asking for its properties");
  return properties;
}

std::shared_ptr<void> Uploaded(const float* floats, int64_t count, DevicePool& memory, HostCopies& copies) {
  std::shared_ptr<void> data = memory.Take(count * 4);
  copies.Upload(floats, count * 4, data.get());
  return data;
}

}  // namespace

OwnedStream::OwnedStream(Runtime& runtime) : runtime_(runtime) {
  Check(runtime_.NewStream(&stream_), "making a stream");
}

OwnedStream::~OwnedStream() { static_cast<void>(runtime_.DeleteStream(stream_)); }

CudaBackend::CudaBackend(ModelConfig config, const ModelWeights& weights, ElementType type, const RopeTable& rope,
                         const CudaDevice& device, const LoadProgress& progress, WeightFormat format, bool as_stored)
    : config_(std::move(config)),
      runtime_(*device.runtime),
      kernels_(*device.kernels),
      new_queue_(device.new_queue),
      multiprocessors_(PropertiesOf(runtime_).multiprocessors),
      stream_(runtime_),
      memory_(DevicePool::Create(runtime_)),
      copies_(runtime_, stream()),
      weights_(PackWeights(config_, weights, type, format, as_stored, *memory_, copies_, progress)),
      info_{ElementType::kFloat32,
            /*batch_invariant=*/true,
            /*pads=*/false,
            /*holds_logits=*/true,
            /*host_memory=*/false,
            weights_.type,
            weights_.bytes,
            config_.experts_per_token,
            planes() == 1 ? ElementType::kBfloat16 : ElementType::kFloat32,
            weights_.format},
      cos_(Uploaded(rope.cos.get(), rope.positions * rope.half, *memory_, copies_)),
      sin_(Uploaded(rope.sin.get(), rope.positions * rope.half, *memory_, copies_)),
      arena_(memory_),
      state_block_(config_, kv_element_bytes()),
      plan_(config_, memory_),
      pass_arena_(memory_),
      recorded_passes_(runtime_) {
  LimitReferenceStates(0);
}

CudaBackend::~CudaBackend() {
  static_cast<void>(runtime_.Synchronize(stream()));
  ForgetRecorded();
}

OwnedMatrix CudaBackend::Allocate(ElementType type, int64_t rows, int64_t columns) {
  CheckRows(type == ElementType::kFloat32, "the GPU's rows are float32");
  const int64_t bytes = rows * columns * BytesOf(type);
  if (pass_run_ != nullptr) return {{pass_arena_.Take(bytes), type, rows, columns, columns}, nullptr};
  std::shared_ptr<void> data = memory_->Take(bytes);
  void* const first = data.get();
  return {{first, type, rows, columns, columns}, std::move(data)};
}

OwnedMatrix CudaBackend::AllocateHidden(int64_t rows) {
  return Allocate(ElementType::kFloat32, rows, config_.hidden_size);
}

void CudaBackend::Write(absl::Span<const float> from, Matrix to) {
  CheckRows(static_cast<int64_t>(from.size()) == to.rows * to.columns && to.stride == to.columns,
            "what is written has another size");
  copies_.Upload(from.data(), to.bytes(), to.data);
}

void CudaBackend::Read(const Matrix& from, absl::Span<float> to) {
  CheckRows(static_cast<int64_t>(to.size()) == from.rows * from.columns && from.stride == from.columns,
            "what is read has another size");
  copies_.Download(from.data, from.bytes(), to.data());
}

void CudaBackend::Copy(const Matrix& from, Matrix to) {
  CheckRows(
      from.rows == to.rows && from.columns == to.columns && from.stride == from.columns && to.stride == to.columns,
      "what is copied has another size");
  if (from.rows > 0) Check(runtime_.CopyOnDevice(stream(), to.data, from.data, from.bytes()), "copying on the device");
}

std::optional<Backend::OwnMemory> CudaBackend::own_memory() const {
  OwnMemory memory;
  Check(runtime_.MemoryInfo(&memory.free_bytes, &memory.bytes), "asking for its memory");
  return memory;
}

// Of the keys or values of one layer.
int64_t CudaBackend::cache_layer_bytes(const KvCacheShape& cache, int64_t width) const {
  return cache.blocks * cache.block_positions * config_.kv_heads * width * kv_element_bytes();
}

void CudaBackend::AllocateKvCache(const KvCacheShape& cache) {
  keys_ = values_ = nullptr;
  ForgetRecorded();
  cache_ = cache;
  const int64_t key_bytes = config_.layers * cache_layer_bytes(cache_, CacheWidth(config_.head_dim));
  const int64_t value_bytes = config_.layers * cache_layer_bytes(cache_, CacheWidth(config_.value_dim));
  try {
    std::shared_ptr<void> keys = memory_->Take(key_bytes);
    values_ = memory_->Take(value_bytes);
    keys_ = std::move(keys);
  } catch (const std::bad_alloc&) {
    cache_ = {};
    throw;
  }
}

int64_t CudaBackend::KvCacheBytes(const KvCacheShape& cache) const {
  return config_.layers * (cache_layer_bytes(cache, CacheWidth(config_.head_dim)) +
                           cache_layer_bytes(cache, CacheWidth(config_.value_dim)));
}

KvLayer CudaBackend::CacheOf(int l) const {
  return {static_cast<char*>(keys_.get()) + l * cache_layer_bytes(cache_, CacheWidth(config_.head_dim)),
          static_cast<char*>(values_.get()) + l * cache_layer_bytes(cache_, CacheWidth(config_.value_dim)),
          cache_.block_positions};
}

StepMatrices CudaBackend::PlaceStep(const StepInputs& inputs) {
  CheckRows(keys_ != nullptr || inputs.sequences.empty(), "no cache was allocated");
  plan_.Place(inputs, cache_, copies_);
  const StepForm& form = plan_.form();
  StepMatrices matrices = buffers_.Place(*this, inputs, config_.hidden_size, config_.experts, config_.vocabulary_size,
                                         {form.rows, form.head_rows});
  placed_at_ = {matrices.hidden.view().data, matrices.probabilities.view().data, matrices.logits.view().data};
  return matrices;
}

void CudaBackend::ForgetRecorded() {
  for (auto& [key, recorded] : recorded_) {
    if (recorded.graph != nullptr) static_cast<void>(runtime_.DeleteGraph(recorded.graph));
  }
  recorded_.clear();
  recorded_passes_.DropGraphs();
}

void CudaBackend::RunStep(const StepShape& shape, absl::FunctionRef<void()> enqueue) {
  const StepForm& form = plan_.form();
  if (!form.decode || shape.varies || shape.first_layer > 0) {
    const StepArena::Scope scope(arena_);
    return enqueue();
  }
  const StepKey key{
      form, shape.first_layer, placed_at_, plan_.places().row_count, plan_.places().tables, arena_.generation()};
  if (recorded_.size() >= kRecordedMax && recorded_.count(key) == 0) ForgetRecorded();
  Recorded& recorded = recorded_[key];
  const StepArena::Scope scope(arena_);
  if (recorded.graph != nullptr) return Check(runtime_.Launch(stream(), recorded.graph), "launching a recorded step");
  if (!recorded.seen) {
    recorded.seen = true;
    return enqueue();
  }
  recorded.graph = Record(enqueue, "recording a step");
  Check(runtime_.Launch(stream(), recorded.graph), "launching a recorded step");
}

void CudaBackend::Embed(Matrix hidden) { EmbedRows(plan_.places().tokens, plan_.form().rows, hidden); }

void CudaBackend::EmbedRows(const int* tokens, int64_t rows, Matrix hidden) {
  if (rows == 0) return;
  EmbeddingArgs args;
  args.weights = weights_.embedding;
  args.tokens = tokens;
  args.rows = static_cast<int>(rows);
  args.multiplier = static_cast<float>(config_.embedding_multiplier);
  args.out = FloatsOf(hidden);
  args.stride = hidden.stride;
  Check(kernels_.embedding(args, stream()), "embedding");
}

ActivationPlanes CudaBackend::NewPlanes(int64_t rows, int64_t columns) {
  const int64_t stride = RoundUp(columns, kChunkColumns);
  return {arena_.Halves(planes() * rows * stride), rows * stride, static_cast<int>(stride)};
}

void CudaBackend::Multiply(ProductArgs args) {
  if (args.rows == 0) return;
  args.multiprocessors = multiprocessors_;
  const StepArena::Scope scope(arena_);
  if (kernels_.product_needs_planes(args)) {
    args.planes = NewPlanes(args.rows, args.transposed ? args.weights.rows : args.weights.columns);
  }
  Check(kernels_.product(args, stream()), "multiplying");
}

// logits = W RmsNorm(x) / divisor, of rows x[row_index[r]]; zero where that is negative.
void CudaBackend::HeadProduct(const PackedWeights& weights, const float* x, const int* row_index, int64_t rows,
                              float* logits, int64_t stride) {
  ProductArgs args;
  args.weights = weights;
  args.rows = static_cast<int>(rows);
  args.source.kind = RowSource::kNormed;
  args.source.x = x;
  args.source.stride = config_.hidden_size;
  args.source.row_index = row_index;
  args.source.norm = weights_.final_norm;
  args.source.eps = static_cast<float>(config_.rms_norm_eps);
  args.divisor = static_cast<float>(config_.logits_divisor);
  args.out = logits;
  args.out_stride = stride;
  Multiply(args);
}

void CudaBackend::Logits(const Matrix& hidden, Matrix logits) {
  HeadProduct(weights_.head, FloatsOf(hidden), plan_.places().head_rows, plan_.form().head_rows, FloatsOf(logits),
              logits.stride);
}

// Counters of rows' blocks, 0 between kernels, each of which leaves them so.
int* CudaBackend::Arrived(int64_t rows) {
  constexpr int64_t kLeast = 4096;  // So that recorded work finds them where they were.
  if (arrived_rows_ < rows) {
    arrived_ = nullptr;
    arrived_rows_ = 0;
    ForgetRecorded();
    const int64_t count = std::max(kLeast, rows);
    arrived_ = memory_->Take(count * 4);
    arrived_rows_ = count;
    Check(runtime_.Fill(stream(), arrived_.get(), 0, count * 4), "clearing counters");
  }
  return static_cast<int*>(arrived_.get());
}

struct CudaBackend::Sum final : public RowSum {
  std::shared_ptr<void> values;  // double [d]
};

std::shared_ptr<RowSum> CudaBackend::NewRowSum() {
  auto sum = std::make_shared<Sum>();
  const int64_t bytes = int64_t{config_.hidden_size} * 8;
  sum->values = memory_->Take(bytes);
  Check(runtime_.Fill(stream(), sum->values.get(), 0, bytes), "clearing a sum");
  return sum;
}

void CudaBackend::AddRows(const Matrix& rows, RowSum& sum) {
  if (rows.rows == 0) return;
  const RowSumsArgs args{FloatsOf(rows), static_cast<int32_t>(rows.rows), config_.hidden_size, rows.stride,
                         static_cast<double*>(static_cast<Sum&>(sum).values.get())};
  Check(kernels_.row_sums(args, stream()), "adding rows");
}

void CudaBackend::ReadMean(const RowSum& sum, int64_t count, absl::Span<float> mean) {
  std::vector<double> values(static_cast<size_t>(config_.hidden_size));
  copies_.Download(static_cast<const Sum&>(sum).values.get(), static_cast<int64_t>(values.size()) * 8, values.data());
  for (size_t i = 0; i < values.size(); ++i) mean[i] = static_cast<float>(values[i] / static_cast<double>(count));
}

}  // namespace c3po::cuda
