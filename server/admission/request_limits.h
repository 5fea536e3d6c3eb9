#ifndef C3PO_SERVER_ADMISSION_REQUEST_LIMITS_H_
#define C3PO_SERVER_ADMISSION_REQUEST_LIMITS_H_

namespace c3po {

// What one request may ask for at most; beyond: InvalidArgument naming the field. 0: as much as the model's context
// window leaves.
struct RequestLimits {
  int prompt_tokens_max = 0;
  int output_tokens_max = 0;         // sampling.max_tokens, and the longest continuation
  int stop_strings_max = 16;         // at most kStopStringsMax
  int stop_string_bytes_max = 1024;  // at most kStopStringBytesMax
  int continuations_max = 256;
  int answers_max = 16;           // sampling.n
  int logit_bias_max = 512;       // entries of sampling.logit_bias
  int experts_per_token_max = 0;  // what the model allows is the most
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_REQUEST_LIMITS_H_
