"""What twinpass is compared with, built from the same configuration."""

from dataclasses import asdict
from typing import Any

from torch import nn

from twinpass.bench.first_order import FirstOrder
from twinpass.bench.naive import NaiveMezo
from twinpass.config.schema import Config
from twinpass.errors import ConfigError
from twinpass.model.load import load
from twinpass.model.trainable import Lora

LORA = Lora()
FIRST_ORDER_LR = 2e-3


def naive(config: Config) -> NaiveMezo:
    """Plain MeZO on what the configuration trains; adapters are LoRA of the same rank and targets, acting everywhere."""
    if isinstance(config.trainable, Lora):
        model, parameters = _adapted(config, config.trainable)
        return NaiveMezo(model, parameters, config.task.objective())
    base, _ = load(**asdict(config.model))
    names = set(config.trainable.attach(base, 0).parameters)
    return NaiveMezo(
        base, [parameter for name, parameter in base.named_parameters() if name in names], config.task.objective()
    )


def first_order(config: Config, *, low: bool = False) -> FirstOrder:
    """LoRA with AdamW, of the configuration's rank and targets if it has any; ``low``: with products in bfloat16."""
    lora = config.trainable if isinstance(config.trainable, Lora) else LORA
    model, parameters = _adapted(config, lora)
    return FirstOrder(model, parameters, FIRST_ORDER_LR, low=low)


def _adapted(config: Config, lora: Lora) -> tuple[nn.Module, list[nn.Parameter]]:
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise ConfigError(
            config.source, ["the baseline needs PEFT for its adapters: pip install 'twinpass[peft]'"]
        ) from error
    base: Any = load(**asdict(config.model))[0]
    layers = list(range(lora.first, base.config.num_hidden_layers)) if lora.first else None
    targets = list(lora.targets)
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, layers_to_transform=layers)
    model: Any = get_peft_model(base, settings)
    return model, [parameter for name, parameter in model.named_parameters() if "lora_" in name]
