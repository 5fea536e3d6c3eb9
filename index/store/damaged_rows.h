#ifndef C3PO_INDEX_STORE_DAMAGED_ROWS_H_
#define C3PO_INDEX_STORE_DAMAGED_ROWS_H_

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "index/store/reference_store.h"

namespace c3po {

// The rows of a store that were found damaged, and what is wrong with each: what whoever reads rows refuses to serve.
// A plain value; not thread-safe.
class DamagedRows {
 public:
  // A row that was noted before gets the new problem.
  void Note(DamagedRow::Kind kind, absl::string_view collection, absl::string_view name, absl::string_view problem);

  // It is right again, or gone.
  void Forget(DamagedRow::Kind kind, absl::string_view collection, absl::string_view name);

  bool empty() const { return rows_.empty(); }
  // References by collection and id, then artifacts; the problem of each says what puts it right.
  std::vector<DamagedRow> List() const;

  // DataLoss: a reference of this id is among them. `store` names the store.
  absl::Status CheckReference(absl::string_view store, absl::string_view id) const;

  // After a change, which may have put rows right. Forgets all of them, and has `look` look at each again, which notes
  // it where it is still damaged. At an error of `look` all are as before, which is returned.
  absl::Status LookAgain(absl::FunctionRef<absl::Status(const DamagedRow&)> look);

 private:
  using Key = std::tuple<DamagedRow::Kind, std::string, std::string>;  // Kind, collection, name.
  std::map<Key, std::string> rows_;                                    // And what is wrong.
};

}  // namespace c3po

#endif  // C3PO_INDEX_STORE_DAMAGED_ROWS_H_
