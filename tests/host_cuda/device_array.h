#ifndef C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_
#define C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_

#include <cstddef>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace c3po::host_cuda {

// Memory of the device that a program's kernels run on: exactly `bytes`, at first of bytes 0xFF (NaN), 256-byte
// aligned. Its functions wait for all kernels launched before. A program has one definition: device_bytes.cc of the
// execution model, or tests/gpu/kernel_device_on_gpu.cc. Throws std::runtime_error where the device fails.
class DeviceBytes {
 public:
  explicit DeviceBytes(size_t bytes);
  ~DeviceBytes();
  DeviceBytes(const DeviceBytes&) = delete;
  DeviceBytes& operator=(const DeviceBytes&) = delete;

  void* address() const { return address_; }
  void Write(const void* from);  // all bytes
  void Read(void* to) const;     // all bytes
  // The first byte behind the last one that a kernel wrote to, counted from 0; -1: none.
  int FirstByteBehind() const;

 private:
  const size_t bytes_;
  void* memory_ = nullptr;
  void* address_ = nullptr;
};

// An address on the device, for arguments of kernels. The host cannot read or write there.
template <class T>
class DeviceAddress {
 public:
  explicit DeviceAddress(T* address) : address_(address) {}
  DeviceAddress(std::nullptr_t) : address_(nullptr) {}
  operator T*() const { return address_; }
  DeviceAddress operator+(ptrdiff_t count) const { return DeviceAddress(address_ + count); }
  T& operator*() const = delete;
  T* operator->() const = delete;
  template <class Index>
  T& operator[](Index i) const = delete;

 private:
  T* address_;
};

// Device memory of a test that calls kernels without a runtime: exactly `size` elements, at first of bytes 0xFF (NaN),
// 256-byte aligned.
template <class T>
class DeviceArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  explicit DeviceArray(size_t size) : size_(size), memory_(size * sizeof(T)) {}
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) { memory_.Write(values.data()); }

  DeviceAddress<T> data() const { return DeviceAddress<T>(static_cast<T*>(memory_.address())); }
  size_t size() const { return size_; }

  // What it holds. Throws std::runtime_error where a kernel wrote behind it.
  std::vector<T> Values() const {
    if (const int behind = memory_.FirstByteBehind(); behind >= 0) {
      throw std::runtime_error("byte " + std::to_string(behind) + " behind a device array was written");
    }
    std::vector<T> values(size_);
    memory_.Read(values.data());
    return values;
  }

 private:
  size_t size_;
  DeviceBytes memory_;
};

// What a new DeviceArray of that size holds, to be written in part before it goes there.
template <class T>
std::vector<T> UnknownValues(size_t size) {
  std::vector<T> values(size);
  std::memset(static_cast<void*>(values.data()), 0xff, size * sizeof(T));
  return values;
}

}  // namespace c3po::host_cuda

#endif  // C3PO_TESTS_HOST_CUDA_DEVICE_ARRAY_H_
