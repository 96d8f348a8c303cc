// Newer versions of torch count references to autograd nodes intrusively: this hides it.
#pragma once

#include <torch/csrc/autograd/function.h>

#include <memory>
#include <type_traits>
#include <utility>

namespace mqa::autograd {

template <class Node>
constexpr bool counts_its_references = std::is_base_of_v<c10::intrusive_ptr_target, Node>;

template <class Node, class... Args>
auto make_node(Args&&... args) {
  if constexpr (counts_its_references<Node>) {
    return c10::make_intrusive<Node>(std::forward<Args>(args)...);
  } else {
    // torch::autograd::deleteNode, which newer versions lack: looked up only if this is compiled.
    return std::shared_ptr<Node>(new Node(std::forward<Args>(args)...),
                                 [](auto* node) { deleteNode(node); });
  }
}

template <class Node>
auto shared_from(Node* node) {
  if constexpr (counts_its_references<Node>) {
    return c10::intrusive_ptr<Node>::unsafe_reclaim_from_nonowning(node);
  } else {
    return node->shared_from_this();
  }
}

}  // namespace mqa::autograd
