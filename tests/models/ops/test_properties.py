"""What holds for the operations beyond parity: causality, threads, layouts, errors."""

import pytest
import torch
from op_forms import compiled, evaluate, offsets_of, resets_of, threads

from models import ops
from models.ops import precision

LENGTHS = [3, 1, 40, 300, 7]
TOKENS = sum(LENGTHS)


@pytest.fixture(params=[True, False], ids=["compiled", "eager"])
def form(request):
    with compiled(request.param):
        yield


def decay_of(channels):
    return torch.stack((torch.linspace(0.5, 0.9, channels), torch.linspace(0.0, 0.4, channels)))


def mixers(lengths):
    reset, offsets = resets_of(lengths), offsets_of(lengths)

    def recurrence(x):
        return ops.diagonal_recurrence(x, decay_of(x.shape[1] // 2), reset)

    def attention(x):
        heads = x.view(len(x), 2, -1)
        return ops.attention(heads, heads, heads, offsets).flatten(1)

    def prefix_sum(x):
        return ops.prefix_sum(x, reset)

    def linear_attention(x):
        heads = x.view(len(x), 2, -1)
        return ops.causal_linear_attention(heads, heads, heads, reset).flatten(1)

    return {
        "recurrence": recurrence,
        "attention": attention,
        "prefix_sum": prefix_sum,
        "linear_attention": linear_attention,
    }


every_mixer = pytest.mark.parametrize("name", mixers([]))


@pytest.mark.usefixtures("form")
@every_mixer
def test_a_later_token_leaves_earlier_outputs_and_other_segments_untouched(name):
    mixer = mixers(LENGTHS)[name]
    x = torch.randn(TOKENS, 32)
    before = mixer(x)
    for token in (0, 3, 20, 44, 200, TOKENS - 1):
        changed = x.clone()
        changed[token] += 1.0
        after = mixer(changed)
        segment_end = next(end for end in offsets_of(LENGTHS).tolist() if end > token)
        assert torch.equal(after[:token], before[:token])
        assert torch.equal(after[segment_end:], before[segment_end:])
        assert not torch.equal(after[token], before[token])


@pytest.mark.usefixtures("form")
@every_mixer
def test_packed_segments_equal_separate_ones(name):
    x = torch.randn(TOKENS, 32)
    packed = mixers(LENGTHS)[name](x)
    separate = torch.cat([mixers([len(part)])[name](part) for part in x.split(LENGTHS)])
    assert torch.allclose(packed, separate, rtol=1e-5, atol=1e-5 * float(packed.abs().max()))


@pytest.mark.usefixtures("form")
def test_a_state_carried_over_continues_the_recurrence():
    x, decay, reset = torch.randn(50, 32), decay_of(16), resets_of([50])
    whole = ops.diagonal_recurrence(x, decay, reset)
    rest = ops.diagonal_recurrence(x[20:], decay, reset[20:], whole[19])
    assert torch.allclose(rest, whole[20:], atol=1e-6)


@pytest.mark.usefixtures("form")
def test_a_state_carried_over_continues_sums_and_linear_attention():
    reset = resets_of([50])
    q, k, v = torch.randn(3, 50, 2, 8)
    whole = ops.causal_linear_attention(q, k, v, reset)
    state = torch.einsum("thm,thn->hmn", k[:20], v[:20])
    rest = ops.causal_linear_attention(q[20:], k[20:], v[20:], reset[20:], state)
    assert torch.allclose(rest, whole[20:], atol=1e-4)
    sums = ops.prefix_sum(q[:, 0], reset)
    rest = ops.prefix_sum(q[20:, 0], reset[20:], sums[19])
    assert torch.allclose(rest, sums[20:], atol=1e-5)


def test_threads_change_no_bit():
    reset = resets_of([700, 1, 900, 2])
    x = torch.randn(len(reset), 200)
    operations = {
        "recurrence": (lambda u, d: ops.diagonal_recurrence(u, d, reset), [x, decay_of(100)]),
        "prefix_sum": (lambda x: ops.prefix_sum(x, reset), [x]),
        "linear_attention": (
            lambda x: ops.causal_linear_attention(*[x.view(-1, 2, 100)] * 3, reset),
            [x],
        ),
        "norm": (lambda *a: ops.dropout_add_norm(*a, 0.2, True), [x, x, x[0], x[1]]),
        "gelu": (lambda *a: ops.bias_gelu_dropout(*a, 0.2, True), [x, x[0]]),
    }
    with compiled(True):
        for name, (operation, inputs) in operations.items():
            outputs = []
            for count in (1, 2, 7):
                with threads(count):
                    outputs.append(evaluate(operation, inputs))
            for other in outputs[1:]:
                assert all(map(torch.equal, outputs[0], other)), name


@pytest.mark.parametrize("classes", [500, 50_000])
def test_the_softmax_loss_is_bit_equal_at_one_thread_count(classes):
    targets = torch.arange(300) % classes
    inputs = [torch.randn(300, 24), torch.randn(classes, 24), torch.randn(classes)]
    with compiled(True):
        runs = [evaluate(lambda *x: ops.full_softmax_loss(*x, targets), inputs) for _ in range(2)]
        assert all(map(torch.equal, *runs))
        for count in (1, 3):
            with threads(count):
                other = evaluate(lambda *x: ops.full_softmax_loss(*x, targets), inputs)
            for found, expected in zip(other, runs[0], strict=True):
                assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [100, 1000])
def test_the_sampled_losses_are_bit_equal_at_one_thread_count(block):
    targets, negatives = torch.arange(700) % 90, torch.randint(90, (7, 300))
    weights = torch.randn(7, 300)
    inputs = [torch.randn(700, 24), torch.randn(90, 24), torch.randn(90)]
    losses = [
        lambda *x: ops.sampled_softmax_loss(*x, targets, negatives, weights, block),
        lambda *x: ops.sampled_binary_loss(*x, targets, negatives, 0.5, block),
    ]
    for loss in losses:
        with compiled(True):
            runs = [evaluate(loss, inputs) for _ in range(2)]
            assert all(map(torch.equal, *runs))
            for count in (1, 3):
                with threads(count):
                    other = evaluate(loss, inputs)
                for found, expected in zip(other, runs[0], strict=True):
                    assert torch.allclose(found, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("form")
def test_blocks_are_separate_batches():
    targets, negatives = torch.arange(40) % 9 - 1, torch.randint(9, (3, 5))
    weights = torch.randn(3, 5)
    hidden, rows = torch.randn(40, 8), torch.randn(9, 8)
    together = ops.sampled_softmax_loss(hidden, rows, None, targets, negatives, weights, 16)
    parts = [
        ops.sampled_softmax_loss(h, rows, None, t, negatives[b, None], weights[b, None], 16)
        for b, (h, t) in enumerate(zip(hidden.split(16), targets.split(16), strict=True))
    ]
    assert float(together) == pytest.approx(float(sum(parts)), rel=1e-5)


@pytest.mark.usefixtures("form")
def test_the_sampled_loss_can_be_had_without_gradients():
    hidden, rows = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8)
    rest = torch.arange(20), torch.randint(30, (1, 6)), torch.randn(1, 6), 20
    trained = ops.sampled_softmax_loss(hidden, rows, None, *rest)
    with torch.no_grad():
        plain = ops.sampled_softmax_loss(hidden, rows, None, *rest)
    assert not plain.requires_grad
    assert plain == trained


@pytest.mark.usefixtures("form")
def test_the_softmax_loss_can_be_had_without_gradients():
    hidden, table = torch.randn(20, 8, requires_grad=True), torch.randn(30, 8)
    targets = torch.arange(20)
    trained = ops.full_softmax_loss(hidden, table, None, targets)
    with torch.no_grad():
        plain = ops.full_softmax_loss(hidden, table, None, targets)
    assert not plain.requires_grad
    assert plain == trained


@pytest.mark.usefixtures("form")
def test_strided_inputs_are_taken():
    x = torch.randn(64, TOKENS).T
    assert not x.is_contiguous()
    reset, wide = resets_of(LENGTHS), x.contiguous()
    weight = torch.randn(64, 2)[:, 0]
    pairs = [
        (ops.diagonal_recurrence(v, decay_of(32), reset) for v in (x, wide)),
        (ops.prefix_sum(v, reset) for v in (x, wide)),
        (ops.causal_linear_attention(*[v.view(-1, 2, 32) / 8] * 3, reset) for v in (x, wide)),
        (ops.dropout_add_norm(v, v, weight, weight, 0.0, True) for v in (x, wide)),
        (ops.bias_gelu_dropout(v, weight, 0.0, True) for v in (x, wide)),
        (ops.full_softmax_loss(v, v[:99], None, reset.long()) for v in (x, wide)),
        (ops.attention(*[v.view(-1, 2, 32)] * 3, offsets_of(LENGTHS)) for v in (wide, wide)),
    ]
    for first, second in pairs:
        assert torch.allclose(first, second, atol=1e-5)


def test_mixed_precision_residual_takes_the_wider_dtype():
    x, residual = torch.randn(5, 16).bfloat16(), torch.randn(5, 16)
    weight, bias = torch.ones(16), torch.zeros(16)
    y = ops.dropout_add_norm(x, residual, weight, bias, 0.0, False)
    expected = torch.nn.functional.layer_norm(x.float() + residual, (16,))
    assert y.dtype == torch.float32
    assert torch.allclose(y, expected, atol=1e-5)


def test_bf16_is_emulated_only_on_cpus_that_lack_it(monkeypatch):
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)
    assert not precision.emulated(torch.bfloat16, torch.device("cpu"))
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: False)
    assert precision.emulated(torch.bfloat16, torch.device("cpu"))
    assert not precision.emulated(torch.bfloat16, torch.device("cuda"))
    assert not precision.emulated(torch.float32, torch.device("cpu"))


X, RESET, IDS = torch.ones(4, 6), torch.zeros(4, dtype=torch.bool), torch.ones(4).long()
HEADS = torch.ones(4, 2, 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.diagonal_recurrence(X[:, :5], torch.ones(2, 3), RESET),
        lambda: ops.diagonal_recurrence(X, torch.ones(3, 2), RESET),
        lambda: ops.diagonal_recurrence(X, torch.ones(2, 3), RESET.long()),
        lambda: ops.diagonal_recurrence(X, torch.ones(2, 3), RESET, torch.ones(3)),
        lambda: ops.prefix_sum(X[0], RESET),
        lambda: ops.prefix_sum(X, RESET[:3]),
        lambda: ops.prefix_sum(X, RESET, X),
        lambda: ops.causal_linear_attention(X, X, X, RESET),
        lambda: ops.causal_linear_attention(HEADS, HEADS[:, :, :2], HEADS, RESET),
        lambda: ops.causal_linear_attention(HEADS, HEADS, HEADS[:, :1], RESET),
        lambda: ops.causal_linear_attention(HEADS, HEADS, HEADS.bfloat16(), RESET),
        lambda: ops.causal_linear_attention(HEADS, HEADS, HEADS, RESET.long()),
        lambda: ops.causal_linear_attention(HEADS, HEADS, HEADS, RESET, HEADS),
        lambda: ops.dropout_add_norm(X, X[:2], X[0], X[0], 0.1, True),
        lambda: ops.dropout_add_norm(X, X, X[0, :2], X[0], 0.1, True),
        lambda: ops.dropout_add_norm(X, X, X[0], X[0], 1.5, True),
        lambda: ops.bias_gelu_dropout(X, X[0, :2], 0.1, True),
        lambda: ops.full_softmax_loss(X, X[:, :2], None, IDS),
        lambda: ops.full_softmax_loss(X, X, X[0], IDS),
        lambda: ops.full_softmax_loss(X, X, None, IDS + 9),
        lambda: ops.full_softmax_loss(X, X, None, IDS - 2),
        lambda: ops.full_softmax_loss(X, X, None, IDS.int()),
        lambda: ops.sampled_softmax_loss(X, X[:, :2], None, IDS, IDS[None], X[:1, :4], 4),
        lambda: ops.sampled_softmax_loss(X, X, X[0], IDS, IDS[None], X[:1, :4], 4),
        lambda: ops.sampled_softmax_loss(X, X, None, IDS, IDS[None], X[:1, :3], 4),
        lambda: ops.sampled_softmax_loss(X, X, None, IDS, IDS[None], X[:1, :4], 3),
        lambda: ops.sampled_softmax_loss(X, X, None, IDS, IDS[None] + 9, X[:1, :4], 4),
        lambda: ops.sampled_binary_loss(X, X, None, IDS + 9, IDS[None], 1.0, 4),
        lambda: ops.sampled_binary_loss(X, X, None, IDS, IDS, 1.0, 4),
        lambda: ops.linear(X, X[:, :2]),
        lambda: ops.linear(X, X, torch.ones(7)),
        lambda: ops.linear(X, X.bfloat16()),
        lambda: ops.attention(X, X, X, IDS),
        lambda: ops.attention(*[X.view(4, 2, 3)] * 3, torch.tensor([0, 3])),
        lambda: ops.attention(*[X.view(4, 2, 3)] * 3, torch.tensor([0, 3, 2, 4])),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call):
    with pytest.raises(ValueError, match=r"^[^\n]+$"):
        call()
