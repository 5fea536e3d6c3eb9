#ifndef C3PO_SERVER_PIPELINE_REFERENCE_GAUGES_H_
#define C3PO_SERVER_PIPELINE_REFERENCE_GAUGES_H_

#include "index/search/reference_catalog.h"
#include "server/metrics/metrics.h"

namespace c3po {

// Sets the gauges of references and of the index generation. `metrics` may be null.
void ReportReferences(const ReferenceCatalog& catalog, Metrics* metrics);
// Measures and sets the gauge of graph search's recall (ReferenceCatalog::MeasureRecall, k = 10). `metrics` may be
// null.
void ReportRecall(const ReferenceCatalog& catalog, Metrics* metrics);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_REFERENCE_GAUGES_H_
