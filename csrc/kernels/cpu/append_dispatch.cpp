// Run-time choice among the instruction sets that rows are appended with.
#include "append_rows.h"
#include "isa.h"

namespace mqa::kernels::cpu {

namespace generic {
StoreRows row_store(DType source, DType cache, bool is_packed);
}
#ifdef __x86_64__
namespace avx2 {
StoreRows row_store(DType source, DType cache, bool is_packed);
}
namespace avx512 {
StoreRows row_store(DType source, DType cache, bool is_packed);
}
#endif

StoreRows row_store(DType source, DType cache, bool is_packed) {
#ifdef __x86_64__
  const Isa isa = current_isa();
  if (isa >= Isa::kAvx512) return avx512::row_store(source, cache, is_packed);
  if (isa >= Isa::kAvx2) return avx2::row_store(source, cache, is_packed);
#endif
  return generic::row_store(source, cache, is_packed);
}

}  // namespace mqa::kernels::cpu
