// The public C++ functions: defaults, options, gradients, errors.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <mqa/mqa.h>

namespace {

using at::Tensor;

struct Api : testing::Test {
  Tensor query, key, value;

  Api() {
    at::manual_seed(0);
    query = at::randn({2, 6, 5, 16});
    key = at::randn({2, 2, 5, 16});
    value = at::randn({2, 2, 5, 16});
  }
  Tensor sdpa(bool is_causal, std::optional<double> scale = {}) const {
    return at::scaled_dot_product_attention(query, key, value, {}, 0., is_causal, scale,
                                            /*enable_gqa=*/true);
  }
  void expect_error(const std::string& message, const std::function<void()>& call) const {
    try {
      call();
      ADD_FAILURE() << "no error, expected: " << message;
    } catch (const c10::Error& error) {
      EXPECT_NE(std::string(error.what_without_backtrace()).find(message), std::string::npos)
          << error.what_without_backtrace();
    }
  }
};

TEST_F(Api, DefaultsAreAttentionOverAllKeys) {
  EXPECT_TRUE(at::allclose(mqa::attention(query, key, value), sdpa(false), 1e-5, 1e-6));
}

TEST_F(Api, OptionsByName) {
  const Tensor out = mqa::attention(query, key, value, {.is_causal = true, .scale = 0.5});
  EXPECT_TRUE(at::allclose(out, sdpa(true, 0.5), 1e-5, 1e-6));
}

TEST_F(Api, UndefinedTensorMeansNone) {
  const Tensor none;
  EXPECT_TRUE(at::equal(mqa::attention(query, key, value, {.attn_mask = none, .seq_lens = none}),
                        mqa::attention(query, key, value)));
}

TEST_F(Api, MergesPartsOfTheKeys) {
  const auto [first, first_lse] =
      mqa::attention_lse(query, key.narrow(2, 0, 2), value.narrow(2, 0, 2));
  const auto [rest, rest_lse] =
      mqa::attention_lse(query, key.narrow(2, 2, 3), value.narrow(2, 2, 3));
  const auto [out, lse] = mqa::merge({first, rest}, {first_lse, rest_lse});
  const auto [expected, expected_lse] = mqa::attention_lse(query, key, value);
  EXPECT_TRUE(at::allclose(out, expected, 1e-5, 1e-6));
  EXPECT_TRUE(at::allclose(lse, expected_lse, 1e-5, 1e-6));
}

TEST_F(Api, AppendsInPlaceAndAttendsToIt) {
  const Tensor key_cache = at::full({2, 2, 9, 16}, NAN), value_cache = key_cache.clone();
  mqa::kv_append(key_cache, value_cache, key, value, at::zeros({2}, at::kLong));
  EXPECT_TRUE(at::equal(key_cache.narrow(2, 0, 5), key));
  EXPECT_TRUE(key_cache.narrow(2, 5, 4).isnan().all().item<bool>());
  const Tensor out = mqa::attention(query, key_cache, value_cache,
                                    {.is_causal = true, .seq_lens = at::full({2}, 5, at::kInt)});
  EXPECT_TRUE(at::equal(out, mqa::attention(query, key, value, {.is_causal = true})));
}

// Of one sequence: its three slots lie in the pages 2 and 0.
TEST_F(Api, PagedEightBitCaches) {
  const auto codes = at::TensorOptions(at::kChar);
  Tensor keys = at::zeros({3, 2, 2, 16}, codes), values = at::zeros({3, 2, 2, 16}, codes);
  Tensor key_scale = at::zeros({3, 2, 2}), value_scale = at::zeros({3, 2, 2});
  const Tensor table = at::tensor({2, 0}, at::kInt).view({1, 2});
  const Tensor new_key = key.slice(0, 0, 1).slice(2, 0, 3);
  const Tensor new_value = value.slice(0, 0, 1).slice(2, 0, 3);
  mqa::kv_append(keys, values, new_key, new_value, at::tensor({0}),
                 {.block_table = table, .key_scale = key_scale, .value_scale = value_scale});
  EXPECT_FALSE(keys[1].any().item<bool>());
  const Tensor out = mqa::attention(query.slice(0, 0, 1), keys, values,
                                    {.seq_lens = at::tensor({3}),
                                     .block_table = table,
                                     .key_scale = key_scale,
                                     .value_scale = value_scale});
  EXPECT_TRUE(
      at::allclose(out, mqa::attention(query.slice(0, 0, 1), new_key, new_value), 0.05, 0.05));
}

TEST_F(Api, GradientsFlow) {
  for (Tensor* t : {&query, &key, &value}) t->requires_grad_();
  mqa::attention(query, key, value, {.is_causal = true}).square().sum().backward();
  std::vector<Tensor> grads;
  for (Tensor* t : {&query, &key, &value}) {
    grads.push_back(t->grad().clone());
    t->mutable_grad().reset();
  }
  sdpa(true).square().sum().backward();
  EXPECT_TRUE(at::allclose(grads[0], query.grad(), 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(grads[1], key.grad(), 1e-4, 1e-5));
  EXPECT_TRUE(at::allclose(grads[2], value.grad(), 1e-4, 1e-5));
}

TEST_F(Api, ErrorsNameOpArgumentExpectationAndActual) {
  expect_error("mqa::attention: expected key.size(-1) == 16 (query's head_dim), got 8",
               [&] { mqa::attention(query, key.narrow(3, 0, 8), value); });
  expect_error("mqa::attention_lse: expected 0 <= seq_lens[1] <= 5 (key's slots), got 6",
               [&] { mqa::attention_lse(query, key, value, {.seq_lens = at::tensor({1, 6})}); });
  expect_error("mqa::merge: expected len(lses) == 1 (one per part in outs), got 0",
               [&] { mqa::merge({query}, {}); });
  const Tensor cache = at::zeros({2, 2, 9, 16});
  expect_error("mqa::kv_append: expected 0 <= positions[1] <= 4 (capacity 9 - 5 new tokens), got 5",
               [&] { mqa::kv_append(cache, cache, key, value, at::tensor({0, 5})); });
  EXPECT_TRUE(at::equal(cache, at::zeros_like(cache)));
}

}  // namespace
