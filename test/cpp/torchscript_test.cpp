// Models that this and earlier versions saved keep loading in C++ and keep their results.
#include <gtest/gtest.h>
#include <torch/script.h>

#include <filesystem>

namespace {

TEST(TorchScript, SavedModelsKeepTheirResults) {
  int models = 0;
  for (const auto& file : std::filesystem::directory_iterator(MQA_FIXTURES)) {
    if (file.path().extension() != ".pt") continue;
    ++models;
    torch::jit::Module module = torch::jit::load(file.path());
    for (const bool frozen : {false, true}) {  // freezing must not drop the appends
      const auto expected = module.attr("expected").toTensorVector();
      torch::jit::Module run = module;
      if (frozen) {
        module.eval();
        run = torch::jit::freeze(module);
      }
      const auto results = run.forward({}).toTensorVector();
      ASSERT_EQ(results.size(), expected.size());
      for (size_t i = 0; i < results.size(); ++i) {
        EXPECT_TRUE(at::allclose(results[i], expected[i], 1e-4, 1e-5)) << file.path() << " " << i;
      }
    }
  }
  EXPECT_GE(models, 1);
}

}  // namespace
