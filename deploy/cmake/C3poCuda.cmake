# libc3po_cuda.so: all CUDA code of c3po, which --device cuda opens. Neither c3pod nor a test is linked with it.
set(C3PO_CUDA AUTO CACHE STRING "Build libc3po_cuda.so: ON, OFF, or AUTO: where an nvcc is found that knows every target")
set_property(CACHE C3PO_CUDA PROPERTY STRINGS AUTO ON OFF)
set(C3PO_NVCC "$ENV{C3PO_NVCC}" CACHE FILEPATH "The nvcc to take; empty: that of deploy/install_deps.sh, else the machine's own")

# Machine code, not PTX: what runs was compiled and looked at here. sm_80 also runs on 8.6 and 8.9, sm_100 on 10.3.
set(C3PO_CUDA_TARGETS 80 90 100)

# Sets C3PO_NVCC_FOUND (and below C3PO_NVCC_RELEASE), or C3PO_NVCC_MISSING to the reason why not. The pinned compiler comes before the machine's own, as
# the registers of tests/cuda/kernel_resources.txt are its.
function(c3po_find_nvcc)
  set(C3PO_NVCC_FOUND "" PARENT_SCOPE)
  if(NOT CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    set(C3PO_NVCC_MISSING "its host compiler is g++, and this build's is ${CMAKE_CXX_COMPILER_ID}" PARENT_SCOPE)
    return()
  endif()
  if(C3PO_NVCC)
    set(nvcc ${C3PO_NVCC})
  elseif(EXISTS ${C3PO_CACHE_DIR}/cuda-13.0/nvidia/cu13/bin/nvcc)
    set(nvcc ${C3PO_CACHE_DIR}/cuda-13.0/nvidia/cu13/bin/nvcc)
  else()
    find_program(nvcc nvcc PATHS ENV CUDA_HOME ENV CUDA_PATH /usr/local/cuda PATH_SUFFIXES bin NO_CACHE)
    if(NOT nvcc)
      set(C3PO_NVCC_MISSING "no nvcc (deploy/install_deps.sh --build-only --cuda installs one)" PARENT_SCOPE)
      return()
    endif()
  endif()
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET RESULT_VARIABLE failed)
  foreach(target ${C3PO_CUDA_TARGETS})
    if(failed OR NOT known MATCHES "compute_${target}\n")
      set(C3PO_NVCC_MISSING "${nvcc} does not know sm_${target}: CUDA 12.8 or later is needed" PARENT_SCOPE)
      return()
    endif()
  endforeach()
  set(C3PO_NVCC_FOUND ${nvcc} PARENT_SCOPE)
endfunction()

set(C3PO_NVCC_FOUND "")
if(C3PO_CUDA)
  c3po_find_nvcc()
  if(C3PO_NVCC_FOUND)
    get_filename_component(toolkit ${C3PO_NVCC_FOUND} REALPATH)
    get_filename_component(toolkit ${toolkit}/../.. ABSOLUTE)
    find_library(cudart cudart_static PATHS ${toolkit} PATH_SUFFIXES lib lib64 targets/x86_64-linux/lib
                 NO_DEFAULT_PATH NO_CACHE REQUIRED)
    set(C3PO_CUDART ${cudart} CACHE INTERNAL "What libc3po_cuda.so is linked with: deploy/docker/stage.sh reads it")
    execute_process(COMMAND ${C3PO_NVCC_FOUND} --version OUTPUT_VARIABLE version)
    string(REGEX REPLACE ".*, V([0-9.]+).*" "\\1" C3PO_NVCC_RELEASE "${version}")
    message(STATUS "libc3po_cuda.so: built by ${C3PO_NVCC_FOUND}, ${C3PO_NVCC_RELEASE}")
  elseif(C3PO_CUDA STREQUAL "AUTO")
    message(STATUS "libc3po_cuda.so: not built, so --device cuda is not served: ${C3PO_NVCC_MISSING}")
  else()
    message(FATAL_ERROR "C3PO_CUDA=${C3PO_CUDA}: ${C3PO_NVCC_MISSING}")
  endif()
else()
  message(STATUS "libc3po_cuda.so: not built, so --device cuda is not served: C3PO_CUDA=${C3PO_CUDA}")
endif()

# c3po_cuda_sources([DEVICE_ONLY] a.cu ...): this folder's part of libc3po_cuda.so. What is not DEVICE_ONLY also compiles
# as C++ and runs on the tests' host model, which takes the list from the global property C3PO_KERNEL_SOURCES.
function(c3po_cuda_sources)
  cmake_parse_arguments(ARG "DEVICE_ONLY" "" "" ${ARGN})
  foreach(source ${ARG_UNPARSED_ARGUMENTS})
    set_property(GLOBAL APPEND PROPERTY C3PO_CUDA_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/${source})
    if(NOT ARG_DEVICE_ONLY)
      set_property(GLOBAL APPEND PROPERTY C3PO_KERNEL_SOURCES ${CMAKE_CURRENT_SOURCE_DIR}/${source})
    endif()
  endforeach()
endfunction()

# c3po_cuda_object(SOURCE LIST): compiles one .cu for every target and appends the object to LIST. What ptxas says of it
# is build/cuda/PATH.cu.ptxas. Kernels and their lines are compressed, to a fifth of the size. CMake's own CUDA language
# keeps no such output, and asks more of a toolkit than nvcc.
function(c3po_cuda_object source list)
  file(RELATIVE_PATH name ${CMAKE_SOURCE_DIR} ${source})
  set(object ${CMAKE_BINARY_DIR}/cuda/${name}.o)
  get_filename_component(folder ${object} DIRECTORY)
  file(MAKE_DIRECTORY ${folder})
  set(targets)
  foreach(target ${C3PO_CUDA_TARGETS})
    list(APPEND targets -gencode arch=compute_${target},code=sm_${target})
  endforeach()
  add_custom_command(
    OUTPUT ${object} BYPRODUCTS ${CMAKE_BINARY_DIR}/cuda/${name}.ptxas
    COMMAND ${CMAKE_SOURCE_DIR}/deploy/cmake/nvcc.sh ${CMAKE_BINARY_DIR}/cuda/${name}.ptxas ${CMAKE_CXX_COMPILER_LAUNCHER}
            ${C3PO_NVCC_FOUND} -ccbin ${CMAKE_CXX_COMPILER} -c ${source} -o ${object} -MD -MF ${object}.d -MT ${object}
            -I${CMAKE_SOURCE_DIR} -std=c++20 -O3 --expt-relaxed-constexpr -lineinfo --compress-mode=size ${targets} -Xptxas -v -Werror all-warnings
            -Xcompiler -Wall,-Wextra,-Werror,-fPIC,-fvisibility=hidden
    DEPENDS ${source} ${CMAKE_SOURCE_DIR}/deploy/cmake/nvcc.sh ${CMAKE_SOURCE_DIR}/deploy/cmake/C3poCuda.cmake
    DEPFILE ${object}.d
    COMMENT "Building CUDA object ${name}.o" VERBATIM)
  set_source_files_properties(${object} PROPERTIES EXTERNAL_OBJECT TRUE GENERATED TRUE)
  set(${list} ${${list}} ${object} PARENT_SCOPE)
endfunction()

# The library of all that c3po_cuda_sources named until here.
function(c3po_cuda_library target)
  get_property(sources GLOBAL PROPERTY C3PO_CUDA_SOURCES)
  set(objects)
  foreach(source ${sources})
    c3po_cuda_object(${source} objects)
  endforeach()
  set(exported ${CMAKE_SOURCE_DIR}/deploy/cmake/c3po_cuda.map)
  add_library(${target} MODULE ${objects})
  target_link_libraries(${target} PRIVATE ${C3PO_CUDART} ${CMAKE_DL_LIBS} rt Threads::Threads)
  target_link_options(${target} PRIVATE -Wl,--version-script=${exported} -Wl,-z,defs)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX LINK_DEPENDS ${exported}
                                             LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
endfunction()

# c3po_cuda_executable(NAME SOURCES a.cu ...): a program of its own, with the CUDA runtime linked statically.
function(c3po_cuda_executable target)
  cmake_parse_arguments(ARG "" "" "SOURCES" ${ARGN})
  set(objects)
  foreach(source ${ARG_SOURCES})
    c3po_cuda_object(${CMAKE_CURRENT_SOURCE_DIR}/${source} objects)
  endforeach()
  add_executable(${target} ${objects})
  target_link_libraries(${target} PRIVATE ${C3PO_CUDART} ${CMAKE_DL_LIBS} rt Threads::Threads)
  set_target_properties(${target} PROPERTIES LINKER_LANGUAGE CXX)
endfunction()
