"""Updates of rows against torch's optimizers and against sums made by hand."""

import pytest
import torch

from pipeline.config import OptimizerConfig
from pipeline.train.table.rules import Rule

ROWS, WIDTH, DECAYED = 7, 5, 4
CONFIG = OptimizerConfig(lr=0.1, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.03)


def begun(rule: Rule) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    shapes = rule.shapes(ROWS, WIDTH)
    rows = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
    return rows, {kind: torch.zeros(shape) for kind, shape in shapes.items()}


def gradients(step: int, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(10 + step))


@pytest.mark.parametrize("name", ["adam", "dense_adam"])
def test_all_rows_at_every_step_are_torchs_adamw(name: str) -> None:
    rule = Rule(name, CONFIG, DECAYED)
    rows, state = begun(rule)
    parts = [torch.nn.Parameter(part.clone()) for part in (rows[:, :DECAYED], rows[:, DECAYED:])]
    groups = [
        {"params": [part], "weight_decay": decay}
        for part, decay in zip(parts, (CONFIG.weight_decay, 0.0), strict=True)
    ]
    adamw = torch.optim.AdamW(groups, lr=0.1, betas=CONFIG.betas, eps=CONFIG.eps)
    for step in range(20):
        gradient = gradients(step)
        rule.update(rows, state, gradient, 0.1)
        parts[0].grad, parts[1].grad = gradient[:, :DECAYED].clone(), gradient[:, DECAYED:].clone()
        adamw.step()
    torch.testing.assert_close(rows, torch.cat([p.detach() for p in parts], 1), atol=1e-6, rtol=0)


def test_a_row_is_updated_by_its_own_clock() -> None:
    """Touched now and then, a row goes the way it goes when it is touched at every step."""
    rule = Rule("adam", CONFIG, DECAYED)
    rows, state = begun(rule)
    dense, dense_state = begun(rule)
    touched = torch.tensor([1, 4])
    for step in range(6):
        rule.update(dense, dense_state, gradients(step), 0.1)
        for row in touched.tolist():
            place = torch.tensor([row])
            part = {kind: tensor[place] for kind, tensor in state.items()}
            values = rows[place]
            rule.update(values, part, gradients(step)[place], 0.1)
            rows[place] = values
            for kind, tensor in part.items():
                state[kind][place] = tensor
    torch.testing.assert_close(rows[touched], dense[touched], atol=1e-6, rtol=0)
    untouched = torch.tensor([0, 2, 3, 5, 6])
    assert torch.equal(rows[untouched], begun(rule)[0][untouched])
    assert state["updates"].tolist() == [0, 6, 0, 0, 6, 0, 0]


def test_sgd_is_torchs_with_decoupled_decay() -> None:
    rule = Rule("sgd", CONFIG, DECAYED)
    rows, state = begun(rule)
    expected = rows.clone()
    for step in range(5):
        rule.update(rows, state, gradients(step), 0.1)
        expected[:, :DECAYED] *= 1 - 0.1 * CONFIG.weight_decay
        expected -= 0.1 * gradients(step)
    assert not state
    torch.testing.assert_close(rows, expected, atol=1e-6, rtol=0)


def test_adagrad_keeps_a_sum_a_row() -> None:
    rule = Rule("adagrad", CONFIG, DECAYED)
    rows, state = begun(rule)
    assert state["exp_avg_sq"].shape == (ROWS,)
    expected, sums = rows.double(), [0.0] * ROWS
    for step in range(5):
        rule.update(rows, state, gradients(step), 0.1)
        for row, gradient in enumerate(gradients(step).double()):
            sums[row] += sum(g * g for g in gradient.tolist()) / WIDTH
            expected[row, :DECAYED] *= 1 - 0.1 * CONFIG.weight_decay
            expected[row] -= 0.1 * gradient / (sums[row] ** 0.5 + CONFIG.eps)
    torch.testing.assert_close(rows, expected.float(), atol=1e-5, rtol=0)
