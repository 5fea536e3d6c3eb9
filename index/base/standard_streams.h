#ifndef C3PO_INDEX_BASE_STANDARD_STREAMS_H_
#define C3PO_INDEX_BASE_STANDARD_STREAMS_H_

namespace c3po {

// Opens /dev/null for each of standard input, output and error that the process was started without. Otherwise the next
// file or socket gets its number, and what is written for a terminal goes there. Call first in main.
void OpenClosedStandardStreams();

}  // namespace c3po

#endif  // C3PO_INDEX_BASE_STANDARD_STREAMS_H_
