"""Loops of bootstrap and ensembles compiled with numba; imported where they are called, as numba takes half a second.

One thread each: numba's, where they are OpenMP's, would change how many torch takes from then on.
"""

import numba
import numpy as np


@numba.njit(inline="always")
def _draw(seed, resample, place, count):
    """A whole number from 0 to `count` - 1: SplitMix64 (Steele, Lea and Flood 2014) of the three numbers."""
    mixed = np.uint64(seed) * np.uint64(0xD1342543DE82EF95) + np.uint64(resample)
    for _ in range(2):
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
        mixed += np.uint64(place)
    return np.int64(((mixed >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@numba.njit(cache=False)
def studentized_means(sums, sizes, resamples, seed):
    """(resamples,) the mean of as many groups as there are, drawn with replacement, over its own standard error.

    sums, sizes (G,): every group's sum of values minus the mean of all, and its number of values. Infinite where all
    that is drawn is alike, but for a mean of 0.
    """
    out = np.empty(resamples, dtype=np.float64)
    count = len(sums)
    for resample in range(resamples):
        total, videos, squares, products, squared_sizes = 0.0, 0.0, 0.0, 0.0, 0.0
        for place in range(count):
            group = _draw(seed, resample, place, count)
            total += sums[group]
            videos += sizes[group]
            squares += sums[group] * sums[group]
            products += sums[group] * sizes[group]
            squared_sizes += sizes[group] * sizes[group]
        mean = total / videos
        variance = count / (count - 1) * (squares - mean * (2 * products - mean * squared_sizes))
        if variance > 1e-14 * squares:  # less is rounding
            out[resample] = total / np.sqrt(variance)
        else:
            out[resample] = np.copysign(np.inf, total) if total != 0 else 0.0
    return out


@numba.njit(cache=False)
def mixture_loss(weights, likelihoods, gradient):
    """Mean of -ln(likelihoods @ weights). A product of many likelihoods takes one logarithm."""
    total, product = 0.0, 1.0
    gradient[:] = 0.0
    for video in range(likelihoods.shape[0]):
        likelihood = 0.0
        for experiment in range(len(weights)):
            likelihood += weights[experiment] * likelihoods[video, experiment]
        product *= likelihood
        if product < 1e-200:
            total -= np.log(product)
            product = 1.0
        share = 1.0 / likelihood
        for experiment in range(len(weights)):
            gradient[experiment] -= share * likelihoods[video, experiment]
    gradient /= likelihoods.shape[0]
    return (total - np.log(product)) / likelihoods.shape[0]


@numba.njit(cache=False)
def logit_loss(weights, margins, gradient):
    """Mean of ln(1 + exp(-margins @ weights)), margins being logits of the true label."""
    total = 0.0
    gradient[:] = 0.0
    for video in range(margins.shape[0]):
        margin = 0.0
        for experiment in range(len(weights)):
            margin += weights[experiment] * margins[video, experiment]
        small = np.exp(-abs(margin))
        total += np.log1p(small) + max(-margin, 0.0)
        share = (small if margin > 0 else 1.0) / (1.0 + small)
        for experiment in range(len(weights)):
            gradient[experiment] -= share * margins[video, experiment]
    gradient /= margins.shape[0]
    return total / margins.shape[0]


@numba.njit(cache=False)
def greedy_shares(likelihoods, steps):
    """(E,) shares of the picks; `ensembling.greedy_weights`. likelihoods (E, V)."""
    num_experiments, num_videos = likelihoods.shape
    bag = np.zeros(num_videos)
    # Loops in place of a list and a sort, which take two seconds to compile.
    single, order = np.zeros(num_experiments), np.zeros(num_experiments, dtype=np.int64)
    taken = np.zeros(num_experiments, dtype=np.bool_)
    for experiment in range(num_experiments):
        single[experiment] = _bag_loss(bag, likelihoods[experiment], 1)
    best_loss, begin = np.inf, 0
    for rank in range(num_experiments):
        first = -1
        for experiment in range(num_experiments):
            if not taken[experiment] and (first < 0 or single[experiment] < single[first]):
                first = experiment
        order[rank], taken[first] = first, True
        loss = _bag_loss(bag, likelihoods[order[rank]], rank + 1)
        bag += likelihoods[order[rank]]
        if loss < best_loss:
            best_loss, begin = loss, rank + 1
    counts = np.zeros(num_experiments)
    counts[order[:begin]] = 1
    bag[:] = 0.0
    for experiment in range(num_experiments):
        bag += counts[experiment] * likelihoods[experiment]
    best_counts = counts.copy()
    for picked in range(begin, steps):
        added, least = 0, np.inf
        for experiment in range(num_experiments):
            loss = _bag_loss(bag, likelihoods[experiment], picked + 1)
            if loss < least:
                added, least = experiment, loss
        counts[added] += 1
        bag += likelihoods[added]
        if least < best_loss:
            best_loss, best_counts = least, counts.copy()
    return best_counts / best_counts.sum()


@numba.njit(cache=False)
def _bag_loss(bag, more, size):
    """Mean of -ln((bag + more) / size)."""
    total, product = 0.0, 1.0
    for video in range(len(bag)):
        product *= (bag[video] + more[video]) / size
        if product < 1e-200:
            total -= np.log(product)
            product = 1.0
    return (total - np.log(product)) / len(bag)
