// Packed keys: sixteen slots side by side, as few rows, which take keys in their lanes, load them.
// For many rows they are put in order first.
#pragma once

#include <array>

#include "products.h"

namespace mqa::kernels::cpu {
namespace {

static_assert(kTileKeys == kPackedSlots);

#if defined(__AVX512BF16__)
// One of the lower and one of the upper half in turn.
inline Vector<uint32_t> interleave_halves(Vector<uint32_t> x) {
  alignas(64) static constexpr auto kOrder = [] {
    std::array<uint16_t, 32> order{};
    for (int i = 0; i < 32; ++i) order[i] = i / 2 + i % 2 * 16;
    return order;
  }();
  return (Vector<uint32_t>)_mm512_permutexvar_epi16(_mm512_load_si512(kOrder.data()), (__m512i)x);
}
#endif

// What a lane multiplies at once of as many slots as there are lanes.
template <class Products>
inline Vector<typename Products::Element> load_packed(const typename Products::Stored* from) {
  const void* address = from;
  const auto x = Products::load(&address);
#if defined(__AVX512BF16__)
  if constexpr (Products::kStep == 2) return interleave_halves(x);
#endif
  return x;
}

// Finds the packed keys of one KV head for `keys`, which lie in one chunk, and stores where in
// `tiles`, by position in the chunk. Those of a tile's slots that are not in `keys` come with the
// others.
template <class Products>
class PackedKeys {
 public:
  using Stored = typename Products::Stored;

  // `scaled`: converted keys are multiplied by their scales, where the cache has any.
  PackedKeys(const AttentionParams& p, const RowTile& tile, bool scaled)
      : p_(p), tile_(tile), scaled_(scaled && p.key.scales.data) {}

  // As they are, [width][16]; the buffer has that size for each tile.
  void find(KeyRange keys, int64_t width, Stored* buffer, KeyTile* tiles) const {
    for_each_tile(keys, [&](int64_t t, int64_t first) {
      tiles[t] = {block(first, width, buffer + t * kTileKeys * width), sizeof(Stored)};
    });
  }

  // In order, [16][width], whole vectors of elements; the buffer has room for one tile more.
  void find_rows(KeyRange keys, int64_t width, Stored* buffer, KeyTile* tiles) const {
    for_each_tile(keys, [&](int64_t t, int64_t first) {
      Stored* rows = buffer + t * kTileKeys * width;
      transpose_block(block(first, width, buffer + kChunkKeys * width), width, rows);
      tiles[t] = {rows, width * static_cast<int64_t>(sizeof(Stored))};
    });
  }

 private:
  template <class Body>
  static void for_each_tile(KeyRange keys, const Body& body) {
    const KeyRange found = tiles_of(keys);
    for (int64_t t = found.begin; t < found.end; ++t) body(t, chunk_start(keys) + t * kTileKeys);
  }

  const Stored* block(int64_t first, int64_t width, Stored* buffer) const {
    const Cache& cache = p_.key;
    const SlotPlace place = place_of(p_.block_table, tile_.batch, first);
    const int64_t offset = row_offset(cache, place, tile_.kv_head);
    if (cache.dtype == kDTypeOf<Stored> && p_.D == width) {
      return static_cast<const Stored*>(cache.data) + offset;
    }
    convert_row(cache, offset, p_.D * kTileKeys, nullptr, buffer, width * kTileKeys);
    if constexpr (std::is_floating_point_v<Stored>) {
      for (int64_t j = 0; scaled_ && j < kTileKeys; ++j) {
        const float scale = scale_at(cache, {place.row, place.slot + j}, tile_.kv_head);
        for (int64_t e = 0; e < p_.D; ++e) buffer[e * kTileKeys + j] *= scale;
      }
    }
    return buffer;
  }

  static void transpose_block(const Stored* block, int64_t width, Stored* rows) {
    using Element = typename Products::Element;
    constexpr int n = kLanes<Element>;
    constexpr int64_t kStep = Products::kStep;
    for (int64_t slot = 0; slot < kTileKeys; slot += n) {
      for (int64_t e = 0; e < width; e += n * kStep) {
        Vector<Element> x[n];
        for (int i = 0; i < n; ++i) {
          x[i] = load_packed<Products>(block + (e + i * kStep) * kTileKeys + slot);
        }
        transpose(x);
        for (int i = 0; i < n; ++i) std::memcpy(rows + (slot + i) * width + e, &x[i], sizeof x[i]);
      }
    }
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  bool scaled_;
};

}  // namespace
}  // namespace mqa::kernels::cpu
