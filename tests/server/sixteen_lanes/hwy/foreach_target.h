#ifndef C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_FOREACH_TARGET_H_
#define C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_FOREACH_TARGET_H_

// In place of Highway's: the including file is compiled once, for the vectors of highway.h beside this file.
#include <hwy/highway.h>

#endif  // C3PO_TESTS_SERVER_SIXTEEN_LANES_HWY_FOREACH_TARGET_H_
