#include "index/store/postgres/postgres_references.h"

#include <map>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "index/base/status_macros.h"

namespace c3po {
namespace {

// Of one statement; a record is about 10 KB.
constexpr size_t kRecordsPerInsert = 256, kIdsPerSelect = 1024;

// In the order of RecordRow; the last one is the checksum of those before it.
#define C3PO_REFERENCE_COLUMNS                                                                                \
  "id, collection, prompt, answer, choices, metadata, successful, model_digest, embedder_digest, embedding, " \
  "pathway_layers, pathway_experts, pathway, created_unix_seconds, checksum"
constexpr int kIdColumn = 0, kCollectionColumn = 1, kChecksumColumn = 14;

constexpr char kInsert[] =
    "INSERT INTO reference (" C3PO_REFERENCE_COLUMNS ", generation) SELECT " C3PO_REFERENCE_COLUMNS
    ", $1 FROM unnest($2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[], $6::bytea[], $7::bytea[], $8::int8[], "
    "$9::bytea[], $10::bytea[], $11::bytea[], $12::int8[], $13::int8[], $14::bytea[], $15::int8[], $16::bytea[]) WITH "
    "ORDINALITY AS added (" C3PO_REFERENCE_COLUMNS
    ", place) ORDER BY place ON CONFLICT (id) DO UPDATE SET collection = excluded.collection, "
    "prompt = excluded.prompt, answer = excluded.answer, choices = excluded.choices, metadata = excluded.metadata, "
    "successful = excluded.successful, model_digest = excluded.model_digest, "
    "embedder_digest = excluded.embedder_digest, embedding = excluded.embedding, "
    "pathway_layers = excluded.pathway_layers, pathway_experts = excluded.pathway_experts, pathway = excluded.pathway, "
    "created_unix_seconds = excluded.created_unix_seconds, checksum = excluded.checksum, "
    "generation = excluded.generation";
constexpr char kRemember[] =
    "DELETE FROM erased WHERE kind = 0 AND collection = ''::bytea AND name = ANY ($1::bytea[])";
#define C3PO_NOTE_ERASED                                                                 \
  " RETURNING id) INSERT INTO erased SELECT 0, ''::bytea, id, $1 FROM gone ON CONFLICT " \
  "(kind, collection, name) DO UPDATE SET generation = excluded.generation"
constexpr char kDelete[] = "WITH gone AS (DELETE FROM reference WHERE id = ANY ($2::bytea[])" C3PO_NOTE_ERASED;
constexpr char kDeleteCollection[] = "WITH gone AS (DELETE FROM reference WHERE collection = $2" C3PO_NOTE_ERASED;
#undef C3PO_NOTE_ERASED
constexpr char kSelectByIds[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id = ANY ($1::bytea[])";
constexpr char kSelectAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference ORDER BY sequence";
constexpr char kSelectChanged[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE generation > $1 AND generation <= $2 ORDER BY sequence";
constexpr char kListAll[] = "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > $1 ORDER BY id LIMIT $2";
constexpr char kListCollection[] =
    "SELECT " C3PO_REFERENCE_COLUMNS " FROM reference WHERE id > $1 AND collection = $3 ORDER BY id LIMIT $2";
constexpr char kCount[] =
    "SELECT collection, count(*), sum(successful)::int8, "
    "count(*) FILTER (WHERE model_digest = $1 AND embedder_digest = $2) FROM reference GROUP BY collection "
    "ORDER BY collection";
constexpr char kCountSome[] =
    "SELECT collection, successful, (model_digest = $1 AND embedder_digest = $2)::int4::int8 FROM reference "
    "WHERE id = ANY ($3::bytea[])";

// Valid as `rows` are.
RecordRow RowOf(const PostgresRows& rows, int row) {
  return {rows.Bytes(row, 0),    rows.Bytes(row, 1),    rows.Bytes(row, 2),  rows.Bytes(row, 3),   rows.Bytes(row, 4),
          rows.Bytes(row, 5),    rows.Integer(row, 6),  rows.Bytes(row, 7),  rows.Bytes(row, 8),   rows.Bytes(row, 9),
          rows.Integer(row, 10), rows.Integer(row, 11), rows.Bytes(row, 12), rows.Integer(row, 13)};
}

// The values of rows, column by column, as kInsert takes them.
struct Columns {
  void Add(const RecordRow& row) {
    const absl::string_view bytes[] = {row.id,       row.collection,   row.prompt,          row.answer,    row.choices,
                                       row.metadata, row.model_digest, row.embedder_digest, row.embedding, row.pathway};
    for (size_t i = 0; i < std::size(bytes); ++i) texts[i].push_back(bytes[i]);
    const int64_t values[] = {row.successful, row.pathway_layers, row.pathway_experts, row.created_unix_seconds};
    for (size_t i = 0; i < std::size(values); ++i) numbers[i].push_back(values[i]);
    checksums.push_back(row.Checksum());
  }
  PostgresValues Values(int64_t generation) const {
    PostgresValues values;
    values.Integer(generation);
    for (int i = 0; i < 6; ++i) values.BytesArray(texts[i]);
    values.IntegerArray(numbers[0]);
    for (int i = 6; i < 9; ++i) values.BytesArray(texts[i]);
    values.IntegerArray(numbers[1]).IntegerArray(numbers[2]).BytesArray(texts[9]).IntegerArray(numbers[3]);
    return values.BytesArray(checksums);
  }

  std::vector<absl::string_view> texts[10];
  std::vector<int64_t> numbers[4];
  std::vector<std::string> checksums;
};

}  // namespace

std::optional<ReferenceRecord> PostgresReferences::Whole(const PostgresRows& rows, int row) {
  absl::StatusOr<ReferenceRecord> record = DecodeRecord(RowOf(rows, row), rows.Bytes(row, kChecksumColumn));
  if (record.ok()) return *std::move(record);
  damage_.Note(DamagedRow::Kind::kReference, rows.Bytes(row, kCollectionColumn), rows.Bytes(row, kIdColumn),
               record.status().message());
  return std::nullopt;
}

// The rows that are there are read once. Then the records are decided upon one after the other, as if each were in the
// table before the next one, and what is left of each id is written.
absl::StatusOr<std::vector<AddOutcome>> PostgresReferences::Add(absl::Span<const ReferenceRecord> records,
                                                                int64_t generation) {
  std::vector<std::string> ids;
  for (const ReferenceRecord& record : records) ids.push_back(record.id);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows,
                        session_.Run(kSelectByIds, PostgresValues().BytesArray(ids), "cannot look up references"));
  struct Known {
    std::optional<RecordRow> row;  // None: it is damaged.
    std::optional<size_t> place;   // Of the first record that changes it; none: it is as it was.
  };
  absl::flat_hash_map<absl::string_view, Known> known;
  for (int i = 0; i < rows.rows(); ++i) {
    const RecordRow row = RowOf(rows, i);
    const bool whole = DecodeRecord(row, rows.Bytes(i, kChecksumColumn)).ok();
    known[row.id].row = whole ? std::optional<RecordRow>(row) : std::nullopt;
  }
  std::vector<AddOutcome> outcomes;
  std::vector<std::string> forgotten, inserted;
  std::vector<std::unique_ptr<EncodedRecord>> encoded;
  std::map<size_t, const RecordRow*> written;  // By place.
  for (size_t i = 0; i < records.size(); ++i) {
    const ReferenceRecord& record = records[i];
    encoded.push_back(std::make_unique<EncodedRecord>(record));
    const auto found = known.find(record.id);
    const bool exists = found != known.end();
    const RecordRow* stored = exists && found->second.row.has_value() ? &*found->second.row : nullptr;
    const AddDecision decision = DecideAdd(encoded.back()->row(), !record.sample.id.empty(), exists, stored);
    outcomes.push_back(decision.outcome);
    if (decision.outcome == AddOutcome::kDuplicate) continue;
    if (decision.forgets_artifacts) forgotten.push_back(record.id);
    if (!exists) inserted.push_back(record.id);
    Known& now = known[record.id];
    if (!now.place.has_value()) now.place = i;
    now.row = encoded.back()->row();
    written[*now.place] = &encoded.back()->row();
  }
  if (!forgotten.empty()) C3PO_RETURN_IF_ERROR(artifacts_.ForgetReferences(forgotten, generation).status());
  if (!inserted.empty()) {
    const PostgresValues values = PostgresValues().BytesArray(inserted);
    C3PO_RETURN_IF_ERROR(session_.Run(kRemember, values, "cannot add references").status());
  }
  std::vector<const RecordRow*> chunk;
  for (const auto& [place, row] : written) {
    chunk.push_back(row);
    if (chunk.size() < kRecordsPerInsert) continue;
    C3PO_RETURN_IF_ERROR(Insert(chunk, generation));
    chunk.clear();
  }
  if (!chunk.empty()) C3PO_RETURN_IF_ERROR(Insert(chunk, generation));
  return outcomes;
}

absl::Status PostgresReferences::Insert(absl::Span<const RecordRow* const> rows, int64_t generation) {
  Columns columns;
  for (const RecordRow* row : rows) columns.Add(*row);
  return session_.Run(kInsert, columns.Values(generation), "cannot add references").status();
}

absl::StatusOr<int64_t> PostgresReferences::Delete(absl::Span<const std::string> ids, int64_t generation,
                                                   int64_t& rows_changed) {
  C3PO_ASSIGN_OR_RETURN(const int64_t artifacts, artifacts_.ForgetReferences(ids, generation));
  const PostgresValues values = PostgresValues().Integer(generation).BytesArray(ids);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kDelete, values, "cannot delete references"));
  rows_changed = artifacts + rows.rows_changed();
  return rows.rows_changed();
}

absl::StatusOr<int64_t> PostgresReferences::DeleteCollection(absl::string_view collection, int64_t generation,
                                                             int64_t& rows_changed) {
  C3PO_ASSIGN_OR_RETURN(const int64_t artifacts, artifacts_.DeleteCollection(collection, generation));
  const PostgresValues values = PostgresValues().Integer(generation).Bytes(collection);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kDeleteCollection, values, "cannot delete a collection"));
  rows_changed = artifacts + rows.rows_changed();
  return rows.rows_changed();
}

absl::StatusOr<std::vector<ReferenceRecord>> PostgresReferences::GetMany(absl::Span<const std::string> ids) {
  absl::flat_hash_map<std::string, ReferenceRecord> found;
  for (size_t begin = 0; begin < ids.size(); begin += kIdsPerSelect) {
    const PostgresValues values = PostgresValues().BytesArray(ids.subspan(begin, kIdsPerSelect));
    C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kSelectByIds, values, "cannot read references"));
    for (int i = 0; i < rows.rows(); ++i) {
      if (auto record = Whole(rows, i)) found[record->id] = *std::move(record);
    }
  }
  std::vector<ReferenceRecord> records;
  for (const std::string& id : ids) {
    if (const auto record = found.find(id); record != found.end()) records.push_back(record->second);
  }
  return records;
}

absl::StatusOr<std::vector<ReferenceRecord>> PostgresReferences::List(absl::string_view collection,
                                                                      absl::string_view after_id, int limit) {
  std::vector<ReferenceRecord> records;
  std::string after(after_id);
  // Once, and again for as many as were left out.
  for (int rows_read = limit; rows_read == limit && records.size() < static_cast<size_t>(limit);) {
    PostgresValues values = PostgresValues().Bytes(after).Integer(limit);
    if (!collection.empty()) values.Bytes(collection);
    C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(collection.empty() ? kListAll : kListCollection, values,
                                                                "cannot list references"));
    rows_read = rows.rows();
    for (int i = 0; i < rows_read && records.size() < static_cast<size_t>(limit); ++i) {
      after = rows.Text(i, kIdColumn);
      if (auto record = Whole(rows, i)) records.push_back(*std::move(record));
    }
  }
  return records;
}

absl::StatusOr<std::vector<CollectionStats>> PostgresReferences::Stats(absl::string_view model_digest,
                                                                       absl::string_view embedder_digest) {
  const PostgresValues values = PostgresValues().Bytes(model_digest).Bytes(embedder_digest);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kCount, values, "cannot count references"));
  std::vector<CollectionStats> stats;
  for (int i = 0; i < rows.rows(); ++i) {
    stats.push_back({rows.Text(i, 0), rows.Integer(i, 1), rows.Integer(i, 2), rows.Integer(i, 3)});
  }
  C3PO_RETURN_IF_ERROR(LeaveDamagedOut(model_digest, embedder_digest, stats));
  return stats;
}

// Takes rows that cannot be trusted out of what SQL counted.
absl::Status PostgresReferences::LeaveDamagedOut(absl::string_view model_digest, absl::string_view embedder_digest,
                                                 std::vector<CollectionStats>& stats) {
  std::vector<std::string> ids;
  for (const DamagedRow& damaged : damage_.List()) {
    if (damaged.kind == DamagedRow::Kind::kReference) ids.push_back(damaged.name);
  }
  if (ids.empty()) return absl::OkStatus();
  const PostgresValues values = PostgresValues().Bytes(model_digest).Bytes(embedder_digest).BytesArray(ids);
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows, session_.Run(kCountSome, values, "cannot count references"));
  for (int i = 0; i < rows.rows(); ++i) {
    for (CollectionStats& each : stats) {
      if (each.collection != rows.Bytes(i, 0)) continue;
      --each.references;
      each.successful -= rows.Integer(i, 1);
      each.usable -= rows.Integer(i, 2);
    }
  }
  std::erase_if(stats, [](const CollectionStats& each) { return each.references <= 0; });
  return absl::OkStatus();
}

absl::Status PostgresReferences::ForEach(absl::FunctionRef<absl::Status(ReferenceRecord)> callback) {
  return session_.Stream(kSelectAll, PostgresValues(), "cannot read references",
                         [&](const PostgresRows& row) -> absl::Status {
                           auto record = Whole(row, 0);
                           return record.has_value() ? callback(*std::move(record)) : absl::OkStatus();
                         });
}

absl::Status PostgresReferences::ReadChanged(const ChangePage& page, StoreChanges& changes) {
  const PostgresValues values = PostgresValues().Integer(page.from_start ? -1 : page.after).Integer(page.through);
  return session_.Stream(kSelectChanged, values, "cannot read references", [&](const PostgresRows& row) {
    if (auto record = Whole(row, 0)) changes.records.push_back(*std::move(record));
    return absl::OkStatus();
  });
}

absl::Status PostgresReferences::LookAt(absl::string_view id) {
  C3PO_ASSIGN_OR_RETURN(const PostgresRows rows,
                        session_.Run(kSelectByIds, PostgresValues().BytesArray(absl::MakeConstSpan(&id, 1)),
                                     "cannot read a damaged row"));
  if (rows.rows() > 0) (void)Whole(rows, 0);
  return absl::OkStatus();
}

}  // namespace c3po
