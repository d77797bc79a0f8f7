"""Products by oneDNN: the same numbers as ``linear``, where they apply, and nothing left behind."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import nn

from twinpass.engine.embedded.linear import products
from twinpass.engine.embedded.linear.products import Prepacked, halved, own_products, product, whole
from twinpass.model.causal import is_linear


def operands(rows: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(*shape, generator=generator).to(dtype) for shape in ((rows, 33), (17, 33), (17,)))  # type: ignore[return-value]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 3, 96, 700])
def test_a_product_is_the_product(rows: int, bias: bool) -> None:
    x, weight, b = operands(rows)
    found = product(x.view(1, rows, 33), weight, b if bias else None)
    exact = x.double() @ weight.double().t() + (b.double() if bias else 0.0)
    assert found.shape == (1, rows, 17)
    assert torch.allclose(found[0].double(), exact, atol=1e-5)


def test_the_operator_is_there_with_the_pinned_versions() -> None:
    """Elsewhere its absence only costs time; here it would hide that nothing above was tested."""
    assert products._onednn(torch.float32) is not None


Change = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Recorded(Exception):
    """The operator was called."""


@pytest.mark.parametrize(
    ("change", "uses"),
    [
        (lambda x, w: (x, w), True),
        (lambda x, w: (x.double(), w.double()), False),
        (lambda x, w: (x.bfloat16(), w.bfloat16()), False),
        (lambda x, w: (x, w.t().contiguous().t()), False),
        (lambda x, w: (x[:0], w), False),
    ],
    ids=["float32", "float64", "bfloat16", "transposed", "empty"],
)
def test_only_what_it_is_for_goes_there(monkeypatch: pytest.MonkeyPatch, change: Change, uses: bool) -> None:
    def operator(*args: object) -> None:
        raise Recorded

    monkeypatch.setattr(products, "_onednn", lambda dtype: operator)
    x, weight = change(*operands(4)[:2])
    with torch.no_grad():
        if uses:
            with pytest.raises(Recorded):
                product(x, weight)
        else:
            assert torch.equal(product(x, weight), torch.nn.functional.linear(x, weight))
    trained = nn.Parameter(weight)
    assert product(x, trained).requires_grad


def test_where_it_is_missing_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_onednn", lambda dtype: None)
    x, weight, bias = operands(4)
    with torch.no_grad():
        assert torch.equal(product(x, weight, bias), torch.nn.functional.linear(x, weight, bias))


@pytest.mark.parametrize(
    "operator",
    [lambda x, *args: x, lambda *args: 1 / torch.zeros(2, 3), None],
    ids=["wrong shape", "wrong values", "not an operator"],
)
def test_an_operator_that_computes_something_else_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, operator: object
) -> None:
    class Ops:
        _linear_pointwise = operator

    products._onednn.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Ops)
    try:
        assert products._onednn(torch.float32) is None
    finally:
        products._onednn.cache_clear()


class Doubled(nn.Linear):
    """A linear layer with a forward of its own."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return 2 * super().forward(input)


@torch.no_grad()
def test_modules_are_as_before_afterwards() -> None:
    model = nn.Sequential(nn.Linear(33, 17), nn.ReLU(), Doubled(17, 3, bias=False))
    x = operands(5)[0]
    before = model(x)
    with own_products(filter(is_linear, model.modules())):
        assert "forward" in model[0].__dict__
        assert "forward" not in model[2].__dict__
        assert torch.allclose(model(x), before, atol=1e-5)
    assert all("forward" not in module.__dict__ for module in model.modules())


@torch.no_grad()
def test_a_forward_that_someone_set_is_kept() -> None:
    model = nn.Sequential(nn.Linear(33, 17))
    model[0].forward = lambda x: x
    x = operands(5)[0]
    with own_products(filter(is_linear, model.modules())):
        assert model(x) is x


def tied() -> nn.Sequential:
    """Two layers of their own weight, one that is trained, two that share one, and one with a forward of its own."""
    layers = [nn.Linear(33, 17), nn.Linear(17, 17, bias=False), nn.Linear(17, 33), Doubled(33, 17)]
    model = nn.Sequential(*layers, nn.Linear(17, 17), nn.Linear(17, 17))
    model[5].weight = model[4].weight
    return model


@torch.no_grad()
@pytest.mark.parametrize("rows", [0, 1, 3, 96, 700, 2100])
def test_blocks_change_no_value_and_hardly_a_product(rows: int) -> None:
    """The number of rows may decide in which order oneDNN sums: then the last bits differ."""
    model = tied()
    model[0].requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x, _, _ = operands(rows)
    with own_products(filter(is_linear, model.modules())):
        expected = model(x)
        blocked = Prepacked(model, model[2])
        blocked.pack()
        assert [module.weight.layout is torch.strided for module in model] == [False, False, True, True, True, True]
        assert torch.allclose(model(x), expected, rtol=0, atol=1e-5)
        blocked.pack()
        blocked.unpack()
        assert torch.equal(model(x), expected)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert model[5].weight is model[4].weight
    assert [module.weight.requires_grad for module in model] == [False, True, True, True, True, True]


@torch.no_grad()
def test_a_product_that_blocks_are_not_for_reads_them_as_rows() -> None:
    x, weight, bias = operands(4)
    module = nn.Linear(33, 17)
    module.weight.copy_(weight)
    Prepacked(nn.Sequential(module), None).pack()
    assert module.weight.layout is not torch.strided
    assert torch.equal(product(x[:0], module.weight), x[:0] @ weight.t())
    with torch.enable_grad():
        assert product(x.requires_grad_(), module.weight, bias).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_stay_in_rows(dtype: torch.dtype) -> None:
    model = nn.Sequential(nn.Linear(33, 17, dtype=dtype))
    Prepacked(model, None).pack()
    assert model[0].weight.layout is torch.strided


@pytest.mark.parametrize(
    "operator",
    [lambda weight, rows: weight, lambda weight, rows: (2 * weight).to_mkldnn(), None],
    ids=["rows", "other values", "not an operator"],
)
def test_blocks_that_are_none_or_wrong_are_left_alone(monkeypatch: pytest.MonkeyPatch, operator: object) -> None:
    class Ops:
        _linear_pointwise = torch.ops.mkldnn._linear_pointwise
        _reorder_linear_weight = operator

    products._prepack.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", Ops)
    try:
        assert products._prepack(torch.float32) is None
        model = nn.Sequential(nn.Linear(33, 17))
        Prepacked(model, None).pack()
        assert model[0].weight.layout is torch.strided
    finally:
        products._prepack.cache_clear()
    monkeypatch.undo()
    assert products._prepack(torch.float32) is not None


CAPACITIES = """
import os
import twinpass.engine.embedded.linear.products
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"])
"""


@pytest.mark.full
@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "500"},
    ],
)
def test_onednn_keeps_few_compiled_products_unless_the_user_wants_more(asked: dict[str, str]) -> None:
    """It compiles one for every number of rows; what they take in memory is measured by ``make bench-memory``."""
    unset = {name: value for name, value in os.environ.items() if not name.endswith("CACHE_CAPACITY")}
    found = subprocess.run([sys.executable, "-c", CAPACITIES], env=unset | asked, check=True, capture_output=True)
    assert found.stdout.split() == [value.encode() for value in (asked.values() or [str(products.KEPT)] * 2)]


def test_a_weight_in_two_halves_comes_back_to_the_bit() -> None:
    """Over every pattern of the lower bits, of both signs, at the least and the largest exponent and between them."""
    lower = torch.arange(2**16, dtype=torch.int64)
    upper = torch.tensor([0x0000, 0x0001, 0x3F7F, 0x3F80, 0x4049, 0x7F7E, 0x8000, 0xBF80, 0xFF7E], dtype=torch.int64)
    bits = ((upper[:, None] << 16) | lower).to(torch.int32)
    weight = bits.view(torch.float32)
    low, rest = halved(weight)
    assert torch.equal(whole(low, rest).view(torch.int32), bits)
    off = (low.double() - weight.double()).abs()
    assert bool((off <= (weight.bfloat16().double() - weight.double()).abs()).all())


@pytest.mark.parametrize("bias", [True, False])
def test_weights_held_in_bfloat16_take_no_more_memory_and_come_back(bias: bool) -> None:
    model = nn.Sequential(nn.Linear(64, 32, bias=bias), nn.Linear(32, 8, bias=bias))
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    blocked = Prepacked(model, model[1], low=True)
    blocked.pack()
    blocked.pack()
    assert model[0].weight.dtype is torch.bfloat16
    assert model[1].weight.dtype is torch.float32
    blocked.unpack()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())
