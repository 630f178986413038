"""`text_similarity`: how alike two texts are, from 0 to 1, by one of the usual measures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from caesura.errors import CaesuraError
from caesura.graders.comparer import Comparer, ComparisonFailed
from caesura.graders.grade import GraderFault, Observation, Score
from caesura.graders.template import Template

#: From texts to one vector of unit length each.
Embed = Callable[[list[str]], Awaitable[list[list[float]]]]


@dataclass(frozen=True, slots=True)
class TextSimilarityGrader:
    name: str
    input: Template
    reference: Template
    #: `similarity.Metric`.
    metric: str
    comparer: Comparer
    type: str = "text_similarity"

    async def score(self, observation: Observation) -> Score:
        text, reference = self.input.render(observation), self.reference.render(observation)
        try:
            return Score(await self.comparer.compare(self.metric, text, reference))
        except ComparisonFailed as error:
            raise GraderFault("other_error", details=str(error)) from None


@dataclass(frozen=True, slots=True)
class CosineGrader:
    """The cosine of the angle between the embeddings of two texts; below 0 it counts as 0."""

    name: str
    input: Template
    reference: Template
    embed: Embed
    type: str = "text_similarity"

    async def score(self, observation: Observation) -> Score:
        texts = [self.input.render(observation), self.reference.render(observation)]
        try:
            first, second = await self.embed(texts)
        except CaesuraError as error:
            raise GraderFault("other_error", details=error.message) from None
        return Score(max(0.0, min(1.0, sum(x * y for x, y in zip(first, second, strict=True)))))
