#include "routing.h"

#include <algorithm>

namespace salmonrun {
namespace {

// Numbers that are not any (of weights that are none) are chosen as well: whatever they are, there is a choice.
int largest_left(std::span<const float> shares, std::span<const Choice> taken) {
  int best = -1;
  for (int i = 0; i < static_cast<int>(shares.size()); ++i) {
    if (std::any_of(taken.begin(), taken.end(), [i](const Choice& choice) { return choice.expert == i; })) continue;
    if (best < 0 || shares[static_cast<std::size_t>(i)] > shares[static_cast<std::size_t>(best)]) best = i;
  }
  return best;
}

}  // namespace

void choose(std::span<const float> shares, bool normalised, std::span<Choice> choices) {
  float total = 0.0f;
  for (std::size_t i = 0; i < choices.size(); ++i) {
    const int expert = largest_left(shares, choices.first(i));
    choices[i] = {expert, shares[static_cast<std::size_t>(expert)], 0};
    total += choices[i].weight;
  }
  if (normalised)
    for (Choice& choice : choices) choice.weight /= total;
  std::sort(choices.begin(), choices.end(), [](const Choice& a, const Choice& b) { return a.expert < b.expert; });
}

std::vector<int> arrange(std::span<Choice> choices, int per_token, int experts, std::span<int> rows) {
  std::vector<int> begins(static_cast<std::size_t>(experts) + 1, 0);
  for (const Choice& choice : choices) ++begins[static_cast<std::size_t>(choice.expert) + 1];
  for (std::size_t i = 1; i < begins.size(); ++i) begins[i] += begins[i - 1];
  std::vector<int> next(begins);
  for (std::size_t i = 0; i < choices.size(); ++i) {
    choices[i].place = next[static_cast<std::size_t>(choices[i].expert)]++;
    rows[static_cast<std::size_t>(choices[i].place)] = static_cast<int>(i) / per_token;
  }
  return begins;
}

}  // namespace salmonrun
