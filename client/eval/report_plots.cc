#include "client/eval/report_plots.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/eval/report_reading.h"
#include "client/eval/report_svg.h"

namespace c3po {
namespace {

constexpr int kColors = 8;
constexpr double kRowHeight = 24;
constexpr double kCharacterWidth = 6.7;  // of 12-pixel text, about
constexpr size_t kScatterPointsMax = 800;
constexpr int kDistanceBins = 24;

// A label cut to `max` characters of UTF-8 text; the whole stands in a table nearby.
std::string Cut(const std::string& text, size_t max) {
  size_t characters = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    if ((static_cast<unsigned char>(text[i]) & 0xC0) == 0x80) continue;
    if (++characters > max) return absl::StrCat(text.substr(0, i), "…");
  }
  return text;
}

double LabelWidth(const std::vector<std::string>& labels) {
  size_t longest = 4;
  for (const std::string& label : labels) longest = std::max(longest, label.size());
  return kCharacterWidth * static_cast<double>(std::min<size_t>(longest, 24)) + 12;
}

// The least range over some values, with a margin, that a plot shows.
struct Range {
  double low = 1e300, high = -1e300;
  void Add(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  void Widen(double share, double least) {
    const double margin = std::max((high - low) * share, least);
    low -= margin;
    high += margin;
  }
};

void DrawXTicks(Svg& svg, const Axis& x, int count, double top, double bottom) {
  for (const double tick : x.Ticks(count)) {
    svg.Line(x(tick), top, x(tick), bottom, "grid");
    svg.Text(x(tick), bottom + 15, FormatTick(tick), "tick", "middle");
  }
}

void DrawYTicks(Svg& svg, const Axis& y, int count, double left, double right) {
  for (const double tick : y.Ticks(count)) {
    svg.Line(left, y(tick), right, y(tick), "grid");
    svg.Text(left - 6, y(tick) + 4, FormatTick(tick), "tick", "end");
  }
}

std::string ColorOf(const MethodColors& colors, const std::string& label) {
  const auto found = colors.find(label);
  return found == colors.end() ? "m0" : found->second;
}

struct DivergingRow {
  std::string label;
  int64_t improved = 0, worsened = 0;
};

std::string PlotDiverging(const std::vector<DivergingRow>& rows, absl::string_view description) {
  if (rows.empty()) return "";
  int64_t most = 1;
  std::vector<std::string> labels;
  for (const DivergingRow& row : rows) {
    most = std::max({most, row.improved, row.worsened});
    labels.push_back(row.label);
  }
  const double left = LabelWidth(labels), width = 560, top = 24;
  const double bottom = top + kRowHeight * static_cast<double>(rows.size());
  const double number_room = 40;
  Svg svg(width, bottom + 8, description);
  const double middle = left + (width - left) / 2, half = (width - left) / 2 - number_room;
  svg.Text(middle - 6, 14, "worsened", "axis-label", "end");
  svg.Text(middle + 6, 14, "improved", "axis-label");
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = top + kRowHeight * static_cast<double>(i);
    const double worsened = half * static_cast<double>(rows[i].worsened) / static_cast<double>(most);
    const double improved = half * static_cast<double>(rows[i].improved) / static_cast<double>(most);
    const std::string title =
        absl::StrCat(rows[i].label, ": ", rows[i].improved, " improved, ", rows[i].worsened, " worsened");
    svg.Text(left - 8, y + 16, Cut(rows[i].label, 24), "label", "end");
    svg.Rect(middle - worsened, y + 4, worsened, kRowHeight - 8, "worsened", title);
    svg.Rect(middle, y + 4, improved, kRowHeight - 8, "improved", title);
    svg.Text(middle - worsened - 5, y + 16, absl::StrCat(rows[i].worsened), "value", "end");
    svg.Text(middle + improved + 5, y + 16, absl::StrCat(rows[i].improved), "value");
  }
  svg.Line(middle, top, middle, bottom, "zero");
  return std::move(svg).Finish();
}

// The oracle cannot be used, whatever it costs, and would press the others together.
bool InCostPlot(const MethodSummary& method) { return method.mean_seconds > 0 && method.role != MethodRole::kOracle; }

const char* ClassOf(Change change) {
  switch (change) {
    case Change::kImproved:
      return "improved";
    case Change::kWorsened:
      return "worsened";
    case Change::kUnchanged:
      return "unchanged";
  }
  return "";
}

}  // namespace

MethodColors ColorsOf(const ReportInput& input) {
  MethodColors colors;
  int next = 1;
  for (const ReportMethod& method : input.methods) {
    if (method.role == MethodRole::kBaseline) {
      colors[method.label] = "m0";
    } else {
      colors[method.label] = absl::StrCat("m", next);
      next = next % (kColors - 1) + 1;
    }
  }
  return colors;
}

std::vector<ItemChange> ChangesOf(const ReportInput& input, absl::string_view baseline, absl::string_view method) {
  std::unordered_map<std::string, const ItemResult*> before;
  for (const ItemResult& item : input.items) {
    if (item.method == baseline) before[absl::StrCat(item.task, "\n", item.id)] = &item;
  }
  std::vector<ItemChange> changes;
  for (const ItemResult& item : input.items) {
    if (item.method != method) continue;
    const auto found = before.find(absl::StrCat(item.task, "\n", item.id));
    if (found == before.end()) continue;
    const bool was = found->second->correct, is = item.correct;
    changes.push_back({found->second, &item,
                       was == is ? Change::kUnchanged
                       : is      ? Change::kImproved
                                 : Change::kWorsened});
  }
  return changes;
}

std::string PlotAccuracy(const ScopeSummary& scope, const MethodColors& colors) {
  if (scope.items == 0 || scope.methods.empty()) return "";
  Range range;
  std::vector<std::string> labels;
  for (const MethodSummary& method : scope.methods) {
    range.Add(100 * method.accuracy.low);
    range.Add(100 * method.accuracy.high);
    labels.push_back(method.label);
  }
  range.Widen(0.06, 1);
  const double left = LabelWidth(labels), width = 460, right = width - 52, top = 6;
  const double bottom = top + kRowHeight * static_cast<double>(scope.methods.size());
  Svg svg(width, bottom + 22, absl::StrCat("Accuracy by method, ", scope.name));
  const Axis x(range.low, range.high, left, right);
  DrawXTicks(svg, x, 5, top, bottom);
  const double baseline = x(100 * scope.methods.front().accuracy.value);
  svg.Line(baseline, top, baseline, bottom, "reference");
  for (size_t i = 0; i < scope.methods.size(); ++i) {
    const MethodSummary& method = scope.methods[i];
    const double y = top + kRowHeight * (static_cast<double>(i) + 0.5);
    const std::string color = ColorOf(colors, method.label);
    std::string title = absl::StrCat(method.label, ": ", FormatRate(method.accuracy), " %");
    if (method.paired) absl::StrAppend(&title, "; ", FormatPoints(method.paired->difference), " points");
    svg.Text(left - 8, y + 4, Cut(method.label, 24), "label", "end");
    svg.Line(x(100 * method.accuracy.low), y, x(100 * method.accuracy.high), y, absl::StrCat("whisker ", color));
    if (method.role == MethodRole::kOracle) {
      svg.Diamond(x(100 * method.accuracy.value), y, 6, absl::StrCat("dot ", color), title);
    } else {
      svg.Circle(x(100 * method.accuracy.value), y, 5, absl::StrCat("dot ", color), title);
    }
    svg.Text(width - 4, y + 4, absl::StrFormat("%.1f", 100 * method.accuracy.value), "value", "end");
  }
  return std::move(svg).Finish();
}

std::string PlotLiftAgainstOracle(const std::vector<ScopeSummary>& tasks, const MethodColors& colors) {
  Range range;
  range.Add(0);
  std::vector<const ScopeSummary*> rows;
  std::vector<std::string> labels;
  for (const ScopeSummary& task : tasks) {
    const MethodSummary* oracle = task.FindRole(MethodRole::kOracle);
    if (task.items == 0 || oracle == nullptr || !oracle->paired) continue;
    rows.push_back(&task);
    labels.push_back(task.name);
    for (const MethodSummary& method : task.methods) {
      const bool drawn = method.role == MethodRole::kOracle || method.role == MethodRole::kOptimization;
      if (drawn && method.paired) range.Add(100 * method.paired->difference.value);
    }
  }
  if (rows.empty()) return "";
  range.Widen(0.04, 1);
  const double left = LabelWidth(labels), width = 900, right = width - 16, top = 6;
  const double bottom = top + kRowHeight * static_cast<double>(rows.size());
  Svg svg(width, bottom + 36, "Lift of each method against the oracle's, by task");
  const Axis x(range.low, range.high, left, right);
  DrawXTicks(svg, x, 8, top, bottom);
  svg.Text((left + right) / 2, bottom + 31, "points over the model alone", "axis-label", "middle");
  svg.Line(x(0), top, x(0), bottom, "zero");
  for (size_t i = 0; i < rows.size(); ++i) {
    const double y = top + kRowHeight * (static_cast<double>(i) + 0.5);
    svg.Text(left - 8, y + 4, Cut(rows[i]->name, 24), "label", "end");
    const double bound = rows[i]->FindRole(MethodRole::kOracle)->paired->difference.value;
    svg.Rect(std::min(x(0), x(100 * bound)), y - 3, std::abs(x(100 * bound) - x(0)), 6, "bound");
    for (const MethodSummary& method : rows[i]->methods) {
      const bool oracle = method.role == MethodRole::kOracle;
      if ((!oracle && method.role != MethodRole::kOptimization) || !method.paired) continue;
      const double at = x(100 * method.paired->difference.value);
      std::string title =
          absl::StrCat(rows[i]->name, ", ", method.label, ": ", FormatPoints(method.paired->difference));
      if (method.paired->share_of_oracle && !oracle) {
        absl::StrAppendFormat(&title, ", %.0f %% of the oracle's", 100 * *method.paired->share_of_oracle);
      }
      const std::string css = absl::StrCat("dot ", ColorOf(colors, method.label));
      if (oracle) {
        svg.Diamond(at, y, 6, css, title);
      } else {
        svg.Circle(at, y, 5, css, title);
      }
    }
  }
  return std::move(svg).Finish();
}

std::string PlotChanges(const ScopeSummary& scope) {
  std::vector<DivergingRow> rows;
  for (const MethodSummary& method : scope.methods) {
    if (method.paired) rows.push_back({method.label, method.paired->improved, method.paired->worsened});
  }
  return PlotDiverging(rows, "Answers improved and worsened by each method");
}

std::string PlotChangesByTask(const std::vector<ScopeSummary>& tasks, absl::string_view method) {
  std::vector<DivergingRow> rows;
  for (const ScopeSummary& task : tasks) {
    const MethodSummary* found = task.Find(method);
    if (task.items == 0 || found == nullptr || !found->paired) continue;
    rows.push_back({task.name, found->paired->improved, found->paired->worsened});
  }
  return rows.size() < 2 ? ""
                         : PlotDiverging(rows, absl::StrCat("Answers improved and worsened by ", method, ", by task"));
}

std::string PlotCost(const ScopeSummary& scope, const MethodColors& colors) {
  Range seconds, accuracy;
  for (const MethodSummary& method : scope.methods) {
    if (!InCostPlot(method)) continue;
    seconds.Add(method.mean_seconds);
    accuracy.Add(100 * method.accuracy.low);
    accuracy.Add(100 * method.accuracy.high);
  }
  if (seconds.high <= 0) return "";
  accuracy.Widen(0.05, 1);
  const double width = 900, height = 340, left = 44, right = width - 150, top = 22, bottom = height - 40;
  Svg svg(width, height, "Accuracy against seconds per question");
  const Axis x(seconds.low / 1.3, seconds.high * 1.3, left, right, /*logarithmic=*/true);
  const Axis y(accuracy.low, accuracy.high, bottom, top);
  DrawXTicks(svg, x, 6, top, bottom);
  DrawYTicks(svg, y, 6, left, right);
  svg.Text((left + right) / 2, height - 6, "seconds per question, mean (logarithmic)", "axis-label", "middle");
  svg.Text(left, 12, "accuracy, %", "axis-label");
  // Labels go downward in order of accuracy and never closer than a line's height where they could overlap.
  std::vector<const MethodSummary*> order;
  for (const MethodSummary& method : scope.methods) {
    if (InCostPlot(method)) order.push_back(&method);
  }
  std::stable_sort(order.begin(), order.end(),
                   [](const auto* a, const auto* b) { return a->accuracy.value > b->accuracy.value; });
  std::vector<std::array<double, 3>> placed;  // left, right, baseline of each label
  for (const MethodSummary* method : order) {
    const double at_x = x(method->mean_seconds), at_y = y(100 * method->accuracy.value);
    const std::string color = ColorOf(colors, method->label);
    const std::string title = absl::StrCat(method->label, ": ", FormatRate(method->accuracy), " %, ",
                                           FormatSeconds(method->mean_seconds), " s per question");
    svg.Line(at_x, y(100 * method->accuracy.low), at_x, y(100 * method->accuracy.high),
             absl::StrCat("whisker thin ", color));
    svg.Circle(at_x, at_y, 5, absl::StrCat("dot ", color), title);
    const std::string label = Cut(method->label, 24);
    const double from = at_x + 9, to = from + kCharacterWidth * static_cast<double>(label.size());
    double line = at_y + 4;
    for (const auto& other : placed) {
      if (from < other[1] && to > other[0] && line < other[2] + 13) line = other[2] + 13;
    }
    placed.push_back({from, to, line});
    svg.Text(from, line, label, "label");
  }
  return std::move(svg).Finish();
}

std::string PlotAblation(const AblationSummary& ablation) {
  const std::vector<AblationPoint>& points = ablation.ablation.points;
  Range range, values;
  range.Add(0);
  bool numeric = points.size() > 1, drawn = false;
  std::set<double> distinct;
  for (const AblationPoint& point : points) {
    numeric = numeric && point.value && std::isfinite(*point.value) && distinct.insert(*point.value).second;
    if (point.value) values.Add(*point.value);
    for (const ScopeSummary& scope : ablation.scopes) {
      const MethodSummary* method = scope.Find(point.method);
      if (scope.items == 0 || method == nullptr || !method->paired) continue;
      range.Add(100 * method->paired->difference.low);
      range.Add(100 * method->paired->difference.high);
      drawn = true;
    }
  }
  if (!drawn) return "";
  range.Widen(0.05, 0.5);
  const double width = 900, height = 300, left = 48, right = width - 110, top = 22, bottom = height - 42;
  Svg svg(width, height, absl::StrCat("Lift along ", ablation.ablation.name));
  const Axis y(range.low, range.high, bottom, top);
  DrawYTicks(svg, y, 6, left, right);
  svg.Text(left, 12, "points over the baseline", "axis-label");
  const bool logarithmic = numeric && values.low > 0 && values.high / values.low > 12;
  const double last = std::max<double>(1, static_cast<double>(points.size()) - 1);
  const Axis x(numeric ? values.low : 0, numeric ? values.high : last, left + 16, right - 16, logarithmic);
  const auto x_of = [&](size_t i) { return numeric ? x(*points[i].value) : x(static_cast<double>(i)); };
  double labeled_to = -1e9;
  for (size_t i = 0; i < points.size(); ++i) {
    const std::string label = Cut(points[i].label, 14);
    const double half = kCharacterWidth * static_cast<double>(label.size()) / 2;
    if (x_of(i) - half < labeled_to + 4) continue;
    labeled_to = x_of(i) + half;
    svg.Text(x_of(i), bottom + 16, label, "tick", "middle");
  }
  const std::string& variable =
      ablation.ablation.variable.empty() ? ablation.ablation.name : ablation.ablation.variable;
  svg.Text((left + right) / 2, height - 6, variable, "axis-label", "middle");
  svg.Line(left, y(0), right, y(0), "zero");
  double label_y = top + 6;
  for (size_t s = 0; s < ablation.scopes.size(); ++s) {
    const ScopeSummary& scope = ablation.scopes[s];
    const std::string color = absl::StrCat("m", 1 + s % (kColors - 1));
    // In the order of x, so that the line does not run back.
    std::map<double, std::pair<const MethodSummary*, const AblationPoint*>> along;
    for (size_t i = 0; i < points.size(); ++i) {
      const MethodSummary* method = scope.Find(points[i].method);
      if (scope.items > 0 && method != nullptr && method->paired) along[x_of(i)] = {method, &points[i]};
    }
    if (along.empty()) continue;
    std::vector<std::pair<double, double>> curve, band;
    for (const auto& [at, point] : along) {
      curve.emplace_back(at, y(100 * point.first->paired->difference.value));
      band.emplace_back(at, y(100 * point.first->paired->difference.high));
    }
    for (auto it = along.rbegin(); it != along.rend(); ++it) {
      band.emplace_back(it->first, y(100 * it->second.first->paired->difference.low));
    }
    svg.Path(band, /*closed=*/true, absl::StrCat("band ", color));
    svg.Path(curve, /*closed=*/false, absl::StrCat("curve ", color));
    for (const auto& [at, point] : along) {
      svg.Circle(at, y(100 * point.first->paired->difference.value), 4, absl::StrCat("dot ", color),
                 absl::StrCat(scope.name, ", ", variable, " = ", point.second->label, ": ",
                              FormatPoints(point.first->paired->difference), " points, ",
                              FormatSeconds(point.first->mean_seconds), " s per question"));
    }
    svg.Circle(right + 10, label_y - 4, 4, absl::StrCat("dot ", color));
    svg.Text(right + 18, label_y, Cut(scope.name, 13), "label");
    label_y += 18;
  }
  return std::move(svg).Finish();
}

std::string PlotNeighborDistance(const std::vector<ItemChange>& changes) {
  Range range;
  for (const ItemChange& item : changes) {
    if (!item.after->neighbor_distances.empty()) range.Add(item.after->neighbor_distances.front());
  }
  if (range.high < range.low) return "";
  if (range.high == range.low) range.Widen(0, 0.05);
  std::array<std::array<int64_t, kDistanceBins>, 3> counts{};
  for (const ItemChange& item : changes) {
    if (item.after->neighbor_distances.empty()) continue;
    const double share = (item.after->neighbor_distances.front() - range.low) / (range.high - range.low);
    ++counts[static_cast<size_t>(item.change)]
            [std::clamp(static_cast<int>(share * kDistanceBins), 0, kDistanceBins - 1)];
  }
  const auto& improved = counts[static_cast<size_t>(Change::kImproved)];
  const auto& worsened = counts[static_cast<size_t>(Change::kWorsened)];
  const auto& unchanged = counts[static_cast<size_t>(Change::kUnchanged)];
  int64_t most_unchanged = 1, most_changed = 1;
  for (int i = 0; i < kDistanceBins; ++i) {
    most_unchanged = std::max(most_unchanged, unchanged[i]);
    most_changed = std::max({most_changed, improved[i], worsened[i]});
  }
  const double width = 900, left = 48, right = width - 90, split = 110, middle = 190, bottom = 260;
  Svg svg(width, bottom + 40, "Questions by the distance of the nearest neighbor");
  const Axis x(range.low, range.high, left, right);
  const Axis upper(0, static_cast<double>(most_unchanged), split, 14);
  const Axis lower(-static_cast<double>(most_changed), static_cast<double>(most_changed), bottom, 2 * middle - bottom);
  DrawXTicks(svg, x, 8, 14, bottom);
  const double bar = (right - left) / kDistanceBins;
  for (int i = 0; i < kDistanceBins; ++i) {
    const double at = left + bar * i + 1;
    const double from = range.low + (range.high - range.low) * i / kDistanceBins;
    const std::string title =
        absl::StrFormat("distance %.3f to %.3f: %d unchanged, %d improved, %d worsened", from,
                        from + (range.high - range.low) / kDistanceBins, unchanged[i], improved[i], worsened[i]);
    const double unchanged_top = upper(static_cast<double>(unchanged[i]));
    const double improved_top = lower(static_cast<double>(improved[i]));
    const double worsened_bottom = lower(-static_cast<double>(worsened[i]));
    if (unchanged[i] > 0) svg.Rect(at, unchanged_top, bar - 2, split - unchanged_top, "unchanged", title);
    if (improved[i] > 0) svg.Rect(at, improved_top, bar - 2, middle - improved_top, "improved", title);
    if (worsened[i] > 0) svg.Rect(at, middle, bar - 2, worsened_bottom - middle, "worsened", title);
  }
  svg.Line(left, split, right, split, "zero");
  svg.Line(left, middle, right, middle, "zero");
  svg.Text(left - 6, 22, absl::StrCat(most_unchanged), "tick", "end");
  svg.Text(left - 6, lower(static_cast<double>(most_changed)) + 8, absl::StrCat(most_changed), "tick", "end");
  svg.Text(left - 6, bottom, absl::StrCat(most_changed), "tick", "end");
  svg.Text(right + 8, split - 30, "unchanged", "label");
  svg.Text(right + 8, middle - 14, "improved", "label");
  svg.Text(right + 8, middle + 24, "worsened", "label");
  svg.Text((left + right) / 2, bottom + 34, "distance of the nearest neighbor", "axis-label", "middle");
  return std::move(svg).Finish();
}

std::string PlotLosses(const std::vector<ItemChange>& changes) {
  std::vector<double> values;
  std::vector<const ItemChange*> points;
  for (const ItemChange& item : changes) {
    const std::vector<double>& losses = item.after->losses;
    if (losses.size() < 2 || !std::isfinite(losses.front()) || !std::isfinite(losses.back())) continue;
    points.push_back(&item);
    values.push_back(losses.front());
    values.push_back(losses.back());
  }
  if (points.empty()) return "";
  // A few large losses must not press all others into a corner; what is beyond stands at the edge.
  const double high = std::max(1e-6, 1.05 * Quantile(values, 0.99));
  const double size = 380, left = 52, right = size - 14, top = 14, bottom = size - 44;
  Svg svg(size + 100, size, "Loss of the neighbors before and after optimization");
  const Axis x(0, high, left, right), y(0, high, bottom, top);
  DrawXTicks(svg, x, 6, top, bottom);
  DrawYTicks(svg, y, 6, left, right);
  svg.Line(x(0), y(0), x(high), y(high), "reference");
  const size_t stride = 1 + (points.size() - 1) / kScatterPointsMax;
  for (const Change kind : {Change::kUnchanged, Change::kImproved, Change::kWorsened}) {
    for (size_t i = 0; i < points.size(); ++i) {
      const ItemChange& item = *points[i];
      // Changed answers are few and all shown.
      if (item.change != kind || (kind == Change::kUnchanged && i % stride != 0)) continue;
      const double before = item.after->losses.front(), after = item.after->losses.back();
      svg.Circle(
          x(std::min(before, high)), y(std::min(after, high)), kind == Change::kUnchanged ? 2.2 : 3.2,
          absl::StrCat("point ", ClassOf(kind)),
          absl::StrFormat("%s %s: %.3f to %.3f, %s", item.after->task, item.after->id, before, after, ClassOf(kind)));
    }
  }
  svg.Text((left + right) / 2, size - 8, "neighbors' loss at the start", "axis-label", "middle");
  svg.Text(left + 6, top + 12, "after the last step", "axis-label");
  double line = top + 20;
  for (const Change kind : {Change::kImproved, Change::kWorsened, Change::kUnchanged}) {
    svg.Circle(right + 16, line - 4, 4, absl::StrCat("point ", ClassOf(kind)));
    svg.Text(right + 24, line, ClassOf(kind), "label");
    line += 18;
  }
  return std::move(svg).Finish();
}

}  // namespace c3po
