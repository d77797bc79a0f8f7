"""Rows with one right answer among options."""

from collections.abc import Sequence
from dataclasses import field

from pydantic.dataclasses import dataclass as settings

from twinpass.errors import DataError
from twinpass.settings import STRICT, Texts
from twinpass.task.rows import Row
from twinpass.task.template import Template, field_of


@settings(frozen=True, config=STRICT)
class ChoiceTemplate(Template):
    """The answer is one of ``options``.

    ``label`` names the field with the answer: an option's index, its text, or an entry of ``labels``, which
    names the options in their order.
    """

    options: Texts = field(kw_only=True)
    label: str = "label"
    labels: Texts = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.options) < 2:
            raise ValueError(f"options: expected at least two answers to choose from, got {list(self.options)}")
        if len(set(self.options)) < len(self.options) or not all(self.options):
            raise ValueError(f"options: they must be different and not empty, got {list(self.options)}")
        if self.labels and len(self.labels) != len(self.options):
            raise ValueError(f"labels: {len(self.labels)} names for {len(self.options)} options; give one for each")

    def answers(self, row: Row) -> tuple[Sequence[str], int]:
        return self.options, self._label(row)

    def _label(self, row: Row) -> int:
        value = field_of(row, self.label, "task")
        stripped = tuple(option.strip() for option in self.options)
        indices = tuple(str(i) for i in range(len(self.options)))
        for names in (self.labels, self.options, stripped, indices):
            if value in names:
                return names.index(str(value))
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(self.options):
            return value
        known = list(self.labels or self.options)
        raise DataError(f"{row.place}: {self.label} is {value!r:.40}, expected 0 to {len(known) - 1} or one of {known}")
