import pytest
import torch

from shoal.model_worker.sampling.logprobs import gather_logprobs, prompt_logprobs


@pytest.mark.parametrize("rows", [1, 5, 300])
def test_matches_log_softmax(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    logits = torch.randn(rows, 64, generator=generator) * 3
    token_ids = torch.randint(64, (rows,), generator=generator)
    before = logits.clone()
    expected = torch.log_softmax(logits.double(), -1)
    entries = gather_logprobs(logits, token_ids, [row % 21 for row in range(rows)])
    assert torch.equal(logits, before)
    for row, entry in enumerate(entries):
        ranking = expected[row].argsort(descending=True).tolist()
        assert entry.token_id == int(token_ids[row])
        assert entry.logprob == pytest.approx(float(expected[row, entry.token_id]), abs=1e-5)
        assert entry.rank == ranking.index(entry.token_id) + 1
        assert [token for token, _ in entry.top] == ranking[: row % 21]
        assert [value for _, value in entry.top] == pytest.approx(expected[row, ranking[: row % 21]].tolist(), abs=1e-5)


def test_ties_are_listed_by_id_and_share_the_best_rank() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, 1.0]])
    (entry,) = gather_logprobs(logits, torch.tensor([4]), [4])
    assert [token for token, _ in entry.top] == [1, 3, 2, 4]
    assert entry.rank == 3


def test_prompt_logprobs_pair_each_row_with_the_token_after_it() -> None:
    logits = torch.randn(200, 30, generator=torch.Generator().manual_seed(5))
    next_ids = torch.arange(200, dtype=torch.int32) % 30
    entries = prompt_logprobs(logits, next_ids, 2)
    assert [entry.token_id for entry in entries] == next_ids.tolist()
    expected = torch.log_softmax(logits, -1)
    assert [entry.logprob for entry in entries] == pytest.approx(
        expected[torch.arange(200), next_ids.long()].tolist(), abs=1e-5
    )
    assert all(len(entry.top) == 2 for entry in entries)
    assert all(entry.top == () for entry in prompt_logprobs(logits, next_ids, 0))
