// Shared memory, global memory, and asynchronous copies from the one to the other.
#include "machine.h"

namespace mqa::emulation {

uint32_t smem_offset(const void* pointer, Site at) {
  const uintptr_t offset =
      reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(current.smem);
  if (offset != static_cast<uint32_t>(offset)) {
    machine.fail_here("passes a pointer that is not to shared memory", "smem_address", at);
  }
  return static_cast<uint32_t>(offset);
}

void smem_read(void* to, const void* from, size_t bytes, Site at) {
  const uint32_t offset = smem_offset(from, at);
  machine.check_range(offset, bytes, "smem_load", at);
  machine.track_read(/*whole_warp=*/false, offset, bytes, "smem_load", at);
  std::memcpy(to, from, bytes);
}

void smem_write(void* to, const void* from, size_t bytes, Site at) {
  const uint32_t offset = smem_offset(to, at);
  machine.check_range(offset, bytes, "smem_store", at);
  machine.track_write(offset, bytes, /*in_flight=*/false, "smem_store", at);
  std::memcpy(to, from, bytes);
}

void global_access(const void* pointer, size_t bytes, Site at) {
  if (reinterpret_cast<uintptr_t>(pointer) % bytes) {
    machine.fail_here("uses a misaligned global address", "load/store", at);
  }
}

void cp_async(int bytes, uint32_t to, const void* from, bool valid, Site at) {
  machine.check_range(to, bytes, "cp_async", at);
  global_access(from, bytes, at);
  machine.track_write(to, bytes, /*in_flight=*/true, "cp_async", at);
  Copy copy{to, bytes, {}};
  if (valid) std::memcpy(copy.data, from, bytes);  // AddressSanitizer sees a bad source here
  std::memset(current.smem + to, 0xff, bytes);     // a reader that does not wait finds NaN
  machine.issue_copy(copy);
}
void cp_async_commit() { machine.commit_copies(); }
void cp_async_wait(int pending_groups) { machine.finish_copies(pending_groups); }

}  // namespace mqa::emulation
