#include "client/eval/report_svg.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "index/base/utf8.h"

namespace c3po {
namespace {

constexpr absl::string_view kReplacement = "\xEF\xBF\xBD";

// Bytes of the character at the start of `text`, which is not empty; 0 where it is not UTF-8.
size_t CharacterLength(absl::string_view text) {
  for (size_t length = 1; length <= 4 && length <= text.size(); ++length) {
    if (IsValidUtf8(text.substr(0, length))) return length;
  }
  return 0;
}

std::string Pixels(double value) {
  std::string text = absl::StrFormat("%.1f", value);
  if (text.size() > 2 && text.substr(text.size() - 2) == ".0") text.resize(text.size() - 2);
  return text == "-0" ? "0" : text;
}

}  // namespace

std::string EscapeHtml(absl::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (!text.empty()) {
    const size_t length = CharacterLength(text);
    const char c = text[0];
    if (length == 0 || (length == 1 && ((c >= 0 && c < ' ' && c != '\n' && c != '\t') || c == 0x7F))) {
      absl::StrAppend(&out, kReplacement);
    } else if (c == '&') {
      out += "&amp;";
    } else if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '"') {
      out += "&quot;";
    } else if (c == '\'') {
      out += "&#39;";
    } else {
      absl::StrAppend(&out, text.substr(0, length));
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

Axis::Axis(double low, double high, double from_pixel, double to_pixel, bool logarithmic)
    : low_(low), high_(high), from_(from_pixel), to_(to_pixel), logarithmic_(logarithmic) {
  if (high_ > low_) return;
  if (logarithmic_) {
    low_ = low / 2;
    high_ = low * 2;
  } else {
    low_ = low - 0.5;
    high_ = low + 0.5;
  }
}

double Axis::operator()(double value) const {
  const double share = logarithmic_ ? std::log(value / low_) / std::log(high_ / low_) : (value - low_) / (high_ - low_);
  return from_ + share * (to_ - from_);
}

std::vector<double> Axis::Ticks(int count) const {
  std::vector<double> ticks;
  if (logarithmic_) {
    const bool dense = high_ / low_ < 50;
    for (double decade = std::pow(10, std::floor(std::log10(low_))); decade <= high_; decade *= 10) {
      for (const double factor : {1.0, 2.0, 5.0}) {
        const double tick = decade * factor;
        if ((dense || factor == 1) && tick >= low_ * 0.999 && tick <= high_ * 1.001) ticks.push_back(tick);
      }
    }
    return ticks;
  }
  const double rough = (high_ - low_) / count;
  const double power = std::pow(10, std::floor(std::log10(rough)));
  double step = 10 * power;
  for (const double factor : {5.0, 2.0, 1.0}) {
    if (factor * power >= rough * 0.999) step = factor * power;
  }
  for (double i = std::ceil(low_ / step - 1e-9); i * step <= high_ + step * 1e-9; ++i) ticks.push_back(i * step);
  return ticks;
}

std::string FormatTick(double value) {
  if (std::abs(value) < 1e-12) return "0";
  return absl::StrFormat("%.4g", value);
}

Svg::Svg(double width, double height, absl::string_view description) {
  absl::StrAppend(&out_, "<svg viewBox=\"0 0 ", Pixels(width), " ", Pixels(height),
                  "\" style=\"max-width:", Pixels(width), "px\" role=\"img\" aria-label=\"", EscapeHtml(description),
                  "\">\n");
}

void Svg::Line(double x1, double y1, double x2, double y2, absl::string_view css) {
  absl::StrAppend(&out_, "<line x1=\"", Pixels(x1), "\" y1=\"", Pixels(y1));
  absl::StrAppend(&out_, "\" x2=\"", Pixels(x2), "\" y2=\"", Pixels(y2), "\" class=\"", css, "\"/>\n");
}

void Svg::Rect(double x, double y, double width, double height, absl::string_view css, absl::string_view title) {
  absl::StrAppend(&out_, "<rect x=\"", Pixels(x), "\" y=\"", Pixels(y));
  absl::StrAppend(&out_, "\" width=\"", Pixels(width), "\" height=\"", Pixels(height), "\" class=\"", css, "\"");
  Close("rect", title);
}

void Svg::Circle(double x, double y, double radius, absl::string_view css, absl::string_view title) {
  absl::StrAppend(&out_, "<circle cx=\"", Pixels(x), "\" cy=\"", Pixels(y), "\" r=\"", Pixels(radius));
  absl::StrAppend(&out_, "\" class=\"", css, "\"");
  Close("circle", title);
}

void Svg::Diamond(double x, double y, double radius, absl::string_view css, absl::string_view title) {
  absl::StrAppend(&out_, "<path d=\"M", Pixels(x - radius), " ", Pixels(y), "L", Pixels(x), " ", Pixels(y - radius));
  absl::StrAppend(&out_, "L", Pixels(x + radius), " ", Pixels(y), "L", Pixels(x), " ", Pixels(y + radius));
  absl::StrAppend(&out_, "Z\" class=\"", css, "\"");
  Close("path", title);
}

void Svg::Text(double x, double y, absl::string_view text, absl::string_view css, absl::string_view anchor) {
  absl::StrAppend(&out_, "<text x=\"", Pixels(x), "\" y=\"", Pixels(y), "\" class=\"", css);
  absl::StrAppend(&out_, "\" text-anchor=\"", anchor, "\">", EscapeHtml(text), "</text>\n");
}

void Svg::Path(const std::vector<std::pair<double, double>>& points, bool closed, absl::string_view css) {
  if (points.empty()) return;
  out_ += "<path d=\"";
  for (size_t i = 0; i < points.size(); ++i) {
    absl::StrAppend(&out_, i == 0 ? "M" : "L", Pixels(points[i].first), " ", Pixels(points[i].second));
  }
  absl::StrAppend(&out_, closed ? "Z" : "", "\" class=\"", css, "\"/>\n");
}

std::string Svg::Finish() && {
  out_ += "</svg>\n";
  return std::move(out_);
}

void Svg::Close(absl::string_view element, absl::string_view title) {
  if (title.empty()) {
    out_ += "/>\n";
  } else {
    absl::StrAppend(&out_, "><title>", EscapeHtml(title), "</title></", element, ">\n");
  }
}

}  // namespace c3po
