#ifndef C3PO_INDEX_BASE_CODE_PAGES_H_
#define C3PO_INDEX_BASE_CODE_PAGES_H_

#include <cstdint>

namespace c3po {

// Takes the pages of code and constants of the program and its libraries out of this process's resident memory. What
// starting up has touched once, of libtorch alone some 50 MB, stays resident otherwise; what is touched again comes
// back from the page cache, or from the file. Segments that were ever writable keep theirs: they hold what relocation
// and constructors wrote. Returns the bytes that it asked the kernel to take, 0 where it takes none. Any thread, at any
// time; others may be running that code.
int64_t ReleaseCodePages();

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_CODE_PAGES_H_
