#include "index/store/sqlite/sqlite_references.h"

#include <utility>

#include "index/base/status_macros.h"
#include "index/store/record_row.h"

namespace c3po {
namespace {

// In the order of RecordRow; the last one is the checksum of those before it.
#define C3PO_REFERENCE_COLUMNS                                                                                \
  "id, collection, prompt, answer, choices, metadata, successful, model_digest, embedder_digest, embedding, " \
  "pathway_layers, pathway_experts, pathway, created_unix_seconds, checksum"
constexpr int kIdColumn = 0, kCollectionColumn = 1, kChecksumColumn = 14, kSequenceColumn = 15;

constexpr char kInsert[] =
    "INSERT INTO reference (" C3PO_REFERENCE_COLUMNS
    ", generation) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16) "
    "ON CONFLICT (id) DO UPDATE SET "
    "collection = ?2, prompt = ?3, answer = ?4, choices = ?5, metadata = ?6, successful = ?7, model_digest = ?8, "
    "embedder_digest = ?9, "
    "embedding = ?10, pathway_layers = ?11, "
    "pathway_experts = ?12, pathway = ?13, created_unix_seconds = ?14, checksum = ?15, generation = ?16";
constexpr char kSelectById[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id = ?1";
constexpr char kSelectAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference ORDER BY sequence";
constexpr char kSelectChanged[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE generation > ?1 AND generation <= ?2 ORDER BY sequence";
constexpr char kSelectAllNumbered[] = "SELECT " C3PO_REFERENCE_COLUMNS ", sequence FROM reference";
constexpr char kListAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 ORDER BY id LIMIT ?2";
constexpr char kListCollection[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > ?1 AND collection = ?3 ORDER BY id LIMIT ?2";
constexpr char kCount[] =
    "SELECT collection, count(*), sum(successful), sum(model_digest = ?1 AND embedder_digest = ?2) FROM reference "
    "GROUP BY collection ORDER BY collection";
constexpr char kCountOne[] =
    "SELECT collection, successful, model_digest = ?1 AND embedder_digest = ?2 FROM reference WHERE id = ?3";
constexpr char kDelete[] = "DELETE FROM reference WHERE id = ?1";
constexpr char kDeleteCollection[] = "DELETE FROM reference WHERE collection = ?1";
constexpr char kSetChecksum[] = "UPDATE reference SET checksum = ?1 WHERE sequence = ?2";

constexpr const char* kProbes[] = {kInsert, kSelectById};

// Of the row at which a SELECT of C3PO_REFERENCE_COLUMNS stands, valid as its bytes are.
RecordRow RowOf(SqliteStatement& select) {
  return {select.Bytes(0),    select.Bytes(1),    select.Bytes(2),  select.Bytes(3),   select.Bytes(4),
          select.Bytes(5),    select.Integer(6),  select.Bytes(7),  select.Bytes(8),   select.Bytes(9),
          select.Integer(10), select.Integer(11), select.Bytes(12), select.Integer(13)};
}

absl::StatusOr<ReferenceRecord> RecordOf(SqliteStatement& select) {
  return DecodeRecord(RowOf(select), select.Bytes(kChecksumColumn));
}

void BindRow(const RecordRow& row, absl::string_view checksum, SqliteStatement& insert) {
  insert.Bind(1, row.id);
  insert.Bind(2, row.collection);
  insert.Bind(3, row.prompt);
  insert.Bind(4, row.answer);
  insert.Bind(5, row.choices);
  insert.Bind(6, row.metadata);
  insert.Bind(7, row.successful);
  insert.Bind(8, row.model_digest);
  insert.Bind(9, row.embedder_digest);
  insert.BindBlob(10, row.embedding);
  insert.Bind(11, row.pathway_layers);
  insert.Bind(12, row.pathway_experts);
  insert.BindBlob(13, row.pathway);
  insert.Bind(14, row.created_unix_seconds);
  insert.BindBlob(15, checksum);
}

}  // namespace

absl::Span<const char* const> SqliteReferences::Probes() { return kProbes; }

std::optional<ReferenceRecord> SqliteReferences::Whole(SqliteStatement& select) const {
  absl::StatusOr<ReferenceRecord> record = RecordOf(select);
  if (record.ok()) return *std::move(record);
  damaged_.Note(DamagedRow::Kind::kReference, select.Bytes(kCollectionColumn), select.Bytes(kIdColumn),
                record.status().message());
  return std::nullopt;
}

absl::StatusOr<AddOutcome> SqliteReferences::AddOne(const ReferenceRecord& record, int64_t generation,
                                                    SqliteStatement& find, SqliteStatement& insert) {
  const EncodedRecord encoded(record);
  find.Reset();
  find.Bind(1, record.id);
  C3PO_ASSIGN_OR_RETURN(const bool exists, find.Step("cannot look up a reference"));
  const bool whole = exists && RecordOf(find).ok();
  const RecordRow stored = whole ? RowOf(find) : RecordRow();
  const AddDecision decision = DecideAdd(encoded.row(), !record.sample.id.empty(), exists, whole ? &stored : nullptr);
  find.Reset();
  if (decision.outcome == AddOutcome::kDuplicate) return decision.outcome;
  if (decision.forgets_artifacts) C3PO_RETURN_IF_ERROR(artifacts_.ForgetReferences({record.id}, generation));
  if (!exists) C3PO_RETURN_IF_ERROR(erasures_.ForgetReference(record.id));
  const std::string checksum = encoded.row().Checksum();
  BindRow(encoded.row(), checksum, insert);
  insert.Bind(16, generation);
  const absl::Status status = insert.Step("cannot add a reference").status();
  insert.Reset();
  C3PO_RETURN_IF_ERROR(status);
  return decision.outcome;
}

absl::StatusOr<std::vector<AddOutcome>> SqliteReferences::Add(absl::Span<const ReferenceRecord> records,
                                                              int64_t generation) {
  std::vector<AddOutcome> outcomes;
  outcomes.reserve(records.size());
  SqliteStatement find(connection_), insert(connection_);
  C3PO_RETURN_IF_ERROR(find.Prepare(kSelectById));
  C3PO_RETURN_IF_ERROR(insert.Prepare(kInsert));
  for (const ReferenceRecord& record : records) {
    C3PO_ASSIGN_OR_RETURN(const AddOutcome outcome, AddOne(record, generation, find, insert));
    outcomes.push_back(outcome);
  }
  return outcomes;
}

absl::StatusOr<int64_t> SqliteReferences::Delete(absl::Span<const std::string> ids, int64_t generation) {
  C3PO_RETURN_IF_ERROR(artifacts_.ForgetReferences(ids, generation));
  SqliteStatement remove(connection_);
  C3PO_RETURN_IF_ERROR(remove.Prepare(kDelete));
  int64_t deleted = 0;
  for (const std::string& id : ids) {
    C3PO_RETURN_IF_ERROR(erasures_.NoteReference(id, generation));
    remove.Reset();
    remove.Bind(1, id);
    C3PO_RETURN_IF_ERROR(remove.Step("cannot delete a reference").status());
    deleted += connection_.rows_changed();
  }
  return deleted;
}

absl::StatusOr<int64_t> SqliteReferences::DeleteCollection(absl::string_view collection, int64_t generation) {
  C3PO_RETURN_IF_ERROR(artifacts_.DeleteCollection(collection, generation));
  C3PO_RETURN_IF_ERROR(erasures_.NoteCollection(collection, generation));
  SqliteStatement remove(connection_);
  C3PO_RETURN_IF_ERROR(remove.Prepare(kDeleteCollection));
  remove.Bind(1, collection);
  C3PO_RETURN_IF_ERROR(remove.Step("cannot delete a collection").status());
  return connection_.rows_changed();
}

absl::StatusOr<std::vector<ReferenceRecord>> SqliteReferences::GetMany(absl::Span<const std::string> ids) const {
  std::vector<ReferenceRecord> records;
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectById));
  for (const std::string& id : ids) {
    select.Reset();
    select.Bind(1, id);
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read a reference"));
    if (!row) continue;
    if (auto record = Whole(select)) records.push_back(*std::move(record));
  }
  return records;
}

absl::StatusOr<std::vector<ReferenceRecord>> SqliteReferences::List(absl::string_view collection,
                                                                    absl::string_view after_id, int limit) const {
  std::vector<ReferenceRecord> records;
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(collection.empty() ? kListAll : kListCollection));
  // Once, and again for as many as were left out.
  std::string after(after_id);
  for (int64_t rows = limit; rows == limit && records.size() < static_cast<size_t>(limit);) {
    select.Reset();
    select.Bind(1, after);
    select.Bind(2, int64_t{limit});
    if (!collection.empty()) select.Bind(3, collection);
    std::string last;
    for (rows = 0; records.size() < static_cast<size_t>(limit); ++rows) {
      C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot list references"));
      if (!row) break;
      last = select.Text(kIdColumn);
      if (auto record = Whole(select)) records.push_back(*std::move(record));
    }
    select.Reset();
    after = std::move(last);
  }
  return records;
}

absl::StatusOr<std::vector<CollectionStats>> SqliteReferences::Stats(absl::string_view model_digest,
                                                                     absl::string_view embedder_digest) const {
  std::vector<CollectionStats> stats;
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kCount));
  select.Bind(1, model_digest);
  select.Bind(2, embedder_digest);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot count references"));
    if (!row) break;
    stats.push_back({select.Text(0), select.Integer(1), select.Integer(2), select.Integer(3)});
  }
  C3PO_RETURN_IF_ERROR(LeaveDamagedOut(model_digest, embedder_digest, stats));
  return stats;
}

// Takes rows that cannot be trusted out of what SQL counted.
absl::Status SqliteReferences::LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                                               std::vector<CollectionStats>& stats) const {
  SqliteStatement counted(connection_);
  C3PO_RETURN_IF_ERROR(counted.Prepare(kCountOne));
  for (const DamagedRow& damaged : damaged_.List()) {
    if (damaged.kind != DamagedRow::Kind::kReference) continue;
    counted.Reset();
    counted.Bind(1, model_digest);
    counted.Bind(2, embedder_digest);
    counted.Bind(3, damaged.name);
    C3PO_ASSIGN_OR_RETURN(const bool row, counted.Step("cannot count references"));
    if (!row) continue;
    for (CollectionStats& each : stats) {
      if (each.collection != counted.Bytes(0)) continue;
      --each.references;
      each.successful -= counted.Integer(1);
      each.usable -= counted.Integer(2);
    }
  }
  std::erase_if(stats, [](const CollectionStats& each) { return each.references <= 0; });
  return absl::OkStatus();
}

absl::Status SqliteReferences::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAll));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read references"));
    if (!row) return absl::OkStatus();
    if (auto record = Whole(select)) C3PO_RETURN_IF_ERROR(callback(*std::move(record)));
  }
}

absl::Status SqliteReferences::ReadChanged(const ChangePage& page, StoreChanges& changes) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectChanged));
  select.Bind(1, page.from_start ? int64_t{-1} : page.after);
  select.Bind(2, page.through);
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read references"));
    if (!row) return absl::OkStatus();
    if (auto record = Whole(select)) changes.records.push_back(*std::move(record));
  }
}

absl::Status SqliteReferences::LookAt(absl::string_view id) const {
  SqliteStatement select(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectById));
  select.Bind(1, id);
  C3PO_ASSIGN_OR_RETURN(const bool row, select.Step("cannot read a damaged row"));
  if (row) (void)Whole(select);
  return absl::OkStatus();
}

absl::Status SqliteReferences::AddChecksums() {
  constexpr absl::string_view kAction = "cannot add checksums";
  std::vector<std::pair<int64_t, std::string>> checksums;
  SqliteStatement select(connection_), update(connection_);
  C3PO_RETURN_IF_ERROR(select.Prepare(kSelectAllNumbered));
  C3PO_RETURN_IF_ERROR(update.Prepare(kSetChecksum));
  while (true) {
    C3PO_ASSIGN_OR_RETURN(const bool row, select.Step(kAction));
    if (!row) break;
    checksums.emplace_back(select.Integer(kSequenceColumn), RowOf(select).Checksum());
  }
  for (const auto& [sequence, checksum] : checksums) {
    update.Reset();
    update.BindBlob(1, checksum);
    update.Bind(2, sequence);
    C3PO_RETURN_IF_ERROR(update.Step(kAction).status());
  }
  return absl::OkStatus();
}

}  // namespace c3po
