#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/avx512_vnni.h"

const salmonrun::Operations salmonrun::avx512_vnni_operations = table<Avx512Vnni>("avx512_vnni");
