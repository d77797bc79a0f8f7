"""Root mean square norms: known by what they return, the same numbers in one pass."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from twinpass.engine.embedded.linear.norms import norms_of, offset_of, own_norms, rms_norm

WIDTH = 48


class Sum(nn.Module):
    """Says that it has an ``eps`` and a weight, and computes something else."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.rand(WIDTH)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


def random_weight(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        module.get_parameter("weight").copy_(torch.rand(WIDTH, generator=torch.Generator().manual_seed(1)) + 0.5)
    return module


@pytest.mark.parametrize(
    ("make", "offset"),
    [
        (lambda: LlamaRMSNorm(WIDTH, 1e-6), 0.0),
        (lambda: nn.RMSNorm(WIDTH, 1e-5), 0.0),
        (lambda: GemmaRMSNorm(WIDTH, 1e-6), 1.0),
        (lambda: nn.LayerNorm(WIDTH), None),
        (lambda: LlamaRMSNorm(WIDTH, 1e-6).double(), None),
        (Sum, None),
        (lambda: nn.Linear(WIDTH, WIDTH), None),
    ],
)
def test_norms_are_known_by_what_they_return(make: Callable[[], nn.Module], offset: float | None) -> None:
    assert offset_of(random_weight(make()) if offset is not None else make()) == offset


@pytest.mark.parametrize("shape", [(2, 7, WIDTH), (2, 300, WIDTH), (3, 5, 4, WIDTH), (2, 0, WIDTH), (1, 1, WIDTH)])
def test_each_lane_is_scaled_by_its_own_weight(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    x, weight = torch.randn(shape, generator=generator), torch.randn(shape[0], WIDTH, generator=generator)
    wide = x.double()
    expected = wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    expected = expected * (1 + weight.double()).view(shape[0], *[1] * (len(shape) - 2), WIDTH)
    torch.testing.assert_close(rms_norm(x, weight, 1e-6, 1.0).double(), expected, rtol=2e-6, atol=2e-6)


def test_rows_that_do_not_lie_one_after_another() -> None:
    x = torch.randn(2, WIDTH, 9, generator=torch.Generator().manual_seed(4)).transpose(1, 2)
    weight = torch.ones(2, WIDTH)
    assert torch.equal(rms_norm(x, weight, 1e-6, 0.0), rms_norm(x.contiguous(), weight, 1e-6, 0.0))


def test_a_models_norms_take_one_pass_for_a_while() -> None:
    model = nn.Sequential(random_weight(LlamaRMSNorm(WIDTH, 1e-6)), Sum(), random_weight(GemmaRMSNorm(WIDTH, 1e-6)))
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5))
    norms = norms_of(model)
    assert [norm.module for norm in norms] == [model[0], model[2]]
    with torch.no_grad(), own_norms(norms):
        first, own = norms[0].module(x), model(x)
        assert torch.equal(first, rms_norm(x, norms[0].module.get_parameter("weight")[None], 1e-6, 0.0))
        assert norms[0].module(x.double()).dtype is torch.float64
    torch.testing.assert_close(own, model(x), rtol=2e-6, atol=2e-6)
    with own_norms(norms):
        assert model(x.requires_grad_()).requires_grad
    assert not any("forward" in module.__dict__ for module in model)
