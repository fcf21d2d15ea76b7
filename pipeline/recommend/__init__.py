"""From a trained model to lists of items for users."""

from pipeline.recommend.batch import recommend

__all__ = ["recommend"]
