#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/amx.h"

const salmonrun::Operations salmonrun::amx_operations = table<Amx>("amx");
