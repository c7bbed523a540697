"""How well the demo's network reads drawings that it never saw, seed by seed, and what a Monitor finds in its training.

python benchmarks/demo_seeds.py --seeds 0 1 2 3 4
"""

import argparse
import time

from torch_featviz.training import Monitor
from torch_featviz.zoo import train_xo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=range(5))
    parser.add_argument("--every", type=int, default=20, help="steps from one that is looked at to the next")
    arguments = parser.parse_args()
    print("| seed | held-out accuracy | mistakes | training, s | found |\n|---|---|---|---|---|", flush=True)
    for seed in arguments.seeds:
        watched = []

        def watch(net, watched=watched):
            watched.append(Monitor(net, every=arguments.every))
            return watched[0].step

        start = time.perf_counter()
        _, _, result = train_xo(seed, watch=watch, progress=False)
        seconds = time.perf_counter() - start
        mistakes = int(result.confusion.sum() - result.confusion.diagonal().sum())
        found = len(watched[0].findings)
        print(f"| {seed} | {100 * result.accuracy:.2f} % | {mistakes} | {seconds:.0f} | {found} |", flush=True)


if __name__ == "__main__":
    main()
