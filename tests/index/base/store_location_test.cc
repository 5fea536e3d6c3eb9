#include "index/base/store_location.h"

#include <gtest/gtest.h>

#include "index/base/store_away.h"

namespace c3po {
namespace {

TEST(StoreLocation, NoPasswordIsShown) {
  EXPECT_EQ(WithoutPassword("postgresql://c3po:secret@host:5432/refs"), "postgresql://c3po:***@host:5432/refs");
  EXPECT_EQ(WithoutPassword("postgres://c3po:s:e@cret@a,b:1/refs?x=1"), "postgres://c3po:***@a,b:1/refs?x=1");
  EXPECT_EQ(WithoutPassword("postgresql://c3po@host/refs?password=secret&sslmode=require"),
            "postgresql://c3po@host/refs?password=***&sslmode=require");
  EXPECT_EQ(WithoutPassword("postgresql:///refs?host=/run&user=c3po&password=secret"),
            "postgresql:///refs?host=/run&user=c3po&password=***");
  EXPECT_EQ(WithoutPassword("postgresql://host/refs?sslpassword=a&password=b"),
            "postgresql://host/refs?sslpassword=***&password=***");
}

TEST(StoreLocation, WhatHasNoPasswordStaysAsItIs) {
  for (const char* location : {"postgresql://host:5432/refs", "postgresql://c3po@host/refs", "postgresql://",
                               "postgresql://host/a:b@c", "/data/a:b@c/c3po.db", "mysql://u:p@h/d", "c3po.db", ""})
    EXPECT_EQ(WithoutPassword(location), location);
}

TEST(StoreAway, OnlyItsOwnStatusIsMarked) {
  EXPECT_TRUE(IsStoreAway(StoreAwayError("the database does not answer")));
  EXPECT_EQ(StoreAwayError("x").code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(IsStoreAway(absl::UnavailableError("the server is shutting down")));
  EXPECT_FALSE(IsStoreAway(absl::OkStatus()));
}

}  // namespace
}  // namespace c3po
