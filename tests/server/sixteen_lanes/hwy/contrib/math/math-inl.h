// In place of Highway's: the exponential is in highway.h.
#include <hwy/highway.h>
