"""How well the demo's network reads drawings that it never saw, seed by seed.

python benchmarks/demo_seeds.py --seeds 0 1 2 3 4
"""

import argparse
import time

from torch_featviz.zoo import train_xo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    seeds = parser.parse_args().seeds
    print("| seed | held-out accuracy | mistakes | training, s |\n|---|---|---|---|", flush=True)
    for seed in seeds:
        start = time.perf_counter()
        _, _, result = train_xo(seed, progress=False)
        mistakes = int(result.confusion.sum() - result.confusion.diagonal().sum())
        print(f"| {seed} | {result.accuracy:.2%} | {mistakes} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
