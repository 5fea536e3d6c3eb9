#ifndef C3PO_SERVER_INSPECT_MODEL_CARD_H_
#define C3PO_SERVER_INSPECT_MODEL_CARD_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "server/model/config/generation_config.h"
#include "server/model/config/model_config.h"
#include "server/model/config/tensor_plan.h"

namespace c3po {

// What a model folder is, found out without loading it: config.json, the headers of its weights and its tokenizer are
// read, as c3pod reads them.
struct ModelCard {
  std::string folder;
  std::string name;  // NameOfFolder(folder), as c3pod calls the model.
  // Why c3pod would not load it, each naming file and field or tensor; at most one of config.json, one of
  // generation_config.json, one of the weights, one of the tokenizer. Empty: it would, where the memory suffices.
  std::vector<std::string> problems;
  std::vector<std::string> notes;  // What would not work although it loads.
  std::string chat;                // What renders its chat template: ChatRenderer::RenderedBy; empty: it has none.

  // The rest as far as config.json can be understood.
  std::optional<ModelConfig> config;
  GenerationConfig generation;
  ParameterCounts parameters;
  std::vector<int> critical_layers;  // The default's, by number among the MoE layers.
  // One position's keys and values in all layers, elements.
  int64_t kv_elements = 0;

  // The rest as far as the weights can be opened.
  int tensors = 0;
  std::map<std::string, int64_t> stored_bytes;  // By dtype.
  // Of a quantized folder: weights that are packed, by dtype (INT8, INT4), and what `--weights auto` takes on the CPU.
  std::map<std::string, int64_t> packed_weights;
  int64_t as_stored_bytes = 0;
};

// Takes memory in proportion to the headers and the tokenizer, whatever the files hold. Thread-safe.
ModelCard InspectModel(const std::string& folder);

// A table of lines to read, and one JSON object on one line; both end with a newline.
std::string CardText(const ModelCard& card);
std::string CardJson(const ModelCard& card);

// `c3pod inspect MODEL [--revision REV] [--json]`, argv[0] being "inspect": prints the card of a folder, or of ORG/NAME
// in the hub's cache (FindModelFolder). A model that is not found has a card with that one problem. The exit code: 0
// only if it would load, 1 if not, 2 for a wrong command line.
int InspectMain(int argc, char** argv);

}  // namespace c3po

#endif  // C3PO_SERVER_INSPECT_MODEL_CARD_H_
