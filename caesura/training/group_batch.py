"""From groups of answers to tensors, in two layouts that compute the same: flat, a group's prompt once, and in padded
rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from caesura.data.render import Example
from caesura.training.batch import Flat, FlatBuilder, make_batch
from caesura.training.logprobs import flat_logprobs, token_logprobs
from caesura.training.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers to one prompt that are computed together: a whole group, or a part of one that is too long."""

    rollouts: Sequence[Rollout]
    #: Of each answer's tokens alike: its advantage.
    advantages: Sequence[float]

    @property
    def prompt_ids(self) -> list[int]:
        return self.rollouts[0].prompt_ids

    @property
    def num_own_tokens(self) -> int:
        return sum(rollout.num_own_tokens for rollout in self.rollouts)


def own_logprobs(model: nn.Module, batch: Sequence[Answers], sharing: bool, device: torch.device) -> Tensor:
    """log π of the model's own tokens, answer by answer, [K]. `sharing`: a prompt is computed once for its answers."""
    if sharing:
        return flat_logprobs(model, make_flat_answers(batch, device))[0]
    padded = make_batch([_to_example(rollout) for answers in batch for rollout in answers.rollouts]).to(device)
    logprobs_BK, _ = token_logprobs(model, padded)
    return logprobs_BK[padded.mask_BK.bool()]


def make_flat_answers(batch: Sequence[Answers], device: torch.device) -> Flat:
    builder = FlatBuilder()
    for answers in batch:
        start, num_shared = builder.add(answers.prompt_ids), len(answers.prompt_ids)
        for rollout in answers.rollouts:
            begin = builder.add(rollout.answer_ids[:-1], start, num_shared)  # the last one is only ever a target
            own = [place for place, is_own in enumerate(rollout.is_own) if is_own]
            # What predicts an answer's first token stands at the end of the prompt.
            places = [begin + place - 1 if place else start + num_shared - 1 for place in own]
            builder.predict(places, [rollout.answer_ids[place] for place in own])
    return builder.build(device)


def split_answers(groups: Sequence[Answers], max_tokens: int, sharing: bool) -> list[list[Answers]]:
    """Cut groups, ordered by length, into batches of at most `max_tokens` tokens as computed, one answer at least."""
    batches: list[list[Answers]] = []
    parts = [part for group in groups for part in _cut(group, max_tokens, sharing)]
    for part in sorted(parts, key=lambda part: (_num_computed([part], sharing), part.rollouts[0].line)):
        if batches and _num_computed([*batches[-1], part], sharing) <= max_tokens:
            batches[-1].append(part)
        else:
            batches.append([part])
    return batches


def _cut(group: Answers, max_tokens: int, sharing: bool) -> list[Answers]:
    parts: list[Answers] = []
    pairs = zip(group.rollouts, group.advantages, strict=True)
    for rollout, advantage in sorted(pairs, key=lambda pair: (len(pair[0].answer_ids), pair[0].sample_index)):
        longer = Answers([rollout], [advantage])
        if parts:
            longer = Answers([*parts[-1].rollouts, rollout], [*parts[-1].advantages, advantage])
        if parts and _num_computed([longer], sharing) <= max_tokens:
            parts[-1] = longer
        else:
            parts.append(Answers([rollout], [advantage]))
    return parts


def _num_computed(batch: Sequence[Answers], sharing: bool) -> int:
    if sharing:
        return sum(
            len(answers.prompt_ids) + sum(len(rollout.answer_ids) for rollout in answers.rollouts) for answers in batch
        )
    lengths = [len(rollout.prompt_ids) + len(rollout.answer_ids) for answers in batch for rollout in answers.rollouts]
    return len(lengths) * max(lengths)


def _to_example(rollout: Rollout) -> Example:
    token_ids = [*rollout.prompt_ids, *rollout.answer_ids]
    return Example(rollout.line, token_ids, [0] * len(rollout.prompt_ids) + rollout.is_own, 0)
