#pragma once
// As much of Gloo's context as c10d's headers need; it is made and kept inside libtorch.
#include <chrono>

namespace gloo {

class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
