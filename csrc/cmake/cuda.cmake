# Decides whether the CUDA kernels are built, and sets MQA_HAS_CUDA.

set(MQA_CUDA AUTO CACHE STRING "Build the CUDA kernels: ON, OFF or AUTO (where nvcc and a torch with CUDA are)")
set_property(CACHE MQA_CUDA PROPERTY STRINGS AUTO ON OFF)

# For the GPUs of this machine; where it has none, for one kind, since that is quick to build. The
# preset `distribution` has the list for packages.
if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  if(EXISTS /proc/driver/nvidia/gpus)
    set(CMAKE_CUDA_ARCHITECTURES native)
  else()
    set(CMAKE_CUDA_ARCHITECTURES 90)
  endif()
endif()
if(CCACHE_PROGRAM AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
  set(CMAKE_CUDA_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
endif()

set(MQA_HAS_CUDA FALSE)
if(MQA_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  if(NOT CMAKE_CUDA_COMPILER)
    message(STATUS "CUDA kernels: not built, no CUDA compiler was found")
  elseif(NOT LibTorch_HAS_CUDA)
    message(STATUS "CUDA kernels: not built, torch has no CUDA")
  else()
    set(MQA_HAS_CUDA TRUE)
  endif()
elseif(MQA_CUDA)
  if(NOT LibTorch_HAS_CUDA)
    message(FATAL_ERROR "MQA_CUDA is ON, but the torch in ${LibTorch_prefix} has no CUDA")
  endif()
  set(MQA_HAS_CUDA TRUE)
endif()

if(MQA_HAS_CUDA)
  enable_language(CUDA)
  if(NOT "cuda_std_20" IN_LIST CMAKE_CUDA_COMPILE_FEATURES)
    message(
      FATAL_ERROR
        "CMake ${CMAKE_VERSION} knows no C++20 of nvcc ${CMAKE_CUDA_COMPILER_VERSION}. Use a newer CMake (pip install cmake), or build without CUDA: -DMQA_CUDA=OFF"
    )
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_STANDARD_REQUIRED ON)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
  set(CMAKE_CUDA_VISIBILITY_PRESET hidden)
  message(STATUS "CUDA kernels: built with ${CMAKE_CUDA_COMPILER} for ${CMAKE_CUDA_ARCHITECTURES}")
endif()
