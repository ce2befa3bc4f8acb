#pragma once
// Gloo's transports, which only libtorch looks into.
#include <memory>

namespace gloo::transport {

class Device;
class UnboundBuffer;

}  // namespace gloo::transport
