#ifndef C3PO_SERVER_SCHEDULER_SEQUENCE_BLOCKS_H_
#define C3PO_SERVER_SCHEDULER_SEQUENCE_BLOCKS_H_

#include <cstdint>

#include "server/scheduler/kv_block_pool.h"
#include "server/scheduler/sequence.h"

namespace c3po {

// The most blocks that a sequence holds at once from first to last.
int64_t BlocksNeeded(const SequenceRequest& request);
// Blocks that it lacks for what its stage writes next; at most 0: none.
int64_t BlocksMissing(const Sequence& sequence);
// Takes blocks for so many positions. False: there are not enough, and what was taken is kept.
bool Reserve(Sequence& sequence, int positions, KvBlockPool& pool);
// Releases them all; what was in them has to be computed anew.
void GiveBack(Sequence& sequence, KvBlockPool& pool);
// Names the blocks that are full of what others may share.
void NameBlocks(Sequence& sequence, KvBlockPool& pool);

}  // namespace c3po

#endif  // C3PO_SERVER_SCHEDULER_SEQUENCE_BLOCKS_H_
