#ifndef C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_TRIAL_H_
#define C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_TRIAL_H_

#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "server/compute/cuda/attention.h"
#include "tests/host_cuda/device_array.h"

namespace c3po::cuda {

// The shape of a trial of attention kernels.
struct HeadTrial {
  int heads = 4, kv_heads = 2, head_dim = 16, value_dim = 16, rope_dim = 16;
  HeadNorm norm = HeadNorm::kNone;
  float clip = INFINITY;
  bool shared_key = false;
  int planes = 1;

  int group() const { return heads / kv_heads; }
  int plain() const { return head_dim - rope_dim; }
  int width() const { return heads * value_dim; }
  int padded_width() const { return (width() + 31) / 32 * 32; }
};

inline float FromBFloat16(uint16_t bits) {
  const uint32_t word = uint32_t{bits} << 16;
  float x;
  std::memcpy(&x, &word, sizeof(x));
  return x;
}

inline uint16_t ToNearestBFloat16(float x) {
  uint32_t word;
  std::memcpy(&word, &x, sizeof(word));
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

inline std::vector<float> Normal(std::mt19937& random, size_t count, float scale = 1) {
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(count);
  for (float& value : values) value = distribution(random);
  return values;
}

// Weights and tables that all rows share, and HeadTransform in plain loops of double precision.
class TransformOracle {
 public:
  static constexpr int kPositions = 1024;

  TransformOracle(const HeadTrial& trial, std::mt19937& random) : trial_(trial) {
    const bool whole = trial.norm == HeadNorm::kWhole;
    const auto dim = static_cast<size_t>(trial.head_dim), half = static_cast<size_t>(trial.rope_dim / 2);
    q_norm_ = Normal(random, whole ? dim * static_cast<size_t>(trial.heads) : dim);
    k_norm_ = Normal(random, whole ? dim * static_cast<size_t>(trial.kv_heads) : dim);
    for (int p = 0; p < kPositions; ++p) {
      for (size_t i = 0; i < half; ++i) {
        const double angle = p * std::pow(100.0, -static_cast<double>(i) / static_cast<double>(half));
        cos_.push_back(static_cast<float>(std::cos(angle)));
        sin_.push_back(static_cast<float>(std::sin(angle)));
      }
    }
    device_ = std::make_unique<Device>(q_norm_, k_norm_, cos_, sin_);
  }

  HeadTransform Args() const {
    HeadTransform t;
    t.heads = trial_.heads;
    t.kv_heads = trial_.kv_heads;
    t.head_dim = trial_.head_dim;
    t.value_dim = trial_.value_dim;
    t.rope_dim = trial_.rope_dim;
    t.norm = trial_.norm;
    t.eps = kEps;
    t.clip = trial_.clip;
    t.q_norm = device_->q_norm.data();
    t.k_norm = device_->k_norm.data();
    t.cos = device_->cos.data();
    t.sin = device_->sin.data();
    return t;
  }

  // All heads of a row of queries or keys: raw [heads, head_dim] -> the same, transformed.
  std::vector<double> Heads(const std::vector<float>& raw, bool queries, int position) const {
    return Heads(std::vector<double>(raw.begin(), raw.end()), queries, position);
  }
  std::vector<double> Heads(std::vector<double> x, bool queries, int position) const {
    const int heads = queries ? trial_.heads : trial_.kv_heads, dim = trial_.head_dim;
    const std::vector<float>& weight = queries ? q_norm_ : k_norm_;
    const int cut = trial_.norm == HeadNorm::kWhole ? heads * dim : dim;
    for (int begin = 0; trial_.norm != HeadNorm::kNone && begin < heads * dim; begin += cut) {
      double squares = 0;
      for (int i = begin; i < begin + cut; ++i) squares += x[At(i)] * x[At(i)];
      const double factor = 1 / std::sqrt(squares / cut + double{kEps});
      for (int i = begin; i < begin + cut; ++i) x[At(i)] *= factor * double{weight[At(i - begin)]};
    }
    for (double& value : x) value = std::min(std::max(value, -double{trial_.clip}), double{trial_.clip});
    const int half = trial_.rope_dim / 2;
    for (int h = 0; h < heads; ++h) {
      for (int j = 0; j < half; ++j) {
        double& a = x[At(h * dim + trial_.plain() + j)];
        double& b = x[At(h * dim + trial_.plain() + half + j)];
        const double c = cos_[At(position * half + j)], s = sin_[At(position * half + j)], first = a;
        a = first * c - b * s;
        b = b * c + first * s;
      }
    }
    return x;
  }

  std::vector<double> Values(const std::vector<float>& raw) const {
    std::vector<double> x(raw.begin(), raw.end());
    for (double& value : x) value = std::min(std::max(value, -double{trial_.clip}), double{trial_.clip});
    return x;
  }

  static constexpr float kEps = 1e-5f;

 private:
  static size_t At(int i) { return static_cast<size_t>(i); }
  struct Device {
    Device(const std::vector<float>& q, const std::vector<float>& k, const std::vector<float>& c,
           const std::vector<float>& s)
        : q_norm(q), k_norm(k), cos(c), sin(s) {}
    host_cuda::DeviceArray<float> q_norm, k_norm, cos, sin;
  };

  HeadTrial trial_;
  std::vector<float> q_norm_, k_norm_, cos_, sin_;
  std::unique_ptr<Device> device_;
};

// One row before its transform: queries, keys (whole heads) and values.
struct RawRow {
  std::vector<float> q, k, v;
};

inline RawRow RandomRow(const HeadTrial& trial, std::mt19937& random) {
  RawRow row{Normal(random, static_cast<size_t>(trial.heads * trial.head_dim)),
             Normal(random, static_cast<size_t>(trial.kv_heads * trial.head_dim)),
             Normal(random, static_cast<size_t>(trial.kv_heads * trial.value_dim))};
  for (int g = 1; trial.shared_key && g < trial.kv_heads; ++g) {  // The rotated part is one for all heads.
    for (int i = trial.plain(); i < trial.head_dim; ++i) {
      row.k[static_cast<size_t>(g * trial.head_dim + i)] = row.k[static_cast<size_t>(i)];
    }
  }
  return row;
}

// Raw rows on the device, as a projection leaves them: side by side, or, with a shared key, in places of their own.
class RowsOnDevice {
 public:
  RowsOnDevice(const HeadTrial& trial, const std::vector<RawRow>& rows) : trial_(trial) {
    const int q = trial.heads * trial.head_dim, plain = trial.shared_key ? trial.plain() : trial.head_dim;
    const int pair = trial.shared_key ? plain + trial.value_dim : 0;
    std::vector<float> raw, expanded;
    for (const RawRow& row : rows) {
      raw.insert(raw.end(), row.q.begin(), row.q.end());
      if (!trial.shared_key) {
        raw.insert(raw.end(), row.k.begin(), row.k.end());
        raw.insert(raw.end(), row.v.begin(), row.v.end());
        continue;
      }
      raw.insert(raw.end(), row.k.begin() + plain, row.k.begin() + trial.head_dim);
      for (int g = 0; g < trial.kv_heads; ++g) {
        expanded.insert(expanded.end(), row.k.begin() + g * trial.head_dim, row.k.begin() + g * trial.head_dim + plain);
        expanded.insert(expanded.end(), row.v.begin() + g * trial.value_dim, row.v.begin() + (g + 1) * trial.value_dim);
      }
    }
    const int stride = static_cast<int>(raw.size() / std::max<size_t>(1, rows.size()));
    raw_ = std::make_unique<host_cuda::DeviceArray<float>>(raw);
    source_.q = raw_->data();
    source_.q_stride = stride;
    if (trial.shared_key) {
      expanded_ = std::make_unique<host_cuda::DeviceArray<float>>(expanded);
      source_.shared_key = raw_->data() + q;
      source_.shared_stride = stride;
      source_.k = expanded_->data();
      source_.v = expanded_->data() + plain;
      source_.k_stride = source_.v_stride = trial.kv_heads * pair;
      source_.k_head_stride = source_.v_head_stride = pair;
    } else {
      source_.k = raw_->data() + q;
      source_.v = source_.k + trial.kv_heads * trial.head_dim;
      source_.k_stride = source_.v_stride = stride;
      source_.k_head_stride = trial.head_dim;
      source_.v_head_stride = trial.value_dim;
    }
  }
  const HeadSource& source() const { return source_; }

 private:
  HeadTrial trial_;
  std::unique_ptr<host_cuda::DeviceArray<float>> raw_, expanded_;
  HeadSource source_;
};

}  // namespace c3po::cuda

#endif  // C3PO_TESTS_SERVER_COMPUTE_CUDA_ATTENTION_TRIAL_H_
