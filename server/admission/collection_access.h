#ifndef C3PO_SERVER_ADMISSION_COLLECTION_ACCESS_H_
#define C3PO_SERVER_ADMISSION_COLLECTION_ACCESS_H_

#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace c3po {

// Names of collections; `all`: every one, those that do not exist yet too.
struct CollectionNames {
  bool all = false;
  std::set<std::string, std::less<>> names;
  bool operator==(const CollectionNames&) const = default;
};

// Names with commas between them, such as "a,b"; "*" is all of them. A byte may be written as % and two hexadecimal
// digits: a space is %20, a comma %2C, a collection called * is %2A. InvalidArgument says what is wrong, without the
// text: a token that lost its place on the line must not get into a log.
absl::StatusOr<CollectionNames> ParseCollectionNames(absl::string_view text);

// The collections that a caller may read (their references, profile, statistics, and answers made with them) and write
// (add, delete, learn, set the profile). Who may write may read. What is allowed follows from the caller's line alone,
// never from what the store holds, so that a refusal does not tell whether a collection exists. Copies share their
// names. Immutable and thread-safe.
class CollectionAccess {
 public:
  // Every collection.
  CollectionAccess() = default;
  CollectionAccess(CollectionNames read, CollectionNames write);

  // To read and to write, also those to come.
  bool Everything() const { return names_ == nullptr || names_->write.all; }
  // To read, also those to come.
  bool ReadsEverything() const { return Everything() || names_->read.all; }
  bool MayRead(absl::string_view collection) const;
  bool MayWrite(absl::string_view collection) const;
  // Whether the same was said of both.
  bool SameAs(const CollectionAccess& other) const;
  // Unless ReadsEverything: those that may be read, by ascending name. They need not exist.
  std::vector<std::string> Readable() const;

  // PermissionDenied "FIELD: ...", the same for a collection that does not exist.
  absl::Status CheckRead(absl::string_view field, absl::string_view collection) const;
  absl::Status CheckWrite(absl::string_view field, absl::string_view collection) const;

 private:
  struct Names {
    CollectionNames read, write;
    bool operator==(const Names&) const = default;
  };
  std::shared_ptr<const Names> names_;  // null: everything
};

}  // namespace c3po

#endif  // C3PO_SERVER_ADMISSION_COLLECTION_ACCESS_H_
