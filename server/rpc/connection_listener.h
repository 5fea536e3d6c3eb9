#ifndef C3PO_SERVER_RPC_CONNECTION_LISTENER_H_
#define C3PO_SERVER_RPC_CONNECTION_LISTENER_H_

#include <sys/socket.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "server/metrics/logging.h"
#include "server/metrics/metrics.h"
#include "server/process/periodic.h"

namespace c3po {

struct ConnectionLimits {
  int connections_max = 1024;  // In all.
  int per_address_max = 256;   // From one address; no limit for a socket's path, where clients have none.
  // Between two connections to itself. After four of them without a success it does not count as accepting.
  absl::Duration probe_every = absl::Seconds(5);
  Metrics::Port port = Metrics::Port::kGrpc;  // As which its connections are counted.
};

// Listens and accepts in place of gRPC, whose listener of 1.51 stays dead once it has met the limit of file
// descriptors. A connection beyond the limits is closed at once. At the limit of descriptors one that is kept back
// takes the waiting connection and closes it, so that its client learns of it and the loop does not spin.
//
// Whether connections still get through is asked by connecting to itself now and then: see `accepting`. These do not
// count. Thread-safe.
class ConnectionListener {
 public:
  // Takes over the descriptor of a connection (non-blocking) accepted on the descriptor of a listening socket.
  using Accepted = std::function<void(int listening, int connection)>;

  // `address` as CheckListen of ServerConfig lets pass: HOST:PORT, [IPV6]:PORT, unix:PATH, unix-abstract:NAME; a host
  // of several addresses is listened to on all of them, port 0 is the same free one for all. `metrics` may be null and
  // outlives it. Unavailable, naming the address: in use, not this machine's, or not known. Connections wait until
  // Open.
  static absl::StatusOr<std::unique_ptr<ConnectionListener>> Listen(const std::string& address,
                                                                    const ConnectionLimits& limits, Metrics* metrics);
  ~ConnectionListener();
  ConnectionListener(const ConnectionListener&) = delete;
  ConnectionListener& operator=(const ConnectionListener&) = delete;

  // Begins to accept. `accepted` is called on the listener's own thread. Once.
  void Open(Accepted accepted);
  // Stops listening: new connections are refused by the system. `accepted` is not running and will not run again.
  void Close();

  int port() const { return port_; }  // 1 for a socket's path.
  // Whether a connection to itself was accepted not long ago; true as well until the first one was tried.
  bool accepting() const;
  int connections() const;

 private:
  struct Socket {
    int descriptor = -1;
    sockaddr_storage address = {};
    socklen_t size = 0;
  };
  // One that was accepted. The system gives every socket an inode of its own: while the descriptor has this one, the
  // connection is open, whoever owns it.
  struct Connection {
    int descriptor;
    uint64_t inode;
    std::string address;
  };

  ConnectionListener(const ConnectionLimits& limits, Metrics* metrics) : limits_(limits), metrics_(metrics) {}
  absl::Status Bind(const std::string& address);
  absl::Status BindPath(const std::string& path, bool abstract);
  absl::Status BindHost(const std::string& address);
  void Run();
  void AcceptOne(const Socket& listening);
  void OutOfDescriptors(const Socket& listening);
  void Refuse(int connection, Metrics::RefusedConnection why, const std::string& address);
  void ForgetClosed() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Probe();

  const ConnectionLimits limits_;
  Metrics* const metrics_;
  int port_ = 1;
  std::string path_;  // Of a socket in the file system, which is removed at the end.
  std::vector<Socket> sockets_;
  int wake_ = -1;     // An eventfd.
  int reserve_ = -1;  // The descriptor that is kept back.
  Accepted accepted_;
  LogSampler refusals_{1};
  std::thread thread_;
  mutable absl::Mutex mu_;
  std::vector<Connection> connections_ ABSL_GUARDED_BY(mu_);
  std::string probe_ ABSL_GUARDED_BY(mu_);  // The address of the connection to itself that is on its way.
  absl::Time probe_succeeded_ ABSL_GUARDED_BY(mu_) = absl::InfiniteFuture();
  std::atomic<bool> closing_{false};
  std::unique_ptr<Periodic> probes_;
};

}  // namespace c3po

#endif  // C3PO_SERVER_RPC_CONNECTION_LISTENER_H_
