"""Exact full-ranking evaluation, the same to the last bit on any number of workers."""

from pipeline.evaluate.baselines import PopularityScorer, popularity, recent_popularity
from pipeline.evaluate.catalogue import Catalogue
from pipeline.evaluate.cooccurrence import CoOccurrenceScorer, co_occurrence
from pipeline.evaluate.evaluate import Model, ModelScorer, Scorer, evaluate
from pipeline.evaluate.intervals import Sums
from pipeline.evaluate.lists import top_k
from pipeline.evaluate.metrics import half_places, user_metrics
from pipeline.evaluate.per_user import PerUserWriter
from pipeline.evaluate.protocol import Group, Protocol, Result
from pipeline.evaluate.ranking import Ranks, rank_targets
from pipeline.evaluate.scores import DenseScores, Scores, TableScores
from pipeline.evaluate.sharded import ShardedScorer

__all__ = [
    "Catalogue",
    "CoOccurrenceScorer",
    "DenseScores",
    "Group",
    "Model",
    "ModelScorer",
    "PerUserWriter",
    "PopularityScorer",
    "Protocol",
    "Ranks",
    "Result",
    "Scorer",
    "Scores",
    "ShardedScorer",
    "Sums",
    "TableScores",
    "co_occurrence",
    "evaluate",
    "half_places",
    "popularity",
    "rank_targets",
    "recent_popularity",
    "top_k",
    "user_metrics",
]
