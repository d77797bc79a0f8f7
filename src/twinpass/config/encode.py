"""From rows to examples: the one way, for configuration files and for Python."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from twinpass.config.tasks import Reading, TaskSettings, WritingTools
from twinpass.errors import DataError
from twinpass.model.causal import CausalModel, ends
from twinpass.model.trainable import Trainable
from twinpass.objective.generation import Generation
from twinpass.objective.goal import Goal
from twinpass.report.terminal import cleared
from twinpass.task.activation import activation_points, common_suffix, last_token
from twinpass.task.choice import ChoiceTemplate
from twinpass.task.example import Example
from twinpass.task.limits import Limits
from twinpass.task.reward import completed
from twinpass.task.rows import Faults, Item, Row
from twinpass.task.split import split
from twinpass.task.template import Template

SHOWN = 12
"""Options that the log names."""


@dataclass(frozen=True)
class Encoded:
    """Examples, the goal and template they are for, and the tokens that activate an activated adapter (none for other weights).

    ``notes`` say what was found and done, for the log.
    """

    train: Sequence[Example]
    held_out: Sequence[Example]
    objective: Goal
    template: Template
    invocation: tuple[int, ...] = ()
    notes: tuple[str, ...] = ()


def encode(
    task: TaskSettings,
    train: Sequence[Item],
    held_out: Sequence[Item] | None,
    trainable: Trainable,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    generation: Generation | None = None,
) -> Encoded:
    """Examples that the model can read; for activated adapters, all with the same tokens at the activation point.

    Args:
        train: rows to train on; the task's demonstrations are the last of them. Without ``held_out`` rows, some are held out.
        generation: how texts are written, where the task has them written; None: as :class:`Generation` has it.

    Raises:
        DataError: naming the rows that cannot be used.
        RewardError: a reward function cannot be used, or asks for what rows lack.
    """
    faults = Faults(task.on_error)
    rows = list(faults.rows(train))
    given = None if held_out is None else list(faults.rows(held_out))
    if not rows:
        faults.settle(0)
        raise DataError("there are no rows to train on")
    reading = task.reading(rows)
    rows, template = _demonstrated(task, rows, reading.template, splits=given is None)
    causal = CausalModel(model)
    generation = generation or Generation()
    room = generation.max_tokens - 1 if task.writes else 0
    encoder = _Encoder(template, tokenizer, task.limits(causal.window, causal.vocabulary, room), faults)
    examples = encoder.encoded(rows)
    held = [] if given is None else encoder.encoded(given)
    faults.settle(len(examples) + len(held))
    notes = [f"rows have the form {reading.form}{_options(template)}"] if reading.form else []
    notes += encoder.notes(len(examples) + len(held))
    if given is None:
        examples, held, note = _split(task, examples, seed)
        notes += note
    if not examples:
        raise DataError("there are no rows left to train on")
    flat = completed([each for row in (*examples, *held) for each in row])
    invocation: tuple[int, ...] = ()
    if trainable.activated:
        last = trainable.late or (task.writes and not getattr(template, "suffix", ""))
        invocation = getattr(trainable, "invocation", ()) or (last_token if last else common_suffix)(flat)
        flat = activation_points(flat, invocation)
    count = sum(map(len, examples))
    notes += [] if task.writes else _again(examples, held)
    goal = task.goal(reading, WritingTools(tokenizer, ends(model, tokenizer), generation))
    goal.require(flat)
    return Encoded(flat[:count], flat[count:], goal, template, invocation, tuple(notes))


def encoded(
    task: TaskSettings,
    items: Sequence[Item],
    template: Template,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    invocation: tuple[int, ...] = (),
    room: int = 0,
) -> tuple[list[Example], Sequence[str]]:
    """Examples of rows that are read by a known template, with what is said about them.

    Raises:
        DataError: naming the rows that cannot be used.
    """
    faults, causal = Faults(task.on_error), CausalModel(model)
    encoder = _Encoder(template, tokenizer, task.limits(causal.window, causal.vocabulary, room), faults)
    rows = encoder.encoded(list(faults.rows(items)))
    faults.settle(len(rows))
    flat = completed([example for row in rows for example in row])
    return activation_points(flat, invocation) if invocation else flat, encoder.notes(len(rows))


def reading_of(task: TaskSettings) -> Reading:
    """How a task's rows are read, demonstrations included; rows are only looked at if they have a say in it.

    Raises:
        DataError: they cannot be read.
    """
    if isinstance(task, Template) and not task.shots:
        return task.reading(())
    train, held_out = task.rows()
    rows = list(Faults("skip").rows(train))
    if not rows:
        raise DataError("there are no rows to train on")
    reading = task.reading(rows)
    return replace(reading, template=_demonstrated(task, rows, reading.template, splits=held_out is None)[1])


Examples = tuple[Example, ...]
"""Those of one row."""


@dataclass
class _Encoder:
    """Encodes rows one by one, and collects those that cannot be."""

    template: Template
    tokenizer: PreTrainedTokenizerBase
    limits: Limits
    faults: Faults
    shortened: set[str] = field(default_factory=set)

    def encoded(self, rows: Sequence[Row]) -> list[Examples]:
        found = []
        for row in rows:
            try:
                found.append(tuple(self._fitting(row)))
            except DataError as error:
                self.faults.found.append(error)
        return found

    def _fitting(self, row: Row) -> list[Example]:
        fitting = []
        for example in self.template.examples(row, self.tokenizer):
            fitting.append(self.limits.applied(example, self.tokenizer))
            if len(fitting[-1].prompt) < len(example.prompt):
                self.shortened.add(row.place)
        return fitting

    def notes(self, rows: int) -> list[str]:
        left_out, limits = len(self.faults.found), self.limits
        notes = [f"{left_out:,} of {rows + left_out:,} rows are left out; {self.faults.found[0]}"] if left_out else []
        if self.shortened:
            notes.append(
                f"{len(self.shortened):,} rows are shortened on the {limits.truncate} to {limits.window:,} tokens"
            )
        return notes


def _demonstrated(
    task: TaskSettings, rows: list[Row], template: Template, *, splits: bool
) -> tuple[list[Row], Template]:
    """The rows that are no demonstrations, and the template with those that are."""
    if not task.shots:
        return rows, template
    wanted = task.train_rows or max(1, len(rows) - task.shots)
    if splits and task.train_rows:
        wanted += task.held_out(task.train_rows)
    if wanted + task.shots > len(rows):
        raise DataError(
            f"{rows[0].source}: {wanted} rows to train on and {task.shots} shots are more than the {len(rows)} "
            "in the file; lower task.train_rows or task.shots"
        )
    return rows[:wanted], template.with_shots(rows[-task.shots :])


def _split(task: TaskSettings, rows: list[Examples], seed: int) -> tuple[list[Examples], list[Examples], list[str]]:
    """Rows to train on, rows held out, and a note."""
    count = task.eval_rows or round(len(rows) * task.eval_fraction)
    if task.train_rows:
        count = task.held_out(task.train_rows)
    elif task.eval_fraction and not count and len(rows) > 1:
        count = 1
    if not count:
        return rows, [], []
    if count >= len(rows):
        raise DataError(
            f"{count} of {len(rows)} rows are to be held out, and none is left to train on; lower task.eval_rows"
        )
    strata = [row[0].label for row in rows]
    train, held = split(rows, strata, count, seed)
    shares = ", of each label its share" if len(set(strata)) > 1 else ""
    return train, held, [f"{count:,} of {len(rows):,} rows are held out by seed {seed}{shares}"]


def _again(train: Sequence[Examples], held_out: Sequence[Examples]) -> list[str]:
    """A note on held-out rows that are trained on, too."""
    known = {(example.prompt, example.options) for row in train for example in row}
    again = sum(all((example.prompt, example.options) in known for example in row) for row in held_out)
    if not again:
        return []
    return [
        f"{again:,} of {len(held_out):,} held-out rows are rows to train on, too; what is measured on them says little of new ones"
    ]


def _options(template: Template) -> str:
    """The options that rows were found to have, where they are not written in the configuration."""
    kinds = template.kinds if isinstance(template, ChoiceTemplate) else ()
    more = f" and {len(kinds) - SHOWN} more" if len(kinds) > SHOWN else ""
    return f"; options: {cleared(', '.join(kinds[:SHOWN]))}{more}" if kinds else ""
