"""BERT4Rec against torch's own transformer layer."""

import torch
from torch import nn

import models
from models.attention import AttentionMixer
from models.bert4rec import BERT4Rec, BERT4RecConfig
from tests.models.test_models import packed


def test_blocks_are_those_of_a_post_norm_transformer() -> None:
    torch.manual_seed(0)
    model = models.build(BERT4RecConfig(d=16, heads=4, dropout=0.0), 30).double().eval()
    assert isinstance(model, BERT4Rec)
    histories = [[3, 0, 7, 9], [12], [30, 1, 0]]
    wanted = []
    for history in histories:
        items = torch.tensor(history)
        x = model.item_embedding(items) + model.position_embedding.weight[: len(items)]
        x = model.embedding_norm(x)[None]
        for block in model.blocks:
            assert isinstance(block.mixer, AttentionMixer)
            layer = nn.TransformerEncoderLayer(
                16, 4, 64, 0.0, activation="gelu", batch_first=True, dtype=torch.float64
            )
            parts = {
                "self_attn.in_proj_": block.mixer.in_proj,
                "self_attn.out_proj.": block.mixer.out_proj,
                "norm1.": block.mixer.norm,
                "linear1.": block.feed_forward.wide,
                "linear2.": block.feed_forward.narrow,
                "norm2.": block.feed_forward.norm,
            }
            layer.load_state_dict(
                {
                    f"{name}{kind}": getattr(part, kind)
                    for name, part in parts.items()
                    for kind in ("weight", "bias")
                }
            )
            x = layer(x)
        wanted.append(model.projection_norm(nn.functional.gelu(model.projection(x[0]))))
    found = model.encode(packed(histories))
    torch.testing.assert_close(found, torch.cat(wanted), rtol=0, atol=1e-11)
