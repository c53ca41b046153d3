#include "instruction_sets.h"
#include "operations/table.h"
#include "simd/portable.h"

const salmonrun::Operations salmonrun::portable_operations = table<Portable>("portable");
