#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/avx2.h"

const salmonrun::Operations salmonrun::avx2_operations = table<Avx2>("avx2");
