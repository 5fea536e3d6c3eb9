#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cctype>
#include <fstream>
#include <sstream>

#include "client/eval/html_report.h"
#include "client/eval/report_svg.h"
#include "tests/client/eval_run_folder.h"

namespace c3po {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// "" where every tag is closed in order, else what is wrong. The report writes void elements with a slash.
std::string Unbalanced(const std::string& html) {
  std::vector<std::string> open;
  for (size_t at = html.find('<'); at != std::string::npos; at = html.find('<', at + 1)) {
    if (html.compare(at, 2, "<!") == 0) continue;
    size_t end = at + 1;
    bool quoted = false;
    while (end < html.size() && (quoted || html[end] != '>')) quoted ^= html[end++] == '"';
    if (end == html.size()) return "no end of " + html.substr(at, 40);
    std::string name;
    const bool closing = html[at + 1] == '/';
    for (size_t i = at + 1 + closing; i < end && std::isalnum(static_cast<unsigned char>(html[i])); ++i)
      name += html[i];
    if (name.empty()) return "no name at " + html.substr(at, 40);
    if (closing) {
      if (open.empty() || open.back() != name) return "unexpected " + html.substr(at, 40);
      open.pop_back();
    } else if (html[end - 1] != '/') {
      open.push_back(name);
    }
    at = end;
  }
  return open.empty() ? "" : "not closed: " + open.back();
}

void ExpectSelfContained(const std::string& html) {
  EXPECT_EQ(Unbalanced(html), "");
  for (const char* reference :
       {"http://", "https://", "src=", "url(", "@import", "<script", "<link", "<iframe", "nan", "inf\""}) {
    EXPECT_THAT(html, Not(HasSubstr(reference)));
  }
}

TEST(HtmlReport, ShowsEveryTaskAndMethodAndLoadsNothing) {
  EvalRunFolder run;
  run.WriteRunJson(kEvalRunJson);
  for (const std::string task : {"sst2", "mrpc", "arc"}) {
    run.AppendAnswers(task, "none", "110000000000110000000000110000000000");
    run.AppendAnswers(task, "ngd", "101111000000101111000000101111000000");
    run.AppendAnswers(task, "bound", "111111110000111111110000111111110000");
    run.AppendAnswers(task, "vote", "110000001100110000001100110000001100");
  }
  const absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  for (const char* text : {">sst2<",
                           ">mrpc<",
                           ">arc<",
                           ">ngd<",
                           ">bound<",
                           ">vote<",
                           "tiny-moe",
                           "sha256:abc",
                           "sha256:def",
                           "c3po eval --tasks &#39;a &amp; b&#39;",
                           "prefers-color-scheme: dark",
                           "skipped_neighbors_far",
                           "id=\"accuracy\"",
                           "id=\"oracle\"",
                           "id=\"changes\"",
                           "id=\"cost\"",
                           "id=\"neighbors\"",
                           "id=\"items\"",
                           "id=\"settings\"",
                           "id=\"reproduce\""}) {
    EXPECT_THAT(*html, HasSubstr(text));
  }
}

TEST(HtmlReport, EscapesWhatComesFromTheRun) {
  EvalRunFolder run;
  std::string json = kEvalRunJson;
  for (size_t at; (at = json.find("\"sst2\"")) != std::string::npos;) json.replace(at, 6, "\"<b>sst2\"");
  run.WriteRunJson(json);
  for (const bool optimized : {false, true}) {
    ItemResult item;
    item.task = "<b>sst2";
    item.id = "<script>alert(1)</script>";
    item.method = optimized ? "ngd" : "none";
    item.correct = optimized;
    item.text = "\"><img onerror='x'>\x01";
    item.wanted = "a & b";
    item.neighbor_ids = {"<i>"};
    item.neighbor_distances = {0.5};
    run.Append(item);
  }
  const absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_THAT(*html, Not(HasSubstr("<b>")));
  EXPECT_THAT(*html, Not(HasSubstr("<img")));
  EXPECT_THAT(*html, HasSubstr("&lt;script&gt;alert(1)&lt;/script&gt;"));
  EXPECT_THAT(*html, HasSubstr("a &amp; b"));
}

TEST(HtmlReport, ChangedAnswersShowQuestionLabelsAndNeighbors) {
  EvalRunFolder run;
  run.WriteRunJson(kEvalRunJson);
  run.AppendAnswers("sst2", "none", "01");
  run.AppendAnswers("sst2", "ngd", "10");
  std::ofstream(run.path() + "/questions.jsonl")
      << R"({"task": "sst2", "id": "q0", "prompt": "Review: a <dull> film\nSentiment:", "answer": " bad", "choices": [" bad", " good"]})"
      << "\n{\"task\": 7}\n";
  std::ofstream(run.path() + "/references.jsonl")
      << R"({"id": "ref0", "prompt": "Review: a boring film\nSentiment:", "answer": " terrible"})"
      << "\n{\"id\": \"ref1\", \"pro";
  const absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_THAT(*html, HasSubstr("Review: a &lt;dull&gt; film"));
  EXPECT_THAT(*html, HasSubstr("<td class=\"text\">good</td><td class=\"text\">bad</td><td class=\"text\">bad</td>"));
  EXPECT_THAT(*html, HasSubstr("0.100</span> Review: a boring film\nSentiment: <b>terrible</b>"));
  // Of q1 and its neighbor the run holds no texts.
  EXPECT_THAT(*html, HasSubstr("<td class=\"text\">choice 1</td><td class=\"text\">choice 2</td>"));
  EXPECT_THAT(*html, HasSubstr("ref1"));
}

int Count(const std::string& text, const std::string& part) {
  int count = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

TEST(HtmlReport, OneTaskHasOneTable) {
  EvalRunFolder run;
  run.WriteRunJson(R"({"version": 1, "tasks": [{"name": "sst2", "group": "adaptation"}],
      "methods": [{"label": "none"}, {"label": "ngd"}]})");
  run.AppendAnswers("sst2", "none", "0110");
  run.AppendAnswers("sst2", "ngd", "1110");
  const absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_EQ(Count(*html, "<th>accuracy, % [95 %]</th>"), 1);
  EXPECT_THAT(*html, HasSubstr("<h3>sst2</h3>"));
  EXPECT_THAT(*html, Not(HasSubstr("all tasks")));
  EXPECT_THAT(*html, Not(HasSubstr("<th>task</th><th>question</th>")));
}

TEST(HtmlReport, AnEmptyRunSaysSo) {
  EvalRunFolder run;
  run.WriteRunJson(kEvalRunJson);
  absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_THAT(*html, HasSubstr("nothing to compare"));
  run.WriteRunJson(R"({"version": 1})");
  html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_THAT(*html, HasSubstr("nothing to compare"));
}

TEST(HtmlReport, DrawsAblationsOverNumbersAndNames) {
  EvalRunFolder run;
  std::string json = kEvalRunJson;
  json.insert(json.size() - 1, R"(, "ablation": [
      {"name": "neighbors", "variable": "k", "points": [{"label": "3", "value": 3, "method_label": "ngd"},
                                                        {"label": "12", "value": 12, "method_label": "bound"}]},
      {"name": "kernels", "variable": "kernel", "points": [{"label": "gauss<", "method_label": "ngd"},
                                                           {"label": "matern", "method_label": "bound"}]}])");
  run.WriteRunJson(json);
  run.AppendAnswers("sst2", "none", "1100");
  run.AppendAnswers("sst2", "ngd", "1110");
  run.AppendAnswers("sst2", "bound", "1111");
  const absl::StatusOr<std::string> html = RenderHtmlReport(run.path());
  ASSERT_TRUE(html.ok()) << html.status();
  ExpectSelfContained(*html);
  EXPECT_THAT(*html, HasSubstr("Lift along neighbors"));
  EXPECT_THAT(*html, HasSubstr("gauss&lt;"));
  EXPECT_THAT(*html, HasSubstr("class=\"band m1\""));
}

TEST(HtmlReport, JoinsSeveralFoldersAndWarnsOfOtherModels) {
  EvalRunFolder first("first"), second("second");
  first.WriteRunJson(kEvalRunJson);
  first.AppendAnswers("sst2", "none", "1100");
  first.AppendAnswers("sst2", "ngd", "1110");
  second.WriteRunJson(R"({"version": 1, "server": {"model": {"name": "other", "digest": "sha256:xyz"}},
      "tasks": [{"name": "piqa", "group": "knowledge"}],
      "methods": [{"label": "none"}, {"label": "ngd"}], "command_line": "c3po eval second"})");
  second.AppendAnswers("piqa", "none", "0011");
  second.AppendAnswers("piqa", "ngd", "0111");
  const std::string file = first.path() + "/report.html";
  const std::vector<std::string> folders = {first.path(), second.path()};
  ASSERT_TRUE(WriteHtmlReport(folders, file).ok());
  std::stringstream html;
  html << std::ifstream(file).rdbuf();
  ExpectSelfContained(html.str());
  EXPECT_THAT(html.str(), HasSubstr("8 questions of 2 tasks"));
  EXPECT_THAT(html.str(), HasSubstr("The runs are of different models"));
  EXPECT_THAT(html.str(), HasSubstr("c3po eval second"));
  EXPECT_FALSE(WriteHtmlReport(second.path(), second.path() + "/absent/report.html").ok());
}

TEST(EscapeHtml, ReplacesWhatIsNotTextAndKeepsTheRest) {
  EXPECT_EQ(EscapeHtml("a<b>&\"'\n"), "a&lt;b&gt;&amp;&quot;&#39;\n");
  EXPECT_EQ(EscapeHtml("häß €"), "häß €");
  EXPECT_EQ(EscapeHtml("\x01\xFF\xC0\x80z"), "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz");
}

TEST(Axis, TicksAreRoundNumbersWithinTheRange) {
  const std::vector<double> fifths = {0, 0.2, 0.4, 0.6, 0.8, 1.0};
  EXPECT_THAT(Axis(0, 1, 0, 100).Ticks(5), testing::Pointwise(testing::DoubleNear(1e-9), fifths));
  EXPECT_THAT(Axis(-7, 12, 0, 100).Ticks(4), testing::ElementsAre(-5, 0, 5, 10));
  EXPECT_THAT(Axis(0.05, 3, 0, 100, true).Ticks(4), testing::ElementsAre(0.1, 1));
  EXPECT_DOUBLE_EQ(Axis(1, 100, 0, 100, true)(10), 50);
  EXPECT_DOUBLE_EQ(Axis(3, 3, 0, 100)(3), 50);
}

}  // namespace
}  // namespace c3po
