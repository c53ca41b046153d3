#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/avx2_vnni.h"

const salmonrun::Operations salmonrun::avx2_vnni_operations = table<Avx2Vnni>("avx2_vnni");
