"""Whether a paired difference could be chance: a test by random signs, and its correction."""

import numpy as np

_DRAWS = 1 << 22  # binomial draws at once: bounds the memory


def sign_flip(differences: np.ndarray, counts: np.ndarray, samples: int, seed: int) -> float:
    """The two-sided p-value of Fisher's test by random signs, for a mean difference of zero.

    differences: float64 ``[D]``, all different; counts: int64 ``[D]``, the users that have each.
    Where two models do equally well, the sign of every user's difference is a coin's. Of ``n``
    users with one absolute difference a binomial number keep the sign, so a sample costs a draw
    for each of these, however many users there are. The observed signs count as one more sample
    (Phipson and Smyth 2010): p is never 0.
    """
    sizes, place = np.unique(np.abs(differences), return_inverse=True)
    users = np.bincount(place, counts, len(sizes)).astype(np.int64)
    observed = abs(float(differences @ counts))
    sizes, users = sizes[sizes > 0], users[sizes > 0]
    random = np.random.default_rng(seed)
    reached, left = 1, samples
    while left:
        rows = min(left, max(1, _DRAWS // max(1, len(sizes))))
        flipped = (2 * random.binomial(users, 0.5, (rows, len(users))) - users) @ sizes
        # Sums of the same terms in another order may differ in the last digits.
        reached += int((np.abs(flipped) >= observed * (1 - 1e-12)).sum())
        left -= rows
    return reached / (samples + 1)


def holm(p_values: list[float]) -> list[float]:
    """The p-values corrected for how many there are (Holm 1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    number, largest = len(p_values), 0.0
    corrected = [0.0] * number
    for place, index in enumerate(order.tolist()):
        largest = max(largest, min(1.0, (number - place) * p_values[index]))
        corrected[index] = largest
    return corrected
