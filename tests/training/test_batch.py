from __future__ import annotations

from caesura.data.render import Example
from caesura.training.batch import make_batch


def example(token_ids: list[int], loss_mask: list[int], line: int = 1) -> Example:
    return Example(line, token_ids, loss_mask, 0)


def test_a_batch_keeps_the_positions_before_the_learned_tokens() -> None:
    batch = make_batch([example([5, 6, 7, 8], [0, 0, 1, 1]), example([9, 10], [0, 1])])

    assert batch.token_ids_BT.tolist() == [[5, 6, 7], [9, 10, 0]]
    assert batch.keep_K.tolist() == [0, 1, 2]
    assert batch.targets_BK.tolist() == [[6, 7, 8], [10, 0, 0]]
    assert batch.mask_BK.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_the_first_token_is_never_learned_for_nothing_predicts_it() -> None:
    learned = example([5, 6], [1, 1])

    assert learned.num_loss_tokens == 1
    assert make_batch([learned]).mask_BK.tolist() == [[1]]
