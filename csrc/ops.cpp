// Every schema of the library. What the arguments mean: include/mqa/mqa.h.
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "library.h"

namespace mqa {

bool first_copy() {
  static const bool first = [] {
    const bool registered =
        c10::Dispatcher::singleton().findSchema({"mqa::attention", ""}).has_value();
    if (registered) {
      TORCH_WARN(
          "mqa: a second copy of libmqa was loaded into this process; the first one stays in use. "
          "Link or load one copy only.");
    }
    return !registered;
  }();
  return first;
}

}  // namespace mqa

TORCH_LIBRARY_FRAGMENT(mqa, m) {
  if (!mqa::first_copy()) return;
  m.def(R"(attention(
      Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, *,
      bool is_causal=False, float? scale=None, Tensor? seq_lens=None, Tensor? block_table=None,
      SymInt window_left=-1, SymInt window_right=-1, float softcap=0., Tensor? alibi_slopes=None,
      Tensor? sinks=None, Tensor? key_scale=None, Tensor? value_scale=None) -> Tensor)");
  m.def(R"(attention_lse(
      Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, *,
      bool is_causal=False, float? scale=None, Tensor? seq_lens=None, Tensor? block_table=None,
      SymInt window_left=-1, SymInt window_right=-1, float softcap=0., Tensor? alibi_slopes=None,
      Tensor? sinks=None, Tensor? key_scale=None, Tensor? value_scale=None
      ) -> (Tensor out, Tensor lse))");
  m.def("merge(Tensor[] outs, Tensor[] lses) -> (Tensor out, Tensor lse)");
  // Mutating, and returning nothing: otherwise TorchScript drops the call as dead code.
  m.def(R"(kv_append(
      Tensor(a!) key_cache, Tensor(b!) value_cache, Tensor key, Tensor value, Tensor positions, *,
      Tensor? block_table=None, Tensor(c!)? key_scale=None, Tensor(d!)? value_scale=None) -> ())");
  // The instruction set that CPU kernels use: generic, avx2, avx512, avx512_bf16 or amx.
  m.def("cpu_isa() -> str");
  // Internal, without a promise of stability: gradients of query, key, value, attn_mask and sinks.
  m.def(R"(attention_backward(
      Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse,
      Tensor query, Tensor key, Tensor value, Tensor? attn_mask, *,
      bool is_causal, float? scale, Tensor? seq_lens, Tensor? block_table,
      SymInt window_left, SymInt window_right, float softcap, Tensor? alibi_slopes,
      Tensor? sinks, Tensor? key_scale, Tensor? value_scale, bool[5] output_mask
      ) -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_mask, Tensor grad_sinks))");
}
