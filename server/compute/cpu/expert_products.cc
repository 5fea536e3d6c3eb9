#include "server/compute/cpu/expert_products.h"

#include <algorithm>
#include <vector>

#include "server/compute/cpu/projections.h"
#include "server/compute/cpu/row_operations.h"

namespace c3po::cpu {
namespace {

// Rows of each expert that any row selects, ascending by expert; an expert's rows ascending.
ExpertRowsTape AssignRows(const Selection& selection, int64_t rows, int64_t experts, Memory& memory, Arena& scratch) {
  const int64_t places = rows * selection.k;
  const int64_t count = places - std::count(selection.selected, selection.selected + places, -1);
  ExpertRowsTape tape;
  tape.count = count;
  tape.k = selection.k;
  tape.assigned = memory.Integers(count);
  tape.pairs = memory.Integers(places);
  tape.offsets = memory.Integers(experts + 1);
  tape.scale = memory.Floats(count);
  const Arena::Scope scope(scratch);
  int64_t* const next = scratch.Integers(experts);
  int64_t* const of_row = scratch.Integers(rows);
  std::fill_n(tape.offsets, experts + 1, 0);
  for (int64_t i = 0; i < places; ++i) {
    if (selection.selected[i] >= 0) ++tape.offsets[selection.selected[i] + 1];
  }
  for (int64_t e = 0; e < experts; ++e) tape.offsets[e + 1] += tape.offsets[e];
  std::copy_n(tape.offsets, experts, next);
  std::fill_n(of_row, rows, 0);
  for (int64_t i = 0; i < places; ++i) {
    if (selection.selected[i] >= 0) tape.assigned[next[selection.selected[i]]++] = i / selection.k;
  }
  if (count < places) std::fill_n(tape.pairs, places, count);
  for (int64_t pair = 0; pair < count; ++pair) {
    const int64_t row = tape.assigned[pair];
    tape.pairs[row * selection.k + of_row[row]++] = pair;
  }
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t i = tape.offsets[e]; i < tape.offsets[e + 1]; ++i) {
      tape.scale[i] = selection.weights[tape.assigned[i] * experts + e];
    }
  }
  return tape;
}

// The products of all experts with their rows, as one job: rows by index where they are shared, else packed.
class PairProducts {
 public:
  PairProducts(const NetworkViews& networks, const ExpertRowsTape& tape) : networks_(networks), tape_(tape) {}

  // x [R, width] by index.
  RowsView Shared(const float* x, int64_t width, int64_t e) const {
    return {x, width, RowsOf(e), tape_.assigned + tape_.offsets[e]};
  }
  // x [B, width].
  RowsView Packed(const float* x, int64_t width, int64_t e) const {
    return {x + tape_.offsets[e] * width, width, RowsOf(e), nullptr};
  }
  MutableRowsView PackedOut(float* y, int64_t width, int64_t e) const {
    return {y + tape_.offsets[e] * width, width, nullptr};
  }
  // make(e) for each expert that has rows.
  template <typename Product, typename Make>
  absl::Span<const Product> ForEach(const Make& make) const {
    thread_local std::vector<Product> products;
    products.clear();
    for (int64_t e = 0; e < networks_.count; ++e) {
      if (RowsOf(e) > 0) products.push_back(make(e));
    }
    return products;
  }

 private:
  int64_t RowsOf(int64_t e) const { return tape_.offsets[e + 1] - tape_.offsets[e]; }

  const NetworkViews& networks_;
  const ExpertRowsTape& tape_;
};

// out [R, width]: sums over a row's pairs. `parts` has room for one row more than there are pairs.
void SumPairs(const ExpertRowsTape& tape, float* parts, int64_t rows, int64_t width, float* out) {
  std::fill_n(parts + tape.count * width, width, 0.0f);  // What rows with fewer pairs add.
  if (rows > 0) SumRows(parts, tape.pairs, rows, tape.k, width, out);
}

}  // namespace

ExpertRowsTape RunExperts(const NetworkViews& networks, const Selection& selection, const float* x, int64_t rows,
                          Memory& memory, Arena& scratch, float* out) {
  const int64_t d = networks.down.rows, f = networks.neurons, n = networks.count;
  ExpertRowsTape tape;
  if (selection.selected == nullptr) {
    tape.count = rows * n;
    tape.scale = memory.Floats(tape.count);
    if (selection.weights != nullptr) {
      std::copy_n(selection.weights, tape.count, tape.scale);
    } else {
      std::fill_n(tape.scale, tape.count, 1.0f);
    }
    tape.gate_up = memory.Floats(tape.count * 2 * f);
    Project({x, d, rows, nullptr}, networks.gate_up, nullptr, tape.gate_up);
    const Arena::Scope scope(scratch);
    float* const activation = scratch.Floats(tape.count * f);
    SwigluBlocks(tape.gate_up, tape.scale, tape.count, f, activation);
    Project({activation, n * f, rows, nullptr}, networks.down, nullptr, out);
    return tape;
  }
  tape = AssignRows(selection, rows, n, memory, scratch);
  tape.gate_up = memory.Floats(tape.count * 2 * f);
  const PairProducts products(networks, tape);
  MultiplyTransposed(products.ForEach<DotProduct>([&](int64_t e) {
    return DotProduct{products.Shared(x, d, e), networks.GateUp(e), products.PackedOut(tape.gate_up, 2 * f, e)};
  }));
  const Arena::Scope scope(scratch);
  float* const activation = scratch.Floats(tape.count * f);
  SwigluBlocks(tape.gate_up, tape.scale, tape.count, f, activation);
  float* const parts = scratch.Floats((tape.count + 1) * d);
  MultiplyTransposed(products.ForEach<DotProduct>([&](int64_t e) {
    return DotProduct{products.Packed(activation, f, e), networks.Down(e), products.PackedOut(parts, d, e)};
  }));
  SumPairs(tape, parts, rows, d, out);
  return tape;
}

// t = dJ/d(weighted activation): <doutput, Expert_e(h)> = <t_e, activation_e>, so no expert output is formed.
void RunExpertsBackward(const NetworkViews& networks, const ExpertRowsTape& tape, const float* dout, int64_t rows,
                        Arena& scratch, float* dweights, float* dx) {
  const int64_t d = networks.down.rows, f = networks.neurons, n = networks.count;
  const Arena::Scope scope(scratch);
  float* const t = scratch.Floats(tape.count * f);
  float* const dgate_up = scratch.Floats(tape.count * 2 * f);
  if (tape.assigned == nullptr) {
    ProjectBackward({dout, d, rows, nullptr}, networks.down, scratch, t);
    SwigluBackwardBlocks(t, tape.gate_up, tape.scale, tape.count, f, dweights, dgate_up);
    if (dx != nullptr) ProjectBackward({dgate_up, n * 2 * f, rows, nullptr}, networks.gate_up, scratch, dx);
    return;
  }
  const PairProducts products(networks, tape);
  Multiply(products.ForEach<OuterProduct>([&](int64_t e) {
    return OuterProduct{products.Shared(dout, d, e), networks.Down(e), products.PackedOut(t, f, e)};
  }));
  float* const dscale = scratch.Floats(tape.count);
  SwigluBackwardBlocks(t, tape.gate_up, tape.scale, tape.count, f, dscale, dgate_up);
  std::fill_n(dweights, rows * n, 0.0f);
  for (int64_t e = 0; e < n; ++e) {
    for (int64_t i = tape.offsets[e]; i < tape.offsets[e + 1]; ++i) dweights[tape.assigned[i] * n + e] = dscale[i];
  }
  if (dx == nullptr) return;
  float* const parts = scratch.Floats((tape.count + 1) * d);
  Multiply(products.ForEach<OuterProduct>([&](int64_t e) {
    return OuterProduct{products.Packed(dgate_up, 2 * f, e), networks.GateUp(e), products.PackedOut(parts, d, e)};
  }));
  SumPairs(tape, parts, rows, d, dx);
}

void RunExpertsApart(const NetworkViews& networks, absl::Span<const int64_t> chosen, const float* x, int64_t rows,
                     Arena& scratch, float* outputs) {
  const int64_t d = networks.down.rows, f = networks.neurons, n = networks.count;
  const auto count = static_cast<int64_t>(chosen.size());
  const Arena::Scope scope(scratch);
  float* const gate_up = scratch.Floats(count * rows * 2 * f);
  float* const activation = scratch.Floats(count * rows * f);
  float* const ones = scratch.Floats(count * rows);
  std::fill_n(ones, count * rows, 1.0f);
  std::vector<DotProduct> in, out;
  for (int64_t i = 0; i < count; ++i) {
    float* const own = gate_up + i * rows * 2 * f;
    in.push_back({{x, d, rows, nullptr}, networks.GateUp(chosen[i]), {own, 2 * f, nullptr}});
    out.push_back({{activation + i * rows * f, f, rows, nullptr},
                   networks.Down(chosen[i]),
                   {outputs + chosen[i] * d, n * d, nullptr}});
  }
  MultiplyTransposed(in);
  SwigluBlocks(gate_up, ones, count * rows, f, activation);
  MultiplyTransposed(out);
}

}  // namespace c3po::cpu
