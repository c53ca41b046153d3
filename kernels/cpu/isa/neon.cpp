#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/neon.h"

const salmonrun::Operations salmonrun::neon_operations = table<Neon>("neon");
