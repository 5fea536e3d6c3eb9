#include "server/rpc/entrance.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "index/base/device_failure.h"
#include "index/base/status_macros.h"
#include "server/types/status_details.h"

namespace c3po {
namespace {

// The least role that may call a method. Which collections it may then name is CollectionAccess's to say: what answers
// and Search show of the references of a collection that a caller may read is not hidden from it.
Role LeastRole(Metrics::Rpc rpc) {
  switch (rpc) {
    case Metrics::Rpc::kGenerate:
    case Metrics::Rpc::kScore:
    case Metrics::Rpc::kTokenize:
    case Metrics::Rpc::kDetokenize:
    case Metrics::Rpc::kReferencesSearch:
    case Metrics::Rpc::kReferencesGet:
    case Metrics::Rpc::kReferencesGetStats:
    case Metrics::Rpc::kReferencesGetCollection:
    case Metrics::Rpc::kGetServerInfo:
    case Metrics::Rpc::kVllmGenerate:
    case Metrics::Rpc::kVllmEmbed:
    case Metrics::Rpc::kVllmAbort:
    case Metrics::Rpc::kVllmGetModelInfo:
    case Metrics::Rpc::kVllmGetServerInfo:
    case Metrics::Rpc::kVllmGetLoads:
    case Metrics::Rpc::kVllmGetTokenizer:
    case Metrics::Rpc::kKserveModelInfer:
    case Metrics::Rpc::kKserveModelStreamInfer:
    case Metrics::Rpc::kKserveServerMetadata:
    case Metrics::Rpc::kKserveModelMetadata:
    case Metrics::Rpc::kOpenAiChatCompletions:
    case Metrics::Rpc::kOpenAiCompletions:
    case Metrics::Rpc::kOpenAiEmbeddings:
    case Metrics::Rpc::kOpenAiModels:
      return Role::kGenerate;
    case Metrics::Rpc::kReferencesList:
    case Metrics::Rpc::kReferencesAdd:
    case Metrics::Rpc::kReferencesDelete:
    case Metrics::Rpc::kReferencesSetProfile:
    case Metrics::Rpc::kReferencesTunePrior:
    case Metrics::Rpc::kReferencesAmortizeShifts:
    case Metrics::Rpc::kReferencesTuneOffset:
      return Role::kReferences;
    case Metrics::Rpc::kReferencesBackupStore:
      return Role::kAdminister;
  }
  return Role::kAdminister;
}

}  // namespace

std::string AddressOfPeer(const std::string& peer) { return peer.substr(0, peer.rfind(':')); }

absl::StatusOr<Entrance::Admission> Entrance::Admit(const CallOrigin& origin, Metrics::Rpc rpc, std::string& name) {
  Caller caller{"", Role::kReferences, {}, {}};
  if (access_ != nullptr) {
    C3PO_ASSIGN_OR_RETURN(caller, access_->Authenticate(origin.authorization));
    name = caller.name;
    if (caller.role < LeastRole(rpc)) {
      return absl::PermissionDeniedError(absl::StrCat("the method needs the role ", RoleName(LeastRole(rpc)), "; \"",
                                                      caller.name, "\" has ", RoleName(caller.role)));
    }
  } else {
    caller.name = name = origin.certificate_name.empty() ? AddressOfPeer(origin.peer) : origin.certificate_name;
  }
  switch (state()) {
    case State::kLoading:
      return WithReason(absl::UnavailableError("the server is loading its model"), "LOADING");
    case State::kDraining:
      return FailureOfDeviceOr(absl::UnavailableError("the server is shutting down"));
    case State::kOpen:
      break;
  }
  C3PO_ASSIGN_OR_RETURN(std::shared_ptr<RateLimiter::Call> call, rates_->Admit(caller.name, caller.rates));
  return Admission{std::move(caller), std::move(call)};
}

}  // namespace c3po
