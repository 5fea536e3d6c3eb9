#ifndef C3PO_TESTS_INDEX_STORE_POSTGRES_PROXY_H_
#define C3PO_TESTS_INDEX_STORE_POSTGRES_PROXY_H_

#include <atomic>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace c3po {

// A Unix socket in front of a PostgreSQL's, which loses what a network may lose. Its folder is what a URL names.
class PostgresProxy {
 public:
  // Listens in `folder`, and leads to the socket `server`.
  PostgresProxy(std::string folder, std::string server);
  ~PostgresProxy();
  PostgresProxy(const PostgresProxy&) = delete;
  PostgresProxy& operator=(const PostgresProxy&) = delete;

  // What becomes of the next session in which the client sends bytes with `text`, once:
  enum class Fault {
    kLoseAnswer,   // The server gets them; the client's end is closed before the answer.
    kLoseRequest,  // The server does not get them; both ends are closed.
    kDarkness,     // As kLoseAnswer, and no session is let in until Relight.
    kSilence,      // The server does not get them, and the ends stay open until the proxy is gone.
  };
  void OnceAfter(const std::string& text, Fault fault);
  void Relight() { dark_ = false; }
  // How often it happened.
  int faults() const { return faults_; }

 private:
  void Accept();
  void Serve(int client);

  const std::string path_, server_;
  int listener_ = -1;
  std::atomic<bool> ending_{false}, dark_{false};
  std::atomic<int> faults_{0};
  std::mutex mutex_;
  // Under mutex_.
  std::string text_;
  Fault fault_ = Fault::kSilence;
  std::vector<std::thread> sessions_;
  std::thread acceptor_;
};

}  // namespace c3po

#endif  // C3PO_TESTS_INDEX_STORE_POSTGRES_PROXY_H_
