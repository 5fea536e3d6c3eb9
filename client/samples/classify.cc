// Classifies a text with the client library: Score asks how likely the model finds each label after the prompt, under
// the collection's profile, and the likeliest per token is the answer.
//   c3po_sample_classify 127.0.0.1:50051 mine $'Review: …\nSentiment:' ' negative' ' positive'

#include <iostream>
#include <string>

#include "absl/status/statusor.h"
#include "client/c3po_client.h"

int main(int argc, char** argv) {
  if (argc < 6) {
    std::cerr << "usage: c3po_sample_classify SERVER COLLECTION PROMPT LABEL LABEL [LABEL...]\n";
    return 2;
  }
  c3po::Client client(c3po::InsecureChannel(argv[1]));
  c3po::v1::ScoreRequest request;
  request.mutable_optimization()->set_collection(argv[2]);
  request.set_prompt(argv[3]);
  // With the space that the prompt's format wants before an answer: " positive", as in the references.
  for (int i = 4; i < argc; ++i) request.add_continuations(argv[i]);
  const absl::StatusOr<c3po::v1::ScoreResponse> response = client.Score(request);
  if (!response.ok()) {
    std::cerr << response.status() << "\n";
    return 1;
  }
  // The mean over a label's tokens, so that a long label is not the less likely one for its length.
  const auto per_token = [&](int i) {
    const c3po::v1::ContinuationScore& score = response->scores(i);
    return score.log_likelihood() / score.token_count();
  };
  int best = 0;
  for (int i = 1; i < response->scores_size(); ++i) {
    if (per_token(i) > per_token(best)) best = i;
  }
  std::cout << request.continuations(best) << "\t" << per_token(best) << "\n";
  return 0;
}
