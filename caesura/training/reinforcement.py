"""Reinforcement: answers of the model's own, rewards of a grader, and more of what was better than its neighbours.

Group relative policy optimization (Shao et al. 2024, arXiv:2402.03300) with what came after it: clipping that is wider
above and a loss per token of the step (Yu et al. 2025, arXiv:2503.14476), and groups without spread left out.
"""

# pyright: reportUnknownMemberType=false
from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from caesura.data.prompt_tokens import PromptTokens
from caesura.models.lora import Adapter, Layers, get_adapter, join, using_adapter
from caesura.training.alerts import Alerts, FailureWatch
from caesura.training.collector import Collector, Timing, Wanted
from caesura.training.group_batch import Answers, own_logprobs, split_answers
from caesura.training.losses import group_advantages, kl_estimates, policy_gradient_losses, sampling_weights
from caesura.training.method import Details, Metrics, RowLoss, StepInterrupted
from caesura.training.plan import Plan
from caesura.training.reward_metrics import describe_step, measure, rollout_record
from caesura.training.rollouts import Group
from caesura.training.rows import Rows
from caesura.training.work import Work

#: How far a token's probability may move in the updates of one batch before its gradient ends (DAPO's values).
CLIP_LOW, CLIP_HIGH = 0.2, 0.28
#: Bounds what a token weighs that the sampler found much less likely than the policy does.
MAX_SAMPLING_WEIGHT = 2.0
_KEPT = "reinforcement"

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Batch:
    """The answers of a step that the updates learn from. K: the model's own tokens of a pass."""

    step: int
    groups: list[Group]
    #: By group, of the answers that are compared; 0 for each in one without spread.
    advantages: list[list[float]]
    passes: list[list[Answers]]
    num_tokens: int
    timing: Timing
    #: By pass, of the first update and of the reference.
    old_logprobs: list[Tensor] = field(default_factory=list[Tensor])
    reference_logprobs: list[Tensor] = field(default_factory=list[Tensor])
    training_s: float = 0.0
    #: Sum over the tokens of |log π - log π of the sampler|, before anything is learned.
    drift: float = 0.0


class Reinforcement:
    """A method. `start`: the adapter that the training started from; None: the base, which is the reference then. One
    that the plan keeps frozen is in the layers."""

    may_be_interrupted = True

    def __init__(
        self,
        rows: Rows[PromptTokens],
        plan: Plan,
        seed: int,
        layers: Layers,
        start: Adapter | None,
        collector: Collector,
        sharing: bool,
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._seed = seed
        self._layers = layers
        self._frozen = start if plan.frozen_rank else None
        #: What the reference is beside the layers as they are without an adapter.
        self._reference = None if plan.frozen_rank else start
        self._collector = collector
        self._sharing = sharing
        self._device = torch.device(plan.device)
        self._alerts = Alerts()
        self._failures = FailureWatch()
        self._batch: _Batch | None = None
        self._validated: tuple[list[Group], float] | None = None
        self._began_s = 0.0

    @property
    def num_updates(self) -> int:
        return self._plan.updates_per_batch or 1

    def rows_of_step(self, step: int) -> list[PromptTokens]:
        return self._rows.of_step(step)

    def makes_checkpoint(self, step: int) -> bool:
        assert self._plan.eval_interval is not None
        return step % self._plan.eval_interval == 0 or step == self._plan.num_steps

    def num_tokens_until(self, step: int) -> int:
        return 0

    def work_of(self, step: int) -> Work:
        """In answers."""
        assert self._plan.samples_per_prompt is not None
        assert self._plan.eval_samples is not None
        is_validated = self.makes_checkpoint(step)
        num_validated = len(self._rows.validation) * self._plan.eval_samples if is_validated else 0
        return Work(
            self._plan.batch_size * self._plan.samples_per_prompt,
            num_validated,
            is_validated and step < self._plan.num_steps,
        )

    def work_after(self, step: int) -> Work:
        """In answers, as if every batch were full."""
        later = [self.work_of(number) for number in range(step + 1, self._plan.num_steps + 1)]
        return Work(
            sum(work.train for work in later),
            sum(work.validation for work in later),
            sum(work.checkpoints for work in later),
        )

    def backward(self, model: nn.Module, step: int) -> Metrics:
        if self._batch is None or self._batch.step != step:
            self._began_s = time.perf_counter()
            self._batch = self._collect(step)
        began_s = time.perf_counter()
        loss = self._update(model, self._batch)
        self._batch.training_s += time.perf_counter() - began_s
        return {"loss": loss}

    def validate(self, model: nn.Module, step: int) -> Metrics | None:
        return None

    def validate_fully(self, model: nn.Module, step: int) -> Metrics | None:
        """The rewards are told with the step's details."""
        if not self.makes_checkpoint(step):
            return None
        assert self._plan.eval_samples is not None
        prompts = [prompt for prompt in self._rows.validation if prompt.teaches]
        # The same draws every time, so that two validations differ by what was learned between them.
        wanted = Wanted("valid", prompts, self._plan.eval_samples, (self._seed, "validation rollout"))
        began_s = time.perf_counter()
        try:
            groups, _ = self._collector.collect(self._adapter(), wanted)
        except StepInterrupted:
            self._batch = None  # the step is done again, from the answers that are kept
            raise
        self._validated = groups, time.perf_counter() - began_s
        return None

    def describe(self, step: int) -> Details | None:
        batch, self._batch = self._batch, None
        validated, self._validated = self._validated, None
        assert batch is not None
        self._collector.forget()
        train = [rollout for group in batch.groups for rollout in group.rollouts]
        valid = None if validated is None else [rollout for group in validated[0] for rollout in group.rollouts]
        timing_s = self._timing(batch, validated)
        logger.info("step %d/%d: %s", step, self._plan.num_steps, _spell(timing_s))
        data = measure(train, valid, timing_s)
        data |= self._measure_groups(batch)
        failure = self._failures.see(train)
        warnings = self._alerts.see(step, data)
        return Details(
            describe_step(step, self._plan.num_steps, data),
            data,
            data["completion_tokens_count"],
            self._records(batch, validated),
            warnings,
            failure,
        )

    def row_losses(self) -> Sequence[RowLoss]:
        return ()

    def capture(self) -> dict[str, Tensor]:
        kept = {
            "collector": self._collector.capture(),
            "alerts": self._alerts.capture(),
            "failures": self._failures.capture(),
        }
        return {_KEPT: torch.frombuffer(bytearray(json.dumps(kept).encode()), dtype=torch.uint8)}

    def restore(self, kept: dict[str, Tensor]) -> bool:
        if kept:
            value: dict[str, Any] = json.loads(kept[_KEPT].numpy().tobytes())
            self._collector.restore(value["collector"])
            self._alerts.restore(value["alerts"])
            self._failures.restore(value["failures"])
        return True

    def _adapter(self) -> Adapter:
        trained = get_adapter(self._layers, self._plan.lora_rank, self._plan.lora_alpha)
        return trained if self._frozen is None else join(self._frozen, trained)

    def _collect(self, step: int) -> _Batch:
        assert self._plan.samples_per_prompt is not None
        prompts = [prompt for prompt in self.rows_of_step(step) if prompt.teaches]
        wanted = Wanted("train", prompts, self._plan.samples_per_prompt, (self._seed, "rollout", step))
        groups, timing = self._collector.collect(self._adapter(), wanted)
        advantages = [_advantages(group) for group in groups]
        taught = [
            Answers(group.compared, of_group)
            for group, of_group in zip(groups, advantages, strict=True)
            if group.has_spread
        ]
        passes = split_answers(taught, self._plan.micro_batch_tokens, self._sharing)
        return _Batch(step, groups, advantages, passes, sum(answers.num_own_tokens for answers in taught), timing)

    def _update(self, model: nn.Module, batch: _Batch) -> float:
        """Add the gradients of the batch's loss; nothing is added where no group has any spread."""
        is_first = not batch.old_logprobs
        loss = 0.0
        for number, answers in enumerate(batch.passes):
            if is_first and self._plan.kl_coefficient:
                with torch.no_grad(), using_adapter(self._layers, self._reference):
                    batch.reference_logprobs.append(self._logprobs(model, answers))
            logprobs_K = self._logprobs(model, answers)
            if is_first:
                batch.old_logprobs.append(logprobs_K.detach())
                batch.drift += (batch.old_logprobs[number] - self._per_token(answers)[1]).abs().sum().item()
            part = self._loss(logprobs_K, batch, number) / batch.num_tokens
            part.backward()
            loss += part.item()
        return loss

    def _logprobs(self, model: nn.Module, answers: Sequence[Answers]) -> Tensor:
        return own_logprobs(model, answers, self._sharing, self._device)

    def _loss(self, logprobs_K: Tensor, batch: _Batch, number: int) -> Tensor:
        answers, old_K = batch.passes[number], batch.old_logprobs[number]
        advantages_K, sampled_K = self._per_token(answers)
        losses_K = policy_gradient_losses(logprobs_K, old_K, advantages_K, CLIP_LOW, CLIP_HIGH)
        losses_K = losses_K * sampling_weights(old_K, sampled_K, MAX_SAMPLING_WEIGHT)
        if self._plan.kl_coefficient:
            estimates_K = kl_estimates(logprobs_K, old_K, batch.reference_logprobs[number])
            losses_K = losses_K + self._plan.kl_coefficient * estimates_K
        return losses_K.sum()

    def _per_token(self, batch: Sequence[Answers]) -> tuple[Tensor, Tensor]:
        """The advantage of each own token, and its log-probability as it was sampled, both [K]."""
        advantages: list[float] = []
        sampled: list[float] = []
        for answers in batch:
            for rollout, advantage in zip(answers.rollouts, answers.advantages, strict=True):
                own = [logprob for logprob, is_own in zip(rollout.logprobs, rollout.is_own, strict=True) if is_own]
                advantages += [advantage] * len(own)
                sampled += own
        return torch.tensor(advantages, device=self._device), torch.tensor(sampled, device=self._device)

    def _timing(self, batch: _Batch, validated: tuple[list[Group], float] | None) -> dict[str, float]:
        """Seconds of the step; the parts add up to the whole."""
        whole_s = time.perf_counter() - self._began_s
        parts = {
            "sampling": batch.timing.sampling,
            "grading": batch.timing.grading,
            "training": batch.training_s,
            "eval": 0.0 if validated is None else validated[1],
        }
        return {**parts, "other": max(0.0, whole_s - sum(parts.values())), "full_iteration": whole_s}

    def _measure_groups(self, batch: _Batch) -> dict[str, Any]:
        num_without = sum(not group.has_spread for group in batch.groups)
        return {
            "groups_without_spread": num_without,
            "groups_without_spread_share": num_without / max(1, len(batch.groups)),
            "sampling_drift_mean": batch.drift / max(1, batch.num_tokens),
        }

    def _records(self, batch: _Batch, validated: tuple[list[Group], float] | None) -> list[dict[str, Any]]:
        messages = {prompt.line: prompt.row.messages for prompt in self._rows.of_step(batch.step)}
        advantages = {
            (rollout.line, rollout.sample_index): advantage
            for group, of_group in zip(batch.groups, batch.advantages, strict=True)
            for rollout, advantage in zip(group.compared, of_group, strict=True)
        }
        records = [
            rollout_record(
                rollout,
                batch.step,
                "train",
                messages[rollout.line],
                advantages.get((rollout.line, rollout.sample_index)),
            )
            for group in batch.groups
            for rollout in group.rollouts
        ]
        if validated is not None:
            messages = {prompt.line: prompt.row.messages for prompt in self._rows.validation}
            records += [
                rollout_record(rollout, batch.step, "valid", messages[rollout.line], None)
                for group in validated[0]
                for rollout in group.rollouts
            ]
        return records


def _advantages(group: Group) -> list[float]:
    if not group.has_spread:
        return [0.0] * len(group.compared)
    advantages_G = group_advantages(torch.tensor(group.rewards))
    return [advantage.item() for advantage in advantages_G]


def _spell(timing_s: Mapping[str, float]) -> str:
    """`4.1 s = sampling 62 % + grading 1 % + …`."""
    whole_s = timing_s["full_iteration"]
    shares = [f"{part} {part_s / whole_s:.0%}" for part, part_s in timing_s.items() if part != "full_iteration"]
    return f"{whole_s:.1f} s = {' + '.join(shares)}"
