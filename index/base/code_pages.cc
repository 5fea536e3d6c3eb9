#include "index/base/code_pages.h"

#include <link.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

namespace c3po {
namespace {

// Whether relocation wrote into segments that are not writable: rare, and what it wrote is nowhere else.
bool HasTextRelocations(const dl_phdr_info& object) {
  for (int i = 0; i < object.dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = object.dlpi_phdr[i];
    if (header.p_type != PT_DYNAMIC) continue;
    for (auto* entry = reinterpret_cast<const ElfW(Dyn)*>(object.dlpi_addr + header.p_vaddr); entry->d_tag != DT_NULL;
         ++entry) {
      if (entry->d_tag == DT_TEXTREL || (entry->d_tag == DT_FLAGS && (entry->d_un.d_val & DF_TEXTREL) != 0))
        return true;
    }
  }
  return false;
}

int ReleaseObject(dl_phdr_info* object, size_t /*size*/, void* released) {
  constexpr char kKernels[] = "linux-vdso";  // Mapped by the kernel, not from a file.
  if (std::strncmp(object->dlpi_name, kKernels, sizeof(kKernels) - 1) == 0 || HasTextRelocations(*object)) return 0;
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = object->dlpi_phdr[i];
    if (header.p_type != PT_LOAD || (header.p_flags & PF_W) != 0) continue;
    // Whole pages: at either end begins another segment.
    const uintptr_t begin = (object->dlpi_addr + header.p_vaddr + page - 1) / page * page;
    const uintptr_t end = (object->dlpi_addr + header.p_vaddr + header.p_memsz) / page * page;
    if (begin >= end || madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) != 0) continue;
    *static_cast<int64_t*>(released) += static_cast<int64_t>(end - begin);
  }
  return 0;
}

}  // namespace

int64_t ReleaseCodePages() {
  int64_t released = 0;
  dl_iterate_phdr(ReleaseObject, &released);
  return released;
}

}  // namespace c3po
