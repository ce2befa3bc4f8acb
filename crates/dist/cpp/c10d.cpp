// libtorch's process groups for Rust: a store that all ranks share, and collectives on Gloo and,
// where it is built with USE_C10D_NCCL, on NCCL. Every function catches what libtorch throws and
// returns it as a message that the caller frees; null means success. Handles are made here and given
// back to the `…_free` of their kind.

#include <c10/util/Logging.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#ifdef USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>
#endif

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

// The class as libtorch 2.11.0 lays it out; with other headers or stubs it would not fit.
static_assert(sizeof(c10d::ProcessGroupGloo) == 488, "these are not the headers of libtorch 2.11.0");

#ifdef USE_C10D_NCCL
static_assert(NCCL_VERSION_CODE == 22809 && sizeof(c10d::ProcessGroupNCCL) == 1112 &&
                  sizeof(c10d::ProcessGroupNCCL::Options) == 248,
              "these are not the headers of libtorch 2.11.0 and of the NCCL that it is built with");
#endif

using at::Tensor;
using std::chrono::milliseconds;
using Store = c10::intrusive_ptr<c10d::Store>;
using Group = c10::intrusive_ptr<c10d::Backend>;

struct Work {
  c10::intrusive_ptr<c10d::Work> work;
  // NCCL's wait returns at once, or gives the whole group up: its end has to be asked for.
  bool asked;
};

namespace {

template <typename F>
char* guarded(F&& body) {
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    return strdup(error.what_without_backtrace());
  } catch (const std::exception& error) {
    return strdup(error.what());
  } catch (...) {
    return strdup("an exception without a message");
  }
}

// c10d writes to stderr, with stack traces, what our errors say in a line.
void quieten() {
  static std::once_flag once;
  std::call_once(once, [] {
    if (std::getenv("TORCH_CPP_LOG_LEVEL") == nullptr) FLAGS_caffe2_log_level = c10::GLOG_FATAL;
  });
}

// Gloo prints to stdout how many ranks it reached; stdout belongs to results.
class SilentOutput {
 public:
  SilentOutput() : before_(std::cout.rdbuf(&nothing_)) {}
  ~SilentOutput() { std::cout.rdbuf(before_); }

 private:
  struct Nothing : std::streambuf {
    int overflow(int c) override { return traits_type::not_eof(c); }
  };
  Nothing nothing_;
  std::streambuf* before_;
};

std::vector<uint8_t> bytes(const char* text) { return {text, text + std::strlen(text)}; }

char* text(const std::vector<uint8_t>& value) {
  return strndup(reinterpret_cast<const char*>(value.data()), value.size());
}

std::vector<std::string> strings(const char* const* values, size_t count) {
  return {values, values + count};
}

using Device = std::shared_ptr<::gloo::transport::Device>;

// `interfaces`: names between commas, as in GLOO_SOCKET_IFNAME; null for the one that the host's
// name, or the loopback address, belongs to.
std::vector<Device> devices(const char* interfaces, bool loopback) {
  if (interfaces == nullptr && loopback)
    return {c10d::ProcessGroupGloo::createDeviceForHostname("127.0.0.1")};
  if (interfaces == nullptr) return {c10d::ProcessGroupGloo::createDefaultDevice()};
  std::vector<Device> found;
  std::stringstream names(interfaces);
  for (std::string name; std::getline(names, name, ',');)
    found.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(name));
  return found;
}

// Starts a collective of `group` and hands its work out.
template <typename F>
char* start(const Group& group, Work** work, F&& collective) {
  return guarded([&] { *work = new Work{collective(), group->getBackendName() == "nccl"}; });
}

}  // namespace

extern "C" {

void foretoken_dist_free_text(char* text) { std::free(text); }

// --- the store ---

// Opens the store of `host`:`port`, as its server too where `server`; keys begin with `prefix`.
char* foretoken_dist_store_open(const char* host, uint16_t port, bool server, int64_t timeout_ms,
                                const char* prefix, Store** store) {
  quieten();
  return guarded([&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto shared = c10::make_intrusive<c10d::TCPStore>(host, options);
    *store = new Store(c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(shared)));
  });
}

void foretoken_dist_store_free(Store* store) { delete store; }

char* foretoken_dist_store_set(Store* store, const char* key, const char* value) {
  return guarded([&] { (*store)->set(key, bytes(value)); });
}

char* foretoken_dist_store_add(Store* store, const char* key, int64_t amount, int64_t* sum) {
  return guarded([&] { *sum = (*store)->add(key, amount); });
}

// Sets `key` to `wanted` where its value is `expected` (empty: where it has none); `now` is the
// value that it has afterwards.
char* foretoken_dist_store_exchange(Store* store, const char* key, const char* expected,
                                    const char* wanted, char** now) {
  return guarded([&] { *now = text((*store)->compareSet(key, bytes(expected), bytes(wanted))); });
}

char* foretoken_dist_store_has(Store* store, const char* const* keys, size_t count, bool* has) {
  return guarded([&] { *has = (*store)->check(strings(keys, count)); });
}

// The values of `keys`, one a line. Waits for keys that do not exist yet.
char* foretoken_dist_store_get(Store* store, const char* const* keys, size_t count, char** lines) {
  return guarded([&] {
    std::vector<uint8_t> joined;
    for (const auto& value : (*store)->multiGet(strings(keys, count))) {
      joined.insert(joined.end(), value.begin(), value.end());
      joined.push_back('\n');
    }
    *lines = text(joined);
  });
}

// --- the group ---

// Connects the ranks; every rank has to call it within `timeout_ms`.
char* foretoken_dist_group_open(Store* store, int rank, int size, int64_t timeout_ms,
                                const char* interfaces, bool loopback, Group** group) {
  return guarded([&] {
    SilentOutput silent;
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->devices = devices(interfaces, loopback);
    auto keys = c10::make_intrusive<c10d::PrefixStore>("gloo", *store);
    *group = new Group(c10::make_intrusive<c10d::ProcessGroupGloo>(keys, rank, size, options));
  });
}

// Connects the ranks' GPUs at their first collective; `gpu` is this rank's.
char* foretoken_dist_group_open_gpus(Store* store, int rank, int size, int64_t timeout_ms, int gpu,
                                     Group** group) {
  return guarded([&] {
#ifdef USE_C10D_NCCL
    // libtorch's own watchdogs end the process without a word of who is missing; ours names it.
    setenv("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0", 0);
    setenv("TORCH_NCCL_ENABLE_MONITORING", "0", 0);
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = milliseconds(timeout_ms);
    auto keys = c10::make_intrusive<c10d::PrefixStore>("nccl", *store);
    auto nccl = c10::make_intrusive<c10d::ProcessGroupNCCL>(keys, rank, size, options);
    nccl->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(gpu)));
    *group = new Group(std::move(nccl));
#else
    (void)store, (void)rank, (void)size, (void)timeout_ms, (void)gpu, (void)group;
    throw std::runtime_error("this program is built without NCCL");
#endif
  });
}

// Waits for collectives that are under way.
void foretoken_dist_group_free(Group* group) { delete group; }

char* foretoken_dist_group_set_timeout(Group* group, int64_t timeout_ms) {
  return guarded([&] { (*group)->setTimeout(milliseconds(timeout_ms)); });
}

char* foretoken_dist_broadcast(Group* group, const Tensor* tensor, int root, Work** work) {
  return start(*group, work, [&] {
    std::vector<Tensor> tensors{*tensor};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    return (*group)->broadcast(tensors, options);
  });
}

// Sums in place, on every rank.
char* foretoken_dist_all_reduce(Group* group, const Tensor* tensor, Work** work) {
  return start(*group, work, [&] {
    std::vector<Tensor> tensors{*tensor};
    return (*group)->allreduce(tensors);
  });
}

// Sums in place on `root`; what the others' tensors hold afterwards is not defined.
char* foretoken_dist_reduce(Group* group, const Tensor* tensor, int root, Work** work) {
  return start(*group, work, [&] {
    std::vector<Tensor> tensors{*tensor};
    c10d::ReduceOptions options;
    options.rootRank = root;
    return (*group)->reduce(tensors, options);
  });
}

// `outputs`: one a rank, each of the input's shape.
char* foretoken_dist_all_gather(Group* group, const Tensor* input, const Tensor* const* outputs,
                                size_t count, Work** work) {
  return start(*group, work, [&] {
    std::vector<Tensor> inputs{*input};
    std::vector<std::vector<Tensor>> lists(1);
    for (size_t i = 0; i < count; ++i) lists[0].push_back(*outputs[i]);
    return (*group)->allgather(lists, inputs);
  });
}

char* foretoken_dist_barrier(Group* group, Work** work) {
  return start(*group, work, [&] { return (*group)->barrier(); });
}

// Waits up to `wait_ms`; `done` is false when the work is still under way after that.
char* foretoken_dist_work_wait(Work* running, int64_t wait_ms, bool* done) {
  return guarded([&] {
    auto& work = running->work;
    *done = true;
    if (running->asked) {
      const auto end = std::chrono::steady_clock::now() + milliseconds(wait_ms);
      while (!work->isCompleted()) {
        if (std::chrono::steady_clock::now() >= end) {
          *done = false;
          return;
        }
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
      if (auto failure = work->exception()) std::rethrow_exception(failure);
      work->wait();
      return;
    }
    try {
      work->wait(milliseconds(wait_ms));
    } catch (const std::exception&) {
      if (work->isCompleted()) {
        work->wait();
      } else {
        *done = false;
      }
    }
  });
}

void foretoken_dist_work_free(Work* work) { delete work; }
}
