// How decode attention is split over keys: a function of the position alone, known to the kernel that
// attends, the one that merges and the linear that merges in its prologue.
#pragma once
#include "device.cuh"

constexpr int STEP_KEYS = 16;  // a split is whole steps

// First key that the window lets position p see, down to a page of 64.
INLINE int first_page_key(int position, int window) { return window > 0 && position + 1 > window ? (position + 1 - window) & ~63 : 0; }
// Keys of each split when `n_keys` are shared by at most `most` splits of at least `least` keys.
INLINE int keys_a_split(int n_keys, int most, int least) { return max(((n_keys + most - 1) / most + STEP_KEYS - 1) & -STEP_KEYS, least); }
