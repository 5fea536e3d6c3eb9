#ifndef C3PO_SERVER_WEIGHTS_MODEL_FOLDER_H_
#define C3PO_SERVER_WEIGHTS_MODEL_FOLDER_H_

#include <string>

#include "absl/status/statusor.h"

namespace c3po {

// What a setting says of a model: a folder or a GGUF file on this machine, or its name ORG/NAME on the Hugging Face
// hub.
struct ModelReference {
  std::string setting;           // How messages call it, such as "--model".
  std::string value;             // The folder or the name; a folder that exists comes first.
  std::string revision_setting;  // "--revision"
  std::string revision;          // Of a name only: branch, tag or commit; empty: main.
  bool takes_gguf = false;       // A file X.gguf, or the first part of a split one, is a model too.
};

struct ModelFolder {
  std::string path;    // Of a GGUF file: the file's.
  std::string name;    // NameOfFolder(path)
  std::string commit;  // Of the hub's; empty: a folder of another kind.
};

// The hub's cache as huggingface_hub finds it: HF_HUB_CACHE, else HUGGINGFACE_HUB_CACHE, else HF_HOME/hub, else
// XDG_CACHE_HOME/huggingface/hub, else ~/.cache/huggingface/hub. "~", $VARIABLE and ${VARIABLE} in these are replaced.
// An empty variable counts as unset.
std::string HubCachePath();

// Finds a model in that cache, laid out as huggingface_hub lays it out, and never downloads:
//   models--ORG--NAME/refs/REVISION      the commit of a branch or tag, 40 lowercase hexadecimal digits
//                    /snapshots/COMMIT/  the commit's files, links to blobs
//                    /blobs/             *.incomplete: downloads that did not end
//                    /trees/COMMIT.json  the names of all its files, since version 2 of huggingface_hub
// A commit is given in full, as snapshot_download takes it. A snapshot found has config.json, tokenizer.json, the
// weights (model.safetensors, or every shard that model.safetensors.index.json lists), and what else of the tree c3pod
// reads.
//
// Every message begins with the setting. InvalidArgument: a revision for a folder; a revision that is no name of one; a
// value that is a file; one that is neither a folder nor ORG/NAME, such as a path with "..", saying what is wrong.
// NotFound: model, revision or files are not in the cache; the message has the `hf download` line that brings them.
// PermissionDenied: the folder cannot be looked at. DataLoss: the revision's file holds no commit. Thread-safe as long
// as nobody changes the environment.
absl::StatusOr<ModelFolder> FindModelFolder(const ModelReference& reference);

// What a model in a folder is called: ORG/NAME of a snapshot in the hub's cache, else the folder's own name; that of a
// GGUF file without ".gguf" and the number of the part.
std::string NameOfFolder(const std::string& path);

}  // namespace c3po

#endif  // C3PO_SERVER_WEIGHTS_MODEL_FOLDER_H_
