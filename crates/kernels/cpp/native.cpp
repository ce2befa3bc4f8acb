// What Rust needs of libtorch and `tch` does not bind. Every function catches what libtorch
// throws and returns it as a message that the caller frees; null means success.

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/variable.h>

#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

using at::Tensor;
using torch::autograd::variable_list;

namespace {

// `gradients`: one per output, null where none arrived; `results`: one per input, filled with
// tensors that pass into our hands, or left null. Returns false when the Rust side failed.
using Backward = bool (*)(void* closure, Tensor** gradients, Tensor** results);
using Drop = void (*)(void* closure);

struct RustNode : torch::autograd::Node {
  RustNode(Backward backward, Drop drop, void* closure, size_t inputs)
      : backward_(backward), drop_(drop), closure_(closure), inputs_(inputs) {}
  ~RustNode() override { release_variables(); }

  std::string name() const override { return "ForetokenBackward"; }

  void release_variables() override {
    if (closure_ != nullptr) drop_(std::exchange(closure_, nullptr));
  }

  variable_list apply(variable_list&& gradients) override {
    TORCH_CHECK(closure_ != nullptr, "the graph was already freed: run backward once per forward");
    std::vector<Tensor*> in(gradients.size(), nullptr);
    for (size_t i = 0; i < gradients.size(); ++i)
      if (gradients[i].defined()) in[i] = &gradients[i];
    std::vector<Tensor*> out(inputs_, nullptr);
    const bool ok = backward_(closure_, in.data(), out.data());
    variable_list results(inputs_);
    for (size_t i = 0; i < inputs_; ++i) {
      if (out[i] == nullptr) continue;
      results[i] = std::move(*out[i]);
      delete out[i];
    }
    TORCH_CHECK(ok, "a gradient written in Rust failed");
    return results;
  }

 private:
  Backward backward_;
  Drop drop_;
  void* closure_;
  size_t inputs_;
};

template <typename F>
char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception without a message");
  }
}

}  // namespace

extern "C" {

// Gives `outputs` a gradient: `closure` turns theirs into the inputs'. Takes `closure` over, and
// drops it at once when nothing asks for gradients.
char* foretoken_attach(Tensor** inputs, size_t input_count, Tensor** outputs, size_t output_count,
                       Backward backward, Drop drop, void* closure) {
  auto node = std::shared_ptr<RustNode>(new RustNode(backward, drop, closure, input_count),
                                        torch::autograd::deleteNode);
  return guarded([&] {
    variable_list sources;
    for (size_t i = 0; i < input_count; ++i) sources.push_back(*inputs[i]);
    if (!at::GradMode::is_enabled() || !torch::autograd::any_variable_requires_grad(sources)) return;
    node->set_next_edges(torch::autograd::collect_next_edges(sources));
    for (size_t i = 0; i < output_count; ++i)
      torch::autograd::create_gradient_edge(*outputs[i], node);
  });
}

char* foretoken_backward(Tensor* output, Tensor* gradient) {
  return guarded([&] { torch::autograd::backward({*output}, {*gradient}); });
}

char* foretoken_parallel(int64_t tasks, void (*body)(void*, int64_t), void* data) {
  return guarded([&] {
    at::parallel_for(0, tasks, 1, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) body(data, task);
    });
  });
}

char* foretoken_allow_tf32(bool allow) {
  return guarded([&] { at::globalContext().setAllowTF32CuBLAS(allow); });
}

char* foretoken_allow_cudnn_attention(bool allow) {
  return guarded([&] { at::globalContext().setSDPUseCuDNN(allow); });
}

bool foretoken_tf32_allowed() { return at::globalContext().allowTF32CuBLAS(); }

bool foretoken_recording() { return at::GradMode::is_enabled(); }

void foretoken_free(char* message) { std::free(message); }
}
