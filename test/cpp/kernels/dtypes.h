// Names of dtypes in messages, and what the kernels' tests ask of them.
#pragma once

#include "kernels/params.h"

namespace mqa::kernels {

inline const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return "float64";
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kInt8:
      return "int8";
    case DType::kFloat8E4M3:
      return "float8_e4m3fn";
    case DType::kBool:
      return "bool";
  }
  return "";
}

inline bool is_quantised(DType dtype) { return size_of(dtype) == 1; }

}  // namespace mqa::kernels
