# Every target of c3po is made by one of these functions, so that warnings and sanitizers are the same everywhere.

function(c3po_compile_options target)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Werror)
  target_include_directories(${target} PRIVATE ${CMAKE_SOURCE_DIR})
  if(C3PO_SANITIZER)
    # What UndefinedBehaviorSanitizer finds fails the test, as with the others.
    target_compile_options(${target} PRIVATE -fsanitize=${C3PO_SANITIZER} -fno-sanitize-recover=all -fno-omit-frame-pointer)
    target_link_options(${target} PUBLIC -fsanitize=${C3PO_SANITIZER})
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # In instrumented code GCC 12 takes moved strings for uninitialized and short copies for endless ones.
      target_compile_options(${target} PRIVATE -Wno-maybe-uninitialized -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow
                                               -Wno-stringop-overread)
    endif()
  endif()
  if(C3PO_SANITIZER STREQUAL "thread")
    # Headers of protobuf and Abseil give their classes other members under this macro than the system's libraries have.
    target_compile_options(${target} PRIVATE -U__SANITIZE_THREAD__)
    get_target_property(type ${target} TYPE)
    if(type STREQUAL "EXECUTABLE")
      target_sources(${target} PRIVATE ${CMAKE_SOURCE_DIR}/tests/sanitize/absl_mutex_for_tsan.cc)
    endif()
  endif()
  if(C3PO_FUZZERS)
    target_compile_options(${target} PRIVATE -fsanitize=fuzzer-no-link)
  endif()
endfunction()

# c3po_library(NAME SOURCES a.cc ... DEPS public targets ... PRIVATE_DEPS third parties ...)
# Third parties are private: their headers do not reach who links the library.
function(c3po_library target)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS;PRIVATE_DEPS" ${ARGN})
  if(ARG_SOURCES)
    add_library(${target} STATIC ${ARG_SOURCES})
    c3po_compile_options(${target})
    target_link_libraries(${target} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
  else()
    add_library(${target} INTERFACE)
    target_link_libraries(${target} INTERFACE ${ARG_DEPS})
  endif()
endfunction()

function(c3po_executable target)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${target} ${ARG_SOURCES})
  c3po_compile_options(${target})
  target_link_libraries(${target} PRIVATE ${ARG_DEPS})
endfunction()

# For code that runs on fibers (tests/host_cuda): several stacks on one OS thread.
function(c3po_fiber_options target)
  target_compile_options(${target} PRIVATE -ffp-contract=off)  # device.h's Add and Multiply are not fused.
  if(C3PO_SANITIZER MATCHES "address" AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # It would map a second stack of 11 MB for each fiber of each block.
    target_compile_options(${target} PRIVATE --param=asan-use-after-return=0)
  elseif(C3PO_SANITIZER STREQUAL "thread")
    target_compile_options(${target} PRIVATE -fno-sanitize=thread)  # All fibers are of one OS thread.
  endif()
endfunction()

# c3po_host_kernels(NAME SOURCES a.cu ... DEPS targets ...): kernels for a host without a GPU, compiled by the C++ compiler
# against the execution model of tests/host_cuda, as a static library for tests.
function(c3po_host_kernels target)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  set(kernels ${ARG_SOURCES})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX)
  add_library(${target} STATIC ${ARG_SOURCES})
  c3po_compile_options(${target})
  c3po_fiber_options(${target})
  target_link_libraries(${target} PUBLIC ${ARG_DEPS} host_cuda)
endfunction()

# For tests that build graphs. hnswlib locks its elements in the order of their distances, one insertion at a time, and
# ThreadSanitizer, which sees inversions there, cannot name these locks: they are not watched for their order.
set(C3PO_UNORDERED_LOCKS "TSAN_OPTIONS=string_append::detect_deadlocks=0")

# No test may take longer. A sanitizer makes them take up to ten times as long.
set(C3PO_TEST_SECONDS_MAX 600)
if(C3PO_SANITIZER)
  set(C3PO_TEST_SECONDS_MAX 6000)
endif()

# c3po_test(NAME [BUILDS_GRAPHS | NEEDS_GPU] [PREFIX p] SOURCES a_test.cc ... DEPS targets ... LABELS labels ...): a GoogleTest
# binary, one ctest entry per test, or where it needs a GPU one in all, labeled gpu, so that a machine without skips one.
# Tests that run from several binaries have a prefix to their names in ctest.
function(c3po_test target)
  cmake_parse_arguments(ARG "BUILDS_GRAPHS;NEEDS_GPU" "PREFIX" "SOURCES;DEPS;LABELS" ${ARGN})
  add_executable(${target} ${ARG_SOURCES} ${CMAKE_SOURCE_DIR}/tests/temporary_folder.cc)
  c3po_compile_options(${target})
  target_link_libraries(${target} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    # GCC 12 sees overflows where a literal of some lengths, such as the path below, is joined to a std::string (GCC bug 105651).
    target_compile_options(${target} PRIVATE -Wno-array-bounds -Wno-restrict -Wno-stringop-overflow -Wno-stringop-overread)
  endif()
  target_compile_definitions(${target} PRIVATE C3PO_TESTDATA_DIR="${CMAKE_SOURCE_DIR}/tests/golden"
                             C3PO_SOURCE_DIR="${CMAKE_SOURCE_DIR}")
  if(NOT ARG_LABELS)
    set(ARG_LABELS unit)
  endif()
  if(ARG_NEEDS_GPU)
    add_test(NAME gpu.${target} COMMAND ${target})
    set_tests_properties(gpu.${target} PROPERTIES LABELS gpu TIMEOUT ${C3PO_TEST_SECONDS_MAX} ENVIRONMENT OMP_NUM_THREADS=1
                         SKIP_REGULAR_EXPRESSION "device cuda: ")
    return()
  endif()
  set(modification)
  if(ARG_BUILDS_GRAPHS)
    set(modification ENVIRONMENT_MODIFICATION ${C3PO_UNORDERED_LOCKS})
  endif()
  gtest_discover_tests(${target} DISCOVERY_MODE PRE_TEST DISCOVERY_TIMEOUT 60 TEST_PREFIX "${ARG_PREFIX}"
                       PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT ${C3PO_TEST_SECONDS_MAX} ENVIRONMENT OMP_NUM_THREADS=1
                                  ${modification})
endfunction()

# c3po_gpu_kernel_test(NAME OF target [FILES regex] [BUT regex] KERNELS model|index DEPS targets ...): the tests of kernels that
# `target` runs on the execution model, as a program for a GPU: the same objects, with the kernels of libc3po_cuda.so. Of a_test.cc,
# FILES and BUT match `a`.
function(c3po_gpu_kernel_test name)
  cmake_parse_arguments(ARG "" "OF;FILES;BUT;KERNELS" "DEPS" ${ARGN})
  if(NOT ARG_FILES)
    set(ARG_FILES "[a-z_]+")
  endif()
  set(objects "$<FILTER:$<TARGET_OBJECTS:${ARG_OF}>,INCLUDE,/(${ARG_FILES})_test\\.cc\\.o$>")
  if(ARG_BUT)
    set(objects "$<FILTER:${objects},EXCLUDE,/(${ARG_BUT})_test\\.cc\\.o$>")
  endif()
  c3po_test(${name} NEEDS_GPU SOURCES ${objects} ${CMAKE_SOURCE_DIR}/tests/gpu/${ARG_KERNELS}_kernels_on_gpu.cc
            DEPS gpu_kernel_device ${ARG_DEPS})
endfunction()

# c3po_kernel_mutants(NAME SOURCE a.cu MUTANTS m.toml TEST_SOURCES a_test.cc ... DEPS targets ...): for each mutant of the .cu
# or of a header of it that tests/host_cuda/mutate.py makes, the tests are linked with it in the place of the .cu, and have to
# fail: the ctest entry mutant.NAME.MUTANT. DEPS may have a library of kernels that holds the .cu itself: the mutant comes first.
function(c3po_kernel_mutants name)
  cmake_parse_arguments(ARG "" "SOURCE;MUTANTS" "TEST_SOURCES;DEPS" ${ARGN})
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  get_filename_component(source ${ARG_SOURCE} ABSOLUTE)
  get_filename_component(list ${ARG_MUTANTS} ABSOLUTE)
  set(mutate ${CMAKE_SOURCE_DIR}/tests/host_cuda/mutate.py)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${list} ${mutate})
  execute_process(COMMAND ${Python3_EXECUTABLE} ${mutate} list ${list} OUTPUT_VARIABLE mutants RESULT_VARIABLE failed
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(failed)
    message(FATAL_ERROR "${list}: see above")
  endif()
  add_library(${name}_mutants_test OBJECT ${ARG_TEST_SOURCES})
  c3po_compile_options(${name}_mutants_test)
  target_link_libraries(${name}_mutants_test PRIVATE ${ARG_DEPS} host_cuda GTest::gmock)
  string(REPLACE "\n" ";" mutants "${mutants}")
  foreach(listed ${mutants})
    string(REGEX MATCH "^([a-z0-9_]+):?(.*)$" listed ${listed})
    set(mutant ${CMAKE_MATCH_1})
    set(header ${CMAKE_MATCH_2})
    set(target ${name}_mutant_${mutant})
    set(folder ${CMAKE_CURRENT_BINARY_DIR}/${name}_mutants/${mutant})
    if(header)
      set(original ${CMAKE_SOURCE_DIR}/${header})
      set(made ${folder}/${header})
      c3po_host_kernels(${target}_kernels SOURCES ${source} ${made})
      target_include_directories(${target}_kernels BEFORE PRIVATE ${folder})  # The copy comes before the header.
    else()
      set(original ${source})
      set(made ${folder}/mutant.cu)
      c3po_host_kernels(${target}_kernels SOURCES ${made})
    endif()
    target_compile_options(${target}_kernels PRIVATE -w)  # An edit may leave something unread.
    get_filename_component(made_folder ${made} DIRECTORY)
    file(MAKE_DIRECTORY ${made_folder})
    add_custom_command(OUTPUT ${made} COMMAND ${Python3_EXECUTABLE} ${mutate} make ${original} ${list} ${mutant} ${made}
                       DEPENDS ${original} ${list} ${mutate} VERBATIM)
    add_executable(${target} $<TARGET_OBJECTS:${name}_mutants_test>)
    c3po_compile_options(${target})
    target_link_libraries(${target} PRIVATE ${target}_kernels ${ARG_DEPS} host_cuda GTest::gmock GTest::gtest_main)
    set_target_properties(${target} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_CURRENT_BINARY_DIR}/${name}_mutants)
    add_test(NAME mutant.${name}.${mutant} COMMAND ${Python3_EXECUTABLE} ${mutate} check $<TARGET_FILE:${target}> ${list} ${mutant})
    set_tests_properties(mutant.${name}.${mutant} PROPERTIES LABELS unit TIMEOUT ${C3PO_TEST_SECONDS_MAX} ENVIRONMENT OMP_NUM_THREADS=1)
  endforeach()
endfunction()
