#ifndef C3PO_CLIENT_EVAL_REPORT_STYLE_H_
#define C3PO_CLIENT_EVAL_REPORT_STYLE_H_

#include "absl/strings/string_view.h"

namespace c3po {

// The report's style sheet: light and dark by the reader's system, colors of at least 4.5:1 against the page for text
// and 3:1 for marks, told apart by readers who confuse red and green (improved is blue, worsened orange).
inline constexpr absl::string_view kReportStyle = R"css(
:root { color-scheme: light dark;
  --page: #fcfcfb; --card: #ffffff; --text: #1b1f24; --soft: #59636e; --rule: #d8dce1; --grid: #eceef1; --accent: #0b5cad;
  --improved: #1f6fc5; --worsened: #c8550f; --unchanged: #9aa3ad; --bound: #dfe4ea;
  --m0: #59636e; --m1: #0b5cad; --m2: #b3480a; --m3: #0c7a63; --m4: #8236c9; --m5: #b01f6b; --m6: #7a6300; --m7: #0b7285; }
@media (prefers-color-scheme: dark) { :root {
  --page: #14171b; --card: #1b1f25; --text: #e7eaee; --soft: #a3adb8; --rule: #363d46; --grid: #272d35; --accent: #7db8f5;
  --improved: #5ba5f2; --worsened: #f0914f; --unchanged: #77818c; --bound: #343c46;
  --m0: #a3adb8; --m1: #6db1f7; --m2: #f0914f; --m3: #4fc7a8; --m4: #c195f5; --m5: #f288bd; --m6: #d9bb4a; --m7: #5cc4d8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 20px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 44px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule); }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 6px 0 10px; max-width: 78ch; }
a { color: var(--accent); }
.soft { color: var(--soft); }
.reading { background: var(--card); border: 1px solid var(--rule); border-left: 4px solid var(--accent); border-radius: 6px;
  padding: 12px 18px; margin: 18px 0; }
.reading li { margin: 5px 0; max-width: 84ch; }
.met { color: var(--improved); font-weight: 600; } .missed { color: var(--worsened); font-weight: 600; }
nav { font-size: 14px; margin: 10px 0; } nav a { margin-right: 14px; white-space: nowrap; }
.panels { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); gap: 16px; }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 12px 14px; }
figure.wide { margin: 12px 0; }
figcaption { font-weight: 600; margin-bottom: 6px; } figcaption .soft { font-weight: 400; }
.scroll { overflow-x: auto; margin: 10px 0; border: 1px solid var(--rule); border-radius: 6px; background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 9px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--grid); }
th { color: var(--soft); font-weight: 600; } tr:last-child td { border-bottom: 0; }
th:first-child, td:first-child, .left th, .left td { text-align: left; }
td.text { white-space: normal; min-width: 12ch; overflow-wrap: anywhere; text-align: left; }
.up { color: var(--improved); font-weight: 600; } .down { color: var(--worsened); font-weight: 600; }
.key { display: inline-block; width: 10px; height: 10px; border-radius: 5px; margin-right: 7px; background: var(--c); }
.legend { font-size: 13px; margin: 4px 0 8px; } .legend span { margin-right: 14px; white-space: nowrap; }
.legend .key { margin-right: 5px; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: 10px 14px; overflow-x: auto;
  font: 12.5px/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--accent); }
svg { width: 100%; height: auto; display: block; font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text { fill: var(--text); } svg .tick, svg .axis-label { fill: var(--soft); font-size: 11px; }
svg .value { font-size: 11.5px; font-weight: 600; }
.m0 { --c: var(--m0); } .m1 { --c: var(--m1); } .m2 { --c: var(--m2); } .m3 { --c: var(--m3); } .m4 { --c: var(--m4); }
.m5 { --c: var(--m5); } .m6 { --c: var(--m6); } .m7 { --c: var(--m7); }
.dot { fill: var(--c); stroke: var(--card); stroke-width: 1.5; }
.whisker { stroke: var(--c); stroke-width: 3; stroke-linecap: round; opacity: .5; } .thin { stroke-width: 1.5; }
.curve { fill: none; stroke: var(--c); stroke-width: 2; } .band { fill: var(--c); opacity: .15; }
.grid { stroke: var(--grid); } .zero { stroke: var(--soft); } .reference { stroke: var(--soft); stroke-dasharray: 4 3; }
.bound { fill: var(--bound); }
.improved { fill: var(--improved); } .worsened { fill: var(--worsened); } .unchanged { fill: var(--unchanged); }
.point { opacity: .75; }
@media print { body { background: #fff; } details { break-inside: avoid; } figure { break-inside: avoid; } }
)css";

}  // namespace c3po

#endif  // C3PO_CLIENT_EVAL_REPORT_STYLE_H_
