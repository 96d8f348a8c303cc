// Products of queries, keys and values by vector instructions.
//
// With the rows in the lanes a score is a chain over D: of a key's elements, broadcast from where
// the cache has them, and the packed queries. Few rows would leave lanes idle: for them blocks of
// keys are transposed in registers and the keys are in the lanes. Both are the same chain, so that
// a row's bits do not depend on how many it comes with.
#pragma once

#include <algorithm>
#include <bit>

#include "attend.h"
#include "packed_keys.h"

namespace mqa::kernels::cpu {
namespace {

constexpr int64_t kFewRows = 8;

// The weights of four consecutive keys in pairs of bfloat16, one vector for two keys, 16 rows
// apart.
inline void store_pairs(const Vector<float>* weights, void* to) {
  for (int k = 0; k < kStoredKeys; k += 2) {
    const Vector<uint32_t> pairs = bfloat16_pairs(weights[k], weights[k + 1]);
    std::memcpy(static_cast<float*>(to) + k / 2 * kGroupRows, &pairs, sizeof pairs);
  }
}

// Of a query or a cache, which promise no more alignment than that of what they store.
template <class Element, class From>
inline Element element_at(const From* from, int64_t index) {
  Element x;
  std::memcpy(&x, reinterpret_cast<const char*>(from) + index * sizeof(Element), sizeof x);
  return x;
}

// Columns of a row, in elements, as packed queries and copied keys have them.
template <class Products>
constexpr int64_t elements(int64_t width) {
  return padded((width + Products::kStep - 1) / Products::kStep);
}

inline bool few(const RowTile& tile) { return tile.rows <= kFewRows; }

template <class Products>
int64_t query_size(const AttentionParams& p) {
  return (kTileRows + kGroupRows) * elements<Products>(p.D) * sizeof(typename Products::Element);
}

// How many rows the packed queries of few rows hold.
inline int64_t few_rows(const RowTile& tile) { return std::bit_ceil<uint64_t>(tile.rows); }

// To [element][few_rows] for few rows, else to [group][element][row in group].
template <class Products>
void pack_queries(const AttentionParams& p, const RowTile& tile, bool few, void* query) {
  using Element = typename Products::Element;
  using Packed = typename Products::Packed;
  const int64_t width = elements<Products>(p.D);
  const int64_t rows = few ? few_rows(tile) : whole_tiles({0, tile.rows}, kGroupRows).end;
  Element* packed = static_cast<Element*>(query);
  Element* group = packed + kTileRows * width;  // 16 rows that are to be transposed
  const Cache source{const_cast<void*>(p.query), p.dtype, 0, 0, 0, {}};
  RowWalk walk(p, tile, 0);
  for (int64_t r = 0; r < rows; ++r) {
    Element* row = group + r % kGroupRows * width;
    if (r < tile.rows) {
      const auto [head, token] = *walk;
      const int64_t offset = tile.batch * p.query_batch_stride + head * p.query_head_stride +
                             token * p.query_token_stride;
      convert_row(source, offset, p.D, nullptr, reinterpret_cast<Packed*>(row),
                  width * Products::kStep);
      ++walk;
    } else {
      std::fill_n(row, width, Element{});
    }
    if (!few && r % kGroupRows == kGroupRows - 1) {
      transpose_rows(group, width, width, packed + r / kGroupRows * kGroupRows * width);
    }
  }
  for (int64_t e = 0; few && e < width; ++e) {
    for (int64_t r = 0; r < rows; ++r) packed[e * rows + r] = group[r * width + e];
  }
  clear_upper_lanes();
}

template <class P, class L>
class VectorEngine {
 public:
  using Acc = typename P::Acc;
  using Layout = L;
  static constexpr int64_t kGroups = kVectorRegisters == 32 ? 4 : 1;
  static constexpr int64_t kSpanKeys = kTileKeys;
  // Few rows take time to come to a key; many first copy them all.
  static constexpr int64_t kLead = Layout::kRowStride == 1 ? kWholeLead : 48;

  VectorEngine(const AttentionParams& p, const Work& work, const Work& next, const void* query,
               void* scratch)
      : p_(p),
        tile_(work.tile),
        keys_(work.keys),
        ahead_(p, work, next),
        query_(static_cast<const Element*>(query)) {
    Pieces pieces(scratch);
    key_buffer_ = pieces.take<Stored>((kChunkKeys + kTileKeys) * packed_width());
    value_buffer_ = pieces.take<Stored>(kChunkKeys * value_width());
    if constexpr (kStep > 1 && kManyRows)
      pairs_ = pieces.take<Element>(kChunkKeys / kStep * value_width());
    scores_ = pieces.take<Acc>(kGroups * kGroupScores);
    spare_ = {pieces.take<Acc>(kGroupRows * value_width()), pieces.take<Acc>(kGroupRows),
              pieces.take<Acc>(kGroupRows)};
    end_ = pieces.next();
  }

  static int64_t scratch_size(const AttentionParams& p) {
    const Work none{};
    return VectorEngine(p, none, none, nullptr, nullptr).end_;  // of pieces that begin at 0
  }

  void find_keys() {
    constexpr bool kScaledCopies = kStep == 1 && !P::kScaled;
    const PackedKeys<P> packed(p_, tile_, kScaledCopies);
    if (!p_.key.is_packed) {
      CacheTiles<Stored>(p_, tile_, p_.key, kScaledCopies, p_.D, key_width(), key_buffer_)
          .find(keys_, nullptr, key_tiles_);
    } else if constexpr (kManyRows) {
      packed.find_rows(keys_, packed_width(), key_buffer_, key_tiles_);
    } else {
      packed.find(keys_, key_width(), key_buffer_, key_tiles_);
    }
    if constexpr (kStep > 1) {
      key_scales_ = find_scales(p_, tile_, p_.key, keys_, nullptr, key_scale_buffer_);
    } else if constexpr (P::kScaled) {
      find_factors(p_.key, nullptr, key_scale_buffer_);
    }
  }

  void find_values(const bool* used) {
    CacheTiles<Stored>(p_, tile_, p_.value, /*scaled=*/!P::kScaled, p_.D_v, value_width(),
                       value_buffer_)
        .find(keys_, used, value_tiles_);
    if constexpr (P::kScaled) find_factors(p_.value, used, value_scales_);
    if constexpr (kStep > 1 && kManyRows) interleave_values();
  }

  const KeyTile* key_tiles() const { return key_tiles_; }

  const Acc* key_scales() const { return key_scales_; }

  Acc* scores(int64_t group) { return scores_ + group * kGroupScores; }

  const Partial<Acc>& spare() const { return spare_; }

  void score(const RowGroups& some) {
    if constexpr (kManyRows) {
      const int64_t width = key_elements();
      for (int64_t t = some.span.begin / kTileKeys; t < some.span.end / kTileKeys; ++t) {
        for (int64_t e = 0; e < width; e += kChain) {
          score_count<kGroups>(some, t, e, std::min(e + kChain, width));
        }
      }
    } else {
      score_rows<kFewRows>(some.span);
    }
  }

  void weigh(const RowGroups& some, Acc scale, const Partial<Acc>& partial) {
    for (int64_t g = 0; g < some.count; ++g) {
      const int64_t first = g * kGroupRows;
      const int64_t rows = std::min(kGroupRows, tile_.rows - some.first * kGroupRows - first);
      Acc* weights = scores(g);
      softmax<Layout, P::kExactWeights>(
          kManyRows ? kGroupRows : rows, some.span, scale, weights, partial.max + first,
          partial.sum + first,
          [&](int64_t r, int64_t j, const Vector<Acc>* w) { store_weights(weights, r, j, w); });
      weigh_rows(some.seen, weights, rows, partial.out + first * value_width());
    }
  }

 private:
  using Stored = typename P::Stored;
  using Element = typename P::Element;
  static constexpr int64_t kStep = P::kStep;
  static constexpr bool kManyRows = Layout::kRowStride == 1;
  using Value = std::conditional_t<kManyRows, Element, Stored>;  // of value_tiles_ when weighed
  static constexpr int64_t kGroupScores = kChunkKeys * kGroupRows;
  static constexpr int64_t kTileSteps = kTileKeys / kStep;
  static constexpr int kVectors = kGroupRows / kLanes<Acc>;  // of a group of rows
  static constexpr int kSums = kVectorRegisters / 2;         // that a product keeps in registers
  static constexpr int kKeyPointers = 8;                     // likewise
  static constexpr int64_t kLine = 64;                       // bytes that are fetched at once

  // Of products, before they are added to those of other elements: the rounding errors of one
  // long chain would grow with D.
  static constexpr int64_t kChain = 64;

  // Of a key: as packed queries have it, or half a vector less, so that keys of D = 80 are used in
  // place.
  int64_t key_elements() const {
    constexpr int64_t kGranule = kStep == 1 ? kGroupRows : kGroupRows / 2;
    return whole_tiles({0, (p_.D + kStep - 1) / kStep}, kGranule).end;
  }
  int64_t key_width() const { return key_elements() * kStep; }
  int64_t packed_width() const { return elements<P>(p_.D) * kStep; }
  int64_t value_width() const { return padded(p_.D_v); }

  void find_factors(const Cache& cache, const bool* used, float* factors) const {
    if (!find_scales(p_, tile_, cache, keys_, used, factors)) {
      std::fill_n(factors, kChunkKeys, 1.f);
    }
  }

  // The first block of elements stores, the others add.
  static void add_score(int64_t first, Vector<Acc> sum, Acc* score) {
    store(score, first == 0 ? sum : load(score) + sum);
  }

  // score_groups<some.count>
  template <int kCount>
  void score_count(const RowGroups& some, int64_t t, int64_t e_begin, int64_t e_end) {
    if constexpr (kCount > 1) {
      if (some.count < kCount) return score_count<kCount - 1>(some, t, e_begin, e_end);
    }
    score_groups<kCount>(some.first, t, e_begin, e_end);
  }

  template <int kCount>
  void score_groups(int64_t first, int64_t t, int64_t e_begin, int64_t e_end) {
    constexpr int kFetchElements = 8;
    constexpr int kKeys =
        std::clamp<int>(std::bit_floor<unsigned>(kSums / (kCount * kVectors)), 1, kKeyPointers);
    const int64_t group_size = elements<P>(p_.D) * kGroupRows;
    const Element* query = query_ + first * group_size;
    for (int64_t k0 = 0; k0 < kTileKeys; k0 += kKeys) {
      Vector<Acc> sums[kKeys][kCount * kVectors];
      const Stored* keys[kKeys];
      for (int k = 0; k < kKeys; ++k) {
        keys[k] = key_tiles_[t].template row<Stored>(k0 + k);
        for (Vector<Acc>& sum : sums[k]) sum = Vector<Acc>{};  // `= {}` would be a memset
      }
      for (int64_t e0 = e_begin; e0 < e_end; e0 += kFetchElements) {
        ahead_.fetch(std::max<int64_t>(kKeys * kFetchElements * sizeof(Element) / kLine, 1));
        for (int64_t e = e0; e < e0 + kFetchElements; ++e) {
          Vector<Element> q[kCount * kVectors];
          for (int v = 0; v < kCount * kVectors; ++v) {
            q[v] = load(query + v / kVectors * group_size + e * kGroupRows +
                        v % kVectors * kLanes<Acc>);
          }
          for (int k = 0; k < kKeys; ++k) {
            const Vector<Element> key = broadcast(element_at<Element>(keys[k], e));
            for (int v = 0; v < kCount * kVectors; ++v) {
              sums[k][v] = P::multiply_add(q[v], key, sums[k][v]);
            }
          }
        }
      }
      Acc* to = scores_ + (t * kTileKeys + k0) * kGroupRows;
      for (int k = 0; k < kKeys; ++k) {
        for (int v = 0; v < kCount * kVectors; ++v) {
          add_score(e_begin, sums[k][v],
                    to + v / kVectors * kGroupScores + k * kGroupRows + v % kVectors * kLanes<Acc>);
        }
      }
    }
  }

  // score_few for as many rows as there are, rounded up to a power of two
  template <int kRows>
  void score_rows(KeyRange span) {
    if constexpr (kRows > 1) {
      if (tile_.rows <= kRows / 2) return score_rows<kRows / 2>(span);
    }
    constexpr int kCount = kSums / kRows > 1 ? 2 : 1;  // vectors of keys that share the queries
    // Rows so far apart contend for few lines of L1: what one has is used up at once.
    constexpr int64_t kContending = 4096;
    const bool contend = key_tiles_[span.begin / kTileKeys].stride % kContending == 0;
    int64_t key = span.begin;
    const auto score = [&](auto count, auto packed) {
      for (; key + count * kLanes<Acc> <= span.end; key += count * kLanes<Acc>) {
        score_few<kRows, count, packed>(key);
      }
    };
    const auto score_all = [&](auto packed) {
      if (!contend) score(std::integral_constant<int, kCount>(), packed);
      score(std::integral_constant<int, 1>(), packed);
    };
    p_.key.is_packed ? score_all(std::true_type()) : score_all(std::false_type());
  }

  template <int kRows, int kCount, bool kPacked>
  void score_few(int64_t key) {
    // Elements of a key that are loaded together: few if the registers have no room for more.
    constexpr int kLeast = 16 / sizeof(Element), kHalf = std::max(kLanes<Acc> / 2, kLeast);
    constexpr bool kRoom = kCount * (kHalf + kRows) < kVectorRegisters;
    constexpr int kRun = kCount == 1 && kStep == 1 ? kLanes<Acc> : kRoom ? kHalf : kLeast;
    constexpr int kRuns = kLanes<Acc> / kRun;
    constexpr int kBytes = kLanes<Acc> * kStep * sizeof(Stored);  // of a vector
    // As many lines as are read, in two parts: too many at once hold up what follows.
    constexpr int64_t kLines = std::max<int64_t>(kCount * kRun * kBytes / kLine, 2);
    const int64_t width = key_elements();
    const char* rows[kCount];
    int64_t strides[kCount];
    for (int c = 0; c < kCount; ++c) {
      const int64_t first = key + c * kLanes<Acc>;
      const KeyTile& tile = key_tiles_[first / kTileKeys];
      rows[c] = tile.template row<char>(first % kTileKeys);
      strides[c] = tile.stride;
    }
    for (int64_t e_begin = 0; e_begin < width; e_begin += kChain) {
      const int64_t e_end = std::min(e_begin + kChain, width);
      Vector<Acc> sums[kRows][kCount];
      for (auto& row : sums) {
        for (Vector<Acc>& sum : row) sum = Vector<Acc>{};
      }
      for (int64_t e = e_begin; e < e_end; e += kRun) {
        ahead_.fetch(kLines / 2);
        Vector<Element> keys[kCount][kRun];
        for (int c = 0; c < kCount; ++c) {
          for (int i = 0; i < kRun; ++i) {
            if constexpr (kPacked) {
              const Stored* from = reinterpret_cast<const Stored*>(rows[c]);
              keys[c][i] = load_packed<P>(from + (e + i) * kStep * kPackedSlots);
              continue;
            }
            const void* runs[kRuns];
            for (int r = 0; r < kRuns; ++r) {
              runs[r] = rows[c] + e * kStep * sizeof(Stored) +
                        row_of_run<Vector<Element>>(kRun, i, r) * strides[c];
            }
            keys[c][i] = P::template load<kRuns>(runs);
          }
          if constexpr (!kPacked) transpose(keys[c]);
          if constexpr (kStep == 1 && P::kScaled) {
            const Vector<Acc> scales = load(key_scale_buffer_ + key + c * kLanes<Acc>);
            for (Vector<Element>& k : keys[c]) k *= scales;
          }
        }
        ahead_.fetch(kLines / 2);
        for (int i = 0; i < kRun; ++i) {
          for (int r = 0; r < kRows; ++r) {
            const Vector<Element> query = broadcast(query_[(e + i) * kRows + r]);
            for (int c = 0; c < kCount; ++c) {
              sums[r][c] = P::multiply_add(query, keys[c][i], sums[r][c]);
            }
          }
        }
      }
      for (int r = 0; r < kRows; ++r) {
        for (int c = 0; c < kCount; ++c) {
          add_score(e_begin, sums[r][c], scores_ + r * kChunkKeys + key + c * kLanes<Acc>);
        }
      }
    }
  }

  template <int kVectors>
  static void interleave_strip(const Stored* a, const Stored* b, Element* to) {
    Vector<Element> pairs[kVectors];
    P::interleave(a, b, pairs);
    for (int v = 0; v < kVectors; ++v) store(to + v * kGroupRows, pairs[v]);
  }

  // Pairs of keys side by side, in the place of their values.
  void interleave_values() {
    const int64_t width = value_width();
    const KeyRange found = tiles_of(keys_);
    for (int64_t t = found.begin; t < found.end; ++t) {
      Element* to = pairs_ + t * kTileSteps * width;
      for (int64_t s = 0; s < kTileSteps; ++s) {
        const Stored* a = value_tiles_[t].template row<Stored>(kStep * s);
        const Stored* b = value_tiles_[t].template row<Stored>(kStep * s + 1);
        int64_t d = 0;
        for (; d + 2 * kGroupRows <= width; d += 2 * kGroupRows) {
          interleave_strip<2>(a + d, b + d, to + s * width + d);
        }
        if (d < width) interleave_strip<1>(a + d, b + d, to + s * width + d);
      }
      value_tiles_[t] = {to, width * static_cast<int64_t>(sizeof(Element))};
    }
  }

  void store_weights(Acc* weights, int64_t r, int64_t j, const Vector<Acc>* w) const {
    if constexpr (!kManyRows) {
      store_row_weights(weights + r * kChunkKeys, j, *w);
    } else if constexpr (kStep == 1) {
      for (int k = 0; k < kStoredKeys; ++k) store(weights + (j + k) * kGroupRows + r, w[k]);
    } else {
      store_pairs(w, weights + j / kStep * kGroupRows + r);
    }
  }

  void store_row_weights(Acc* row, int64_t j, Vector<Acc> w) const {
    if constexpr (kStep == 1) {
      store(row + j, w);
    } else {
      const auto rounded = __builtin_convertvector(bfloat16_of(w), HalfVector);
      std::memcpy(row + j / kStep, &rounded, sizeof rounded);
    }
  }

  // out[r] = sum over the seen keys of weight * value, in the order of the keys.
  void weigh_rows(KeyRange seen, const Acc* weights, int64_t rows, Acc* out) {
    const KeyRange steps{seen.begin / kStep, (seen.end + kStep - 1) / kStep};
    if constexpr (kManyRows) {
      weigh_by<4>(steps, weights, rows, out);
    } else {
      weigh_few<std::min<int>(kFewRows, kSums / 2)>(steps, weights, rows, out);
    }
  }

  template <int kRows>
  void weigh_few(KeyRange steps, const Acc* weights, int64_t rows, Acc* out) {
    if constexpr (kRows > 1) {
      if (rows <= kRows / 2) return weigh_few<kRows / 2>(steps, weights, rows, out);
    }
    weigh_by<kRows>(steps, weights, rows, out);
  }

  // kRows at a time.
  template <int kRows>
  void weigh_by(KeyRange steps, const Acc* weights, int64_t rows, Acc* out) {
    constexpr int kColumns = std::min(4, kSums / kRows);
    constexpr int64_t kBlock = 64 / kStep;  // whose values L1 keeps
    const int64_t width = value_width();
    std::fill_n(out, whole_tiles({0, rows}, kRows).end * width, Acc{0});
    for (int64_t s = steps.begin / kBlock * kBlock; s < steps.end; s += kBlock) {
      const KeyRange block = intersect(steps, {s, s + kBlock});
      int64_t d = 0;
      const auto columns = [&](auto count) {
        for (; d + count * kLanes<Acc> <= width; d += count * kLanes<Acc>) {
          for (int64_t r = 0; r < rows; r += kRows) {
            weigh_micro_tile<kRows, count>(block, weights, r, d, out);
          }
        }
      };
      if constexpr (kColumns > 2) columns(std::integral_constant<int, kColumns>());
      columns(std::integral_constant<int, 2>());
      columns(std::integral_constant<int, 1>());
    }
  }

  template <int kRows, int kColumns>
  void weigh_micro_tile(KeyRange steps, const Acc* weights, int64_t row, int64_t column, Acc* out) {
    constexpr int kTileRowsPerStep = kManyRows ? 1 : kStep;
    constexpr int64_t kBytes = kColumns * kLanes<Acc> * kStep * sizeof(Stored);  // of a step
    const int64_t width = value_width();
    out += row * width + column;
    weights += row * Layout::kRowStride;
    Vector<Acc> sums[kRows][kColumns];
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) sums[r][c] = load(out + r * width + c * kLanes<Acc>);
    }
    for (int64_t s = steps.begin; s < steps.end;) {
      const KeyTile& tile = value_tiles_[s / kTileSteps];
      const int64_t end = std::min(steps.end, (s / kTileSteps + 1) * kTileSteps);
      const char* from = reinterpret_cast<const char*>(
          tile.template row<Value>(s % kTileSteps * kTileRowsPerStep) + column);
      for (; s < end; ++s, from += tile.stride * kTileRowsPerStep) {
        ahead_.fetch(kManyRows ? 1 : std::max<int64_t>(kBytes / kLine, 1));
        Vector<Element> value[kColumns];
        load_values(s, from, tile.stride, value);
        for (int r = 0; r < kRows; ++r) {
          const Vector<Element> weight = broadcast(
              element_at<Element>(weights, r * Layout::kRowStride + s * Layout::kKeyStride));
          for (int c = 0; c < kColumns; ++c) {
            sums[r][c] = P::multiply_add(weight, value[c], sums[r][c]);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int c = 0; c < kColumns; ++c) store(out + r * width + c * kLanes<Acc>, sums[r][c]);
    }
  }

  template <int kColumns>
  void load_values([[maybe_unused]] int64_t step, const char* from, [[maybe_unused]] int64_t stride,
                   Vector<Element> (&to)[kColumns]) const {
    const Value* row = reinterpret_cast<const Value*>(from);
    if constexpr (kStep == 1) {
      for (int c = 0; c < kColumns; ++c) {
        const void* strip = row + c * kLanes<Acc>;
        to[c] = P::load(&strip);
        if constexpr (P::kScaled) to[c] *= value_scales_[step];
      }
    } else if constexpr (kManyRows) {
      for (int c = 0; c < kColumns; ++c) to[c] = load(row + c * kLanes<Acc>);
    } else {
      P::interleave(row, reinterpret_cast<const Value*>(from + stride), to,
                    value_scales_ + 2 * step);
    }
  }

  const AttentionParams& p_;
  const RowTile& tile_;
  KeyRange keys_;
  Ahead<kLead> ahead_;
  const Element* query_;
  Stored *key_buffer_, *value_buffer_;
  Element* pairs_ = nullptr;
  Acc* scores_;  // then the weights, in their place
  Partial<Acc> spare_;
  uintptr_t end_;
  KeyTile key_tiles_[kChunkTiles], value_tiles_[kChunkTiles];
  const Acc* key_scales_ = nullptr;  // of codes that became bfloat16
  float key_scale_buffer_[kChunkKeys], value_scales_[kChunkKeys];
};

template <class Products>
void pack_for_vectors(const AttentionParams& p, const RowTile& tile, void* query) {
  pack_queries<Products>(p, tile, few(tile), query);
}

template <class Products>
void fetch_lead_of(const AttentionParams& p, const Work& work) {
  few(work.tile) ? fetch_lead<VectorEngine<Products, KeysInLanes>::kLead>(p, work)
                 : fetch_lead<VectorEngine<Products, RowsInLanes>::kLead>(p, work);
}

// Few rows or many, by the tile. Few need each key and value once, which is read as it is stored;
// many share what has been converted.
template <class Products>
void attend_by_vectors(const AttentionParams& p, const Work& work, const Work& next,
                       const void* query, void* scratch,
                       const Partial<typename Products::Acc>& partial) {
  if (!few(work.tile)) {
    return attend<VectorEngine<Products, RowsInLanes>>(p, work, next, query, scratch, partial);
  }
  with_stored<Products>(p, [&](auto products) {
    attend<VectorEngine<decltype(products), KeysInLanes>>(p, work, next, query, scratch, partial);
  });
}

template <class Products>
constexpr TileOps<typename Products::Acc> kVectorOps{
    query_size<Products>,         VectorEngine<Products, RowsInLanes>::scratch_size,
    pack_for_vectors<Products>,   fetch_lead_of<Products>,
    attend_by_vectors<Products>,  clear<typename Products::Acc>,
    fold<typename Products::Acc>, Products::finish,
};

}  // namespace
}  // namespace mqa::kernels::cpu
