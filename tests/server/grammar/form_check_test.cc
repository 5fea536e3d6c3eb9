#include "server/grammar/form_check.h"

#include <gtest/gtest.h>

#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "tests/server/grammar/form_cases.h"

namespace c3po {
namespace {

void ExpectRefused(const AnswerForm& form, absl::string_view message) {
  const absl::Status status = CheckForm(form);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(absl::StrContains(status.message(), message)) << status;
}

TEST(FormCheck, TakesWhatFormsAre) {
  EXPECT_TRUE(CheckForm({AnswerForm::Kind::kJsonObject, "", {}}).ok());
  EXPECT_TRUE(CheckForm(RegexForm("a+")).ok());
  EXPECT_TRUE(CheckForm(GrammarForm("root ::= \"a\"")).ok());
  EXPECT_TRUE(CheckForm(OneOfForm({"yes", "no"})).ok());
  // As pydantic writes them: references beside a description, properties called like keywords, constants with a type.
  for (const char* schema :
       {"true", R"({"type": "object", "properties": {"not": {"type": "string"}, "if": {"type": "integer"}}})",
        R"({"$defs": {"A": {"type": "object", "properties": {"kind": {"const": "a", "type": "string"}}}},
            "properties": {"a": {"$ref": "#/$defs/A", "description": "an A"}, "b": {"anyOf": [{"type": "string"}, {"type": "null"}],
            "default": null, "title": "B"}}, "required": ["a"], "type": "object", "title": "T"})",
        R"({"const": {"not": 1, "uniqueItems": true}})", R"({})", R"({"title": "anything"})"}) {
    EXPECT_TRUE(CheckForm(SchemaForm(schema)).ok()) << schema << CheckForm(SchemaForm(schema));
  }
}

TEST(FormCheck, RefusesBySize) {
  const std::string large(kFormBytesMax + 1, 'a');
  ExpectRefused(RegexForm(large), "structured_output.regex: 65537 bytes are more than 65536");
  ExpectRefused(GrammarForm(""), "structured_output.grammar: must not be empty");
  ExpectRefused(OneOfForm({}), "structured_output.one_of.texts: 0 texts");
  ExpectRefused(OneOfForm({"a", ""}), "structured_output.one_of.texts[1]: must not be empty");
  ExpectRefused(OneOfForm(std::vector<std::string>(kFormTextsMax + 1, "a")), "1025 texts are not in [1, 1024]");
  ExpectRefused(OneOfForm({large.substr(1), "a"}), "structured_output.one_of: 65537 bytes");
  ExpectRefused(RegexForm("\xff"), "structured_output.regex: is not UTF-8");
  ExpectRefused(RegexForm(std::string("a\0b", 3)), "has a NUL");
}

TEST(FormCheck, RefusesWhatASchemaWouldNotBeHeldTo) {
  ExpectRefused(SchemaForm("{"), "structured_output.json_schema: it is not JSON");
  ExpectRefused(SchemaForm(std::string("{}\0{", 4)), "structured_output.json_schema: has a NUL");
  ExpectRefused(SchemaForm("[1]"), "must be an object");
  ExpectRefused(SchemaForm(R"({"type": "array", "uniqueItems": true})"), "#/uniqueItems is a keyword");
  ExpectRefused(SchemaForm(R"({"properties": {"a": {"anyOf": [{"type": "string"}, {"not": {}}]}}})"),
                "#/properties/a/anyOf/1/not is a keyword");
  ExpectRefused(SchemaForm(R"({"$defs": {"A": {"if": {}}}, "type": "object"})"), "#/$defs/A/if is a keyword");
  ExpectRefused(SchemaForm(R"({"$ref": "#/$defs/A", "maxLength": 3})"), "#/maxLength cannot be held beside $ref");
  ExpectRefused(SchemaForm(R"({"anyOf": [{"type": "object"}], "required": ["a"]})"),
                "#/required cannot be held beside anyOf");
  ExpectRefused(SchemaForm(R"({"type": "array", "items": {"minLength": 3}})"),
                "#/items/minLength cannot be held without a type");
  std::string deep;
  for (int i = 0; i < 100; ++i) deep += R"({"items":)";
  ExpectRefused(SchemaForm(deep + "{}" + std::string(100, '}')), "is nested deeper than 64");
  ExpectRefused(SchemaForm(std::string(60000, '[')), "nested deeper");
}

}  // namespace
}  // namespace c3po
