"""Exact full-ranking evaluation, the same to the last bit on any number of workers."""

from pipeline.evaluate.baselines import PopularityScorer, popularity, recent_popularity
from pipeline.evaluate.evaluate import Model, ModelScorer, Scorer, evaluate
from pipeline.evaluate.metrics import MetricSums, user_metrics
from pipeline.evaluate.protocol import Protocol, Result
from pipeline.evaluate.ranking import Ranks, rank_targets, top_k
from pipeline.evaluate.scores import DenseScores, Scores, TableScores
from pipeline.evaluate.sharded import ShardedScorer

__all__ = [
    "DenseScores",
    "MetricSums",
    "Model",
    "ModelScorer",
    "PopularityScorer",
    "Protocol",
    "Ranks",
    "Result",
    "Scorer",
    "Scores",
    "ShardedScorer",
    "TableScores",
    "evaluate",
    "popularity",
    "rank_targets",
    "recent_popularity",
    "top_k",
    "user_metrics",
]
