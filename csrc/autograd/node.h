// torch 2.15 counts references to autograd nodes intrusively; this hides the difference.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/version.h>

namespace mqa::autograd {

#if TORCH_VERSION_MINOR >= 15
template <class Node, class... Args>
c10::intrusive_ptr<Node> make_node(Args&&... args) {
  return c10::make_intrusive<Node>(std::forward<Args>(args)...);
}
inline auto shared_from(torch::autograd::Node* node) {
  return c10::intrusive_ptr<torch::autograd::Node>::unsafe_reclaim_from_nonowning(node);
}
#else
template <class Node, class... Args>
std::shared_ptr<Node> make_node(Args&&... args) {
  return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...), torch::autograd::deleteNode);
}
inline auto shared_from(torch::autograd::Node* node) { return node->shared_from_this(); }
#endif

}  // namespace mqa::autograd
