// Is an instruction set what it says? Asked before one is offered that could not be tried wherever this is built.
#pragma once

#include "operations.h"

namespace salmonrun {

// Whether products of a few and of many rows, in all sizes of blocks, have the bits of `trusted`. Takes a millisecond.
bool same_products(const Operations& asked, const Operations& trusted);

}  // namespace salmonrun
