"""`python -m bench` measures and writes results.md, results.png and results.json beside it; -h lists the options."""

import argparse
import json
import logging
import pathlib
import sys
import time
import warnings

import torch
import tqdm

from bench import measure, show
from bench.ways import WAYS

PARTS = {"memory": measure.measure_memory, "layers": measure.measure_layers, "model": measure.measure_model}


def main(arguments=None):
    options = parser().parse_args(arguments)
    sizes = measure.Sizes(**json.loads(options.sizes))
    torch.set_num_threads(options.threads)
    if options.memory_of:
        way = next(way for way in WAYS if way.name == options.memory_of)
        print(json.dumps(measure.memory_of(way, sizes)))
        return
    warnings.simplefilter("ignore")  # those of the peers, and what they log while they are imported
    logging.disable(logging.WARNING)
    ways = [way for way in WAYS if any(part in way.name for part in ["float32", *options.ways])]
    run(ways, sizes, options.parts, pathlib.Path(options.out))


def parser():
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure; by default all"
    )
    parser.add_argument("--ways", nargs="+", default=[""], help="only ways in whose name one of these stands")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="by default as many as PyTorch's")
    parser.add_argument("--sizes", default="{}", help='other sizes, as JSON: {"rounds": 3}; see measure.Sizes')
    parser.add_argument("--out", default=pathlib.Path(__file__).parent, help="the folder that the results go to")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)  # what a child process is asked
    return parser


def run(ways, sizes, parts, folder):
    """Measure some parts and write them; parts that were measured before and are not now keep their results."""
    path = folder / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for part in parts:
        load, start = show.load(), time.time()
        with tqdm.tqdm(total=steps(part, ways, sizes), desc=part, file=sys.stderr) as bar:
            measured = PARTS[part](ways, sizes, bar.update)
        about = show.about() | {"load": [load, show.load()], "minutes": round((time.time() - start) / 60, 1)}
        results[part] = {"about": about, "measured": measured, "sizes": sizes._asdict()}
        path.write_text(json.dumps(results, indent=1) + "\n")
        (folder / "results.md").write_text(show.page(results))
        if part != "memory":
            show.picture(results).savefig(folder / "results.png", dpi=100)
    print(f"Written: {folder / 'results.md'} and results.png")


def steps(part, ways, sizes):
    """How many steps a part takes, for the progress bar: each way is made, tried once and then run in each round."""
    if part == "layers":
        return len(sizes.shapes) * len(ways) * (1 + len(sizes.batches) * (1 + sizes.rounds))
    in_models = sum(way.whole_model for way in ways)
    return in_models if part == "memory" else in_models * (2 + sizes.rounds)


if __name__ == "__main__":
    main()
