#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/avx512_bf16.h"

const salmonrun::Operations salmonrun::avx512_bf16_operations = table<Avx512Bf16>("avx512_bf16");
