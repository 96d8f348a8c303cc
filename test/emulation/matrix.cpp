// Matrices: loads from shared memory, and products with the fragment layouts of the PTX manual.
#include <algorithm>

#include "kernels/numeric.h"
#include "machine.h"

namespace mqa::emulation {

void ldmatrix_x4(const char* name, uint32_t (&r)[4], uint32_t row_address, bool transpose,
                 Site at) {
  machine.check_range(row_address, 16, name, at);
  struct Lane {
    uint32_t row;
    uint32_t* out;
  } self{row_address, r};
  machine.collective(name, at, &self, [&](Operands all) {
    ++machine.stats.ldmatrix;
    for (int matrix = 0; matrix < 4; ++matrix) {
      uint16_t m[8][8];
      int passes = 1, in_group[8] = {};  // 32 banks of 4 bytes: 8 groups as wide as a row
      for (int row = 0; row < 8; ++row) {
        const uint32_t address = static_cast<Lane*>(all[matrix * 8 + row])->row;
        machine.track_read(/*whole_warp=*/true, address, 16, name, at);
        std::memcpy(m[row], current.smem + address, 16);
        bool repeated = false;
        for (int i = 0; i < row; ++i)
          repeated |= static_cast<Lane*>(all[matrix * 8 + i])->row == address;
        if (!repeated) passes = std::max(passes, ++in_group[address / 16 % 8]);
      }
      machine.stats.bank_conflicts += passes - 1;
      for (int lane = 0; lane < 32; ++lane) {
        const int i = lane / 4, j = lane % 4 * 2;
        const uint32_t low = transpose ? m[j][i] : m[i][j],
                       high = transpose ? m[j + 1][i] : m[i][j + 1];
        static_cast<Lane*>(all[lane])->out[matrix] = low | high << 16;
      }
    }
  });
}

namespace {

float to_float(Half kind, uint16_t bits) {
  return kind == Half::kBFloat16 ? kernels::bfloat16_to_float(bits)
                                 : kernels::float16_to_float(bits);
}

struct MmaLane {
  float* c;
  const uint32_t* a;
  uint32_t b[2];
};

// g is the row of A and C and the column of B, t the first of a pair along k (or n).
template <Half kind>
void multiply(Operands lanes) {
  typedef float Row8 __attribute__((vector_size(32)));
  float A[16][16], B[16][8];
  Row8 C[16];
  const auto unpack = [](uint32_t pair, float& low, float& high) {
    low = to_float(kind, static_cast<uint16_t>(pair));
    high = to_float(kind, static_cast<uint16_t>(pair >> 16));
  };
  for (int lane = 0; lane < 32; ++lane) {
    const MmaLane& l = *static_cast<MmaLane*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      float* to = &A[g + i % 2 * 8][t + i / 2 * 8];
      unpack(l.a[i], to[0], to[1]);
      C[g + i / 2 * 8][t + i % 2] = l.c[i];
    }
    for (int i = 0; i < 2; ++i) unpack(l.b[i], B[t + i * 8][g], B[t + i * 8 + 1][g]);
  }
  for (int m = 0; m < 16; ++m) {
    Row8 sum = C[m], row;
    for (int k = 0; k < 16; ++k) std::memcpy(&row, B[k], sizeof row), sum += A[m][k] * row;
    C[m] = sum;
  }
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i)
      static_cast<MmaLane*>(lanes[lane])->c[i] = C[lane / 4 + i / 2 * 8][lane % 4 * 2 + i % 2];
}

}  // namespace

void mma_m16n8k16(Half kind, float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                  Site at) {
  MmaLane self{c, a, {b0, b1}};
  machine.collective("mma", at, &self, [&](Operands lanes) {
    ++machine.stats.mma;
    kind == Half::kBFloat16 ? multiply<Half::kBFloat16>(lanes) : multiply<Half::kFloat16>(lanes);
  });
}

}  // namespace mqa::emulation
