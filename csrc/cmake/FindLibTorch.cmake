# Finds PyTorch's headers and CPU libraries and defines the target LibTorch::LibTorch.
#
# Torch's own config stops with an error where a CUDA build of torch meets a machine without the CUDA
# toolkit, which a CPU library does not need. This module only looks at files, in this order:
# - Torch_DIR, as find_package(Torch) sets it;
# - LibTorch_ROOT and CMAKE_PREFIX_PATH: torch.utils.cmake_prefix_path or an unpacked LibTorch;
# - the packages of Python_EXECUTABLE.
#
# Sets LibTorch_VERSION (major.minor) and LibTorch_HAS_CUDA. Torch's CUDA libraries are not linked: what
# makes a tensor on a GPU has loaded them.

if(NOT Torch_DIR AND Python_EXECUTABLE)
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "import importlib.util as u; print(u.find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE LibTorch_python_package
    OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(
  Torch_DIR TorchConfig.cmake
  PATHS ${LibTorch_ROOT} ${CMAKE_PREFIX_PATH} ENV CMAKE_PREFIX_PATH ${LibTorch_python_package}
  PATH_SUFFIXES Torch share/cmake/Torch
  DOC "The folder of TorchConfig.cmake" NO_DEFAULT_PATH)

if(Torch_DIR)
  get_filename_component(LibTorch_prefix "${Torch_DIR}/../../.." ABSOLUTE)
  set(LibTorch_INCLUDE_DIR "${LibTorch_prefix}/include")
  file(STRINGS "${Torch_DIR}/TorchConfigVersion.cmake" LibTorch_VERSION LIMIT_COUNT 1
       REGEX "PACKAGE_VERSION")
  string(REGEX REPLACE ".*\"([0-9]+\\.[0-9]+).*" "\\1" LibTorch_VERSION "${LibTorch_VERSION}")
  if(EXISTS "${LibTorch_prefix}/lib/libc10_cuda.so")
    set(LibTorch_HAS_CUDA TRUE)
  else()
    set(LibTorch_HAS_CUDA FALSE)
  endif()
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                                         "${Torch_DIR}/TorchConfigVersion.cmake")
endif()

include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(
  LibTorch
  REQUIRED_VARS Torch_DIR
  VERSION_VAR LibTorch_VERSION
  REASON_FAILURE_MESSAGE
    "Add torch.utils.cmake_prefix_path (ask Python) or an unpacked LibTorch to CMAKE_PREFIX_PATH."
)

if(LibTorch_FOUND AND NOT TARGET LibTorch::LibTorch)
  add_library(LibTorch::LibTorch INTERFACE IMPORTED)
  target_include_directories(
    LibTorch::LibTorch INTERFACE "${LibTorch_INCLUDE_DIR}"
                                 "${LibTorch_INCLUDE_DIR}/torch/csrc/api/include")
  # Not libtorch.so: it brings libtorch_cuda.so and with it NCCL, of which the linker may find an older
  # one of the system.
  target_link_libraries(LibTorch::LibTorch INTERFACE "${LibTorch_prefix}/lib/libtorch_cpu.so"
                                                     "${LibTorch_prefix}/lib/libc10.so")
endif()
