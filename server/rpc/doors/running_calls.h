#ifndef C3PO_SERVER_RPC_DOORS_RUNNING_CALLS_H_
#define C3PO_SERVER_RPC_DOORS_RUNNING_CALLS_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "index/base/mutex.h"

namespace c3po {

// The calls of a door that run, by who called and the id that the caller gave: so that another call of the same caller
// can end one. Thread-safe.
class RunningCalls {
 public:
  // A call's place here; it is left with this. Goes before the RunningCalls.
  class Place {
   public:
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;

   private:
    friend class RunningCalls;
    using Calls = std::multimap<std::pair<std::string, std::string>, std::function<void()>>;
    Place(RunningCalls* calls, Calls::iterator at) : calls_(calls), at_(at) {}
    RunningCalls* const calls_;
    const Calls::iterator at_;
  };

  // `abort` is called under a lock, by any thread, any number of times until the place is left; it must neither wait
  // nor come back here. One id may have several calls. Null for an empty id, by which nobody can name the call.
  std::unique_ptr<Place> Enter(const std::string& caller, const std::string& id, std::function<void()> abort);

  // Aborts the caller's own calls with this id; how many there were.
  int Abort(const std::string& caller, const std::string& id);

 private:
  Mutex mutex_;
  Place::Calls calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_DOORS_RUNNING_CALLS_H_
