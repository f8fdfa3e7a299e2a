// Large buffers in pages of 2 MiB, where the system grants them: a fresh tensor of 50 MB otherwise costs 12,000 page
// faults, more time than many a kernel takes to fill it, and random reads miss the address cache.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace visionlab {

constexpr int64_t huge_page = int64_t(1) << 21;

// The whole huge pages inside a buffer.
struct HugePages {
    char* begin;
    int64_t count;
};

// Asks for huge pages inside a buffer that nothing was written to yet. A wish: it may be refused, and nothing breaks.
inline HugePages use_huge_pages(void* buffer, int64_t bytes) {
    const std::uintptr_t address = reinterpret_cast<std::uintptr_t>(buffer);
    const std::uintptr_t begin = (address + huge_page - 1) / huge_page * huge_page;
    const std::uintptr_t end = (address + static_cast<std::uintptr_t>(bytes)) / huge_page * huge_page;
    if (begin >= end) return {nullptr, 0};
#if defined(__linux__)
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    return {reinterpret_cast<char*>(begin), static_cast<int64_t>(end - begin) / huge_page};
}

// An uninitialized buffer of one task.
template <class T>
class Scratch {
  public:
    explicit Scratch(int64_t count) : data_(static_cast<T*>(std::malloc(static_cast<std::size_t>(count) * sizeof(T)))) {
        if (data_ == nullptr && count > 0) throw std::bad_alloc();
        use_huge_pages(data_, count * static_cast<int64_t>(sizeof(T)));
    }
    ~Scratch() { std::free(data_); }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;

    T* data() const { return data_; }

  private:
    T* data_;
};

}  // namespace visionlab
