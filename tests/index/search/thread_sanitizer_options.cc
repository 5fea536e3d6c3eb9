// hnswlib locks the node that it adds and then, one by one, the nodes it links; ThreadSanitizer sees cycles among those
// locks. They cannot deadlock, because HnswIndex lets one add run at a time. Data races are reported as ever.
#if defined(__SANITIZE_THREAD__)
extern "C" const char* __tsan_default_options() { return "detect_deadlocks=0"; }
#endif
