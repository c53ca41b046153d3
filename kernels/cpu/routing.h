// Which experts of a mixture compute which rows, and where these lie while they do.
#pragma once

#include <span>
#include <vector>

namespace salmonrun {

// A row's choice of an expert.
struct Choice {
  int expert;
  float weight;
  int place;  // among the rows of all choices, which lie together for each expert
};

// The experts with the largest of the `shares`, of two alike the first; `choices` come out in the order of their numbers.
void choose(std::span<const float> shares, bool normalised, std::span<Choice> choices);

// Gives all choices [rows][per_token] their places, and fills `rows`, whose row each place has: in order, for each expert.
// Returns where each of the experts begins, and where the last ends.
std::vector<int> arrange(std::span<Choice> choices, int per_token, int experts, std::span<int> rows);

}  // namespace salmonrun
