"""Score a network on the test data, over all processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ...capture.notes import first_line
from ..taps.tapped_model import TappedModel
from .batch_parts import split_batch
from .evaluation import Evaluation
from .seen_data import SeenData
from .steps import same_buffers
from .supervision import Supervision, name_of

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Scorer", "check_metric", "right_answers"]


class Scorer:
    """Score a network on the test data: the main score, and the further columns of an `Evaluation`.

    Parameters
    ----------
    loader : DataLoader or None
        Prepared by the accelerator. None: nothing is scored.
    supervision : Supervision
        Knows the answers, and is the score itself if they are no classes and there is no metric.
    metric : torchmetrics.Metric, optional
        The main score; a copy of it is used.
    sample : (Tensor, Tensor or None)
        The student's output and the targets of some training samples, which decide what can be scored.
    accelerator : Accelerator
        Gathers the outputs of all processes.
    evaluation : Evaluation
        Names the columns.
    forward : callable, optional
        ``forward(model, inputs)`` runs a network that is no `TappedModel`.

    Raises
    ------
    ValueError
        If a column cannot be computed for these targets.

    Attributes
    ----------
    column : str or None
        Column of the main score: "test_accuracy", "test_loss" or "test_" and the name of the metric. None without one.
    higher_is_better : bool
        Whether a larger main score is better.
    """

    def __init__(
        self,
        loader: DataLoader[Any] | None,
        supervision: Supervision,
        metric: Any,
        sample: tuple[Tensor, Any],
        accelerator: Accelerator,
        evaluation: Evaluation,
        forward: Callable[[nn.Module, Any], Any] | None = None,
    ) -> None:
        self._forward = forward
        self._loader = loader
        self._supervision = supervision
        self._metric = metric
        self._accelerator = accelerator
        answers = supervision.answers(*sample)
        self.classes = None if answers is None else answers[0].shape[-1]
        for name, rank in evaluation.ranks.items():
            if self.classes is None:
                raise ValueError(f"`columns` of Evaluation has {name!r}, but the targets are no classes.")
            if rank > self.classes:
                raise ValueError(f"`columns` of Evaluation has {name!r}, but the student has {self.classes} classes.")
        self.higher_is_better = True
        self.column: str | None = "test_accuracy"
        self._ranks = {"accuracy": 1, **evaluation.ranks}
        self._loss = "loss" in evaluation.columns
        if metric is not None:
            self.column = f"test_{name_of(metric)}"
            self.higher_is_better = bool(metric.higher_is_better)
            self._ranks = dict(evaluation.ranks)
        elif self.classes is None:
            self.column, self.higher_is_better, self._ranks = "test_loss", False, {}
            self._loss = True
        if self._loss and not supervision:
            if "loss" in evaluation.columns:
                raise ValueError('`columns` of Evaluation has "loss", but supervision is None.')
            self._loss = False
        self._answers = 0
        self._shape = sample[0].shape[1:]
        if loader is None or (metric is None and not supervision):
            self.column = None
            if evaluation.patience is not None:
                missing = "there is no `test`" if loader is None else "there are no targets and no `metric`"
                raise ValueError(f"`patience` of Evaluation needs a score, but {missing}.")

    def shown(self, value: float) -> str:
        """A main score as text."""
        return f"{value:.2%}" if self.column == "test_accuracy" else f"{value:.4g}"

    def better(self, score: float, than: list[float]) -> bool:
        """Whether a main score is better than all before it. NaN is never better than a number."""
        sign = 1 if self.higher_is_better else -1
        before = [sign * one for one in than if not math.isnan(one)]
        return not than or (not math.isnan(score) and (not before or sign * score > max(before)))

    def __call__(self, network: nn.Module, seen: SeenData | None = None, first: bool = False) -> dict[str, float]:
        """Scores by the names of their columns. The network is left in eval mode.

        Parameters
        ----------
        network : torch.nn.Module
            A `TappedModel`, or a network that returns logits.
        seen : SeenData, optional
            The samples are added to it.
        first : bool
            Whether the targets are checked.

        Raises
        ------
        ValueError
            If the targets do not fit, or the metric does not take them.
        """
        if self.column is None:
            return {}
        model = network if isinstance(network, TappedModel) else TappedModel(network, (), "student", self._forward)
        model.eval()
        same_buffers(model, self._accelerator)
        return self._scores(lambda inputs: model(inputs).logits, seen, "test" if first else None)

    def of_teacher(self, teacher: Callable[[Any], Any]) -> float | None:
        """Main score of the teacher, in eval mode already; None without one, or if its outputs do not fit the targets.

        A teacher of other classes can be a teacher of features.
        """
        if self.column is None:
            return None
        try:
            return self._scores(lambda inputs: self._of_the_same_shape(teacher(inputs).logits), None, "test")[
                self.column
            ]
        except ValueError:
            return None

    def _of_the_same_shape(self, output: Tensor) -> Tensor:
        if output.shape[1:] != self._shape and self.classes is not None and output.ndim == 2:
            raise ValueError("other classes than the student's")
        return output

    def notes_on_teacher(self, score: float) -> tuple[str, ...]:
        """A note if the accuracy of the teacher, which was scored just now, is one that guesses reach too.

        All but one of a thousand sets of guesses are below three standard deviations over their mean.
        """
        if self.column != "test_accuracy" or self.classes is None:
            return ()
        share = 1 / self.classes
        if score > min(0.99, share + 3 * math.sqrt(share * (1 - share) / max(1, self._answers))):
            return ()
        return (
            f"the teacher's test accuracy is {score:.1%}, no better than chance ({self.classes} classes): does it have "
            "its trained weights, and are the inputs prepared as in its training?",
        )

    def _scores(self, call: Callable[[Any], Tensor], seen: SeenData | None, check: str | None) -> dict[str, float]:
        accelerator, device = self._accelerator, self._accelerator.device
        ranked = {name: self._accuracy(rank) for name, rank in self._ranks.items()}
        metric = None if self._metric is None else _fresh(self._metric, device)
        loss, count, weights = torch.zeros((), device=device), 0, torch.zeros((), device=device)
        with torch.no_grad():
            for batch in () if self._loader is None else self._loader:
                inputs, target = split_batch(batch, labelled=bool(self._supervision))
                if seen is not None:
                    seen.add((inputs, target))
                with accelerator.autocast():
                    output = call(inputs)
                output, target = self._gathered(output.float(), target)
                if check is not None:
                    self._supervision.check(output, target, check)
                answers = self._supervision.answers(output, target) if ranked else None
                for name, one in ranked.items():
                    if answers is None:
                        raise ValueError(
                            f"`test` has targets of shape {tuple(target.shape)} and {target.dtype}, which are no class "
                            "numbers as those of `train` are."
                        )
                    scores, numbers = answers
                    one.update(scores.argmax(1) if name == "accuracy" else scores, numbers)
                if metric is not None:
                    _updated(metric, output, target)
                if self._loss:
                    weight = self._supervision.weight_of(target)
                    loss, weights = loss + self._supervision(output, target) * weight, weights + weight
                count += len(output)
        self._answers = count
        found = {f"test_{name}": float(one.compute()) for name, one in ranked.items()}
        if metric is not None and self.column is not None:
            found = {self.column: _number(metric), **found}
        return found | ({"test_loss": float(loss / weights)} if self._loss else {})

    def _accuracy(self, rank: int) -> Any:
        from torchmetrics.classification import MulticlassAccuracy  # takes seconds to import

        assert self.classes is not None
        return MulticlassAccuracy(
            self.classes,
            top_k=rank,
            average="micro",
            ignore_index=self._supervision.ignored,
            validate_args=False,
            sync_on_compute=False,
        ).to(self._accelerator.device)

    def _gathered(self, output: Tensor, target: Any) -> tuple[Tensor, Any]:
        """Outputs and targets of all processes; sequences are padded to the longest."""
        accelerator = self._accelerator
        if accelerator.num_processes > 1 and output.ndim == 3:
            output = accelerator.pad_across_processes(output, dim=1)
            if isinstance(target, Tensor) and target.ndim == 2:
                target = accelerator.pad_across_processes(target, dim=1, pad_index=self._supervision.ignored)
        if target is None:
            return accelerator.gather_for_metrics((output,))[0], None
        found: tuple[Tensor, Any] = accelerator.gather_for_metrics((output, target))
        return found


def right_answers(supervision: Supervision, output: Tensor, target: Any) -> dict[str, Tensor]:
    """Number of right answers, and of answers that count, of a batch; empty if answers are no classes."""
    answers = supervision.answers(output, target)
    if answers is None:
        return {}
    scores, numbers = answers
    counted = numbers != supervision.ignored
    return {"right": ((scores.argmax(1) == numbers) & counted).sum(), "answers": counted.sum()}


def check_metric(metric: Any) -> None:
    """Raise TypeError or ValueError unless a metric can choose the best epoch."""
    if metric is None:
        return
    from torchmetrics import Metric, MetricCollection

    if isinstance(metric, MetricCollection):
        raise TypeError("`metric` is one torchmetrics.Metric, the one that chooses the best epoch, not a collection.")
    if isinstance(metric, type):
        raise TypeError(f"`metric` is the class {metric.__name__}: make an object of it.")
    if not isinstance(metric, Metric):
        raise TypeError(f"`metric` must be a torchmetrics.Metric, got {type(metric).__name__}.")
    if metric.higher_is_better is None:
        raise ValueError(
            f"`metric`: {type(metric).__name__} does not say whether a higher value is better, so it cannot choose the "
            "best epoch. Set higher_is_better in a subclass of it."
        )


def _fresh(metric: Any, device: torch.device) -> Any:
    copy = metric.clone().to(device)
    copy.reset()
    copy.sync_on_compute = False  # the outputs of all processes are gathered already
    return copy


def _updated(metric: Any, output: Tensor, target: Any) -> None:
    arguments = (output,) if target is None else (output, target)
    try:
        metric.update(*arguments)
    except Exception as error:  # of torchmetrics, or of the user's metric
        shapes = ", ".join(f"{tuple(one.shape)} {one.dtype}" for one in arguments)
        raise ValueError(
            f"`metric`: {type(metric).__name__} fails on a test batch ({shapes}): {first_line(error)}"
        ) from error


def _number(metric: Any) -> float:
    value = metric.compute()
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ValueError(
            f"`metric`: {type(metric).__name__} gives {getattr(value, 'shape', type(value).__name__)}, not one number. "
            'For a mean over classes use average="macro".'
        )
    return float(value)
