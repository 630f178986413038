"""What several resources share."""

from __future__ import annotations

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StringConstraints, Tag

Item = TypeVar("Item")


class Request(BaseModel):
    """A request body. A key that is not known is a fault (most often a misspelling); null means absent."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Answer(BaseModel):
    """An answer's body. Every key is always there."""

    model_config = ConfigDict(frozen=True)


class Page(Answer, Generic[Item]):
    """A list in pages. `has_more` is always there: without it the SDKs behave differently."""

    object: Literal["list"] = "list"
    data: list[Item]
    has_more: bool


class PageWithIds(Page[Item], Generic[Item]):
    first_id: str | None
    last_id: str | None


#: Marks the branch of a number in a union with "auto"; not part of any field's path.
NUMBER_TAG = "number"


def _auto_or_number(value: Any) -> str:
    return "auto" if value == "auto" else NUMBER_TAG


#: Chooses between `AutoText` and a number tagged with NUMBER_TAG, so that only one of the two reports a fault.
AutoOrNumber = Discriminator(_auto_or_number)
AutoText = Annotated[Literal["auto"], Tag("auto")]

MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Metadata = Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)]


def _absent(value: Any) -> Any:
    return {} if value is None else value


#: An object whose null means that it is absent.
NullIsEmpty = BeforeValidator(_absent)
