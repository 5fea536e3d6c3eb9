#ifndef C3PO_SERVER_PIPELINE_PATHWAY_CHANGES_H_
#define C3PO_SERVER_PIPELINE_PATHWAY_CHANGES_H_

#include <vector>

#include "index/types/pathway.h"
#include "server/pipeline/generation_types.h"

namespace c3po {

// The mixing weights that differ between two pathways over `layers`, at most 8, largest change first.
std::vector<ExpertChange> LargestChanges(const Pathway& before, const Pathway& after, const std::vector<int>& layers);

}  // namespace c3po

#endif  // C3PO_SERVER_PIPELINE_PATHWAY_CHANGES_H_
