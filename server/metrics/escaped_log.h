#ifndef C3PO_SERVER_METRICS_ESCAPED_LOG_H_
#define C3PO_SERVER_METRICS_ESCAPED_LOG_H_

namespace c3po {

// From now on each exception that is caught at the top of a thread (index/base/escaped_exception.h) is a line of the
// log, event "exception_escaped": thread, what, and how many were passed over; ten a second at most.
void LogEscapedExceptions();

}  // namespace c3po

#endif  // C3PO_SERVER_METRICS_ESCAPED_LOG_H_
