// A quantized folder on the GPU's kernels, which run on the host here, is what its original becomes when it is
// quantized at load.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <memory>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "server/compute/aten/rope_tensors.h"
#include "server/compute/cuda/cuda_backend.h"
#include "server/compute/cuda/kernel_table.h"
#include "tests/host_cuda/runtime.h"
#include "tests/server/compute/opened_model.h"
#include "tests/server/model/tiny_model.h"
#include "tests/server/quantize/made_up_folder.h"

namespace c3po {
namespace {

std::unique_ptr<cuda::CudaBackend> OnCuda(const OpenedFolder& opened, cuda::Runtime& runtime, WeightFormat format,
                                          bool as_stored) {
  const cuda::CudaDevice device{&runtime, c3po_model_kernels(cuda::kCudaLibraryVersion), nullptr};
  return std::make_unique<cuda::CudaBackend>(opened.config, opened.weights, ElementType::kBfloat16,
                                             aten::MakeRopeTable(opened.config), device, nullptr, format, as_stored);
}

std::vector<float> LogitsOf(const OpenedFolder& opened, WeightFormat format, bool as_stored, int64_t* bytes) {
  host_cuda::HostRuntime runtime;
  auto backend = OnCuda(opened, runtime, format, as_stored);
  *bytes = backend->info().weight_bytes;
  const auto model = MoeModel::OnBackend(opened.config, std::move(backend), int64_t{1} << 20);
  EXPECT_TRUE(model->AllocateKvCache(SlotsOf(256)).ok());
  const auto out = RunSegments(*model, {PromptSegment({{0, 200}}, {1, 7, 3, 9, 2})});
  EXPECT_TRUE(out.ok()) << out.status();
  return out->at(0).readout.logits;
}

using Case = std::tuple<MadeUpModel, WeightFormat>;
class QuantizedFolderOnCuda : public testing::TestWithParam<Case> {};

TEST_P(QuantizedFolderOnCuda, ComputesWhatItsOriginalQuantizedAtLoadDoes) {
  const auto& [made_up, format] = GetParam();
  QuantizedFolder folder;
  made_up.Write(folder.folder());
  folder.Quantize(format);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  int64_t expected_bytes = 0, bytes = 0, widened_bytes = 0;
  const std::vector<float> expected = LogitsOf(OpenedFolder(folder.from()), format, false, &expected_bytes);
  const OpenedFolder quantized(folder.to());
  EXPECT_EQ(LogitsOf(quantized, format, /*as_stored=*/true, &bytes), expected);
  EXPECT_EQ(bytes, expected_bytes);
  EXPECT_NE(LogitsOf(quantized, WeightFormat::kElements, false, &widened_bytes), expected) << "not quantized at all";
  EXPECT_GT(widened_bytes, bytes);
}

INSTANTIATE_TEST_SUITE_P(
    Families, QuantizedFolderOnCuda,
    testing::Combine(testing::Values(MadeUpModel{"olmoe_tiny", R"({"intermediate_size": 48})"},
                                     MadeUpModel{"mixtral_tiny", R"({"intermediate_size": 32})"},
                                     MadeUpModel{"deepseek_tiny",
                                                 R"({"intermediate_size": 64, "moe_intermediate_size": 16})"}),
                     testing::Values(WeightFormat::kInt8, WeightFormat::kInt4)),
    [](const auto& info) {
      return std::get<0>(info.param).golden + (std::get<1>(info.param) == WeightFormat::kInt8 ? "_int8" : "_int4");
    });

// Other quantizers use all 256 levels. The kernels have a sign and a magnitude of 7 bits.
TEST(QuantizedFolderOnCudaOfAllLevels, IsRefusedByTheTensorsName) {
  QuantizedFolder folder;
  MadeUpModel{"olmoe_tiny", R"({"intermediate_size": 48})"}.Write(folder.folder());
  folder.Quantize(WeightFormat::kInt8);
  ASSERT_TRUE(folder.result().ok()) << folder.result().status();
  OpenedFolder opened(folder.to());
  std::vector<std::byte> changed;
  for (StoredWeight& stored : opened.weights.layers[1]) {
    if (stored.name != "model.layers.1.self_attn.q_proj.weight") continue;
    changed.assign(stored.matrix.bytes.begin(), stored.matrix.bytes.end());
    changed[0] = std::byte{0};  // -128: levels are plus 128 in the file.
    stored.matrix.bytes = changed;
    stored.matrix.mapped = false;
  }
  ASSERT_FALSE(changed.empty());
  host_cuda::HostRuntime runtime;
  try {
    OnCuda(opened, runtime, WeightFormat::kInt8, /*as_stored=*/true);
    FAIL() << "packed";
  } catch (const std::invalid_argument& error) {
    EXPECT_THAT(error.what(), testing::AllOf(testing::HasSubstr("model.layers.1.self_attn.q_proj.weight"),
                                             testing::HasSubstr("-128")));
  }
}

}  // namespace
}  // namespace c3po
