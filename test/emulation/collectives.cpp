// Barriers, shuffles and votes.
#include "machine.h"

namespace mqa::emulation {

void sync_warp(Site at) {
  machine.collective("sync_warp", at, nullptr, [](Operands) {
    if (machine.options.detect_races) machine.races.barrier(1u << current.thread / 32);
  });
}

void sync_block(Site at) {
  machine.collective("sync_block", at, nullptr, [](Operands) { machine.arrive_at_barrier(); });
}

uint32_t shuffle(Shuffle kind, uint32_t value, int operand, Site at) {
  struct Lane {
    uint32_t in, out;
    int operand;
  } self{value, 0, operand};
  const char* const name = kind == Shuffle::kIndex ? "shfl" : "shfl_xor";
  machine.collective(name, at, &self, [&](Operands all) {
    for (int i = 0; i < 32; ++i) {
      Lane& lane = *static_cast<Lane*>(all[i]);
      const int from = kind == Shuffle::kIndex ? lane.operand & 31 : i ^ lane.operand;
      if (from > 31) machine.fail_here("reads a lane that does not exist", name, at);
      lane.out = static_cast<Lane*>(all[from])->in;
    }
  });
  return self.out;
}

bool vote_any(bool predicate, Site at) {
  machine.collective("vote_any", at, &predicate, [](Operands all) {
    bool any = false;
    for (void* vote : all) any |= *static_cast<bool*>(vote);
    for (void* vote : all) *static_cast<bool*>(vote) = any;
  });
  return predicate;
}

}  // namespace mqa::emulation
