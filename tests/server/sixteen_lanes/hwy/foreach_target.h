// In place of Highway's: the including file is compiled once, for the vectors of highway.h beside this file.
#include <hwy/highway.h>
