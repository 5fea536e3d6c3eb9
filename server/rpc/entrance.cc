#include "server/rpc/entrance.h"

#include <grpcpp/security/auth_context.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
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

absl::string_view HeaderOf(const grpc::CallbackServerContext& context, const char* name) {
  const auto found = context.client_metadata().find(name);
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

std::string NameOf(const grpc::CallbackServerContext& context) {
  const auto authentication = context.auth_context();
  if (authentication != nullptr && authentication->IsPeerAuthenticated()) {
    const std::vector<grpc::string_ref> names = authentication->FindPropertyValues("x509_common_name");
    if (!names.empty()) return std::string(names.front().data(), names.front().size());
  }
  return AddressOfPeer(context.peer());
}

}  // namespace

std::string AddressOfPeer(const std::string& peer) { return peer.substr(0, peer.rfind(':')); }

absl::StatusOr<Entrance::Admission> Entrance::Admit(const grpc::CallbackServerContext& context, Metrics::Rpc rpc,
                                                    std::string& name) {
  Caller caller{"", Role::kReferences, {}, {}};
  if (access_ != nullptr) {
    C3PO_ASSIGN_OR_RETURN(caller, access_->Authenticate(HeaderOf(context, "authorization")));
    name = caller.name;
    if (caller.role < LeastRole(rpc)) {
      return absl::PermissionDeniedError(absl::StrCat("the method needs the role ", RoleName(LeastRole(rpc)), "; \"",
                                                      caller.name, "\" has ", RoleName(caller.role)));
    }
  } else {
    caller.name = name = NameOf(context);
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
