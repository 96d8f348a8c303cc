#include "attention_cases.h"

#include <cmath>

namespace mqa::kernels {
namespace {

struct Rows {
  int64_t G, T;
};

struct Widths {
  int64_t D, D_v;
};

}  // namespace

Shape CaseGenerator::shape() {
  const Rows rows = one_of<Rows>({{1, 1},   {2, 1},   {4, 1},  {1, 4},  {5, 1},  {1, 8}, {8, 1},
                                  {2, 4},   {16, 1},  {17, 1}, {3, 6},  {32, 1}, {8, 4}, {71, 1},
                                  {128, 1}, {129, 1}, {1, 40}, {2, 64}, {3, 43}, {9, 30}});
  const Widths widths = one_of<Widths>({{1, 1},
                                        {7, 13},
                                        {33, 17},
                                        {16, 32},
                                        {64, 64},
                                        {80, 96},
                                        {96, 80},
                                        {128, 128},
                                        {192, 128},
                                        {256, 256},
                                        {576, 512}});
  Shape s;
  s.B = one_of<int64_t>({1, 2, 3});
  s.H_kv = one_of<int64_t>({1, 1, 2, 3});
  s.G = rows.G, s.T = rows.T;
  s.S = one_of<int64_t>(
      {0, 1, 2, 15, 16, 17, 31, 33, 47, 64, 100, 255, 256, 257, 300, 511, 512, 513, 777, 2100});
  s.D = widths.D, s.D_v = widths.D_v;
  s.value_is_key = s.D >= s.D_v && below(5) == 0;
  return s;
}

Options CaseGenerator::options(const Shape& s) {
  Options o;
  o.is_causal = below(2);
  o.window_left = one_of<int64_t>({-1, -1, -1, 0, 3, 40, 300});
  o.window_right = one_of<int64_t>({-1, -1, -1, 0, 5, 260});
  o.scale = one_of<double>({1, 1, 1, 2, -1, 0}) / std::sqrt(static_cast<double>(s.D));
  o.softcap = one_of<double>({0, 0, 0, 0.7, 30});
  o.has_alibi = below(4) == 0;
  o.has_sinks = below(4) == 0;
  o.mask = one_of<MaskKind>({MaskKind::kNone, MaskKind::kNone, MaskKind::kNone, MaskKind::kNone,
                             MaskKind::kBool, MaskKind::kFloat32, MaskKind::kAsQuery});
  o.head_scales = below(2);
  o.query_magnitude = one_of<double>({1, 1, 4});
  return o;
}

Case CaseGenerator::draw(Format format, int64_t work) {
  Case c{format, shape(), {}};
  const auto work_of = [](const Shape& s) { return s.B * s.H_q() * s.T * s.S * (s.D + s.D_v); };
  while (work_of(c.shape) > work) c.shape = shape();
  c.options = options(c.shape);
  return c;
}

Layout CaseGenerator::layout() {
  using Order = Layout::Order;
  Layout layout;
  layout.order = one_of<Order>(
      {Order::kHeadsFirst, Order::kHeadsFirst, Order::kSlotsFirst, Order::kGaps, Order::kLayers});
  layout.page_size = one_of<int64_t>({0, 0, 0, 1, 16, 24, 128});
  layout.spare_slots = one_of<int64_t>({0, 1, 40});
  layout.is_aligned = below(2);
  return layout;
}

}  // namespace mqa::kernels
