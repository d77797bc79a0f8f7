"""Products by oneDNN: the same numbers as ``linear``, where they apply, and nothing left behind."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from twinpass.engine.embedded import products
from twinpass.engine.embedded.products import is_linear, own_products, product


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
    assert products._onednn() is not None


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

    monkeypatch.setattr(products, "_onednn", lambda: operator)
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
    monkeypatch.setattr(products, "_onednn", lambda: None)
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
        assert products._onednn() is None
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
