"""LRURec against its published equations, written down here in complex numbers and plain loops."""

import math

import pytest
import torch
from torch import nn

import models
from models.lrurec import LRURec, LRURecConfig
from tests.models.test_models import packed


def build(catalogue_size: int, **settings: object) -> LRURec:
    model = models.build(LRURecConfig(**settings), catalogue_size)
    assert isinstance(model, LRURec)
    return model


@pytest.mark.parametrize(
    ("catalogue_size", "published"), [(3416, 322_841), (57_289, 3_824_586), (23_715, 1_642_276)]
)
def test_parameter_count(catalogue_size: int, published: int) -> None:
    """The published count takes a complex number for one; two biases of d have a dead half."""
    with torch.device("meta"):
        model = build(catalogue_size)
    complex_ones = sum(
        layer.in_proj.weight.numel() // 2
        + layer.in_proj.bias.numel() // 2
        + layer.out_proj.weight.numel() // 2
        for layer in model.mixers
    )
    reals = sum(parameter.numel() for parameter in model.parameters())
    assert reals - complex_ones == published


def test_initialisation() -> None:
    torch.manual_seed(3)
    model = build(5000)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif "ring" in name:
            nu, theta, gamma = parameter.detach().exp()
            modulus = torch.exp(-nu)
            assert modulus.min() >= 0.8 - 1e-6
            assert modulus.max() <= 0.99 + 1e-6
            # Uniform on the ring: the squares are uniform between the squared radii.
            assert abs((modulus**2).mean() - (0.8**2 + 0.99**2) / 2) < 0.03
            assert theta.max() <= 2 * math.pi
            torch.testing.assert_close(gamma, torch.sqrt(1 - modulus**2), rtol=1e-3, atol=1e-5)
        else:
            assert parameter.abs().max() <= 0.04
            if parameter.numel() > 4000:
                # N(0, 0.02^2) cut at two standard deviations has a deviation of 0.8796 * 0.02.
                assert abs(parameter.std().item() / (0.8796 * 0.02) - 1) < 0.03


def published_forward(model: LRURec, items: list[int]) -> torch.Tensor:
    """One left-padded row through the published equations; hidden states of its real items."""
    d = model.config.d
    row = [0] * 3 + items  # three pads, so that the mask matters
    x = model.embedding_norm(model.item_embedding(torch.tensor(row)))
    for block in model.blocks:
        layer, feed_forward = block.mixer, block.feed_forward
        nu, theta, gamma = layer.ring.exp()
        eigenvalues = torch.exp(torch.complex(-nu, theta))
        to_complex = torch.complex(*layer.in_proj.weight.chunk(2))
        bias = torch.complex(*layer.in_proj.bias.chunk(2))
        read_re, read_im = layer.out_proj.weight.chunk(2, dim=1)
        read = torch.complex(read_re, -read_im)
        h = torch.zeros(2 * d, dtype=eigenvalues.dtype)
        outputs = []
        for t in range(len(row)):
            carried = h if t > 0 and row[t - 1] > 0 else torch.zeros_like(h)
            h = gamma * (to_complex @ x[t].to(h.dtype) + bias) + eigenvalues * carried
            outputs.append((read @ h).real + layer.out_proj.bias)
        x = layer.norm(torch.stack(outputs) + x)
        wide = nn.functional.gelu(feed_forward.wide(x))
        x = feed_forward.norm(feed_forward.narrow(wide) + x)
    return x[3:]


def test_forward_is_the_published_one() -> None:
    torch.manual_seed(1)
    model = build(40, d=8).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name and "ring" not in name:
                parameter.mul_(20)
    histories = [[3, 40, 7, 7, 1], [9], [12, 5, 6]]
    found = model.encode(packed(histories))
    wanted = torch.cat([published_forward(model, items) for items in histories])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-11)


def test_decay_spares_biases_and_norms_only() -> None:
    model = build(10, d=4, blocks=1)
    spared = model.undecayed()
    assert "item_bias" in spared
    assert "blocks.0.mixer.in_proj.bias" in spared
    assert "blocks.0.feed_forward.norm.weight" in spared
    decayed = {"blocks.0.mixer.ring", "item_embedding.weight", "blocks.0.mixer.in_proj.weight"}
    assert decayed.isdisjoint(spared)


def test_mean_modulus_is_told() -> None:
    told = build(10).diagnostics()
    assert set(told) == {"lambda_modulus/block_0", "lambda_modulus/block_1"}
    assert all(0.85 < value < 0.95 for value in told.values())
