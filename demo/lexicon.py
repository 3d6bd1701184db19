"""VADER's own lexicon score: what the demo's adapter is compared with."""

import time
from collections.abc import Sequence

from scipy.stats import pearsonr
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


def score(texts: Sequence[str], ratings: Sequence[float]) -> tuple[float, float]:
    """(Pearson's r between VADER's compound score and the human ratings, seconds it took)."""
    start = time.perf_counter()
    analyzer = SentimentIntensityAnalyzer()
    compound = [analyzer.polarity_scores(text)["compound"] for text in texts]
    return float(pearsonr(compound, ratings).statistic), time.perf_counter() - start
