#ifndef C3PO_SERVER_RPC_FILTER_MESSAGE_H_
#define C3PO_SERVER_RPC_FILTER_MESSAGE_H_

// v1::Filter to MetadataFilter and back, field by field. What is wrong with one is ValidateFilter's business, so that
// errors have one path, whatever brought the filter. Pure and thread-safe.

#include "c3po/v1/options.pb.h"
#include "index/types/metadata_filter.h"

namespace c3po {

MetadataFilter FilterFromProto(const v1::Filter& proto);
v1::Filter FilterToProto(const MetadataFilter& filter);

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_FILTER_MESSAGE_H_
