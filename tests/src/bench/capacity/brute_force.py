"""The same answer as `kubectl spillway optimize`, by numpy over all samples: the yardstick of `cargo xtask bench capacity`.

Usage: brute_force.py TRACE RATIO RESAMPLES. A trace has a header, and rows of seconds and whole GPUs, a minute apart.
"""
import json
import sys
import time

import numpy

BLOCK = 7 * 24 * 60
PARTS = 6


def costs(demand, ratio, most):
    """What each number of owned GPUs costs per hour, one after the other."""
    return numpy.array([owned + ratio * numpy.maximum(demand - owned, 0).mean() for owned in range(most + 1)])


def regret(demand, first, second, to, ratio, most):
    """What the advice on one part of the time costs more on what followed than the best there."""
    advice = costs(demand[first:second], ratio, most).argmin()
    later = costs(demand[second:to], ratio, most)
    return later[advice] / later.min() - 1


def main():
    trace, ratio, resamples = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    begun = time.perf_counter()
    demand = numpy.loadtxt(trace, delimiter=",", skiprows=1, usecols=1, dtype=numpy.int64)
    read = time.perf_counter()
    most = int(demand.max())
    curve = costs(demand, ratio, most)
    best = int(curve.argmin())
    count = len(demand)
    regrets = [regret(demand, 0, count // 2, count, ratio, most)]
    cuts = [round(count * part / PARTS) for part in range(PARTS + 1)]
    regrets += [regret(demand, 0, cuts[part], cuts[part + 1], ratio, most) for part in range(1, PARTS)]
    block = min(BLOCK, count // 4)
    blocks = -(-count // block)
    circle = numpy.concatenate([demand, demand[:block]])
    draw = numpy.random.default_rng(1)
    bests = numpy.empty(resamples)
    for index in range(resamples):
        starts = draw.integers(0, count, blocks)
        again = numpy.concatenate([circle[start : start + block] for start in starts])
        # Cheaper than every cost again: how often each level was had, and the first that is enough.
        passed = numpy.bincount(again, minlength=most + 1).cumsum()
        bests[index] = numpy.searchsorted(passed, (1 - 1 / ratio) * len(again))
    done = time.perf_counter()
    answer = {
        "gpus": best,
        "per_hour": float(curve[best]),
        "from_gpus": float(numpy.quantile(bests, 0.025)),
        "to_gpus": float(numpy.quantile(bests, 0.975)),
        "regret": [float(one) for one in regrets],
        "read_s": read - begun,
        "answer_s": done - read,
    }
    print(json.dumps(answer))


main()
