#include "server/rpc/convert.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "index/base/status_macros.h"
#include "index/base/utf8.h"
#include "server/rpc/message_fields.h"

namespace c3po {
namespace {

template <typename... Parts>
absl::Status FieldError(const Parts&... parts) {
  return absl::InvalidArgumentError(absl::StrCat(parts...));
}

// One row per enum pair: the two directions cannot drift apart.
template <typename Ours, typename Proto>
struct EnumPair {
  Ours ours;
  Proto proto;
};
constexpr EnumPair<SampleOutcome, v1::Verdict> kVerdicts[] = {{SampleOutcome::kSuccessful, v1::VERDICT_SUCCESSFUL},
                                                              {SampleOutcome::kFailed, v1::VERDICT_FAILED},
                                                              {SampleOutcome::kMalformed, v1::VERDICT_MALFORMED},
                                                              {SampleOutcome::kDuplicate, v1::VERDICT_DUPLICATE}};

template <typename Ours, typename Proto, size_t N>
Proto ToProto(const EnumPair<Ours, Proto> (&pairs)[N], Ours value) {
  for (const auto& pair : pairs) {
    if (pair.ours == value) return pair.proto;
  }
  return Proto();
}

absl::StatusOr<PromptInput> TokenInput(const v1::TokenIds& proto) {
  std::vector<int32_t> ids;
  for (int i = 0; i < proto.ids_size(); ++i) {
    int id = 0;
    C3PO_RETURN_IF_ERROR(ToInt(absl::StrCat("token_ids.ids[", i, "]"), proto.ids(i), id));
    ids.push_back(id);
  }
  return PromptInput(std::move(ids));
}

void LayersToProto(const Pathway& pathway, const std::vector<int>& layers,
                   google::protobuf::RepeatedPtrField<v1::PathwayLayer>* out) {
  for (int l = 0; l < pathway.layers; ++l) {
    v1::PathwayLayer* layer = out->Add();
    layer->set_layer(static_cast<uint32_t>(layers[l]));
    for (float weight : pathway.Row(l)) layer->add_weights(weight);
  }
}

v1::TokenLogprob LogprobToProto(int32_t token, float logprob, const Tokenizer& tokenizer) {
  v1::TokenLogprob proto;
  proto.set_token_id(static_cast<uint32_t>(token));
  proto.set_text(tokenizer.TokenText(token));
  proto.set_logprob(logprob);
  return proto;
}

Conversation ConversationFromProto(const v1::Chat& chat) {
  Conversation conversation;
  for (const v1::ChatMessage& message : chat.messages())
    conversation.messages.push_back({message.role(), message.content(), message.fields_json()});
  conversation.tools_json.assign(chat.tools_json().begin(), chat.tools_json().end());
  conversation.documents_json.assign(chat.documents_json().begin(), chat.documents_json().end());
  conversation.template_kwargs_json = chat.template_kwargs_json();
  if (chat.has_add_generation_prompt()) conversation.add_generation_prompt = chat.add_generation_prompt();
  return conversation;
}

// Of a request whose input is a prompt, token ids or a chat.
template <typename Request>
absl::StatusOr<PromptInput> InputOf(const Request& request) {
  switch (request.input_case()) {
    case Request::kPrompt:
      return PromptInput(request.prompt());
    case Request::kTokenIds:
      return TokenInput(request.token_ids());
    case Request::kChat:
      return PromptInput(ConversationFromProto(request.chat()));
    case Request::INPUT_NOT_SET:
      break;
  }
  return FieldError("prompt: one of prompt, token_ids and chat must be set");
}

template <typename Request>
absl::StatusOr<ExpertsWish> ExpertsOf(const Request& request) {
  ExpertsWish wish;
  wish.return_routed = request.return_routed_experts();
  if (!request.has_experts_per_token()) return wish;
  int count = 0;
  C3PO_RETURN_IF_ERROR(ToInt("experts_per_token", request.experts_per_token(), count));
  wish.per_token = count;
  return wish;
}

// So that a report of the most neighbors is no larger than messages may be.
std::string CutText(const std::string& text) {
  constexpr size_t kTextBytesMax = 16 << 10;
  if (text.size() <= kTextBytesMax) return text;
  return absl::StrCat(Utf8Prefix(text, kTextBytesMax), "…");
}

}  // namespace

absl::StatusOr<SamplingParams> SamplingFromProto(const v1::SamplingOptions& options, const SamplingParams& defaults,
                                                 uint64_t drawn_seed) {
  SamplingParams params = defaults;
  if (options.has_temperature()) params.temperature = options.temperature();
  if (options.has_top_k()) C3PO_RETURN_IF_ERROR(ToInt("sampling.top_k", options.top_k(), params.top_k));
  if (options.has_top_p()) params.top_p = options.top_p();
  if (options.has_min_p()) params.min_p = options.min_p();
  if (options.has_repetition_penalty()) params.repetition_penalty = options.repetition_penalty();
  params.seed = options.has_seed() ? options.seed() : drawn_seed;
  if (options.has_max_tokens())
    C3PO_RETURN_IF_ERROR(ToInt("sampling.max_tokens", options.max_tokens(), params.max_tokens));
  params.stop.assign(options.stop().begin(), options.stop().end());
  if (options.has_logprobs()) C3PO_RETURN_IF_ERROR(ToInt("sampling.logprobs", options.logprobs(), params.logprobs));
  if (options.has_n()) C3PO_RETURN_IF_ERROR(ToInt("sampling.n", options.n(), params.n));
  if (options.has_ignore_eos()) params.ignore_eos = options.ignore_eos();
  for (const auto& [id, bias] : options.logit_bias()) {
    LogitBias& added = params.logit_bias.emplace_back();
    C3PO_RETURN_IF_ERROR(ToInt(absl::StrCat("sampling.logit_bias[", id, "]"), id, added.token_id));
    added.bias = bias;
  }
  // In one order, whatever the map's: errors name the first one.
  std::sort(params.logit_bias.begin(), params.logit_bias.end(),
            [](const LogitBias& a, const LogitBias& b) { return a.token_id < b.token_id; });
  return params;
}

absl::StatusOr<PromptInput> InputFromProto(const v1::GenerateRequest& request) { return InputOf(request); }

absl::StatusOr<PromptInput> InputFromProto(const v1::ScoreRequest& request) { return InputOf(request); }

absl::StatusOr<ExpertsWish> ExpertsFromProto(const v1::GenerateRequest& request) { return ExpertsOf(request); }

absl::StatusOr<ExpertsWish> ExpertsFromProto(const v1::ScoreRequest& request) { return ExpertsOf(request); }

v1::RoutedExperts RoutesToProto(const RoutedExperts& routes, int position, int tokens) {
  v1::RoutedExperts proto;
  proto.set_first_position(static_cast<uint32_t>(position));
  proto.set_tokens(static_cast<uint32_t>(tokens));
  proto.set_layers(static_cast<uint32_t>(routes.layers));
  proto.set_experts(static_cast<uint32_t>(routes.experts));
  const auto first =
      static_cast<std::ptrdiff_t>(static_cast<size_t>(position - routes.first_position) * routes.token_size());
  const auto size = static_cast<std::ptrdiff_t>(static_cast<size_t>(tokens) * routes.token_size());
  proto.mutable_ids()->Add(routes.ids.begin() + first, routes.ids.begin() + first + size);
  proto.mutable_weights()->Add(routes.weights.begin() + first, routes.weights.begin() + first + size);
  return proto;
}

std::vector<v1::RoutedExperts> RoutePieces(const RoutedExperts& routes) {
  std::vector<v1::RoutedExperts> pieces;
  if (routes.empty()) return pieces;
  constexpr size_t kPieceBytes = size_t{1} << 20;
  const int at_once = static_cast<int>(
      std::max<size_t>(1, kPieceBytes / (routes.token_size() * static_cast<size_t>(RoutedExperts::kPairBytes))));
  for (int at = routes.first_position; at < routes.end_position(); at += at_once) {
    pieces.push_back(RoutesToProto(routes, at, std::min(at_once, routes.end_position() - at)));
  }
  return pieces;
}

absl::StatusOr<AnswerForm> FormFromProto(const v1::StructuredOutput& form) {
  using Kind = AnswerForm::Kind;
  switch (form.form_case()) {
    case v1::StructuredOutput::kJsonObject:
      if (!form.json_object()) return FieldError("structured_output.json_object: false asks for nothing");
      return AnswerForm{Kind::kJsonObject, "", {}};
    case v1::StructuredOutput::kJsonSchema:
      return AnswerForm{Kind::kJsonSchema, form.json_schema(), {}};
    case v1::StructuredOutput::kRegex:
      return AnswerForm{Kind::kRegex, form.regex(), {}};
    case v1::StructuredOutput::kGrammar:
      return AnswerForm{Kind::kGrammar, form.grammar(), {}};
    case v1::StructuredOutput::kOneOf:
      return AnswerForm{Kind::kOneOf, "", {form.one_of().texts().begin(), form.one_of().texts().end()}};
    case v1::StructuredOutput::FORM_NOT_SET:
      break;
  }
  return FieldError("structured_output: one of its forms must be set");
}

v1::StageTimings TimingsToProto(const StageTimings& timings) {
  v1::StageTimings proto;
  proto.set_queue_seconds(timings.queue_seconds);
  proto.set_tokenize_seconds(timings.tokenize_seconds);
  proto.set_embed_seconds(timings.embed_seconds);
  proto.set_retrieval_seconds(timings.retrieval_seconds);
  proto.set_prefill_seconds(timings.prefill_seconds);
  proto.set_optimization_seconds(timings.optimization_seconds);
  proto.set_optimization_wait_seconds(timings.optimization_wait_seconds);
  proto.set_decode_seconds(timings.decode_seconds);
  proto.set_first_token_seconds(timings.first_token_seconds);
  proto.set_time_to_first_token_seconds(timings.time_to_first_token_seconds);
  return proto;
}

v1::Provenance ProvenanceToProto(const Provenance& provenance, const std::string& version) {
  v1::Provenance proto;
  proto.set_model_digest(provenance.model_digest);
  proto.set_embedder_digest(provenance.embedder_digest);
  proto.set_index_generation(static_cast<uint64_t>(provenance.index_generation));
  proto.set_effective_seed(provenance.effective_seed);
  proto.set_server_version(version);
  return proto;
}

v1::OptimizationReport ReportToProto(const OptimizationReport& report) {
  v1::OptimizationReport proto;
  proto.set_method(static_cast<v1::Method>(TermOf(report.settings.method).number));
  proto.set_gate(static_cast<v1::GateDecision>(TermOf(report.gate).number));
  *proto.mutable_timings() = TimingsToProto(report.timings);
  for (const std::string& warning : report.settings.warnings) proto.add_warnings(warning);
  proto.set_offset_applied(report.offset_applied);
  if (report.settings.method == Method::kNone) return proto;
  for (const NeighborReport& neighbor : report.neighbors) {
    v1::NeighborInfo* info = proto.add_neighbors();
    info->set_reference_id(neighbor.reference_id);
    info->set_distance(neighbor.distance);
    info->set_kernel_weight(neighbor.kernel_weight);
    info->set_prompt(CutText(neighbor.prompt));
    info->set_answer(CutText(neighbor.answer));
    info->set_successful(neighbor.successful);
  }
  proto.set_index_generation(static_cast<uint64_t>(report.index_generation));
  proto.set_shortened(report.shortened);
  for (const std::string& warning : report.warnings) proto.add_warnings(warning);
  for (double loss : report.losses) proto.add_losses(loss);
  for (double loss : report.validation_losses) proto.add_validation_losses(loss);
  proto.set_gate_reason(report.gate_reason);
  if (report.nearest_distance) proto.set_nearest_distance(*report.nearest_distance);
  if (report.max_neighbor_distance) proto.set_max_neighbor_distance(*report.max_neighbor_distance);
  if (report.base_confidence) proto.set_base_confidence(*report.base_confidence);
  if (report.optimized_confidence) proto.set_optimized_confidence(*report.optimized_confidence);
  if (report.selected_step) proto.set_selected_step(static_cast<uint32_t>(*report.selected_step));
  if (report.settings.return_pathways) {
    LayersToProto(report.before, report.settings.critical_layers, proto.mutable_pathway_before());
    LayersToProto(report.after, report.settings.critical_layers, proto.mutable_pathway_after());
  }
  for (const ExpertChange& change : report.largest_changes) {
    v1::ExpertChange* out = proto.add_largest_changes();
    out->set_layer(static_cast<uint32_t>(change.layer));
    out->set_expert(static_cast<uint32_t>(change.expert));
    out->set_before(change.before);
    out->set_after(change.after);
  }
  if (report.alpha) proto.set_alpha(*report.alpha);
  for (int layer : report.settings.critical_layers) proto.add_critical_layers(static_cast<uint32_t>(layer));
  proto.set_core_experts(static_cast<uint32_t>(report.settings.core_experts));
  proto.set_application_rule(static_cast<v1::ApplicationRule>(TermOf(report.settings.rule).number));
  proto.set_collection(report.settings.collection);
  return proto;
}

v1::TextDelta ChunkToProto(const TextChunk& chunk, const Tokenizer& tokenizer, bool with_logprobs) {
  v1::TextDelta delta;
  delta.set_text(chunk.text);
  delta.set_answer(static_cast<uint32_t>(chunk.answer));
  if (!chunk.routes.empty()) {
    *delta.mutable_routed_experts() = RoutesToProto(chunk.routes, chunk.routes.first_position, chunk.routes.tokens());
  }
  for (const SampledToken& token : chunk.tokens) {
    delta.add_token_ids(static_cast<uint32_t>(token.token_id));
    if (!with_logprobs) continue;
    v1::PositionLogprobs* position = delta.add_logprobs();
    *position->mutable_chosen() = LogprobToProto(token.token_id, token.logprob, tokenizer);
    for (const TokenLogprob& top : token.top_logprobs)
      *position->add_top() = LogprobToProto(top.token_id, top.logprob, tokenizer);
  }
  return delta;
}

v1::ContinuationScore ScoreToProto(const ContinuationScore& score) {
  v1::ContinuationScore proto;
  proto.set_log_likelihood(score.log_likelihood);
  proto.set_token_count(static_cast<uint32_t>(score.token_logprobs.size()));
  proto.set_is_greedy(score.is_greedy);
  proto.mutable_token_logprobs()->Add(score.token_logprobs.begin(), score.token_logprobs.end());
  if (score.offset_score) proto.set_offset_score(*score.offset_score);
  if (!score.routes.empty()) {
    *proto.mutable_routed_experts() = RoutesToProto(score.routes, score.routes.first_position, score.routes.tokens());
  }
  return proto;
}

v1::FinishReason ReasonToProto(FinishReason reason) {
  return reason == FinishReason::kStop ? v1::FINISH_REASON_STOP : v1::FINISH_REASON_LENGTH;
}

v1::GenerationSummary SummaryToProto(const CallSummary& summary, const std::string& request_id,
                                     const std::string& version) {
  v1::GenerationSummary proto;
  proto.set_request_id(request_id);
  proto.set_finish_reason(ReasonToProto(summary.finish_reason));
  for (const AnswerEnd& answer : summary.answers) {
    v1::AnswerSummary* end = proto.add_answers();
    end->set_finish_reason(ReasonToProto(answer.finish_reason));
    end->set_completion_tokens(static_cast<uint32_t>(answer.completion_tokens));
  }
  if (summary.chosen) proto.set_chosen(static_cast<uint32_t>(*summary.chosen));
  proto.mutable_usage()->set_prompt_tokens(static_cast<uint32_t>(summary.usage.prompt_tokens));
  proto.mutable_usage()->set_completion_tokens(static_cast<uint32_t>(summary.usage.completion_tokens));
  *proto.mutable_timings() = TimingsToProto(summary.timings);
  *proto.mutable_provenance() = ProvenanceToProto(summary.provenance, version);
  return proto;
}

absl::StatusOr<TuneRequest> TuneFromProto(const v1::TunePriorRequest& request, const OptimizationSettings& defaults) {
  TuneRequest result;
  result.collection = request.collection().empty() ? defaults.collection : request.collection();
  PriorTunerOptions& tuner = result.tuner;
  tuner.critical_layers = defaults.critical_layers;
  if (request.critical_layers_size() > 0)
    C3PO_RETURN_IF_ERROR(ReadLayers("critical_layers", request.critical_layers(), tuner.critical_layers));
  if (request.has_prompt_positions())
    C3PO_RETURN_IF_ERROR(ToInt("prompt_positions", request.prompt_positions(), tuner.prompt_positions));
  C3PO_RETURN_IF_ERROR(ReadChoice("objective", request.objective(), tuner.loss));
  if (request.has_epochs()) C3PO_RETURN_IF_ERROR(ToInt("epochs", request.epochs(), tuner.epochs));
  result.batch_size_was_asked = request.has_batch_size();
  if (request.has_batch_size()) C3PO_RETURN_IF_ERROR(ToInt("batch_size", request.batch_size(), tuner.batch_size));
  if (request.has_learning_rate()) tuner.learning_rate = request.learning_rate();
  if (request.has_weight_decay()) tuner.weight_decay = request.weight_decay();
  if (request.has_patience()) C3PO_RETURN_IF_ERROR(ToInt("patience", request.patience(), tuner.patience));
  tuner.seed = request.seed();
  if (request.has_validation_fraction()) result.validation_fraction = request.validation_fraction();
  C3PO_RETURN_IF_ERROR(ToInt("max_references", request.max_references(), result.max_references));
  result.successful_only = request.successful_only();
  return result;
}

void StatsPage(const std::map<std::string, v1::CollectionStats>& all, const std::string& page_token, size_t bytes_max,
               v1::GetStatsResponse* out) {
  size_t bytes = 0;
  for (auto stats = all.upper_bound(page_token); stats != all.end(); ++stats) {
    bytes += stats->second.ByteSizeLong();
    if (bytes > bytes_max && !out->collections().empty()) {
      out->set_next_page_token(out->collections().rbegin()->collection());
      return;
    }
    *out->add_collections() = stats->second;
  }
}

constexpr int kApartToldMax = 10000;  // ids: of a large collection they would be more than a message may hold

v1::PriorInfo PriorToProto(const CollectionPrior& prior, absl::string_view model_digest) {
  v1::PriorInfo info;
  for (int layer : prior.routing.layers) info.add_critical_layers(static_cast<uint32_t>(layer));
  info.set_prompt_positions(static_cast<uint32_t>(prior.prompt_positions));
  info.set_references(static_cast<uint64_t>(prior.references));
  info.set_validation_references(static_cast<uint64_t>(prior.validation_references));
  for (const std::string& id : prior.validation_reference_ids) {
    if (info.validation_reference_ids_size() == kApartToldMax) break;
    info.add_validation_reference_ids(id);
  }
  info.set_validation_loss_before(prior.validation_loss_before);
  info.set_validation_loss_after(prior.validation_loss_after);
  if (prior.validation_accuracy_before) info.set_validation_accuracy_before(*prior.validation_accuracy_before);
  if (prior.validation_accuracy_after) info.set_validation_accuracy_after(*prior.validation_accuracy_after);
  info.set_model_digest(prior.model_digest);
  info.set_usable(prior.model_digest == model_digest);
  return info;
}

v1::OffsetInfo OffsetToProto(const CollectionOffset& offset, bool usable) {
  v1::OffsetInfo info;
  for (const std::string& label : offset.labels) info.add_labels(label);
  for (const double each : offset.fitted.offsets) info.add_offsets(each);
  info.set_scale(offset.fitted.scale);
  info.set_references(static_cast<uint64_t>(offset.references));
  info.set_method(static_cast<v1::Method>(TermOf(offset.method).number));
  info.set_accuracy_before(offset.accuracy_before);
  info.set_accuracy_after(offset.accuracy_after);
  info.set_model_digest(offset.model_digest);
  info.set_usable(usable);
  info.set_settings(offset.settings);
  return info;
}

ReferenceSample SampleFromProto(const v1::ReferenceSample& sample) {
  ReferenceSample result;
  result.prompt = sample.prompt();
  result.answer = sample.answer();
  result.choices.assign(sample.choices().begin(), sample.choices().end());
  result.metadata.insert(sample.metadata().begin(), sample.metadata().end());
  result.id = sample.id();
  return result;
}

v1::Reference RecordToProto(const ReferenceRecord& record, bool with_pathway) {
  v1::Reference proto;
  proto.set_id(record.id);
  proto.set_collection(record.collection);
  v1::ReferenceSample* sample = proto.mutable_sample();
  sample->set_prompt(record.sample.prompt);
  sample->set_answer(record.sample.answer);
  for (const std::string& choice : record.sample.choices) sample->add_choices(choice);
  for (const auto& [key, value] : record.sample.metadata) (*sample->mutable_metadata())[key] = value;
  sample->set_id(record.sample.id);
  proto.set_successful(record.successful);
  proto.set_model_digest(record.model_digest);
  proto.set_embedder_digest(record.embedder_digest);
  proto.set_created_unix_seconds(record.created_unix_seconds);
  proto.set_moe_layers(static_cast<uint32_t>(record.pathway.layers));
  proto.set_experts(static_cast<uint32_t>(record.pathway.experts));
  if (with_pathway) proto.mutable_pathway()->Add(record.pathway.weights.begin(), record.pathway.weights.end());
  return proto;
}

v1::SampleVerdict VerdictToProto(const SampleVerdict& verdict) {
  v1::SampleVerdict proto;
  proto.set_sequence(verdict.sequence);
  proto.set_id(verdict.id);
  proto.set_verdict(ToProto(kVerdicts, verdict.outcome));
  proto.set_message(verdict.message);
  for (const std::string& id : verdict.replaced_ids) proto.add_replaced_ids(id);
  for (const std::string& id : verdict.contradicted_ids) proto.add_contradicted_ids(id);
  proto.set_warning(verdict.warning);
  return proto;
}

}  // namespace c3po
