#ifndef C3PO_CLIENT_EVAL_REPORT_SVG_H_
#define C3PO_CLIENT_EVAL_REPORT_SVG_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"

namespace c3po {

// Text as HTML shows it verbatim, in content and in quoted attributes: &, <, > and quotes as entities, control
// characters other than newline and tab, and bytes that are not UTF-8, as U+FFFD.
std::string EscapeHtml(absl::string_view text);

// A numeric axis: values in [low, high] to pixels. A logarithmic one needs low > 0. low == high is widened.
class Axis {
 public:
  Axis(double low, double high, double from_pixel, double to_pixel, bool logarithmic = false);
  double operator()(double value) const;
  // Round values within [low, high], about `count` of them: 1, 2 or 5 times a power of ten.
  std::vector<double> Ticks(int count) const;

 private:
  double low_, high_;
  const double from_, to_;
  const bool logarithmic_;
};

// "0.5", "20", "1000": a tick's value without trailing zeros.
std::string FormatTick(double value);

// One inline <svg> that takes its colors from the page's style sheet by class; coordinates in pixels, y downward. All
// text is escaped. A title is shown by a browser on hover and read by screen readers; "" for none.
class Svg {
 public:
  // `description` stands for the picture where it cannot be seen.
  Svg(double width, double height, absl::string_view description);

  void Line(double x1, double y1, double x2, double y2, absl::string_view css);
  void Rect(double x, double y, double width, double height, absl::string_view css, absl::string_view title = "");
  void Circle(double x, double y, double radius, absl::string_view css, absl::string_view title = "");
  void Diamond(double x, double y, double radius, absl::string_view css, absl::string_view title = "");
  // `anchor`: "start", "middle" or "end".
  void Text(double x, double y, absl::string_view text, absl::string_view css, absl::string_view anchor = "start");
  void Path(const std::vector<std::pair<double, double>>& points, bool closed, absl::string_view css);

  std::string Finish() &&;

 private:
  void Close(absl::string_view element, absl::string_view title);

  std::string out_;
};

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REPORT_SVG_H_
