"""What twinpass is compared with, built from the same configuration."""

from dataclasses import asdict, replace
from typing import Any

from torch import nn

from twinpass.bench.first_order import FirstOrder
from twinpass.bench.naive import NaiveMezo
from twinpass.bench.probe import LinearProbe
from twinpass.config.learner import options_of
from twinpass.config.schema import Config
from twinpass.errors import ConfigError
from twinpass.estimate.backprop import Backprop
from twinpass.estimate.base import Estimator
from twinpass.estimate.feedback import Feedback
from twinpass.estimate.gauss_newton import GaussNewton
from twinpass.model.causal import CausalModel
from twinpass.model.defaults import CHOSEN, EXACT, among
from twinpass.model.load import load
from twinpass.model.trainable import Activated, Informed, Lora
from twinpass.objective.base import Objective
from twinpass.reuse.auto import Auto
from twinpass.schedule.epsilon import ConstantEpsilon
from twinpass.train.adamw import AdamW
from twinpass.train.optimizer import Sgd

LORA = Lora()
FIRST_ORDER_LR = 2e-3
MEZO_LR = 2e-3
"""Plain MeZO's for LoRA, which acts on all tokens: what suits adapters that act on the answer alone throws it off (docs/log.md)."""


def naive(config: Config, objective: Objective, *, lean: bool = False) -> NaiveMezo:
    """Plain MeZO on what the configuration trains, to minimise ``objective``; adapters are LoRA of the same rank and targets, acting everywhere."""
    if isinstance(config.trainable, Lora):
        model, parameters = _adapted(config, config.trainable)
        return NaiveMezo(model, parameters, objective, lean=lean)
    base, _ = load(**asdict(config.model))
    names = set(config.trainable.attach(base, 0).parameters)
    parameters = [parameter for name, parameter in base.named_parameters() if name in names]
    return NaiveMezo(base, parameters, objective, lean=lean)


def mezo_lr(config: Config) -> float:
    """The rate that plain MeZO begins with."""
    return MEZO_LR if isinstance(config.trainable, Activated) else config.optimizer.lr


def exact(config: Config) -> Config:
    """The same task as it is learned where nothing is said: by AdamW along the exact gradient over cached prompts."""
    suits = among(options_of(config.task, ()), CHOSEN) if config.task.chooses else EXACT
    placed: dict[str, Any] = {} if suits.targets is None else {"targets": suits.targets, "first": suits.first}
    optimizer = AdamW(lr=suits.lr, steps=suits.steps, batch_size=suits.batch_size, schedule=suits.schedule)
    return _along(config, Activated(**placed), Backprop(), optimizer)


def fed_back(config: Config) -> Config:
    """The same task by AdamW along residual feedback, for adapters where informed probes have their directions: lower down it points nowhere."""
    where = Informed()
    trainable = Activated(targets=where.targets, first=-where.layers)
    lr = FIRST_ORDER_LR if config.task.chooses else EXACT.lr
    return _along(
        config, trainable, Feedback(), AdamW(lr=lr, batch_size=config.optimizer.batch_size, schedule="linear")
    )


def _along(config: Config, trainable: Activated, estimator: Estimator, optimizer: AdamW) -> Config:
    return replace(config, trainable=trainable, estimator=estimator, optimizer=optimizer, engine=config.engine.usual)


def informed(config: Config) -> Config:
    """The same task by informed probes, with their own defaults."""
    trainable, suited = Informed(), Informed.defaults
    optimizer = Sgd(lr=suited.lr, steps=suited.steps, batch_size=suited.batch_size, schedule=suited.schedule)
    return replace(
        config,
        trainable=trainable,
        estimator=GaussNewton(),
        optimizer=optimizer,
        epsilon=ConstantEpsilon(value=suited.eps),
        reuse=Auto(budget=config.reuse.budget, page_size=config.reuse.page_size),
        engine=config.engine.usual,
    )


def linear_probe(config: Config) -> LinearProbe:
    """A probe on the configuration's model."""
    return LinearProbe(CausalModel(load(**asdict(config.model))[0]))


def first_order(config: Config, objective: Objective, *, low: bool = False) -> FirstOrder:
    """LoRA with AdamW, of the configuration's rank and targets if it has any; ``low``: with products in bfloat16."""
    lora = config.trainable if isinstance(config.trainable, Lora) else LORA
    model, parameters = _adapted(config, lora)
    return FirstOrder(model, parameters, objective, FIRST_ORDER_LR, low=low)


def _adapted(config: Config, lora: Lora) -> tuple[nn.Module, list[nn.Parameter]]:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(config.source, ["the baseline needs PEFT for its adapters: pip install peft"]) from error
    base: Any = load(**asdict(config.model))[0]
    targets, first = lora.places(base)
    layers = list(range(first, base.config.num_hidden_layers)) if first else None
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(targets), layers_to_transform=layers)
    model: Any = get_peft_model(base, settings)
    return model, [parameter for name, parameter in model.named_parameters() if "lora_" in name]
