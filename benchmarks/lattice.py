"""What rounding to the lattice costs, and that a chain of perturbations comes back: ``python benchmarks/lattice.py``.

All weights of SmolLM2-135M, on the held-out reviews: loss and accuracy before and after rounding, and how many
weights differ after +eps, -2 eps, +eps on the lattice and by the paper's plain float32 additions.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from twinpass.config.compose import build_embedded
from twinpass.config.load import load_config
from twinpass.core import Lane, Probe, Term
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.report.environment import commit, machine, versions
from twinpass.report.files import write_json

EPS = 2.0**-10
OVERRIDES = ("trainable.kind='full'", "engine.noise='binomial'")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the result")
    args = parser.parse_args()
    config = load_config(Path(__file__).parent.parent / "examples/reviews-full.toml", OVERRIDES)
    session = build_embedded(config)
    engine, plan = session.engine, session.plan
    parameters = engine.parameters
    exact = plan.objective.evaluate(engine, plan.held_out)
    base = {name: flat.copy() for name, flat in parameters.flat.items()}
    for scale in (EPS, -2 * EPS, EPS):
        parameters.add([Term(1, scale)], "gaussian")
    drifted = sum(int((flat != base[name]).sum()) for name, flat in parameters.flat.items())
    for name, flat in parameters.flat.items():
        flat[:] = base[name]
    lattice = Lattice(parameters, "binomial")
    rounded = plan.objective.evaluate(engine, plan.held_out)
    moved = max(float(np.abs(flat - base[name]).max()) for name, flat in parameters.flat.items())
    snapped = {name: flat.copy() for name, flat in parameters.flat.items()}
    walk = InPlaceWeights(lattice)
    for sign in (1, -1):
        walk.move_to(Lane(Probe(1), sign, EPS))
    walk.update([Term(1, 1e-6)])
    walk.settle()
    walk.undo([Term(1, 1e-6)])
    walk.settle()
    left = sum(int((flat != snapped[name]).sum()) for name, flat in parameters.flat.items())
    result = {
        "weights": parameters.numel,
        "base": {"loss": exact.loss, "accuracy": exact.metric},
        "rounded": {"loss": rounded.loss, "accuracy": rounded.metric},
        "largest_move": moved,
        "loss_change": rounded.loss - exact.loss,
        "changed_by_lattice_chain": left,
        "changed_by_float_chain": drifted,
        "commit": commit(),
        "machine": machine(),
        "versions": versions(),
    }
    print(json.dumps({k: v for k, v in result.items() if k not in ("machine", "versions")}, indent=2))
    if args.json:
        write_json(args.json, result)


if __name__ == "__main__":
    main()
