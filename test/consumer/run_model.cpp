// Loads the TorchScript model given on the command line and prints the sum of what it returns.
// Includes no header of mqa and names none of its symbols: linking it is enough to have its ops.
#include <torch/script.h>

#include <cstdio>

int main(int, char** argv) {
  torch::jit::Module model = torch::jit::load(argv[1]);
  std::printf("%.17g\n", model.forward({}).toTensor().sum().item<double>());
}
