"""What an embedded engine consists of: checked, tried on the model, and chosen before there is an engine."""

import warnings
from dataclasses import dataclass, replace

from twinpass.cache.spill import Spill
from twinpass.core import BASE
from twinpass.engine.embedded.linear.mixed import LEAVE_OUT, Paired, arithmetic_of
from twinpass.engine.embedded.linear.products import Prepacked
from twinpass.engine.embedded.linear.tandem import Tandem
from twinpass.engine.embedded.routes import LaneRunner, OwnForward, PackedRoute, Route
from twinpass.engine.embedded.scoring.ledger import Ledger
from twinpass.engine.embedded.scoring.packing_check import PackingCheck, reads_columns, sees_ahead
from twinpass.engine.embedded.scoring.scorer import PackedScorer
from twinpass.engine.embedded.scoring.sharing import SharingByBlock
from twinpass.errors import ModelError
from twinpass.model.causal import CausalModel, output_layer, scattered
from twinpass.model.identity import digest, hash_of, require_finite
from twinpass.model.informed import InformedAdapter
from twinpass.model.trainable import Trained
from twinpass.paths import expand
from twinpass.perturb.inplace import InPlaceWeights
from twinpass.perturb.lattice import Lattice
from twinpass.perturb.noise import Distribution
from twinpass.reuse.base import Policy
from twinpass.reuse.exact import Exact
from twinpass.settings import ComputeDtype, Perturbation

_ONE_LANE = (
    "engine.perturbation = 'inplace' runs one lane at a time, so that none can take its prefix from another; "
    "use 'tandem', or reuse.policy = 'exact'"
)

CHUNK_ROWS = 1536
"""Rows, of all lanes together, that run at once on a CPU; larger batches are cut, so that memory does not grow with them."""


@dataclass(frozen=True, slots=True)
class Parts:
    """Parts of an engine. ``reason``: why its batches are not packed, where they are not; then there is no ``scorer``.

    ``own_prefixes``: why no lane may take its prefix from elsewhere, where none may.
    ``inplace``: the weights in memory, where they stand at one lane at a time; ``paired``: products in bfloat16, where they are.
    """

    base_hash: str
    ledger: Ledger
    sharing: SharingByBlock
    runner: LaneRunner
    route: Route
    scorer: PackedScorer | None
    reason: str
    own_prefixes: str | None
    prepacked: Prepacked
    inplace: InPlaceWeights | None
    paired: Paired | None


def parts_of(
    causal: CausalModel,
    trained: Trained,
    *,
    noise: Distribution,
    perturbation: Perturbation,
    policy: Policy,
    chunk_rows: int,
    compute_dtype: ComputeDtype | None,
) -> Parts:
    """For what is ``trained`` of a model, ``chunk_rows`` rows at a time; the rest is as for :class:`twinpass.engine.embedded.engine.TorchEngine`.

    Raises:
        ModelError: the model or its trainable weights cannot be used; the message says which and why.
    """
    model = causal.model
    require_finite(model)
    tandem_lanes = perturbation == "tandem"
    arithmetic = arithmetic_of(compute_dtype, model, one_pass=tandem_lanes and not policy.approximate)
    paired = arithmetic if isinstance(arithmetic, Paired) else None
    tandem = Tandem(model, trained.parameters if tandem_lanes else None, trained.adapters, arithmetic)
    runner = LaneRunner(trained, tandem, noise)
    inplace = placed(trained, noise, perturbation)
    base_hash = hash_of(model)
    if policy.approximate and not tandem_lanes:
        raise ModelError(_ONE_LANE)
    if policy.caution:
        _warn(policy.caution)
    ledger = Ledger.of(base_hash, causal, trained)
    packing, sharing = _tried(causal, SharingByBlock(policy, ledger, causal.depth, trained.activated))
    prepacked = Prepacked(model, output_layer(model), low=paired is not None)
    scorer: PackedScorer | None = None
    route: Route = OwnForward(runner, causal)
    if packing.packs:
        if isinstance(trained.adapter, InformedAdapter) and not causal.finishes:
            raise ModelError(f"trainable.kind 'informed': {scattered(causal)}; use 'activated' instead")
        scorer = _scorer(causal, sharing, packing, chunk_rows, _spill(causal, sharing.policy, base_hash, paired))
        scorer.passes.linear = None if paired is None else paired.alone
        scorer.narrow = tandem.reads_columns and reads_columns(causal, runner.running(runner.weights([BASE])))
        route = PackedRoute(runner, scorer, ledger, sharing, one_by_one=not tandem_lanes)
    elif sees_ahead(causal):
        raise ModelError(
            f"{type(model).__name__} reads tokens that come later, too, so that what it is to write would be known to it; "
            "load it as a decoder (is_decoder=True), where it can be one, or take a model that writes from left to right"
        )
    elif paired is not None:
        raise ModelError(
            f"compute_dtype = 'bfloat16' pairs lanes in packed passes, and {type(model).__name__} cannot be packed "
            f"({packing.reason}); load it in bfloat16 (model.dtype), {LEAVE_OUT}"
        )
    else:
        _warn(
            f"{type(model).__name__} does not give the same scores when its batch is packed ({packing.reason}); "
            "sequences run by its own forward instead: exact, but slower, and nothing is reused"
        )
    return Parts(
        base_hash=base_hash,
        ledger=ledger,
        sharing=sharing,
        runner=runner,
        route=route,
        scorer=scorer,
        reason=packing.reason,
        own_prefixes=_own_prefixes(sharing, inplace, paired),
        prepacked=prepacked,
        inplace=inplace,
        paired=paired,
    )


def placed(trained: Trained, noise: Distribution, perturbation: Perturbation) -> InPlaceWeights | None:
    """The trained weights rounded to a grid on which they can walk from lane to lane and back exactly; None: lanes run together, and no weight moves."""
    return InPlaceWeights(Lattice(trained.parameters, noise)) if perturbation == "inplace" else None


def _own_prefixes(sharing: SharingByBlock, inplace: InPlaceWeights | None, paired: Paired | None) -> str | None:
    if inplace is not None:
        return _ONE_LANE
    if paired is not None:
        return f"compute_dtype = 'bfloat16' pairs lanes, each of which computes its own prefix: use an exact policy, {LEAVE_OUT}"
    if sharing.all:
        return "what is trained leaves tokens or layers alone that are shared exactly; plan with that policy"
    return None


def _tried(causal: CausalModel, sharing: SharingByBlock) -> tuple[PackingCheck, SharingByBlock]:
    """Whether the model can be packed, and what lanes share: what the policy says, if layers can run apart as that takes."""
    cut = max(sharing.cuts)
    packing = PackingCheck.of(causal, cut)
    if packing.packs or not cut or not (whole := PackingCheck.of(causal, 0)).packs:
        return packing, sharing
    _warn(
        f"the layers of {type(causal.model).__name__} cannot run apart ({packing.reason}); reuse.policy is 'exact'",
        deeper=1,
    )
    exact = Exact(budget=sharing.policy.budget, page_size=sharing.policy.page_size)
    return whole, replace(sharing, policy=exact)


def _scorer(
    causal: CausalModel, sharing: SharingByBlock, packing: PackingCheck, chunk_rows: int, spill: Spill | None
) -> PackedScorer:
    cuts, policy = sharing.cuts, sharing.policy
    states = packing.hidden_bytes if max(cuts) or policy.approximate else 0
    states_only = any(shared.below for shared in sharing.all)
    sizes = packing.layer_bytes, states
    return PackedScorer.sized(causal, policy, cuts, *sizes, chunk_rows, spill, states_only=states_only)


def _spill(causal: CausalModel, policy: Policy, base_hash: str, paired: Paired | None) -> Spill | None:
    if policy.disk is None:
        return None
    config = causal.model.config.to_dict()
    same = {key: value for key, value in config.items() if key not in ("_name_or_path", "transformers_version")}
    products = "own" if paired is None else "bfloat16"
    dtype = f"{causal.model.dtype}, products {products}"
    return Spill(expand(policy.disk), {"base": base_hash, "dtype": dtype, "config": digest(same)}, causal.depth)


def _warn(message: str, deeper: int = 0) -> None:
    """Warn, in the name of the line that makes the engine."""
    warnings.warn(message, stacklevel=4 + deeper)
