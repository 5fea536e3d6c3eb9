#include "server/text/open_text.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace c3po {

OpenText::OpenText(std::string known, bool starts_input, bool continues)
    : text(std::move(known)), places(text.size()), starts_input(starts_input), continues(continues) {
  for (size_t i = 0; i < text.size(); ++i) {
    const bool starts_character = (static_cast<uint8_t>(text[i]) & 0xC0) != 0x80;
    places[i] = starts_character ? i : kNowhere;
  }
}

void OpenText::Narrow(absl::Span<const TextRange> parts, absl::Span<const TextRange> whole, size_t sure) {
  for (const TextRange& range : whole) {
    for (size_t i = range.begin + 1; i < std::min(range.end, places.size()); ++i) places[i] = kNowhere;
  }
  size_t last = 0;
  for (const TextRange& part : parts) {
    for (const size_t at : {part.begin, part.end}) {
      if (at == 0 || at >= sure) continue;
      last = std::max(last, at);
      if (places[at] == kNowhere || (cut.has_value() && cut->place >= places[at])) continue;
      cut = Cut{places[at], false};
      cut_inside_prefixed_ = met_prefix_;
    }
  }
  text = text.substr(last, sure - last);
  places.erase(places.begin() + static_cast<ptrdiff_t>(sure), places.end());
  places.erase(places.begin(), places.begin() + static_cast<ptrdiff_t>(last));
  if (last > 0) starts_input = continues = false;
}

void OpenText::Rewrite(absl::FunctionRef<std::string(char)> rewritten) {
  std::string changed;
  std::vector<size_t> changed_places;
  changed.reserve(text.size());
  changed_places.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    changed += rewritten(text[i]);
    if (changed.size() > changed_places.size()) changed_places.push_back(places[i]);
    changed_places.resize(changed.size(), kNowhere);
  }
  text = std::move(changed);
  places = std::move(changed_places);
}

void OpenText::Insert(absl::string_view prefix) {
  text.insert(0, prefix.data(), prefix.size());
  places.insert(places.begin(), prefix.size(), kNowhere);
}

void OpenText::MeetPrefix() {
  met_prefix_ = true;
  if (!cut.has_value()) return;
  if (cut_inside_prefixed_) {
    cut.reset();
  } else {
    cut->is_start = true;
  }
}

void OpenText::Close() {
  text.clear();
  places.clear();
}

}  // namespace c3po
