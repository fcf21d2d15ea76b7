"""From a trained model to lists of items for users."""

from pipeline.recommend.batch import Summary, recommend
from pipeline.recommend.candidates import Candidates, read_candidates
from pipeline.recommend.few import recommend_users
from pipeline.recommend.request import Origin, Request

__all__ = [
    "Candidates",
    "Origin",
    "Request",
    "Summary",
    "read_candidates",
    "recommend",
    "recommend_users",
]
