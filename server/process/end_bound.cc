#include "server/process/end_bound.h"

#include <unistd.h>

#include <utility>

namespace c3po {

EndBound::EndBound(absl::Duration limit, std::function<void()> before_exit)
    : periodic_(limit, [before_exit = std::move(before_exit)] {
        before_exit();
        _exit(kLateExitCode);
      }) {}

}  // namespace c3po
