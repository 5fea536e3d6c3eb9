// The headers of W3C Trace Context, `traceparent` to the first newline and `tracestate` after it: no parent, or one
// that reads the same when it is written again.

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "server/trace/otlp_environment.h"
#include "server/trace/trace_context.h"
#include "tests/fuzz/fuzz_target.h"

C3PO_FUZZ_TARGET(input) {
  const size_t line = input.find('\n');
  const absl::string_view rest = line == absl::string_view::npos ? "" : input.substr(line + 1);
  const auto context = c3po::ParseTraceContext(input.substr(0, line), rest);
  if (context) {
    C3PO_FUZZ_CHECK(context->trace_id != c3po::TraceId() && context->span_id != c3po::SpanId());
    C3PO_FUZZ_CHECK(context->state.size() <= c3po::kTraceStateBytesMax && context->flags < 4);
    for (const char c : context->state) C3PO_FUZZ_CHECK(c >= ' ' && c <= '~');
    const std::string again = absl::StrCat("00-", c3po::TraceHex(context->trace_id), "-",
                                           c3po::TraceHex(context->span_id), "-0", static_cast<int>(context->flags));
    C3PO_FUZZ_CHECK(absl::StartsWith(input.substr(2), again.substr(2, 51)));
    const auto read = c3po::ParseTraceContext(again, context->state);
    C3PO_FUZZ_CHECK(read && read->trace_id == context->trace_id && read->span_id == context->span_id &&
                    read->flags == context->flags && read->state == context->state);
  }
  // The other list of names and values that is read here: an operator's, so a wrong one only has to be refused.
  const auto texts = c3po::ParseNamedTexts(input);
  for (size_t i = 0; texts.ok() && i < texts->size(); ++i) C3PO_FUZZ_CHECK(!(*texts)[i].first.empty());
}
